"""The table of faults: F16 to F25, F34 to F36 of docs/faults.md, and the cases that plates have met or may meet.

Played once each by the tests and with many seeds by the benchmark.

Invariant: `ends` says how the engine must end, so a case that is refused for another reason than its fault fails.
"""

from __future__ import annotations

from typing import Any

from harness.plates import sop_policy
from harness.plates.approval_stories import (
    APPROVALS,
    digest_of_another,
    no_answer,
    old_proof,
    other_manifest,
    proof_of_another,
    race,
    restored,
    stale_answer,
    wrong_person,
)
from harness.plates.drill_stories import DRILLS
from harness.plates.fault_copies import COPIES
from harness.plates.fault_shapes import (
    CUT_UPLOAD,
    CUT_VERSIONS,
    FORGOTTEN_PART,
    NO_MARKER,
    OBJECTS_CUT,
    ONE_ERROR,
    SOME_FAIL,
    add,
    at,
    bomb,
    contents_swapped,
    empty,
    even,
    flipped,
    full_disk,
    large,
    long_names,
    member_dropped,
    missing,
    new_lines,
    no_batches,
    odd_names,
    only_sibling,
    overwrite,
    overwrite_last,
    part_lost,
    parts_swapped,
    refusing,
    short,
    vanish,
    with_markers,
    with_sibling,
    without_backend,
    zeros,
)
from harness.plates.fault_stories import (
    ENDS,
    archived_again,
    cold_source,
    existing_archive,
    one_of_a_batch,
    script_tarball,
    two_measurements,
    whole_script_tarball,
)
from harness.plates.fault_table import DELETED, LEFT, MISMATCH, REFUSED, UNVERIFIABLE, VOID, Case
from harness.plates.restore_stories import (
    RESTORES,
    changed_since_restored,
    deleted_after_restore_over,
    restored_from_a_bomb,
    restored_from_damage,
    restored_into_a_folder,
    restored_twice,
    restored_with_its_headers,
)
from harness.plates.version_stories import (
    VERSIONS,
    brought_back,
    brought_back_late,
    marker_lost,
    older_deleted,
    older_hidden,
    older_refused,
    versioned_later,
)
from harness.proxy import HONOUR_BATCH_ETAGS, ignore_headers


def story(name: str, play: object, *, versioned: bool = False) -> Case:
    return Case(name, ends=(ENDS | APPROVALS | VERSIONS | RESTORES)[play], story=play, versioned=versioned)  # type: ignore[index, arg-type]


def unlisted(_: sop_policy.SopRun) -> sop_policy.SopRun:
    """Both HEADs of its check are refused, so both ETags are empty, and equal."""
    return sop_policy.SopRun(None, None)


DENIED: dict[str, Any] = {"status": 403, "code": "AccessDenied"}
ARCHIVE_TWICE = refusing("archive", "PUT", "analysis.manifest", **DENIED, once=True)

CASES = (
    Case("no fault", (DELETED,)),
    Case("no fault, on versioned buckets", (DELETED,), versioned=True),
    # What lies there is not what was sent
    Case("F16 the stored tarball is short", (MISMATCH,), at_rest=short),
    Case("F16 the stored tarball is missing", (MISMATCH,), at_rest=missing),
    Case("F17 one flipped bit at rest", (MISMATCH,), at_rest=flipped),
    Case("F17 one flipped bit at rest, after the approval", (VOID,), after_approval=flipped),
    Case("F18 zeros after byte N", (MISMATCH,), at_rest=zeros),
    Case("F19 the store keeps half of an upload", (REFUSED,), rules=at("archive", CUT_UPLOAD), sop_stops=True),
    Case("F19 the store forgets a part", (REFUSED,), files=large, rules=at("archive", FORGOTTEN_PART), sop_stops=True),
    Case("F19 a part is lost at rest", (MISMATCH,), at_rest=part_lost),
    Case("F19 parts are out of order", (MISMATCH,), at_rest=parts_swapped),
    Case("one image is not in the tarball", (MISMATCH,), at_rest=member_dropped),
    Case("a bomb lies in place of the tarball", (MISMATCH,), at_rest=bomb),
    # The live bucket changes
    Case("F20 an object overwritten after the proof", (VOID,), after_proof=overwrite),
    Case("F20 an object overwritten while the deletion runs", (DELETED, LEFT), between_batches=overwrite),
    # Left: what was written in the second of the archived version counts as current again.
    Case("F20 past every look, on versioned buckets", (DELETED, LEFT), at_first_delete=overwrite_last, versioned=True),
    Case("F20 past every look, If-Match honoured", (LEFT,), at_first_delete=overwrite_last),
    Case(
        "F20 past every look, ETags in batches honoured",
        (LEFT,),
        at_first_delete=overwrite_last,
        rules=at("delete", HONOUR_BATCH_ETAGS),
    ),
    Case(
        "F20 past every look, conditions ignored",
        (LEFT,),
        at_first_delete=overwrite_last,
        rules=at("delete", ignore_headers("if-match")),
    ),
    Case(
        "F20 past every look, conditions ignored, one error at the trial of conditions",
        (LEFT,),
        at_first_delete=overwrite_last,
        rules=at("delete", ONE_ERROR, ignore_headers("if-match")),
    ),
    Case(
        "F20 past every look, and the store has no DeleteObjects",
        (LEFT,),
        at_first_delete=overwrite_last,
        rules=no_batches,
    ),
    Case("F21 a new object between listing and reading", (MISMATCH,), after_listing=add),
    Case("F21 a new object after the reading", (MISMATCH,), after_reading=add),
    Case("F21 a new object after the proof", (VOID,), after_proof=add),
    Case("F21 a new object while the deletion runs", (DELETED,), between_batches=add),
    Case("F22 the first listing lags behind", (MISMATCH,), hidden="plan"),
    Case("F22 the listing of the proof lags behind", (UNVERIFIABLE,), hidden="verify"),
    Case(
        "F22 the listing of a bucket without versions is cut short, and says that it is whole",
        (REFUSED,),
        rules=lambda _: {"plan": [OBJECTS_CUT], "verify": [OBJECTS_CUT]},
    ),
    Case(
        "F22 the listing of current objects is cut short, and says that it is whole",
        (REFUSED,),
        versioned=True,
        rules=lambda _: {"plan": [OBJECTS_CUT], "verify": [OBJECTS_CUT]},
    ),
    Case(
        "F22 the listing of versions goes on, and does not say where",
        (UNVERIFIABLE,),
        versioned=True,
        rules=at("verify", NO_MARKER),
    ),
    Case("F22 the listing before the deletion lags behind", (DELETED,), hidden="delete"),
    Case(
        "F22 the listing of versions is cut short, and says that it is whole",
        (REFUSED,),
        versioned=True,
        rules=lambda _: {"plan": [CUT_VERSIONS], "verify": [CUT_VERSIONS]},
    ),
    Case("F23 an object changed between listing and reading", (REFUSED,), after_listing=overwrite),
    Case("F23 an object changed while others were read", (REFUSED, MISMATCH), while_reading=overwrite),
    Case("F23 an object changed after it was read", (MISMATCH,), after_reading=overwrite),
    Case("an object vanishes between listing and reading", (REFUSED,), after_listing=vanish),
    Case("an object vanishes after it was read", (MISMATCH,), after_reading=vanish),
    # Disks and stores that fail
    Case("F24 the journal's disk fails", (DELETED,), journal=full_disk, sop_stops=True),
    Case(
        "F24 the store fails while an image is read",
        (REFUSED,),
        rules=refusing("archive", "GET", ".tiff", 500, "InternalError"),
        sop_stops=True,
    ),
    Case(
        "the credential expires while images are read",
        (REFUSED,),
        rules=refusing("archive", "GET", ".tiff", 400, "ExpiredToken"),
        sop_stops=True,
    ),
    Case(
        "the credential expires while the tarball is read back",
        (UNVERIFIABLE,),
        rules=refusing("verify", "GET", "analysis.tar", 400, "ExpiredToken"),
    ),
    Case(
        "F24 the tarball may not be read",
        (UNVERIFIABLE,),
        rules=refusing("verify", "GET", "analysis.tar", **DENIED),
    ),
    Case("some keys may not be deleted", (LEFT,), rules=refusing("delete", "DELETE", "Images/r01", **DENIED)),
    Case("errors inside a 200 of DeleteObjects", (LEFT,), rules=at("delete", SOME_FAIL), versioned=True),
    Case(
        "HEAD is answered 403, and one image is not in the tarball",
        (UNVERIFIABLE,),
        at_rest=member_dropped,
        rules=refusing("verify", "HEAD", "imaging_analysis", **DENIED),
        sop_check=unlisted,
    ),
    Case("a crash between tarball and manifest", (REFUSED,), rules=ARCHIVE_TWICE, sop_stops=True),
    # Names and shapes
    Case("F25 spaces, quotes, case, composed and decomposed letters", (DELETED,), files=odd_names),
    Case("F25 names over 100 and over 255 bytes", (DELETED,), files=long_names),
    Case("F25 line breaks, tabs, backslashes", (DELETED,), files=new_lines, real=True),
    Case(
        "a space in the full name, two images swapped",
        (MISMATCH,),
        files=even,
        full="20586__x-Measurement 1",
        at_rest=contents_swapped,
    ),
    Case("a plate id that begins another's", (DELETED,), files=with_sibling),
    Case("the plate is empty, another's id begins with its id", (REFUSED,), files=only_sibling),
    Case("the plate is empty", (REFUSED,), files=empty),
    Case("unequal ids", (DELETED,), full="20586__2016-04-21T03_34_00-Measurement1"),
    Case("an empty backend", (DELETED,), files=without_backend),
    Case("folder markers", (DELETED,), files=with_markers),
    story("two measurements of one plate id", two_measurements),
    story("one damaged plate of a batch", one_of_a_batch),
    story("an archive of that name exists", existing_archive),
    story("archived twice, and the store has two ETags for one upload", archived_again),
    story("an archived-class source", cold_source),
    story("the procedure's own tarball, one flipped bit", script_tarball),
    story("the procedure's own tarball, whole", whole_script_tarball),
    # The store copies
    *(Case(name, ends=ends, story=play) for name, play, ends in COPIES),
    # At rest after the deletion
    *(Case(name, ends=ends, story=play) for name, play, ends in DRILLS),
    # Approvals
    Case("F34 the tarball is replaced after the approval", (VOID,), files=even, after_approval=contents_swapped),
    story("F34 an approval of another plate", proof_of_another),
    story("F34 an approval of one plate for the deletion of another", digest_of_another),
    story("F34 a proof of too long ago", old_proof),
    story("F34 deleted, restored, and deleted again with the first approval", restored),
    story("F34 a manifest is replaced after the approval", other_manifest),
    story("F34 archived anew after the approval", stale_answer),
    story("F35 approved by somebody who may not", wrong_person),
    story("F35 two approvers race", race),
    story("F35 no answer, or none of the two", no_answer),
    # Restores
    story("restored twice, with an empty object and one in parts", restored_twice),
    story("an image is rewritten after a restore, and restored again", changed_since_restored),
    story("restored from a tarball with a flipped bit", restored_from_damage),
    story("restored from a bomb of the tarball's size", restored_from_a_bomb),
    story("restored with metadata, content type and tags", restored_with_its_headers),
    story("restored into a folder that cannot take two files", restored_into_a_folder),
    story("restored over, changed, and deleted by the proof of before", deleted_after_restore_over),
    # Crashes of the deletion
    Case("F36 a crash in the middle of a deletion", (DELETED,), crash=True),
    Case("F36 the same, on versioned buckets", (DELETED,), crash=True, versioned=True),
    Case("F36 a crash, and a new object before the next try", (DELETED,), crash=True, between_batches=add),
    story("F36 a crash between markers and their ids", marker_lost, versioned=True),
    story("older versions, and an order that does not speak of them", older_refused, versioned=True),
    story("older versions that stay hidden", older_hidden, versioned=True),
    story("older versions that are to be deleted, too", older_deleted, versioned=True),
    story("a bucket that was versioned after the upload", versioned_later),
    story("a marked object is brought back before the purge", brought_back, versioned=True),
    story("a marked object is brought back while the purge runs", brought_back_late, versioned=True),
)
