"""What a look at a destination proves, file by file, and what may be swept away before a copy is tried again.

The thing to know before changing it: pure functions over listings. A file is proved by what ICA says of it now, never by
the status of the job that copied it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from include.icav2.models import Content, Data, Destination, Item, Proof, Verdict


def single_part(etag: str | None) -> str | None:
    """The MD5 in an ETag, None for a multipart one (its value depends on part sizes and may change in a copy)."""
    bare = (etag or "").strip('"').lower()
    return bare if len(bare) == 32 and "-" not in bare else None


def judge(expected: Content, there: Data | None, *, use_etag: bool) -> tuple[Verdict, str]:
    """The verdict on one file and what it rests on ("size", "size and MD5")."""
    if there is None or there.status in ("DELETING",):
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


def leftovers(
    proofs: Iterable[Proof], ours: Mapping[str, str], made_after: float | None, there: Mapping[str, Data]
) -> list[Data]:
    """Files at the destination that our own failed copies left and that stand in the way of the next one.

    `ours` maps ids of data that our batches made (ICA's own word: `createdProjectData`) to the batch. A PARTIAL file for
    which no batch names an id counts as ours if it was made at or after `made_after`, the first of our jobs here (both on
    ICA's clock). Nothing else is ever returned: a stranger's file stays, whatever its state.
    """
    by_id = {data.id: data for data in there.values()}
    swept = []
    for proof in proofs:
        data = by_id.get(proof.data_id or "")
        if data is None or proof.verdict in (Verdict.OK, Verdict.MISSING):
            continue
        partial_since = proof.verdict == Verdict.PARTIAL and made_after is not None and data.created >= made_after
        if data.id in ours or partial_since:
            swept.append(data)
    return swept
