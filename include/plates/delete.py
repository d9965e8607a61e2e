"""Deletes a plate's archived objects: from the verified manifests, key by key, each under a guard, in journaled batches.

Invariant: before the plate's first deletion any difference voids the approval and nothing is deleted; after it,
whatever is not in the manifest, or is no longer what was archived, is kept and listed. Nothing here takes a prefix. What is
current again after the deletion is said, whatever brought it back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Container
from dataclasses import replace
from datetime import UTC, datetime

from include.core.errors import ConflictingRequest, RequestError, VerificationError
from include.core.journal import PartJournal
from include.core.packed import Finder, Packed
from include.core.progress import OnProgress, Progress, silent
from include.plates.compare import ArchivedObject, compare, list_plate, older_versions
from include.plates.delete_journal import DAY, DeletionJournal
from include.plates.delete_preview import archived_members, by_key, chosen_by, refuses_older
from include.plates.delete_report import DeleteReport, looked_after, tally
from include.plates.errors import ApprovalVoid, RetentionRefused
from include.plates.layout import fill
from include.plates.measurements import shared_parts
from include.plates.models import PROOF_DAYS, DeleteOrder, Level, ManifestMember, Outcome, Verdict
from include.s3.bucket import Bucket, ListedObject
from include.s3.condition_probe import detect_conditional_delete, removed
from include.s3.guarded_delete import AroundBatch, Batches, DeleteBatch, DeleteGuard, Deleter, Target, just_send

_PROBE = b"Waybill asks whether this store honours conditional deletes.\n"


async def delete_plate(
    verdict: Verdict,
    order: DeleteOrder,
    *,
    source: Bucket,
    archive: Bucket,
    journal: PartJournal,
    around_batch: AroundBatch = just_send,
    clock: Callable[[], float] = time.time,
    on_progress: OnProgress = silent,
) -> DeleteReport:
    """Carries out an approved deletion, or the rest of one that a crash broke off (same journal, same order).

    `around_batch(batch, send)` may wrap each batch, for instance in a ledger's submission; it returns what `send` gives.
    The journal must be the plate's own and serve all its phases. Raises VerificationError (not verified), ApprovalVoid,
    RetentionRefused, RequestError, ConflictingRequest (another order is open), and the core's errors; what single keys
    answered is in the report, whose `complete` must be looked at.
    """
    check_order(verdict, order)
    _check_places(verdict, source, archive)
    work = _Deletion(verdict, order, source, archive, DeletionJournal(journal, verdict, order), clock)
    await work.journal.load(clock())
    work.check_age()
    await work.check_archive()
    members = await archived_members(verdict, archive)
    shared = await shared_parts(verdict.plate, verdict.layout, source)
    chosen = by_key(chosen_by(order, members, shared))
    batches = await work.batches(chosen)
    if work.journal.is_settled(len(batches)) and await work.opened_again(chosen):
        batches = await work.batches(chosen)
    if order.phase == "purge":
        await work.check_undone(batches)
    elif not work.journal.begun:
        await work.check_source(members)
    await work.journal.open()
    deleter, guard = await work.deleter(batches)
    await work.carry_out(batches, deleter, around_batch, on_progress)
    return await work.report(batches, guard, members, shared)


def check_order(verdict: Verdict, order: DeleteOrder) -> None:
    """Whether an order may be carried out by this proof. Raises VerificationError, ApprovalVoid, RequestError."""
    if verdict.outcome is not Outcome.VERIFIED or any(
        check.outcome is not Outcome.VERIFIED for check in verdict.checks
    ):
        raise VerificationError(f"{verdict.tag} is {verdict.outcome.value}, so nothing of it may be deleted")
    if verdict.level is Level.STORE_PROVED and order.needs is Level.READ_BACK:
        raise VerificationError(
            f"{verdict.tag} is only store-proved, and this deletion needs a tarball that was read back: verify it so"
        )
    if order.approved_sha256 != verdict.manifests_sha256:
        raise ApprovalVoid(f"{verdict.tag}: the approval is for other manifests than those verified; ask again")
    known = {part.name for part in verdict.layout.parts}
    if not order.parts or set(order.parts) - known:
        raise RequestError(f"parts to delete: name some of {', '.join(sorted(known))}; nothing is deleted by default")
    if not 1 <= order.batch_size <= 1000:
        raise RequestError("batch_size is between 1 and 1000")


def _check_places(verdict: Verdict, source: Bucket, archive: Bucket) -> None:
    """A proof is of one plate in one bucket, archived in another: it allows nothing anywhere else."""
    if (source.name, archive.name) != (verdict.bucket, verdict.archive_bucket):
        raise ApprovalVoid(
            f"{verdict.tag}: the proof is of {verdict.bucket}, archived in {verdict.archive_bucket}, and not of {source.name} "
            f"in {archive.name}; verify there and ask again"
        )


class _Deletion:
    def __init__(
        self,
        verdict: Verdict,
        order: DeleteOrder,
        source: Bucket,
        archive: Bucket,
        journal: DeletionJournal,
        clock: Callable[[], float],
    ):
        self._verdict = verdict
        self._order = order
        self._source = source
        self._archive = archive
        self.journal = journal
        self._clock = clock
        self._resumed = 0
        self._left_behind: list[str] = []

    # Before anything is deleted

    def check_age(self) -> None:
        """What was read back long ago may have rotted since: a proof counts for a time, and the time to undo on top of it."""
        age, days = self.age_days, PROOF_DAYS + (self._order.undo_days if self._order.phase == "purge" else 0.0)
        if age is None and (self.journal.begun or self._order.phase == "purge"):
            return  # begun by the code of before, whose proofs had no time
        if age is None or age > days:
            old = "of unknown age" if age is None else f"{age:.0f} days old"
            raise ApprovalVoid(
                f"{self._verdict.tag}: its proof is {old}, and a proof counts {days:g} days. Nothing was deleted; verify "
                "again and ask again"
            )

    @property
    def age_days(self) -> float | None:
        at = self._verdict.verified_at
        return None if at is None else max(0.0, self._clock() - at) / DAY

    async def opened_again(self, chosen: Finder[ManifestMember]) -> bool:
        """Whether objects are there again that this journal calls deleted, so that the order is for another deletion.

        Raises ApprovalVoid where proof and approval are of the time before the first one.
        """
        if self._order.phase == "purge":
            return False
        known = set((self.journal.finished or {}).get("unknown", ()))
        is_older = self._is_older()
        back: list[str] = []

        def note(one: ListedObject, number: int | None) -> None:
            if number is not None and one.key not in known and not is_older(one):
                back.append(one.key)

        await list_plate(self._verdict.plate, self._verdict.layout, self._source, chosen, note)
        if not back:
            return False
        proved = self._verdict.verified_at
        if proved is None or proved <= self.journal.last_at:
            when = datetime.fromtimestamp(self.journal.last_at, UTC).isoformat(timespec="seconds")
            raise ApprovalVoid(
                f"{self._verdict.tag}: it was deleted at {when}, and {len(back)} objects are there again, the first "
                f"{min(back)!r}. Nothing was deleted now; verify again and ask again"
            )
        if self.journal.finished is None:
            await self.journal.note_finished(self.journal.last_at, ())
        self.journal.forget()
        return True

    def _is_older(self) -> Callable[[ListedObject], bool]:
        """Tells of a listed object whether it is one of the older versions."""
        rows = self.journal.older
        if not rows:
            return lambda _: False
        known = Finder(rows, lambda one: f"{one.version_id}\n{one.key}")
        return lambda one: f"{one.version_id}\n{one.key}" in known

    async def check_archive(self) -> None:
        """The surviving copy is still the one that was read, and protected as demanded."""
        protected = await self._archive.versioning() == "Enabled"
        for proof in self._verdict.volumes:
            there = await self._archive.head(proof.key)
            now = (there.etag, there.size, there.version_id) if there else None
            if now != (proof.etag, proof.stored_bytes, proof.version_id):
                raise ApprovalVoid(f"{proof.key} is no longer the tarball that was verified; nothing was deleted")
            if self._order.retention == "versioned" and not (protected and proof.version_id):
                raise RetentionRefused(
                    f"{proof.key}: the bucket {self._archive.name} is not versioned, and retention=versioned is asked for"
                )
            locked = there is not None and (there.legal_hold or (there.retain_until or 0.0) > self._clock())
            if self._order.retention == "locked" and not locked:
                raise RetentionRefused(f"{proof.key} has no object lock, and retention=locked is asked for")

    async def batches(self, chosen: Finder[ManifestMember]) -> Batches:
        """The archived objects, and where the order deletes them the versions below, as they were when the deletion began."""
        if self.journal.older is None:
            older = await older_versions(chosen, self._verdict.plate, self._verdict.layout, self._source)
            why = refuses_older(self._verdict, self._order, older)
            if why is not None:
                raise RequestError(why)
            self.journal.older = older
        targets = self._targets(chosen)
        if self._order.older_versions == "delete" and self._order.phase != "marker":
            archived = Finder(targets, lambda one: one.key)
            below = [v for v in self.journal.older if v.key in archived] if self.journal.older else []
            targets.extend(Target(v.key, v.etag, v.size, v.version_id, older=True) for v in below)
        return Batches(targets, self._order.batch_size, self.journal.name)

    def _targets(self, chosen: Finder[ManifestMember]) -> Packed[Target]:
        if self._order.phase != "purge":
            return Packed(Target, (Target(m.key or "", m.etag or "", m.size, m.version_id) for m in chosen.rows))
        marked = self.journal.markers()
        found = ((member, marked.find(member.key or "")) for member in chosen.rows)
        return Packed(
            Target,
            (
                Target(m.key or "", m.etag or "", m.size, m.version_id, marked.rows[number].marker)
                for m, number in found
                if number is not None
            ),
        )

    async def check_source(self, members: Packed[ManifestMember]) -> None:
        """Until the first deletion, the plate must be exactly what the manifests say."""
        archived = (ArchivedObject(m.key or "", m.etag, m.size, m.version_id) for m in members)
        found = await compare(archived, self._verdict.plate, self._verdict.layout, self._source)
        if found.sentence is not None:
            raise ApprovalVoid(
                f"{self._verdict.tag} changed since it was approved ({found.sentence}). Nothing was deleted; "
                "verify again and ask again."
            )

    async def check_undone(self, batches: Batches) -> None:
        """Who removes a marker wants the object back: nothing of that plate is purged without a person's word."""
        if self.journal.begun:
            return  # from here on each object is looked at by itself, right before its batch
        marked = Finder(batches.archived, lambda one: one.key)
        back: list[str] = []

        def note(one: ListedObject, number: int | None) -> None:
            if number is not None and one.version_id == (marked.rows[number].version_id or "null"):
                back.append(one.key)

        await list_plate(self._verdict.plate, self._verdict.layout, self._source, marked, note)
        if back:
            raise ApprovalVoid(
                f"{self._verdict.tag}: {len(back)} marked objects were brought back, the first {min(back)!r}. Nothing was "
                "purged; the versions of the others stay under their markers until a person deletes them"
            )

    async def deleter(self, batches: Batches) -> tuple[Deleter, DeleteGuard]:
        """What deletes, under the strongest guard that this bucket is seen to honour now, whatever a journal of before says."""
        versioning = await self._source.versioning()
        older = self.journal.older if self._keeps_hidden else None
        covered: Container[str] = Finder(older, lambda one: one.key) if older else frozenset()
        guard = self.journal.guard
        if guard is None or not self.journal.is_settled(len(batches)):
            guard = await self._choose(batches, versioning, covered=bool(older))
            await self.journal.note_guard(guard)
        return Deleter(self._source, guard, versioned=bool(versioning), covered=covered), guard

    @property
    def _keeps_hidden(self) -> bool:
        return self._order.older_versions == "keep_hidden"

    async def _choose(self, batches: Batches, versioning: str, *, covered: bool) -> DeleteGuard:
        if batches and (self._order.phase == "marker" or covered) and versioning == "Suspended":
            raise RequestError(
                f"{self._source.name}: its versioning is suspended, so a delete marker would end what was written since, with "
                "nothing to undo. Switch versioning on again, or delete without undo_days and keep_hidden"
            )
        if self._order.phase in ("marker", "purge"):
            if not versioning and batches:
                raise RequestError(
                    f"{self._source.name} is not versioned: there is no marker to undo; use phase delete"
                )
            return DeleteGuard.MARKER if self._order.phase == "marker" else DeleteGuard.PURGE
        if covered:
            return DeleteGuard.COVERED
        exact = sum(target.by_version for target in batches.targets())
        if exact and exact == batches.targets_in_all:
            return DeleteGuard.VERSION
        if versioning or exact:
            return DeleteGuard.HEAD  # versions and null versions mixed: look at each
        prefix = fill(self._verdict.layout.backup_prefix, self._verdict.plate)
        probed = await detect_conditional_delete(self._source, f"{prefix}{self._verdict.tag}_condition_probe", _PROBE)
        self._left_behind += [probed.left] if probed.left else []
        return probed.guard

    # Deleting

    async def carry_out(self, batches: Batches, deleter: Deleter, around: AroundBatch, on_progress: OnProgress) -> None:
        """Every batch that is not settled: intent durably first, then the deletion, then each key's outcome durably.

        A key whose failure is journaled is not deleted, and is tried again.
        """
        total, done = batches.size_bytes, 0
        for batch in batches:
            earlier = self.journal.intents.get(batch.number)
            if earlier is not None and earlier != batch.digest:
                raise ConflictingRequest(f"{batch.business_key}: the journal holds another list for this batch")
            if self.journal.has_settled(batch.number):
                self._resumed += 1
            else:
                settled = tuple(self.journal.outcomes.get(batch.number, ()))
                await self._batch(replace(batch, resumed=earlier is not None, settled=settled), deleter, around)
            done += batch.size_bytes
            on_progress(Progress("delete", done, total, batch.number, len(batches), self._verdict.tag))

    async def _batch(self, batch: DeleteBatch, deleter: Deleter, around: AroundBatch) -> None:
        if not batch.resumed:
            await self.journal.note_intent(batch.number, batch.digest, [target.key for target in batch.targets])
        outcomes = await around(batch, lambda: deleter.send(batch))
        if self._order.phase == "purge":
            self._left_behind += await deleter.remove_markers(batch.targets, outcomes)
        await self.journal.note_outcomes(batch.number, outcomes, self._clock())

    # Afterwards

    async def report(
        self, batches: Batches, guard: DeleteGuard, members: Packed[ManifestMember], shared: frozenset[str]
    ) -> DeleteReport:
        outcomes = self.journal.outcomes
        marking = self._order.phase == "marker"
        found = tally(batches, outcomes, marking=marking)
        back, unknown = await looked_after(self._verdict, self._source, outcomes.values(), members, self._is_older())
        prefix = fill(self._verdict.layout.archive_prefix, self._verdict.plate)
        digest = found.sha256
        key = f"{prefix}{self._verdict.tag}.{self._order.phase}d.{digest[:16]}.jsonl".replace("markerd", "marked")
        await self._archive.put_new(key, found.lines.getvalue())
        report = DeleteReport(
            tag=self._verdict.tag,
            phase=self._order.phase,
            guard=guard.value,
            retention=self._order.retention,
            targets=batches.targets_in_all,
            deleted=found.deleted,
            absent=found.absent,
            deleted_bytes=found.deleted_bytes,
            freed_bytes=found.freed_bytes,
            older_versions=len(self.journal.older or ()),
            older_deleted=found.older_deleted,
            changed=found.keys("changed"),
            failed=found.keys("failed"),
            inferred=found.keys("inferred"),
            current_again=back,
            unknown=unknown,
            left_behind=await self._still_left(),
            shared_parts=tuple(sorted(shared & set(self._order.parts))),
            batches=len(outcomes),
            resumed_batches=self._resumed,
            proof_age_days=self.age_days,
            outcomes_key=key,
            outcomes_sha256=digest,
        )
        if report.complete and not marking and self.journal.finished is None:
            await self.journal.note_finished(self._clock(), unknown)
        return report

    async def _still_left(self) -> tuple[str, ...]:
        """What was written to try the store out, or marks what is gone, and could not be removed: once more, and else named."""
        probes = {key for key in self._left_behind if key.endswith("_condition_probe")}
        gone = {key for key in probes if await removed(self._source, key)}
        return tuple(dict.fromkeys(key for key in self._left_behind if key not in gone))
