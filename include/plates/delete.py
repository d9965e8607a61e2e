"""Deletes a plate's archived objects: from the verified manifests, key by key, each under a guard, in journaled batches.

Invariant: before the plate's first deletion any difference voids the approval and nothing is deleted; after it,
whatever is not in the manifest, or is no longer what was archived, is kept and listed. Nothing here takes a prefix. What is
current again after the deletion is said, whatever brought it back.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from include.core.errors import ConflictingRequest, NotFound, RequestError, VerificationError
from include.core.journal import PartJournal
from include.core.progress import OnProgress, Progress, silent
from include.core.text import format_bytes
from include.plates.compare import ArchivedObject, PlateListing, compare, list_plate, older_versions
from include.plates.errors import ApprovalVoid, RetentionRefused
from include.plates.layout import fill
from include.plates.manifest import decode_manifest
from include.plates.measurements import shared_parts
from include.plates.models import (
    PROOF_DAYS,
    DeleteOrder,
    Frozen,
    Level,
    ManifestMember,
    Outcome,
    Phase,
    Retention,
    Verdict,
)
from include.s3.bucket import Bucket, KeyVersion, ListedObject
from include.s3.condition_probe import detect_conditional_delete, removed
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
    _check_places(verdict, source, archive)
    work = _Deletion(verdict, order, source, archive, journal, clock)
    await work.load()
    work.check_age()
    await work.check_archive()
    members = await work.members()
    shared = await shared_parts(verdict.plate, verdict.layout, source)
    chosen = _to_delete(members, order, shared)
    targets = await work.targets(chosen)
    if work.is_settled(batches_of(targets, order.batch_size, "")) and await work.opened_again(chosen):
        targets = await work.targets(chosen)
    if order.phase == "purge":
        await work.check_undone(targets)
    elif not work.begun:
        await work.check_source(members)
    batches = batches_of(targets, order.batch_size, work.name)
    await work.open()
    deleter, guard = await work.deleter(targets, batches)
    await work.carry_out(batches, deleter, around_batch, on_progress)
    return await work.report(targets, guard, members, shared)


@dataclass(frozen=True)
class PartPreview:
    """What an order deletes of one part of a plate; `shared`: another measurement uses the part too, so it is kept.

    `older` versions of `older_bytes` lie below its objects; `older_sha256` names each of them. `done` objects of it were
    deleted (or marked) before, by an order that was broken off.
    """

    part: str
    objects: int
    size_bytes: int
    shared: bool = False
    older: int = 0
    older_bytes: int = 0
    older_sha256: str = ""
    done: int = 0


@dataclass(frozen=True)
class Preview:
    """What `delete_plate` would delete now, part by part, and the versions below it."""

    parts: tuple[PartPreview, ...]
    older: tuple[KeyVersion, ...] = ()


async def preview(
    verdict: Verdict, order: DeleteOrder, *, source: Bucket, archive: Bucket, journal: PartJournal, anew: bool = False
) -> Preview:
    """What `delete_plate` would delete now, counted from the same manifests by the same rule; it deletes nothing.

    `anew`: the plate is whole, so that what its journal says of an earlier deletion does not count.
    """
    _check_order(verdict, order)
    members = await _Deletion(verdict, order, source, archive, journal, time.time).members()
    shared = await shared_parts(verdict.plate, verdict.layout, source)
    rows = [] if anew else await asyncio.to_thread(journal.load)
    chosen, done = _to_delete(members, order, shared), _done(rows)
    older = _journaled_older(rows)
    if older is None:
        older = await older_versions(_archived(chosen), verdict.plate, verdict.layout, source)
    part_of = {member.key: member.part for member in chosen}
    return Preview(
        tuple(
            _part(part, chosen, part in shared, done, [v for v in older if part_of.get(v.key) == part])
            for part in order.parts
        ),
        tuple(older),
    )


def _part(
    part: str, chosen: Sequence[ManifestMember], shared: bool, done: frozenset[str], older: Sequence[KeyVersion]
) -> PartPreview:
    mine = [member for member in chosen if member.part == part]
    lines = json.dumps([[one.key, one.version_id, one.etag, one.size] for one in older], ensure_ascii=False)
    return PartPreview(
        part,
        len(mine),
        sum(member.size for member in mine),
        shared,
        len(older),
        sum(one.size for one in older),
        hashlib.sha256(lines.encode()).hexdigest() if older else "",
        sum(member.key in done for member in mine),
    )


def refuses_older(verdict: Verdict, order: DeleteOrder, older: Sequence[KeyVersion]) -> str | None:
    """Why an order does not go on where older versions lie below what it deletes; None where it does."""
    if not older or order.older_versions != "refuse":
        return None
    size = sum(one.size for one in older)
    return (
        f"{len({one.key for one in older})} objects of {verdict.tag} have {len(older)} older versions ({format_bytes(size)}), "
        f"which would be current again, the first of {older[0].key!r}. Nothing was deleted; set older_versions to "
        "keep_hidden or to delete"
    )


def _archived(members: Iterable[ManifestMember]) -> list[ArchivedObject]:
    return [ArchivedObject(m.key, m.etag, m.size, m.version_id, m.modified) for m in members if m.key is not None]


def _journaled_older(rows: Sequence[dict[str, Any]]) -> list[KeyVersion] | None:
    """The older versions as they were listed when the deletion began; None where no journal says it."""
    lists = [row["older"] for row in rows if "older" in row]
    return [KeyVersion(key, version, etag, size, 0, False) for key, version, etag, size in lists[-1]] if lists else None


def _to_delete(members: Sequence[ManifestMember], order: DeleteOrder, shared: frozenset[str]) -> list[ManifestMember]:
    return [m for m in members if m.part in order.parts and m.part not in shared]


def _done(rows: Sequence[dict[str, Any]]) -> frozenset[str]:
    """The keys that a journal says are deleted or marked."""
    gone = (Result.DELETED, Result.ABSENT)
    return frozenset(
        one["key"] for row in rows for one in row.get("outcomes", ()) if one["result"] in gone and not one.get("older")
    )


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
        self._older: list[KeyVersion] | None = None
        self._again = 0
        self._ordered: dict[str, Any] = {}
        self._bound: dict[str, Any] | None = None
        self._phase = ""
        self._last_at = 0.0
        self._finished: dict[str, Any] | None = None
        self._left_behind: list[str] = []

    @property
    def name(self) -> str:
        """Names the batches. A deletion of objects that were there again is another one."""
        again = f"/again-{self._again}" if self._again else ""
        return f"{self._verdict.tag}/{self._verdict.manifests_sha256[:16]}/{self._order.phase}{again}"

    @property
    def begun(self) -> bool:
        """Whether a batch of this phase was ever sent: from then on the source may differ from the manifest by our doing."""
        return bool(self._intents)

    def is_settled(self, batches: Sequence[DeleteBatch]) -> bool:
        """Whether this phase came to its end before: every key of every batch has an outcome, and none is a failure."""
        ended = {
            n for n, outcomes in self._outcomes.items() if all(one.result is not Result.FAILED for one in outcomes)
        }
        return bool(batches) and ended >= {batch.number for batch in batches}

    # The journal

    @property
    def _identity(self) -> dict[str, Any]:
        identity: dict[str, Any] = {"manifests": self._verdict.manifests_sha256, "parts": sorted(self._order.parts)}
        if self._order.older_versions != "refuse":
            identity["older_versions"] = self._order.older_versions
        return identity

    async def load(self) -> None:
        for row in await asyncio.to_thread(self._journal.load):
            self._read(row)
        if self._bound not in (None, self._identity):
            if self._finished is None or self._bound["manifests"] == self._identity["manifests"]:
                raise ConflictingRequest(f"{self.name}: this journal is of {self._bound}, not of {self._identity}")
            self._forget()  # of another archive of this plate, whose deletion came to its end
        elif self._finished is not None and self._phase != self._order.phase and self._order.phase != "purge":
            self._forget()
        if self._bound is None:
            self._phase = ""  # nothing was sent under the last order, so it binds nobody
        if self._phase != self._order.phase:
            self._check_phase(self._phase)

    def _read(self, row: dict[str, Any]) -> None:
        if "order" in row:
            if self._finished is not None:
                self._forget()
            self._ordered, self._phase = row["order"], row["phase"]
        self._take_any(row)
        if self._phase == self._order.phase:
            self._take(row)

    async def open(self) -> None:
        """Before the first intent: what was ordered, and which older versions there were."""
        if self.begun:
            return
        await self._note({"order": self._identity, "phase": self._order.phase})
        if self._older:
            await self._note({"older": [[one.key, one.version_id, one.etag, one.size] for one in self._older]})

    def _forget(self) -> None:
        """What follows in the journal is another deletion."""
        self._again += 1
        self._bound, self._phase = None, ""
        self._finished, self._older, self._marked_at, self._guard = None, None, None, None
        self._intents, self._outcomes, self._markers = {}, {}, {}

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

    def _take_any(self, row: dict[str, Any]) -> None:
        """What counts for all phases."""
        if "intent" in row:
            self._bound = self._ordered
        if "outcomes" in row:
            self._last_at = row["at"]
        if self._phase == "marker" and "outcomes" in row:
            self._marked_at = row["at"]
            marked = [one for one in row["outcomes"] if one["result"] == Result.DELETED]
            self._markers |= {one["key"]: one["marker"] for one in marked}
        if "older" in row:
            self._older = _journaled_older([row])
        if "finished" in row:
            self._finished = row

    def _take(self, row: dict[str, Any]) -> None:
        if "guard" in row and row["guard"] in DeleteGuard.__members__:
            self._guard = DeleteGuard[row["guard"]]
        elif "intent" in row:
            self._intents[row["intent"]] = row["digest"]
        elif "outcomes" in row:
            self._outcomes[row["batch"]] = tuple(
                KeyOutcome(**one | {"result": Result(one["result"])}) for one in row["outcomes"]
            )

    # Before anything is deleted

    def check_age(self) -> None:
        """What was read back long ago may have rotted since: a proof counts for a time, and the time to undo on top of it."""
        age, days = self.age_days, PROOF_DAYS + (self._order.undo_days if self._order.phase == "purge" else 0.0)
        if age is None and (self.begun or self._order.phase == "purge"):
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
        return None if at is None else max(0.0, self._clock() - at) / _DAY

    async def opened_again(self, chosen: Sequence[ManifestMember]) -> bool:
        """Whether objects are there again that this journal calls deleted, so that the order is for another deletion.

        Raises ApprovalVoid where proof and approval are of the time before the first one.
        """
        if self._order.phase == "purge":
            return False
        listed = (await self._listing()).current
        known = set((self._finished or {}).get("unknown", ()))
        back = sorted(
            m.key for m in chosen if m.key in listed and m.key not in known and not self._is_older(listed[m.key])
        )
        if not back:
            return False
        proved = self._verdict.verified_at
        if proved is None or proved <= self._last_at:
            when = datetime.fromtimestamp(self._last_at, UTC).isoformat(timespec="seconds")
            raise ApprovalVoid(
                f"{self._verdict.tag}: it was deleted at {when}, and {len(back)} objects are there again, the first "
                f"{back[0]!r}. Nothing was deleted now; verify again and ask again"
            )
        if self._finished is None:
            await self._note({"finished": self._order.phase, "at": self._last_at, "unknown": []})
        self._forget()
        return True

    def _is_older(self, one: ListedObject) -> bool:
        return (one.key, one.version_id) in {(old.key, old.version_id) for old in self._older or ()}

    async def _listing(self) -> PlateListing:
        return await list_plate(self._verdict.plate, self._verdict.layout, self._source)

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

    async def targets(self, chosen: Sequence[ManifestMember]) -> list[Target]:
        """The archived objects, and where the order deletes them the versions below, as they were when the deletion began."""
        if self._older is None:
            older = await older_versions(_archived(chosen), self._verdict.plate, self._verdict.layout, self._source)
            why = refuses_older(self._verdict, self._order, older)
            if why is not None:
                raise RequestError(why)
            self._older = older
        purge = self._order.phase == "purge"
        found = [
            Target(m.key, m.etag or "", m.size, m.version_id, self._markers.get(m.key) if purge else None)
            for m in chosen
            if m.key is not None and (not purge or m.key in self._markers)
        ]
        if self._order.older_versions == "delete" and self._order.phase != "marker":
            keys = {target.key for target in found}
            found += [Target(v.key, v.etag, v.size, v.version_id, older=True) for v in self._older if v.key in keys]
        return found

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
        listed = (await self._listing()).current
        back = [
            t.key
            for t in targets
            if t.key in listed and listed[t.key].version_id == (t.version_id or "null") and not t.older
        ]
        if back:
            raise ApprovalVoid(
                f"{self._verdict.tag}: {len(back)} marked objects were brought back, the first {back[0]!r}. Nothing was "
                "purged; the versions of the others stay under their markers until a person deletes them"
            )

    async def deleter(self, targets: Sequence[Target], batches: Sequence[DeleteBatch]) -> tuple[Deleter, DeleteGuard]:
        """What deletes, under the strongest guard that this bucket is seen to honour now, whatever a journal of before says."""
        versioning = await self._source.versioning()
        covered = frozenset(one.key for one in self._older or ()) if self._keeps_hidden else frozenset()
        if self._guard is None or not self.is_settled(batches):
            self._guard = await self._choose(targets, versioning, covered)
            await self._note({"guard": self._guard.name})
        return Deleter(self._source, self._guard, versioned=bool(versioning), covered=covered), self._guard

    @property
    def _keeps_hidden(self) -> bool:
        return self._order.older_versions == "keep_hidden"

    async def _choose(self, targets: Sequence[Target], versioning: str, covered: frozenset[str]) -> DeleteGuard:
        if targets and (self._order.phase == "marker" or covered) and versioning == "Suspended":
            raise RequestError(
                f"{self._source.name}: its versioning is suspended, so a delete marker would end what was written since, with "
                "nothing to undo. Switch versioning on again, or delete without undo_days and keep_hidden"
            )
        if self._order.phase in ("marker", "purge"):
            if not versioning and targets:
                raise RequestError(
                    f"{self._source.name} is not versioned: there is no marker to undo; use phase delete"
                )
            return DeleteGuard.MARKER if self._order.phase == "marker" else DeleteGuard.PURGE
        if covered:
            return DeleteGuard.COVERED
        if targets and all(target.by_version for target in targets):
            return DeleteGuard.VERSION
        if versioning or any(target.by_version for target in targets):
            return DeleteGuard.HEAD  # versions and null versions mixed: look at each
        prefix = fill(self._verdict.layout.backup_prefix, self._verdict.plate)
        probed = await detect_conditional_delete(self._source, f"{prefix}{self._verdict.tag}_condition_probe", _PROBE)
        self._left_behind += [probed.left] if probed.left else []
        return probed.guard

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
            self._left_behind += await deleter.remove_markers(batch.targets, outcomes)
        rows = [asdict(outcome) for outcome in outcomes]
        await self._note({"batch": batch.number, "at": self._clock(), "outcomes": rows})
        self._outcomes[batch.number] = outcomes

    # Afterwards

    async def report(
        self, targets: Sequence[Target], guard: DeleteGuard, members: Sequence[ManifestMember], shared: frozenset[str]
    ) -> DeleteReport:
        outcomes = [one for number in sorted(self._outcomes) for one in self._outcomes[number]]
        sizes = {target.identity: target.size for target in targets}
        deleted = [one for one in outcomes if one.result is Result.DELETED]
        marking = self._order.phase == "marker"
        back, unknown = await self._looked_after(outcomes, members)
        data = "".join(json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in outcomes).encode()
        prefix = fill(self._verdict.layout.archive_prefix, self._verdict.plate)
        digest = hashlib.sha256(data).hexdigest()
        key = f"{prefix}{self._verdict.tag}.{self._order.phase}d.{digest[:16]}.jsonl".replace("markerd", "marked")
        await self._archive.put_new(key, data)
        report = DeleteReport(
            tag=self._verdict.tag,
            phase=self._order.phase,
            guard=guard.value,
            retention=self._order.retention,
            targets=len(targets),
            deleted=sum(not one.older for one in deleted),
            absent=sum(one.result is Result.ABSENT for one in outcomes),
            deleted_bytes=sum(sizes.get(one.identity, 0) for one in deleted if not one.older),
            freed_bytes=sum(sizes.get(one.identity, 0) for one in deleted if one.freed and not marking),
            older_versions=len(self._older or ()),
            older_deleted=sum(one.older for one in deleted),
            changed=_keys(outcomes, Result.CHANGED),
            failed=_keys(outcomes, Result.FAILED),
            inferred=tuple(dict.fromkeys(one.key for one in outcomes if one.inferred)),
            current_again=back,
            unknown=unknown,
            left_behind=await self._still_left(),
            shared_parts=tuple(sorted(shared & set(self._order.parts))),
            batches=len(self._outcomes),
            resumed_batches=self._resumed,
            proof_age_days=self.age_days,
            outcomes_key=key,
            outcomes_sha256=digest,
        )
        if report.complete and not marking and self._finished is None:
            await self._note({"finished": self._order.phase, "at": self._clock(), "unknown": list(unknown)})
        return report

    async def _looked_after(
        self, outcomes: Sequence[KeyOutcome], members: Sequence[ManifestMember]
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """What is current after the deletion: deleted keys that came back, and objects that were never archived."""
        listing = await self._listing()
        archived = {member.key: member for member in members}
        ended = {one.key for one in outcomes if one.result in (Result.DELETED, Result.ABSENT) and not one.older}
        there = {key: listing.current[key] for key in ended & listing.current.keys()}
        back = {key for key, one in there.items() if self._is_older(one) or _is_not_newer(one, archived[key])}
        # A key that only the other listing shows is current too: nobody may call it gone.
        back |= ended & set(listing.contradicted) - listing.current.keys()
        new = listing.current.keys() - archived.keys() | (there.keys() - back)
        return tuple(sorted(back)), tuple(sorted(new))

    async def _still_left(self) -> tuple[str, ...]:
        """What was written to try the store out, or marks what is gone, and could not be removed: once more, and else named."""
        probes = {key for key in self._left_behind if key.endswith("_condition_probe")}
        gone = {key for key in probes if await removed(self._source, key)}
        return tuple(dict.fromkeys(key for key in self._left_behind if key not in gone))

    async def _note(self, row: dict[str, Any]) -> None:
        await asyncio.to_thread(self._journal.append, row)


def _keys(outcomes: Sequence[KeyOutcome], result: Result) -> tuple[str, ...]:
    return tuple(dict.fromkeys(one.key for one in outcomes if one.result is result))


def _is_not_newer(one: ListedObject, archived: ManifestMember) -> bool:
    """The archived object itself, or one of before it."""
    if one.version_id is not None and one.version_id == archived.version_id:
        return True
    same = (one.etag, one.size) == (archived.etag, archived.size) and one.modified == archived.modified
    return same or one.modified < archived.modified


class DeleteReport(Frozen):
    """What was deleted and what was left. `complete` only when every target is deleted or was gone, and none came back.

    `deleted_bytes` is the size of the archived objects that no user sees any more, `freed_bytes` what the store holds less
    (a marker frees nothing). `current_again` are deleted keys that a listing shows with old content. `left_behind` could not
    be removed: the object of a trial, or a marker without a version.

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
    freed_bytes: int = 0
    older_versions: int = 0
    older_deleted: int = 0
    changed: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    inferred: tuple[str, ...] = ()
    current_again: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    left_behind: tuple[str, ...] = ()
    shared_parts: tuple[str, ...] = ()
    batches: int
    resumed_batches: int
    proof_age_days: float | None = None
    outcomes_key: str
    outcomes_sha256: str

    @property
    def complete(self) -> bool:
        return not self.changed and not self.failed and not self.current_again
