"""Deletes a plate's archived objects: from the verified manifests, key by key, each under a guard, in journaled batches.

Invariant: before the plate's first deletion any difference voids the approval and nothing is deleted; after it,
whatever is not in the manifest, or is no longer what was archived, is kept and listed. Nothing here takes a prefix.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from include.core.errors import ConflictingRequest, NotFound, RequestError, VerificationError
from include.core.journal import PartJournal
from include.core.progress import OnProgress, Progress, silent
from include.plates.compare import ArchivedObject, compare, list_plate
from include.plates.errors import ApprovalVoid, RetentionRefused
from include.plates.layout import fill
from include.plates.manifest import decode_manifest
from include.plates.measurements import shared_parts
from include.plates.models import DeleteOrder, Frozen, Level, ManifestMember, Outcome, Phase, Retention, Verdict
from include.s3.bucket import Bucket
from include.s3.guarded_delete import (
    AroundBatch,
    DeleteBatch,
    DeleteGuard,
    Deleter,
    KeyOutcome,
    Outcomes,
    Result,
    Target,
    batches_of,
    detect_conditional_delete,
    just_send,
)

_DAY = 86_400.0
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
    _check_order(verdict, order)
    work = _Deletion(verdict, order, source, archive, journal, clock)
    await work.load()
    await work.check_archive()
    members = await work.members()
    shared = await shared_parts(verdict.plate, verdict.layout, source)
    targets = work.targets(_to_delete(members, order, shared))
    if order.phase == "purge":
        await work.check_undone(targets)
    elif not work.begun:
        await work.check_source(members)
    guard = await work.guard(targets)
    await work.carry_out(
        batches_of(targets, order.batch_size, work.name), Deleter(source, guard), around_batch, on_progress
    )
    return await work.report(targets, guard, members, shared)


@dataclass(frozen=True)
class PartPreview:
    """What an order deletes of one part of a plate; `shared`: another measurement uses the part too, so it is kept.

    `done` objects of it were deleted (or marked) before, by an order that was broken off.
    """

    part: str
    objects: int
    size_bytes: int
    shared: bool = False
    done: int = 0


async def preview(
    verdict: Verdict, order: DeleteOrder, *, source: Bucket, archive: Bucket, journal: PartJournal
) -> tuple[PartPreview, ...]:
    """What `delete_plate` would delete now, counted from the same manifests by the same rule; it deletes nothing."""
    _check_order(verdict, order)
    members = await _Deletion(verdict, order, source, archive, journal, time.time).members()
    shared = await shared_parts(verdict.plate, verdict.layout, source)
    done = _done(await asyncio.to_thread(journal.load))
    chosen = _to_delete(members, order, shared)
    return tuple(
        PartPreview(
            part,
            sum(m.part == part for m in chosen),
            sum(m.size for m in chosen if m.part == part),
            part in shared,
            sum(m.part == part and m.key in done for m in chosen),
        )
        for part in order.parts
    )


def _to_delete(members: Sequence[ManifestMember], order: DeleteOrder, shared: frozenset[str]) -> list[ManifestMember]:
    return [m for m in members if m.part in order.parts and m.part not in shared]


def _done(rows: Sequence[dict[str, Any]]) -> frozenset[str]:
    """The keys that a journal says are deleted or marked."""
    gone = (Result.DELETED, Result.ABSENT)
    return frozenset(one["key"] for row in rows for one in row.get("outcomes", ()) if one["result"] in gone)


def _check_order(verdict: Verdict, order: DeleteOrder) -> None:
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


class _Deletion:
    def __init__(
        self,
        verdict: Verdict,
        order: DeleteOrder,
        source: Bucket,
        archive: Bucket,
        journal: PartJournal,
        clock: Callable[[], float],
    ):
        self._verdict = verdict
        self._order = order
        self._source = source
        self._archive = archive
        self._journal = journal
        self._clock = clock
        self._outcomes: dict[int, Outcomes] = {}
        self._intents: dict[int, str] = {}
        self._markers: dict[str, str | None] = {}
        self._marked_at: float | None = None
        self._guard: DeleteGuard | None = None
        self._resumed = 0
        self.name = f"{verdict.tag}/{verdict.manifests_sha256[:16]}/{order.phase}"

    @property
    def begun(self) -> bool:
        """Whether a batch of this phase was ever sent: from then on the source may differ from the manifest by our doing."""
        return bool(self._intents)

    async def load(self) -> None:
        identity = {"manifests": self._verdict.manifests_sha256, "parts": sorted(self._order.parts)}
        phase = ""
        for row in await asyncio.to_thread(self._journal.load):
            if "order" in row:
                if row["order"] != identity:
                    raise ConflictingRequest(f"{self.name}: this journal is of {row['order']}, not of {identity}")
                phase = row["phase"]
            elif phase == "marker" and "outcomes" in row:
                self._marked_at = row["at"]
                self._markers |= {r["key"]: r["marker"] for r in row["outcomes"] if r["result"] == Result.DELETED}
            if phase == self._order.phase:
                self._take(row)
        if phase != self._order.phase:
            self._check_phase(phase)
            await self._note({"order": identity, "phase": self._order.phase})

    def _check_phase(self, last: str) -> None:
        allowed = {"delete": ("",), "marker": ("",), "purge": ("marker",)}[self._order.phase]
        if last not in allowed:
            raise ConflictingRequest(
                f"{self.name}: the journal ends in phase {last or 'nothing'}; {allowed} is expected"
            )
        if self._order.phase == "purge":
            ready = (self._marked_at or 0.0) + self._order.undo_days * _DAY
            if self._marked_at is None or self._clock() < ready:
                raise ApprovalVoid(f"{self.name}: the undo time of {self._order.undo_days} days is not over")

    def _take(self, row: dict[str, Any]) -> None:
        if "guard" in row:
            self._guard = DeleteGuard[row["guard"]]
        elif "intent" in row:
            self._intents[row["intent"]] = row["digest"]
        elif "outcomes" in row:
            self._outcomes[row["batch"]] = tuple(
                KeyOutcome(**one | {"result": Result(one["result"])}) for one in row["outcomes"]
            )

    # Before anything is deleted

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

    async def members(self) -> list[ManifestMember]:
        """All archived objects, from the manifests as they lie on the archive bucket now."""
        found: list[ManifestMember] = []
        for proof in self._verdict.volumes:
            try:
                data = await self._archive.read_all(proof.manifest_key)
            except NotFound:
                raise ApprovalVoid(f"{proof.manifest_key} is gone; nothing was deleted") from None
            if hashlib.sha256(data).hexdigest() != proof.manifest_sha256:
                raise ApprovalVoid(f"{proof.manifest_key} is not the manifest that was approved; nothing was deleted")
            found += [member for member in decode_manifest(data).members if member.key is not None]
        return found

    def targets(self, members: Sequence[ManifestMember]) -> list[Target]:
        purge = self._order.phase == "purge"
        return [
            Target(m.key, m.etag or "", m.size, m.version_id, self._markers.get(m.key) if purge else None)
            for m in members
            if m.key is not None and (not purge or m.key in self._markers)
        ]

    async def check_source(self, members: Sequence[ManifestMember]) -> None:
        """Until the first deletion, the plate must be exactly what the manifests say."""
        archived = [ArchivedObject(m.key, m.etag, m.size, m.version_id) for m in members if m.key is not None]
        found = await compare(archived, self._verdict.plate, self._verdict.layout, self._source)
        if found.sentence is not None:
            raise ApprovalVoid(
                f"{self._verdict.tag} changed since it was approved ({found.sentence}). Nothing was deleted; "
                "verify again and ask again."
            )

    async def check_undone(self, targets: Sequence[Target]) -> None:
        """Who removes a marker wants the object back: nothing of that plate is purged without a person's word."""
        if self.begun:
            return  # from here on each object is looked at by itself, right before its batch
        listed = await list_plate(self._verdict.plate, self._verdict.layout, self._source)
        back = [t.key for t in targets if t.key in listed and listed[t.key].version_id == t.version_id]
        if back:
            raise ApprovalVoid(
                f"{self._verdict.tag}: {len(back)} marked objects were brought back, the first {back[0]!r}. Nothing was "
                "purged; the versions of the others stay under their markers until a person deletes them"
            )

    async def guard(self, targets: Sequence[Target]) -> DeleteGuard:
        """The strongest guard that this bucket honours; found out once and kept in the journal."""
        if self._guard is None:
            self._guard = await self._choose(targets)
            await self._note({"guard": self._guard.name})
        return self._guard

    async def _choose(self, targets: Sequence[Target]) -> DeleteGuard:
        versioned = bool(targets) and all(target.by_version for target in targets)
        if self._order.phase in ("marker", "purge"):
            if not versioned and targets:
                raise RequestError(
                    f"{self._source.name} is not versioned: there is no marker to undo; use phase delete"
                )
            return DeleteGuard.MARKER if self._order.phase == "marker" else DeleteGuard.PURGE
        if versioned:
            return DeleteGuard.VERSION
        if any(target.by_version for target in targets) or await self._source.versioning():
            return DeleteGuard.HEAD  # versions and null versions mixed (suspended versioning): look at each
        prefix = fill(self._verdict.layout.backup_prefix, self._verdict.plate)
        return await detect_conditional_delete(self._source, f"{prefix}{self._verdict.tag}_condition_probe", _PROBE)

    # Deleting

    async def carry_out(
        self, batches: Sequence[DeleteBatch], deleter: Deleter, around: AroundBatch, on_progress: OnProgress
    ) -> None:
        """Every batch that is not settled: intent durably first, then the deletion, then each key's outcome durably.

        A key whose failure is journaled is not deleted, and is tried again.
        """
        total, done = sum(batch.size_bytes for batch in batches), 0
        for batch in batches:
            earlier = self._intents.get(batch.number)
            if earlier is not None and earlier != batch.digest:
                raise ConflictingRequest(f"{batch.business_key}: the journal holds another list for this batch")
            settled = self._outcomes.get(batch.number, ())
            if settled and all(one.result is not Result.FAILED for one in settled):
                self._resumed += 1
            else:
                await self._batch(replace(batch, resumed=earlier is not None, settled=settled), deleter, around)
            done += batch.size_bytes
            on_progress(Progress("delete", done, total, batch.number, len(batches), self._verdict.tag))

    async def _batch(self, batch: DeleteBatch, deleter: Deleter, around: AroundBatch) -> None:
        if not batch.resumed:
            await self._note({"intent": batch.number, "digest": batch.digest, "keys": [t.key for t in batch.targets]})
            self._intents[batch.number] = batch.digest
        outcomes = await around(batch, lambda: deleter.send(batch))
        if self._order.phase == "purge":
            await self._remove_markers(batch, outcomes)
        rows = [asdict(outcome) for outcome in outcomes]
        await self._note({"batch": batch.number, "at": self._clock(), "outcomes": rows})
        self._outcomes[batch.number] = outcomes

    async def _remove_markers(self, batch: DeleteBatch, outcomes: Outcomes) -> None:
        """The markers that the first phase set, by their own version ids; without the version below they are litter."""
        purged = {one.key for one in outcomes if one.result in (Result.DELETED, Result.ABSENT)}
        rows = [{"Key": t.key, "VersionId": t.marker} for t in batch.targets if t.marker and t.key in purged]
        if rows:
            await self._source.delete_many(rows)

    # Afterwards

    async def report(
        self, targets: Sequence[Target], guard: DeleteGuard, members: Sequence[ManifestMember], shared: frozenset[str]
    ) -> DeleteReport:
        outcomes = [one for number in sorted(self._outcomes) for one in self._outcomes[number]]
        sizes = {target.key: target.size for target in targets}
        listed = await list_plate(self._verdict.plate, self._verdict.layout, self._source)
        data = "".join(json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in outcomes).encode()
        prefix = fill(self._verdict.layout.archive_prefix, self._verdict.plate)
        digest = hashlib.sha256(data).hexdigest()
        key = f"{prefix}{self._verdict.tag}.{self._order.phase}d.{digest[:16]}.jsonl".replace("markerd", "marked")
        await self._archive.put_new(key, data)
        by_result = {result: [one.key for one in outcomes if one.result is result] for result in Result}
        return DeleteReport(
            tag=self._verdict.tag,
            phase=self._order.phase,
            guard=guard.value,
            retention=self._order.retention,
            targets=len(targets),
            deleted=len(by_result[Result.DELETED]),
            absent=len(by_result[Result.ABSENT]),
            deleted_bytes=sum(sizes.get(key, 0) for key in by_result[Result.DELETED]),
            changed=tuple(by_result[Result.CHANGED]),
            failed=tuple(by_result[Result.FAILED]),
            inferred=tuple(one.key for one in outcomes if one.inferred),
            unknown=tuple(sorted(listed.keys() - {member.key for member in members})),
            shared_parts=tuple(sorted(shared & set(self._order.parts))),
            batches=len(self._outcomes),
            resumed_batches=self._resumed,
            outcomes_key=key,
            outcomes_sha256=digest,
        )

    async def _note(self, row: dict[str, Any]) -> None:
        await asyncio.to_thread(self._journal.append, row)


class DeleteReport(Frozen):
    """What was deleted and what was left. `complete` only when every target is deleted or was gone.

    `inferred` names those of the deleted that were found gone, or marked, after a lost answer or a crash.
    """

    tag: str
    phase: Phase
    guard: str
    retention: Retention
    targets: int
    deleted: int
    absent: int
    deleted_bytes: int
    changed: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    inferred: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    shared_parts: tuple[str, ...] = ()
    batches: int
    resumed_batches: int
    outcomes_key: str
    outcomes_sha256: str

    @property
    def complete(self) -> bool:
        return not self.changed and not self.failed
