"""The proof document beside a tarball: when it was last read, by what, and how that ended (`NAME.proof.json`).

Invariant: it speaks of one stored object, by ETag, version and size, so that a tarball that was replaced has no proof; and a
look that could not tell (unverifiable) changes nothing. It is for people, `where` and the drill: no deletion rests on it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal

from pydantic import ValidationError

from include.core.errors import WaybillError
from include.plates.models import Check, Frozen, Level, Outcome, Verdict, VolumeProof, reasons_of
from include.s3.bucket import Bucket

SUFFIX = ".proof.json"
MANIFEST_SUFFIX = ".manifest.jsonl.zst"
OF_THE_TARBALL = ("V3", "V4", "V5")  # what can be said without its source
How = Literal["read_back", "store_proved", "compute_checksum"]
HOW = {
    "read_back": "read back",
    "store_proved": "store-proved",
    "compute_checksum": "its checksum was computed anew by the store",
}


class Proof(Frozen):
    """What was found when a tarball was last looked at. `at` is in UTC, `by` the command or DAG that looked."""

    waybill_proof: Literal[1] = 1
    key: str
    etag: str
    version_id: str | None
    stored_bytes: int
    manifest_key: str
    manifest_sha256: str
    outcome: Outcome
    how: How
    at: str
    by: str
    detail: str = ""

    @property
    def seconds(self) -> float:
        return datetime.fromisoformat(self.at).timestamp()

    def is_of(self, etag: str, size: int) -> bool:
        """Whether it speaks of the object that lies there now."""
        return (self.etag, self.stored_bytes) == (etag, size)

    def told(self, now: float) -> str:
        """One sentence with its age in days."""
        age = f"{self.at[:10]}, {max(0, int((now - self.seconds) // 86400))} days ago"
        if self.outcome is Outcome.VERIFIED:
            return f"{HOW[self.how]} and sound on {age}"
        return f"DAMAGED, as found on {age}: {self.detail}"


class TarballVerdict(Frozen):
    """What V3 to V5 say of one tarball, without its source."""

    outcome: Outcome
    checks: tuple[Check, ...]
    volume: VolumeProof

    @property
    def reasons(self) -> tuple[str, ...]:
        return reasons_of(self.checks)


def proof_key(manifest_key: str) -> str:
    return manifest_key.removesuffix(MANIFEST_SUFFIX) + SUFFIX


def time_text(now: float) -> str:
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_proof(data: bytes) -> Proof | None:
    """None for what is no proof of a format that is known: then nothing is known of the tarball."""
    try:
        return Proof.model_validate_json(data)
    except ValidationError:
        return None


def proof_of(
    volume: VolumeProof, checks: Sequence[Check], *, by: str, now: float, how: How | None = None
) -> Proof | None:
    """The proof of one tarball by its checks; None where they cannot tell. `checks` may be of a whole plate: then only what
    names this tarball counts against it."""
    about = [check for check in checks if check.name in OF_THE_TARBALL]
    wrong = [
        c
        for c in about
        if c.outcome is Outcome.MISMATCH and (volume.key in c.detail or volume.manifest_key in c.detail)
    ]
    if not volume.etag or not (wrong or all(check.outcome is Outcome.VERIFIED for check in about)):
        return None
    return Proof(
        key=volume.key,
        etag=volume.etag,
        version_id=volume.version_id,
        stored_bytes=volume.stored_bytes,
        manifest_key=volume.manifest_key,
        manifest_sha256=volume.manifest_sha256,
        outcome=Outcome.MISMATCH if wrong else Outcome.VERIFIED,
        how=how or _how(volume),
        at=time_text(now),
        by=by,
        detail="; ".join(f"{check.name}: {check.detail}" for check in wrong),
    )


def _how(volume: VolumeProof) -> How:
    return "store_proved" if volume.level is Level.STORE_PROVED else "read_back"


def encoded(proof: Proof) -> bytes:
    return proof.model_dump_json(indent=1).encode() + b"\n"


async def write_proof(archive: Bucket, proof: Proof) -> None:
    """Puts it beside its tarball, in place of an older one. Raises the store's errors."""
    await archive.put(proof_key(proof.manifest_key), encoded(proof))


async def write_proofs(archive: Bucket, verdict: Verdict) -> None:
    """The proofs of a plate that was just verified. A proof that cannot be written fails nothing: the verdict stands."""
    for volume in verdict.volumes:
        proof = proof_of(volume, verdict.checks, by="verify", now=time.time())
        try:
            if proof is not None:
                await write_proof(archive, proof)
        except WaybillError:
            return
