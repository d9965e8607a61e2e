"""Every case of the fault table (docs/faults.md) once: nothing is lost, and each ends as it must. And the table can fail."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.plates import approval_stories
from harness.plates.fault_cases import CASES
from harness.plates.fault_table import DELETED, LEFT, REFUSED, UNVERIFIABLE, Case, play, procedure
from include.plates import delete as deleting
from include.plates import delete_journal
from include.plates import verify as verifying
from include.plates.compare import PlateListing
from include.plates.models import Level, Outcome, Verdict
from include.plates.restore_target import FolderSink
from include.s3 import guarded_delete
from include.s3.bucket import Bucket, Head
from include.s3.multipart import Upload

BY_NAME = {case.name: case for case in CASES}
Patch = pytest.MonkeyPatch


def _spread() -> list[Any]:
    """Every third case runs in `make test`, all of them in `make test-full`: a case takes seconds."""
    return [
        pytest.param(case, id=case.name, marks=() if number % 3 == 0 else pytest.mark.full)
        for number, case in enumerate(CASES)
    ]


@pytest.mark.parametrize("case", _spread())
def test_nothing_is_lost_and_each_case_ends_as_it_must(case: Case, request: pytest.FixtureRequest):
    played = play(case, request.getfixturevalue("rclone_url" if case.real else "moto_url"), seed=1)
    assert played.ours == 0, played
    assert played.ended in case.ends, played
    assert played.unlined == 0, "every deletion has its line"


def test_the_procedure_s_own_check_loses_objects_in_many_of_these_cases():
    losing = {case.name for case in CASES if case.story is None and procedure(case, seed=1) > 0}
    assert {"F17 one flipped bit at rest", "F21 a new object after the proof"} < losing
    assert "no fault" not in losing and "a plate id that begins another's" not in losing
    assert not losing & {case.name for case in CASES if case.sop_stops}


# Without a guard, objects are lost: so the table tests the guards


def no_proof(patch: Patch) -> None:
    verdict = verifying._Verification.verdict

    def blind(self: Any) -> Any:
        told = verdict(self)
        checks = tuple(check.model_copy(update={"outcome": Outcome.VERIFIED}) for check in told.checks)
        return told.model_copy(update={"outcome": Outcome.VERIFIED, "checks": checks})

    patch.setattr(verifying._Verification, "verdict", blind)


def no_level(patch: Patch) -> None:
    """A deletion that takes every proof for as good as any other."""
    patch.setattr(Verdict, "level", Level.READ_BACK)


def no_condition(patch: Patch) -> None:
    async def unguarded(self: Any, target: Any, **_: Any) -> Any:
        await self._source.delete_one(target.key)
        return guarded_delete.KeyOutcome(target.key, None, guarded_delete.Result.DELETED)

    patch.setattr(guarded_delete.Deleter, "_one", unguarded)


def no_versions(patch: Patch) -> None:
    """A deletion of the current object, whatever it is, in place of the archived version."""
    delete_many = Bucket.delete_many

    async def current(self: Bucket, objects: Any) -> Any:
        versions = [await self.head(row["Key"]) for row in objects]
        rows = [{"Key": row["Key"], "VersionId": v.version_id} for row, v in zip(objects, versions, strict=True) if v]
        return await delete_many(self, rows)  # type: ignore[arg-type]

    patch.setattr(Bucket, "delete_many", current)


def no_batch_etags(patch: Patch) -> None:
    """But for the probe that finds out whether the store honours them."""
    delete_many = Bucket.delete_many

    async def bare(self: Bucket, rows: Any) -> Any:
        probing = rows[0]["Key"].endswith("condition_probe")
        return await delete_many(self, rows if probing else [{"Key": row["Key"]} for row in rows])

    patch.setattr(Bucket, "delete_many", bare)


def no_look_and_no_condition(patch: Patch) -> None:
    async def passes(*_: Any) -> None:
        return None

    patch.setattr(deleting._Deletion, "check_source", passes)
    no_condition(patch)


def no_look_at_the_archive(patch: Patch) -> None:
    async def passes(*_: Any) -> None:
        return None

    patch.setattr(deleting._Deletion, "check_archive", passes)


def no_judge(patch: Patch) -> None:
    from include.core import questions

    def yes(record: Any, *_: Any) -> Any:
        return record.model_copy(update={"state": "approved", "by": "anybody", "at": "now"})

    patch.setattr(questions, "judge", yes)  # the stories import it when they are played


def no_look_at_markers(patch: Patch) -> None:
    async def passes(*_: Any, **__: Any) -> None:
        return None

    patch.setattr(deleting._Deletion, "check_undone", passes)
    patch.setattr(guarded_delete.Deleter, "_kept", passes)


def overwriting(patch: Patch) -> None:
    async def put(self: Bucket, key: str, data: bytes, *, metadata: Any = None, **_: str) -> Any:
        answer = await self.access.call(
            "put_object", "PUT", Bucket=self.name, Key=key, Body=data, Metadata=dict(metadata or {})
        )
        return answer["ETag"].strip('"'), answer.get("VersionId")

    async def none(*_: Any) -> Any:
        return (), []

    async def passes(*_: Any) -> None:
        return None

    patch.setattr(Bucket, "put_new", put)
    patch.setattr("include.plates.plan._existing", none)
    patch.setattr("include.plates.archive._VolumeJob._refuse_foreign", passes)


def no_reading_to_compare(patch: Patch) -> None:
    """A restore that takes the size and what is written beside an object for its content."""

    async def same(bucket: Any, there: Any, member: Any, **_: Any) -> str | None:
        return "by its size" if there.size == member.size else None

    patch.setattr("include.plates.restore_target.same_bytes", same)


def no_check_of_what_came_out(patch: Patch) -> None:
    patch.setattr("include.plates.restore.agrees", lambda *_: True)


def any_answer_proves(patch: Patch) -> None:
    """A probe that survives is taken for a guard, whatever the store said."""
    from include.s3 import condition_probe

    async def refused(_: str, attempt: Any) -> bool:
        await attempt()
        return True

    patch.setattr(condition_probe, "_refused", refused)


def nothing_below(patch: Patch) -> None:
    async def none(*_: Any) -> list[Any]:
        return []

    patch.setattr(deleting, "older_versions", none)


def no_marker_stays(patch: Patch) -> None:
    """The archived version is deleted under no marker, and every marker is removed after a purge."""
    patch.setattr(guarded_delete.Deleter, "_cover", guarded_delete.Deleter._by_version)

    async def all_removed(self: Any, targets: Any, *_: Any) -> tuple[str, ...]:
        for one in targets:
            await self._source.delete_one(one.key, version_id=one.marker)
        return ()

    patch.setattr(guarded_delete.Deleter, "remove_markers", all_removed)


def older_taken_for_deleted(patch: Patch) -> None:
    """The archived version is deleted although the older one below it is there still."""

    async def taken(_: Any, targets: Any, *, resumed: bool) -> Any:
        return [guarded_delete._outcome(one, guarded_delete.Result.DELETED) for one in targets]

    patch.setattr(guarded_delete.Deleter, "_older", taken)


def no_places(patch: Patch) -> None:
    patch.setattr(deleting, "_check_places", lambda *_: None)


def no_time_of_proof(patch: Patch) -> None:
    take = delete_journal.DeletionJournal._take_any

    def without(self: Any, row: Any) -> None:
        take(self, row)
        self.last_at = 0.0

    patch.setattr(delete_journal.DeletionJournal, "_take_any", without)


def any_digest(patch: Patch) -> None:
    """An order whose approval is of whatever was proved."""

    class Whatever(str):
        __slots__ = ()
        __hash__ = str.__hash__

        def __eq__(self, _: object) -> bool:
            return True

        def __ne__(self, _: object) -> bool:
            return False

    order = approval_stories.DeleteOrder
    patch.setattr(
        approval_stories, "DeleteOrder", lambda digest, *more, **options: order(Whatever(digest), *more, **options)
    )


def no_age(patch: Patch) -> None:
    patch.setattr(deleting, "PROOF_DAYS", float("inf"))


def no_headers(patch: Patch) -> None:
    patch.setattr("include.plates.restore_target._arguments", lambda *_: {})


def replacing(patch: Patch) -> None:
    """A restore that takes every name for free, and makes room for the folders that it needs."""

    def path(self: FolderSink, member: Any) -> Path:
        found = self.root / (member.key or "")[:4000]
        for folder in found.parents:
            if folder.is_file():
                folder.unlink()
        return found

    patch.setattr(FolderSink, "_path", path)


def nobody_looks(patch: Patch) -> None:
    """A drill that takes a listing for a look."""

    async def sound(one: Any, *_: Any, **__: Any) -> Any:
        return SimpleNamespace(name=one.name, state="sound"), ()

    patch.setattr("harness.plates.drill_stories.look_at_plate", sound)


MUTANTS = [
    (no_condition, "F20 past every look, and the store has no DeleteObjects"),
    (older_taken_for_deleted, "older versions that are to be deleted, too"),
    (any_digest, "F34 an approval of one plate for the deletion of another"),
    (no_age, "F34 a proof of too long ago"),
    (no_headers, "restored with metadata, content type and tags"),
    (replacing, "restored into a folder that cannot take two files"),
    (nobody_looks, "after the deletion, the tarball is damaged or gone"),
    (no_reading_to_compare, "an image is rewritten after a restore, and restored again"),
    (no_check_of_what_came_out, "restored from a tarball with a flipped bit"),
    (any_answer_proves, "F20 past every look, conditions ignored, one error at the trial of conditions"),
    (nothing_below, "older versions, and an order that does not speak of them"),
    (no_marker_stays, "older versions that stay hidden"),
    (no_places, "F34 an approval of another plate"),
    (no_time_of_proof, "F34 deleted, restored, and deleted again with the first approval"),
    (no_proof, "F17 one flipped bit at rest"),
    (no_proof, "F19 a part is lost at rest"),
    (no_proof, "one image is not in the tarball"),
    (no_proof, "copied inside the store, past the archiver's look: swapped"),
    (no_proof, "copied inside the store, past the archiver's look: stale"),
    (no_proof, "copied inside the store, past the archiver's look: flipped"),
    (no_level, "copied inside the store, a bit flipped at rest"),
    (no_look_and_no_condition, "F20 an object overwritten after the proof"),
    (no_condition, "F20 past every look, If-Match honoured"),
    (no_condition, "F20 past every look, conditions ignored"),
    (no_versions, "F20 past every look, on versioned buckets"),
    (no_batch_etags, "F20 past every look, ETags in batches honoured"),
    (no_look_at_the_archive, "F34 the tarball is replaced after the approval"),
    (no_judge, "F35 approved by somebody who may not"),
    (no_judge, "F35 two approvers race"),
    (no_look_at_markers, "a marked object is brought back while the purge runs"),
    (overwriting, "an archive of that name exists"),
]


@pytest.mark.parametrize(("guard_off", "name"), MUTANTS, ids=[f"{guard.__name__}: {name}" for guard, name in MUTANTS])
def test_without_its_guard_a_case_loses_objects(guard_off: Any, name: str, moto_url: str, monkeypatch: Patch):
    guard_off(monkeypatch)
    assert any(play(BY_NAME[name], moto_url, seed=seed).ours > 0 for seed in (1, 2, 3)), "what happens is drawn"


CUT = "is cut short, and says that it is whole"


async def one_listing(*_: Any, **__: Any) -> Any:
    return (), ""


async def agreeing(*_: Any, before: Any, **__: Any) -> PlateListing:
    """The second listing shows what the first one did."""
    return PlateListing(before[0], len(before[0]), (), "")


@pytest.mark.parametrize("which", ["versions", "current objects"])
def test_without_the_plan_s_second_listing_the_proof_has_its_own(which: str, moto_url: str, monkeypatch: Patch):
    monkeypatch.setattr("include.plates.plan._listed_again", one_listing)
    assert play(BY_NAME[f"F22 the listing of {which} {CUT}"], moto_url, seed=1).ended == UNVERIFIABLE


def test_without_the_second_listing_a_cut_one_is_taken_for_the_plate(moto_url: str, monkeypatch: Patch):
    monkeypatch.setattr("include.plates.plan._listed_again", one_listing)
    monkeypatch.setattr("include.plates.compare.list_again", agreeing)
    case = BY_NAME[f"F22 the listing of versions {CUT}"]
    assert play(case, moto_url, seed=1).ended not in (UNVERIFIABLE, REFUSED)


def test_without_null_version_ids_a_deletion_only_hides(moto_url: str, monkeypatch: Patch):
    monkeypatch.setattr(
        guarded_delete.Deleter, "_version_of", lambda _, target: target.version_id if target.by_version else None
    )
    assert play(BY_NAME["a bucket that was versioned after the upload"], moto_url, seed=1).ended == LEFT


def test_without_the_intent_in_the_journal_a_crash_leaves_deletions_without_their_line(
    moto_url: str, monkeypatch: Patch
):
    take = delete_journal.DeletionJournal._take
    monkeypatch.setattr(
        delete_journal.DeletionJournal, "_take", lambda self, row: None if "intent" in row else take(self, row)
    )
    played = play(BY_NAME["F36 a crash in the middle of a deletion"], moto_url, seed=1)
    assert played.ended != DELETED or played.unlined > 0


def test_without_knowing_its_own_tarball_an_archive_that_is_run_again_is_refused(moto_url: str, monkeypatch: Patch):
    class Never(Exception):
        pass

    def as_told(self: Any, answer: Any) -> Head:
        return Head(self.key, self.stored_bytes, answer["ETag"].strip('"'), None, 0, metadata=self._metadata)

    monkeypatch.setattr(Upload, "_named_in", as_told)
    monkeypatch.setattr("include.plates.archive.ObjectExists", Never)
    case = BY_NAME["archived twice, and the store has two ETags for one upload"]
    assert play(case, moto_url, seed=1).ended == REFUSED
