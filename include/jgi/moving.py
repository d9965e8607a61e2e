"""Moves what a restore request brought: its manifest first, then its files, and says of each whether it arrived.

Read it in this order: `manifest_batch`, `files_batch`, `record`.

Invariant: a placement is claimed for its batch before the batch is submitted, and is VERIFIED only by an md5 that was compared
with the manifest's.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from include.core.errors import DeadlinePassed
from include.core.ledger import Submission
from include.globus.batch import Batch, Item, batch_key
from include.globus.transfer import Outcome, Verdict
from include.jgi.documents import TrackedBatch, TrackedRequest
from include.jgi.manifest import ManifestRow, name_of
from include.jgi.models import BatchState, FileState, Limits, PlacementState, RequestState
from include.jgi.restoring import again
from include.jgi.tracking import Tracking

LEAST_SECONDS = 600.0  # a batch with less time than that is not begun
OPEN_PLACEMENTS = (PlacementState.WAITING, PlacementState.MISMATCH)
VERDICTS = {
    Verdict.VERIFIED: PlacementState.VERIFIED,
    Verdict.MISMATCH: PlacementState.MISMATCH,
    Verdict.UNVERIFIABLE: PlacementState.UNVERIFIABLE,
}


@dataclass(frozen=True)
class Route:
    """From where to where: collection ids and folders from their roots."""

    source: str
    source_root: str
    destination: str
    destination_root: str

    def request_folder(self, request_id: int) -> str:
        return f"{self.source_root}/R{request_id}"

    def manifest_at(self, request_id: int) -> str:
        """Where a manifest lies at the destination."""
        return f"{self.destination_root}/manifests/{name_of(request_id)}"


def seconds_left(
    status_expires_at: datetime | None, purge_at: Collection[datetime], jdp_now: float, limits: Limits
) -> float:
    """How long the files stay on JDP's disk, by JDP's own clock: the earliest of what it says, or else their usual life."""
    instants = [one.timestamp() for one in (status_expires_at, *purge_at) if one is not None]
    return min(instants) - jdp_now if instants else limits.disk_life_days * 86_400.0 / 2


def manifest_batch(route: Route, request_id: int, *, left_seconds: float, globus_now: float) -> Batch:
    """The manifest alone: its name is known, so no listing is needed."""
    name = name_of(request_id)
    item = Item(f"{route.request_folder(request_id)}/{name}", route.manifest_at(request_id))
    deadline = datetime.fromtimestamp(globus_now + max(left_seconds, LEAST_SECONDS), UTC)
    key = batch_key(route.source, route.destination, [item])
    return Batch(key, route.source, route.destination, (item,), deadline, f"waybill manifest R{request_id}")


def files_batch(
    tracking: Tracking,
    route: Route,
    request: TrackedRequest,
    rows: Sequence[ManifestRow],
    *,
    left_seconds: float,
    globus_now: float,
) -> Batch | None:
    """The files of a request that are not yet at their destinations, claimed; None where nothing is left to move.

    Raises DeadlinePassed where JDP takes them off its disk too soon to begin.
    """
    request_id = int(request.request_id or 0)
    by_id = {row.jdp_file_id: row for row in rows}
    on_disk = {file.jdp_file_id for file in tracking.files(ids=list(by_id), states=(FileState.ON_DISK,))}
    wanted = [
        one
        for one in tracking.placements(ids=sorted(on_disk))
        if one.state in (*OPEN_PLACEMENTS, PlacementState.BATCHED)
    ]
    items = [
        Item(
            f"{route.request_folder(request_id)}/{by_id[one.jdp_file_id].path}",
            one.destination,
            by_id[one.jdp_file_id].size_bytes,
            by_id[one.jdp_file_id].md5,
        )
        for one in wanted
    ]
    if not items:
        return None
    if left_seconds < LEAST_SECONDS:
        raise DeadlinePassed(
            f"restore request {request_id}: its files leave JDP's disk in {max(0, left_seconds) / 60:.0f} min, too soon to "
            "move them; they are asked for again"
        )
    deadline = datetime.fromtimestamp(globus_now, UTC) + timedelta(seconds=left_seconds)
    key = batch_key(route.source, route.destination, items)
    tracking.put_batch(
        TrackedBatch(key, BatchState.INTENT, request.key, len(items), sum(item.size_bytes or 0 for item in items))
    )
    places = [item.destination for item in items]
    tracking.move_placements(
        places, OPEN_PLACEMENTS, PlacementState.BATCHED, f"restore request {request_id}", claim=key
    )
    return Batch(key, route.source, route.destination, tuple(items), deadline, f"waybill R{request_id}")


def with_facts(batch: Batch, rows: Sequence[ManifestRow], route: Route, request_id: int) -> Batch:
    """A batch as its submission kept it, with sizes and md5 of the manifest."""
    folder = route.request_folder(request_id)
    facts = {f"{folder}/{one.path}": one for one in rows}
    items = tuple(
        replace(item, size_bytes=facts[item.source].size_bytes, md5=facts[item.source].md5)
        if item.source in facts
        else item
        for item in batch.items
    )
    return replace(batch, items=items)


def submitted(tracking: Tracking, batch: Batch, row: Submission) -> None:
    """Writes into MongoDB that Globus has accepted a batch; may be repeated."""
    before = (BatchState.INTENT, BatchState.FAILED, BatchState.CANCELLED, BatchState.RECONCILED)
    tracking.move_batch(
        batch.key,
        before,
        BatchState.SUBMITTED,
        task_id=row.external_id,
        submission_id=row.client_key,
        deadline=batch.deadline,
    )
    places = [item.destination for item in batch.items]
    tracking.move_placements(places, PlacementState.BATCHED, PlacementState.SUBMITTED, f"task {row.external_id}")


def record(
    tracking: Tracking, request: TrackedRequest, batch: Batch, found: Sequence[Outcome], limits: Limits
) -> Mapping[str, int]:
    """Writes what became of each file of a batch whose task has ended; may be repeated. Returns counts by verdict.

    What did not arrive is moved again by the next batch; what is gone at its source is asked for again.
    """
    places: dict[tuple[Verdict, str], list[str]] = {}
    for one in found:
        places.setdefault((one.verdict, one.why), []).append(one.item.destination)
    arrived = [one.item.destination for one in found if one.verdict != Verdict.NOT_MOVED]
    tracking.move_placements(
        arrived, PlacementState.SUBMITTED, PlacementState.ARRIVED, "Globus moved it, or it was there"
    )
    for (verdict, why), destinations in places.items():
        if verdict in VERDICTS:
            tracking.move_placements(destinations, PlacementState.ARRIVED, VERDICTS[verdict], why)
        else:
            tracking.move_placements(destinations, PlacementState.SUBMITTED, PlacementState.WAITING, why)
    gone = {one.item.destination for one in found if one.source_gone}
    if gone:
        held = tracking.files(claim=request.key, states=(FileState.ON_DISK,))
        here = tracking.placements(ids=[file.jdp_file_id for file in held])
        ids = [one.jdp_file_id for one in here if one.destination in gone]
        why = "it was gone from JDP's disk before it was moved"
        tracking.move_files(ids, FileState.ON_DISK, FileState.EXPIRED, why, claim=request.key)
        again(tracking, limits, request.key, (FileState.EXPIRED,), why, ids)
    tracking.move_batch(batch.key, BatchState.SUBMITTED, BatchState.RECONCILED)
    return {str(verdict): sum(1 for one in found if one.verdict == verdict) for verdict in Verdict}


def drained(tracking: Tracking, request: TrackedRequest) -> bool:
    """Closes a request whose files have all arrived, or are planned anew. Returns whether it is closed."""
    ids = [
        file.jdp_file_id
        for file in tracking.files(
            claim=request.key, states=(FileState.REQUESTING, FileState.QUEUED, FileState.ON_DISK)
        )
    ]
    if ids and any(not one.settled for one in tracking.placements(ids=ids)):
        return False
    return tracking.move_request(request.key, RequestState.READY, RequestState.DRAINED, "all of it has arrived")
