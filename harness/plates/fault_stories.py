"""Faults that need more than one plate, more than one phase, or a person: each plays itself to the engine and to the SOP."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from harness.plates import sop_policy
from harness.plates.bench import Bench, run
from harness.plates.fault_judge import Files, lost, pack, still_there, stored, unlined
from harness.plates.fault_shapes import flipped
from harness.plates.fault_table import (
    ALL,
    BATCH,
    DELETED,
    LEFT,
    MISMATCH,
    REFUSED,
    UNAPPROVED,
    UNVERIFIABLE,
    VOID,
    Crash,
    Draw,
    Live,
    Played,
    few_files,
    harm,
    how_it_ended,
    tarball_of,
)
from harness.plates.servers import PROJECT, noise, plate, plate_files
from include.core.errors import WaybillError
from include.core.journal import FileJournal
from include.plates.delete import delete_plate
from include.plates.delete_report import DeleteReport
from include.plates.layout import BROAD2018, disambiguate, tag_of
from include.plates.models import DeleteOrder, Outcome, Plate, Verdict
from include.s3.guarded_delete import DeleteBatch, Outcomes, SendBatch


def proved(bench: Bench, one: Plate, files: Mapping[str, bytes]) -> Verdict:
    bench.put(files)
    run(bench.archive_it(run(bench.plan(one))))
    return run(bench.verify(one))


def deletion(bench: Bench, verdict: Verdict, *, around: Any = None, **changes: Any) -> DeleteReport:
    values: dict[str, Any] = {"parts": ALL, "retention": "none", "batch_size": BATCH} | changes
    order = DeleteOrder(verdict.manifests_sha256, **values)
    journal = FileJournal(bench.journals / verdict.plate.plate_id_full)
    more = {"around_batch": around} if around else {}
    return run(delete_plate(verdict, order, source=bench.source, archive=bench.archive, journal=journal, **more))


def ended(report: DeleteReport) -> str:
    return DELETED if report.complete else LEFT


# More than one archive


def two_measurements(bench: Bench, draw: Draw) -> Played:
    """Two measurements of one plate id, one after the other: the SOP gives both archives one name."""
    names = [f"20586__m-Measurement{n}" for n in (1, 2)]
    plates = disambiguate(plate(full=name) for name in names)
    images: list[Files] = [
        {
            f"projects/{PROJECT}/BBBC022/images/{name}/Images/r{n}.tiff": noise((name, n, draw.random()), 400)
            for n in range(3)
        }
        for name in names
    ]
    truth = images[0] | images[1]
    bench.put(truth)
    reports = [deletion(bench, proved(bench, one, {}), parts=("images",)) for one in plates]
    tarballs = stored(bench)
    ours = sum(lost(files, still_there(bench, files), tarballs, one) for files, one in zip(images, plates, strict=True))
    # Under Python 3 its guard never sees the first archive, and the second overwrites it.
    theirs = lost(truth, set(), [pack(images[1], tag_of(BROAD2018, plate()))], plate())
    whole = all(report.complete and report.deleted == 3 for report in reports)
    return Played(ours, theirs, DELETED if whole else LEFT)


def existing_archive(bench: Bench, draw: Draw) -> Played:
    """An archive of that name lies there already, of images whose sources are gone."""
    one = plate()
    old = {f"projects/{PROJECT}/BBBC022/images/20586/Images/old{n}.tiff": noise(draw.random(), 400) for n in range(3)}
    tag = tag_of(BROAD2018, one)
    bench.client.put_object(Bucket=bench.cold, Key=tarball_of(one), Body=pack(old, tag))
    files = few_files(one)
    played = Played(0, lost(files | old, set(), [pack(files, tag)], one), DELETED)
    try:
        deletion(bench, proved(bench, one, files))
    except WaybillError as error:
        played.said, played.ended = str(error), REFUSED
    played.ours = lost(files | old, still_there(bench, files), stored(bench), one)
    return played


def script_tarball(bench: Bench, draw: Draw) -> Played:
    """The procedure's own tarball lies there, damaged, and its source is to be deleted now."""
    return _script_tarball(bench, draw, damaged=True)


def whole_script_tarball(bench: Bench, draw: Draw) -> Played:
    """The same, undamaged: nothing says what it should hold, so nothing is deleted for it."""
    return _script_tarball(bench, draw, damaged=False)


def _script_tarball(bench: Bench, draw: Draw, *, damaged: bool) -> Played:
    one = plate()
    files = few_files(one)
    tag = tag_of(BROAD2018, one)
    main = {key: data for key, data in files.items() if "/backend/" not in key}
    tarballs = [pack(main, tag), pack({key: data for key, data in files.items() if key not in main}, tag)]
    md5 = hashlib.md5(tarballs[0]).hexdigest()
    if damaged:
        tarballs[0] = flipped(tarballs[0], draw)
    bench.put(files)
    for key, data in zip((tarball_of(one), tarball_of(one, "backend")), tarballs, strict=True):
        bench.client.put_object(Bucket=bench.cold, Key=key, Body=data)
    beside = tarball_of(one).removesuffix(".tar.gz") + ".md5"
    bench.client.put_object(Bucket=bench.cold, Key=beside, Body=f"{md5}  {tag}\n".encode())
    played = Played(0, lost(files, set(), tarballs, one), DELETED)  # both its listings were made before the upload
    verdict = run(bench.verify(one))
    try:
        deletion(bench, verdict)
    except WaybillError as error:
        played.said, played.ended = str(error), str(verdict.outcome.value)
    played.ours = lost(files, still_there(bench, files), stored(bench), one)
    return played


def cold_source(bench: Bench, draw: Draw) -> Played:
    """One image lies in an archived storage class: `aws s3 sync` skips it with a warning."""
    one = plate()
    files = few_files(one)
    bench.put(files)
    frozen = Live(files).image(draw)
    bench.client.put_object(Bucket=bench.live, Key=frozen, Body=files[frozen], StorageClass="DEEP_ARCHIVE")
    tag = tag_of(BROAD2018, one)
    copied = {key: data for key, data in files.items() if key != frozen}
    passes = sop_policy.check_plate(sop_policy.backup(one, files, copied, tag))
    played = Played(0, lost(files, set(), [pack(copied, tag)], one) if passes else 0, DELETED)
    try:
        deletion(bench, proved(bench, one, {}))
    except WaybillError as error:
        played.said, played.ended = str(error), REFUSED
    played.ours = lost(files, still_there(bench, files), stored(bench), one)
    return played


def one_of_a_batch(bench: Bench, draw: Draw) -> Played:
    """Five plates, the tarball of one is damaged: it is kept, and stops none of the others."""
    ids = [f"2058{n}" for n in range(5)]
    bad = draw.choice(ids)
    played = Played(0, 0, DELETED)
    for name in ids:
        one = plate(name)
        files = {key: data for key, data in plate_files(one, sites=1).items() if "/workspace/" not in key}
        verdict = proved(bench, one, files)
        if name == bad:
            harm(bench, one, flipped, draw)
            verdict = run(bench.verify(one))
            theirs = flipped(pack(files, tag_of(BROAD2018, one)), draw)
            played.theirs += lost(files, set(), [theirs], one)  # both listings were made before the upload: they agree
        try:
            complete = deletion(bench, verdict).complete and name != bad
        except WaybillError:
            complete = name == bad and verdict.outcome is Outcome.MISMATCH
        played.ended = played.ended if complete else LEFT
        played.ours += lost(files, still_there(bench, files), stored(bench), one)
    return played


# Persons


def answered(bench: Bench, draw: Draw, person: object, triggered_by: str | None, options: list[str]) -> Played:
    """A proved plate, and an answer to the question whether it may be deleted. The SOP asks nobody."""
    from include.core.questions import APPROVE, REJECT, Answer, People, Record, judge

    one = plate()
    files = few_files(one)
    verdict = proved(bench, one, files)
    who = None if person is None else {"id": person, "name": person}
    answer = Answer(chosen_options=options, responded_at="now", responded_by_user=who) if options else None
    asked = Record(task_id="approval", options=(APPROVE, REJECT), stopping=(REJECT,), asked_by=triggered_by)
    record = asked.changed("answered", sha256=verdict.manifests_sha256, answer=answer)
    valid = options == ["Approve"] and person in ("amy", "vic") and triggered_by not in (None, person)
    played = Played(0, 0 if valid else len(files), UNAPPROVED)
    try:
        if judge(record, verdict.manifests_sha256, People(("amy", "vic"))).state == "approved":
            played.ended = ended(deletion(bench, verdict))
    except WaybillError as error:
        played.said = str(error)
    kept = set() if valid else files.keys()
    played.ours = lost(files, still_there(bench, files), stored(bench), one, kept=kept)
    return played


def wrong_person(bench: Bench, draw: Draw) -> Played:
    """Who started the run, who is no approver, nobody, or somebody who may have started it."""
    person, triggered_by = draw.choice(
        [("uli", "amy"), ("amy", "amy"), ("", "uli"), (None, "uli"), ("amy", None), ("uli", "uli")]
    )
    return answered(bench, draw, person, triggered_by, ["Approve"])


def no_answer(bench: Bench, draw: Draw) -> Played:
    """The question was marked success, so there is no answer; or it ended in none of the options."""
    return answered(bench, draw, "amy", "uli", draw.choice([[], ["approve"], ["Approve", "Approve"], ["Yes"]]))


def race(bench: Bench, draw: Draw) -> Played:
    """Two approvers answer at once, one of them no: whatever is recorded, only a single Approve counts."""
    options = draw.choice([["Approve", "Reject"], ["Reject", "Approve"], ["Reject"]])
    return answered(bench, draw, draw.choice(["amy", "vic"]), "uli", options)


def stale_answer(bench: Bench, draw: Draw) -> Played:
    """Approved, and then archived anew with one more image: the answer is not about what is proved now."""
    from include.core.questions import APPROVE, REJECT, Answer, People, Record, judge

    one = plate()
    files = few_files(one)
    first = proved(bench, one, files)
    for key in bench.keys(bench.cold):
        bench.client.delete_object(Bucket=bench.cold, Key=key)
    late = f"projects/{PROJECT}/BBBC022/images/20586/Images/late{draw.randrange(99)}.tiff"
    files[late] = noise(draw.random(), 500)
    bench.journals /= "again"
    second = proved(bench, one, files)
    answer = Answer(chosen_options=[APPROVE], responded_at="now", responded_by_user={"id": "amy", "name": "amy"})
    asked = Record(task_id="approval", options=(APPROVE, REJECT), stopping=(REJECT,), asked_by="uli")
    record = asked.changed("answered", sha256=first.manifests_sha256, answer=answer)
    played = Played(0, 0, UNAPPROVED)
    try:
        judge(record, second.manifests_sha256, People(("amy",)))
        played.ended = ended(deletion(bench, second))
    except WaybillError as error:
        played.said = str(error)
    try:  # and the deletion itself: an order of the first approval, with the proof of now
        order = DeleteOrder(first.manifests_sha256, ALL, retention="none")
        journal = FileJournal(bench.journals / "d")
        run(delete_plate(second, order, source=bench.source, archive=bench.archive, journal=journal))
        played.ended = DELETED
    except WaybillError as error:
        played.said += f"; {error}"
    played.ours = lost(files, still_there(bench, files), stored(bench), one, kept=files.keys())
    return played


def other_manifest(bench: Bench, draw: Draw) -> Played:
    """After the approval somebody puts another manifest beside the tarball."""
    one = plate()
    files = few_files(one)
    verdict = proved(bench, one, files)
    key = draw.choice(verdict.volumes).manifest_key
    bench.client.put_object(Bucket=bench.cold, Key=key, Body=flipped(bench.get(key), draw))
    played = Played(0, 0, "")
    try:
        played.ended = ended(deletion(bench, verdict))
    except WaybillError as error:
        played.said, played.ended = str(error), how_it_ended(error, verdict)
    played.ours = lost(files, still_there(bench, files), stored(bench), one, kept=files.keys())
    return played


# Two phases: markers, and the purge. The SOP deletes once; on a versioned bucket its deletion is a marker for ever.


def undo(bench: Bench, key: str) -> None:
    markers = bench.client.list_object_versions(Bucket=bench.live, Prefix=key)["DeleteMarkers"]
    bench.client.delete_object(Bucket=bench.live, Key=key, VersionId=markers[0]["VersionId"])


def brought_back(bench: Bench, draw: Draw) -> Played:
    """One marker is removed before the purge: nothing of the plate is purged."""
    one = plate()
    files = few_files(one)
    verdict = proved(bench, one, files)
    deletion(bench, verdict, phase="marker")
    back = Live(files).image(draw)
    undo(bench, back)
    played = Played(0, 0, "")
    try:
        played.ended = ended(deletion(bench, verdict, phase="purge"))
    except WaybillError as error:
        played.said, played.ended = str(error), how_it_ended(error, verdict)
    played.ours = lost(files, still_there(bench, files), stored(bench), one, kept={back})
    return played


def brought_back_late(bench: Bench, draw: Draw) -> Played:
    """A marker is removed while the purge runs: that object stays."""
    one = plate()
    files = few_files(one)
    verdict = proved(bench, one, files)
    deletion(bench, verdict, phase="marker")
    back = draw.choice(sorted(files)[BATCH:])
    crash = draw.random() < 0.5

    async def around(batch: DeleteBatch, send: SendBatch) -> Outcomes:
        outcomes = await send()
        if batch.number == 1 and not batch.resumed:
            undo(bench, back)
            if crash:
                raise Crash
        return outcomes

    try:
        report = deletion(bench, verdict, phase="purge", around=around)
    except Crash:
        report = deletion(bench, verdict, phase="purge")
    ours = lost(files, still_there(bench, files), stored(bench), one, kept={back})
    return Played(ours, 0, ended(report), unlined=unlined(bench, files.keys() - {back}, report), report=report)


def marker_lost(bench: Bench, draw: Draw) -> Played:
    """The worker dies after it has set markers and before it has written their ids down."""
    one = plate()
    files = few_files(one)
    verdict = proved(bench, one, files)
    last = draw.randrange(1, 3)

    async def around(batch: DeleteBatch, send: SendBatch) -> Outcomes:
        outcomes = await send()
        if batch.number == last:
            raise Crash
        return outcomes

    try:
        deletion(bench, verdict, phase="marker", around=around)
    except Crash:
        pass
    marked = deletion(bench, verdict, phase="marker")
    unknown = [key for key in files if key not in _lines(bench, marked)]
    report = deletion(bench, verdict, phase="purge")
    left = {row["Key"] for kind in ("Versions", "DeleteMarkers") for row in _versions(bench).get(kind, [])}
    whole = report.complete and not left & files.keys() and not unknown
    return Played(lost(files, left, stored(bench), one), 0, DELETED if whole else LEFT, report=report)


def _lines(bench: Bench, report: DeleteReport) -> str:
    return bench.get(report.outcomes_key).decode()


def _versions(bench: Bench) -> dict[str, Any]:
    return dict(bench.client.list_object_versions(Bucket=bench.live))


# Versions below, and versions from before


def _older(bench: Bench, files: Files, draw: Draw) -> str:
    """One image has an older version, of other content."""
    key = Live(files).image(draw)
    bench.client.put_object(Bucket=bench.live, Key=key, Body=noise(("old", draw.random()), 300))
    return key


def _seen(bench: Bench, files: Files) -> int:
    """Keys of the plate that a user sees with content that is not the last: what came back."""
    pages = bench.client.get_paginator("list_objects_v2").paginate(Bucket=bench.live)
    current = {row["Key"] for page in pages for row in page.get("Contents", [])}
    return len(current & files.keys() - still_there(bench, files))


def older_refused(bench: Bench, draw: Draw) -> Played:
    """The SOP deletes by a marker for ever, so nothing comes back by it."""
    one = plate()
    files = few_files(one)
    _older(bench, files, draw)
    verdict = proved(bench, one, files)
    played = Played(0, 0, "")
    try:
        played.ended = ended(deletion(bench, verdict))
    except WaybillError as error:
        played.said, played.ended = str(error), REFUSED
    played.ours = lost(files, still_there(bench, files), stored(bench), one) + _seen(bench, files)
    return played


def older_hidden(bench: Bench, draw: Draw) -> Played:
    """Deleted, or marked and purged; the worker may die in between. What lay below must not come to light."""
    one = plate()
    files = few_files(one)
    key = _older(bench, files, draw)
    verdict = proved(bench, one, files)
    seen: list[int] = []
    last = draw.randrange(1, 3)

    async def around(batch: DeleteBatch, send: SendBatch) -> Outcomes:
        outcomes = await send()
        seen.append(_seen(bench, files))
        if batch.number == last and not batch.resumed:
            raise Crash
        return outcomes

    for phase in draw.choice([("delete",), ("marker", "purge")]):
        options: dict[str, Any] = {"phase": phase, "older_versions": "keep_hidden"}
        try:
            report = deletion(bench, verdict, around=around, **options)
        except Crash:
            report = deletion(bench, verdict, **options)
    left = {row["Key"] for row in _versions(bench).get("Versions", [])} & files.keys()
    ours = lost(files, still_there(bench, files), stored(bench), one) + sum(seen) + _seen(bench, files)
    return Played(ours, 0, DELETED if report.complete and left == {key} else LEFT, report=report)


def versioned_later(bench: Bench, draw: Draw) -> Played:
    """The bucket got versions after the upload, or after the proof: its objects are versions `null`."""
    one = plate()
    files = few_files(one)
    early = draw.random() < 0.5
    if early:
        bench.put(files)
        _enable(bench)
    verdict = proved(bench, one, {} if early else files)
    if not early:
        bench.client.put_bucket_versioning(Bucket=bench.live, VersioningConfiguration={"Status": "Enabled"})
    report = deletion(bench, verdict)
    kept = {row["Key"] for kind in ("Versions", "DeleteMarkers") for row in _versions(bench).get(kind, [])}
    really = report.complete and not kept & files.keys() and report.freed_bytes == sum(map(len, files.values()))
    ours = lost(files, still_there(bench, files), stored(bench), one)
    return Played(ours, 0, DELETED if really else LEFT, unlined=unlined(bench, files.keys(), report), report=report)


def _enable(bench: Bench) -> None:
    for name in (bench.live, bench.cold):
        bench.client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})


# Proofs of something else, and of another time


def proof_of_another(bench: Bench, draw: Draw) -> Played:
    """The same plate lies in two buckets, and only one of them was proved and approved."""
    one = plate()
    files = few_files(one)
    verdict = proved(bench, one, files)
    other = f"{bench.live}-other"
    bench.client.create_bucket(Bucket=other)
    for key, data in files.items():
        bench.client.put_object(Bucket=other, Key=key, Body=data)
    order = DeleteOrder(verdict.manifests_sha256, ALL, retention="none")
    places: dict[str, Any] = {"source": bench.access.bucket(other), "archive": bench.archive}
    played = Played(0, 0, "")
    try:
        played.ended = ended(run(delete_plate(verdict, order, journal=FileJournal(bench.journals / "d"), **places)))
    except WaybillError as error:
        played.said, played.ended = str(error), how_it_ended(error, verdict)
    played.ours = len(files.keys() - bench.keys(other))
    return played


def restored(bench: Bench, draw: Draw) -> Played:
    """All of it, or a part, is there again: nobody said that it may be deleted a second time."""
    one = plate()
    files = few_files(one)
    verdict = proved(bench, one, files)
    deletion(bench, verdict)
    back = dict(files) if draw.random() < 0.5 else {key: files[key] for key in sorted(files)[: draw.randrange(1, 4)]}
    bench.put(back)
    played = Played(0, 0, "")
    try:
        played.ended = ended(deletion(bench, verdict))
    except WaybillError as error:
        played.said, played.ended = str(error), how_it_ended(error, verdict)
    played.ours = lost(back, still_there(bench, back), stored(bench), one, kept=back.keys())
    return played


ENDS = {
    older_refused: (REFUSED,),
    older_hidden: (DELETED,),
    versioned_later: (DELETED,),
    proof_of_another: (VOID,),
    restored: (VOID,),
    two_measurements: (DELETED,),
    existing_archive: (REFUSED,),
    cold_source: (REFUSED,),
    script_tarball: (MISMATCH,),
    whole_script_tarball: (UNVERIFIABLE,),
    one_of_a_batch: (DELETED,),
    wrong_person: (UNAPPROVED,),
    no_answer: (UNAPPROVED,),
    race: (UNAPPROVED,),
    stale_answer: (UNAPPROVED,),
    other_manifest: (VOID,),
    brought_back: (VOID,),
    brought_back_late: (LEFT,),
    marker_lost: (DELETED,),
}
