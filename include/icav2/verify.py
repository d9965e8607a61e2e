"""What a look at a destination proves, file by file, and which partial files of ours may be deleted before a
copy is tried again.

Invariant: these are pure functions over listings. A file is proved by what ICA says of it now, never by
the status of the job that copied it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from include.icav2.models import Content, Data, Destination, Item, Proof, Verdict


def single_part(etag: str | None) -> str | None:
    """The MD5 in an ETag, None for a multipart one (it may change in a copy: docs/protocols/icav2.md 3.8)."""
    bare = (etag or "").strip('"').lower()
    return bare if len(bare) == 32 and "-" not in bare else None


def judge(expected: Content, there: Data | None, *, use_etag: bool) -> tuple[Verdict, str]:
    """The verdict on one file and what it rests on ("size", "size and MD5").

    A file that was archived since it came is still there: its size and ETag are judged as ever.
    """
    if there is None or there.status == "DELETING":
        return Verdict.MISSING, "listing"
    if there.status == "PARTIAL":
        return Verdict.PARTIAL, "status"
    if there.size_bytes != expected.size_bytes:
        return Verdict.SIZE_MISMATCH, "size"
    ours, theirs = single_part(expected.etag), single_part(there.etag)
    if use_etag and ours and theirs:
        return (Verdict.OK if ours == theirs else Verdict.ETAG_MISMATCH), "size and MD5"
    return Verdict.OK, "size"


def prove(destination: Destination, listing: Mapping[str, Data], *, use_etag: bool) -> list[Proof]:
    """One proof per expected file. `listing` maps full paths to what is there."""
    proofs = []
    for item in destination.items:
        for content in item.files:
            there = listing.get(destination.path + content.path)
            verdict, by = judge(content, there, use_etag=use_etag)
            proofs.append(
                Proof(
                    source_uri=item.source_uri,
                    dest_uri=destination.dest_uri,
                    path=content.path,
                    verdict=verdict,
                    size_bytes=content.size_bytes,
                    by=by,
                    data_id=there.id if there is not None else None,
                )
            )
    return proofs


def incomplete(destination: Destination, proofs: Sequence[Proof]) -> list[Item]:
    """The items of which at least one file is not proved."""
    bad = {proof.source_uri for proof in proofs if proof.verdict != Verdict.OK}
    return [item for item in destination.items if item.source_uri in bad]


@dataclass(frozen=True)
class Made:
    """One of our jobs here that has ended: which items it had, from when to when it ran (ICA's clock, epoch seconds), and
    which data it says that it made (`createdProjectData` of its batch)."""

    data_ids: frozenset[str]
    since: float
    until: float
    created_ids: frozenset[str]


def partial_files(
    destination: Destination, proofs: Iterable[Proof], made: Sequence[Made], there: Mapping[str, Data]
) -> list[Data]:
    """Files that our own ended copies left, and that are in the way of the next one, since SKIP would keep them.

    A file is ours only if it came into being while a job of ours with this very item ran. Where it is PARTIAL that is
    all there is to know (ICA names no unfinished data); where it is whole but wrong, a batch of ours must name it, or the
    folder it lies in, as made by it: SKIP lets a batch also name what it found. All else stays, whatever its state.
    """
    item_of = {item.source_uri: item for item in destination.items}
    removed = []
    for proof in proofs:
        data = there.get(destination.path + proof.path)
        if data is None or proof.verdict in (Verdict.OK, Verdict.MISSING):
            continue
        item = item_of[proof.source_uri]
        jobs = [job for job in made if item.data_id in job.data_ids]
        named = proof.verdict == Verdict.PARTIAL or _named(data, destination, item, jobs, there)
        if named and _during(data, jobs):
            removed.append(data)
    return removed


def _during(data: Data, jobs: Iterable[Made]) -> bool:
    return any(job.since <= data.created <= job.until for job in jobs)


def _named(data: Data, destination: Destination, item: Item, jobs: Sequence[Made], there: Mapping[str, Data]) -> bool:
    """Whether our batches name this file, or the folder of its item, as made by them."""
    ids = {data_id for job in jobs for data_id in job.created_ids}
    folder = there.get(f"{destination.path}{item.name}/") if item.is_folder else None
    return data.id in ids or (folder is not None and folder.id in ids and _during(folder, jobs))
