"""Faults of approvals: persons who may not, and proofs of something else or of another time."""

from __future__ import annotations

import time
from typing import Any

from harness.plates.bench import Bench, run
from harness.plates.fault_judge import lost, still_there, stored
from harness.plates.fault_shapes import flipped
from harness.plates.fault_stories import deletion, ended, proved
from harness.plates.fault_table import (
    ALL,
    DELETED,
    UNAPPROVED,
    VOID,
    Draw,
    Played,
    few_files,
    how_it_ended,
)
from harness.plates.servers import PROJECT, noise, plate
from harness.plates.sop_world import SopWorld, backed_up
from include.core.errors import WaybillError
from include.core.journal import FileJournal
from include.plates.delete import delete_plate
from include.plates.models import PROOF_DAYS, DeleteOrder

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
    kept = set() if valid else files.keys()
    world = backed_up(one, files)
    world.delete(one)
    played = Played(0, world.lost(files, one, kept=kept), UNAPPROVED)
    try:
        if judge(record, verdict.manifests_sha256, People(("amy", "vic"))).state == "approved":
            played.ended = ended(deletion(bench, verdict))
    except WaybillError as error:
        played.said = str(error)
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
    world = backed_up(one, files)
    for key in bench.keys(bench.cold):
        bench.client.delete_object(Bucket=bench.cold, Key=key)
    late = f"projects/{PROJECT}/BBBC022/images/20586/Images/late{draw.randrange(99)}.tiff"
    files[late] = noise(draw.random(), 500)
    bench.journals /= "again"
    second = proved(bench, one, files)
    answer = Answer(chosen_options=[APPROVE], responded_at="now", responded_by_user={"id": "amy", "name": "amy"})
    asked = Record(task_id="approval", options=(APPROVE, REJECT), stopping=(REJECT,), asked_by="uli")
    record = asked.changed("answered", sha256=first.manifests_sha256, answer=answer)
    world.put({late: files[late]})
    world.backup(one)
    world.delete(one)
    played = Played(0, world.lost(files, one, kept=files.keys()), UNAPPROVED)
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
    world = backed_up(one, files)  # it has no manifest, and looks at its listings once
    world.delete(one)
    played = Played(0, world.lost(files, one), "")
    try:
        played.ended = ended(deletion(bench, verdict))
    except WaybillError as error:
        played.said, played.ended = str(error), how_it_ended(error, verdict)
    played.ours = lost(files, still_there(bench, files), stored(bench), one, kept=files.keys())
    return played


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
    world, elsewhere = backed_up(one, files), SopWorld()
    elsewhere.put(files)
    world.delete(one)  # its script names the bucket
    order = DeleteOrder(verdict.manifests_sha256, ALL, retention="none")
    places: dict[str, Any] = {"source": bench.access.bucket(other), "archive": bench.archive}
    played = Played(0, world.lost(files, one) + len(files.keys() - elsewhere.holding(files)), "")
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
    world = backed_up(one, files)
    world.delete(one)
    world.put(back)
    world.delete(one)  # its script lies in the bucket still, and in the folder from which all are run
    played = Played(0, world.lost(back, one, kept=back.keys()), "")
    try:
        played.ended = ended(deletion(bench, verdict))
    except WaybillError as error:
        played.said, played.ended = str(error), how_it_ended(error, verdict)
    played.ours = lost(back, still_there(bench, back), stored(bench), one, kept=back.keys())
    return played


def digest_of_another(bench: Bench, draw: Draw) -> Played:
    """Two plates are proved, one is approved, and the other is to be deleted with that approval."""
    plates = [plate(), plate("20999")]
    draw.shuffle(plates)
    mine, other = plates
    files = few_files(mine) | few_files(other)
    approved, verdict = proved(bench, mine, few_files(mine)), proved(bench, other, few_files(other))
    order = DeleteOrder(approved.manifests_sha256, ALL, retention="none")
    world = SopWorld()
    world.put(files)
    for one in plates:
        world.backup(one)
    world.delete(mine)  # a script is one plate's
    played = Played(0, len(few_files(other).keys() - world.holding(files)), "")
    try:
        journal = FileJournal(bench.journals / "d")
        played.ended = ended(
            run(delete_plate(verdict, order, source=bench.source, archive=bench.archive, journal=journal))
        )
    except WaybillError as error:
        played.said, played.ended = str(error), how_it_ended(error, verdict)
    played.ours = len(files.keys() - still_there(bench, files))
    return played


def old_proof(bench: Bench, draw: Draw) -> Played:
    """The tarball was read back too long ago, and a bit of it has flipped since: size and metadata are as they were."""
    one = plate()
    files = few_files(one)
    days = PROOF_DAYS + draw.uniform(0.1, 300)
    verdict = proved(bench, one, files).model_copy(update={"verified_at": time.time() - days * 86_400})
    world = backed_up(one, files)
    name = next(iter(world.tarballs))
    world.tarballs[name] = flipped(world.tarballs[name], draw)
    world.delete(one)
    played = Played(0, world.lost(files, one), "")
    try:
        played.ended = ended(deletion(bench, verdict))
    except WaybillError as error:
        played.said, played.ended = str(error), how_it_ended(error, verdict)
    played.ours = len(files.keys() - still_there(bench, files))
    return played


APPROVALS = {
    wrong_person: (UNAPPROVED,),
    no_answer: (UNAPPROVED,),
    race: (UNAPPROVED,),
    stale_answer: (UNAPPROVED,),
    other_manifest: (VOID,),
    proof_of_another: (VOID,),
    digest_of_another: (VOID,),
    old_proof: (VOID,),
    restored: (VOID,),
}
