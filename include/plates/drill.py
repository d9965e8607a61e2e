"""The restore drill: reads archived plates back, and says which of them could not be given back today.

Invariant: nothing is called sound that was not read as a whole, by this run; what was only compared with what the store keeps,
or not looked at, says so. It writes nothing but proof documents.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Literal

from include.core.errors import VerificationError, WaybillError
from include.core.progress import OnProgress, silent
from include.core.text import few
from include.plates.checksum_report import ChecksumReport
from include.plates.drill_plan import DrillPlate, DrillTarball
from include.plates.models import Check, Frozen, Outcome, VolumeProof
from include.plates.plan import PLAN_METADATA
from include.plates.proof import Proof, proof_of, write_proof
from include.plates.verify import verify_tarball
from include.plates.verify_evidence import parse_manifest
from include.s3.bucket import Bucket, Head, S3Access
from include.s3.errors import ColdObject

State = Literal["sound", "damaged", "cold", "not looked at"]
_REST = "all are in the document of this plate"


class TarballLook(Frozen):
    """How one tarball was found, and how that was seen. `read_bytes` is what was read of it and its manifest."""

    key: str
    state: State
    how: str
    why: str = ""
    read_bytes: int = 0
    proof: str = ""


class PlateLook(Frozen):
    name: str
    tarballs: tuple[TarballLook, ...]

    @property
    def state(self) -> str:
        """That of its worst tarball; a cold one says how it was checked."""
        states: tuple[State, ...] = ("damaged", "not looked at", "cold", "sound")
        worst = next((state for state in states if any(t.state == state for t in self.tarballs)), "not looked at")
        cold = sorted({tarball.how for tarball in self.tarballs if tarball.state == "cold"})
        return f"cold: checked by {' and '.join(cold)}" if worst == "cold" else worst

    @property
    def why(self) -> str:
        said = [f"{tarball.key}: {tarball.why}" for tarball in self.tarballs if tarball.why]
        return few(said, 3, _REST) or "read back byte for byte"


async def look_at_plate(
    plate: DrillPlate,
    access: S3Access,
    *,
    by: str,
    report: ChecksumReport | None = None,
    now: float | None = None,
    on_progress: OnProgress = silent,
) -> tuple[PlateLook, WaybillError | None]:
    """Looks at every tarball of a plate and renews its proof. One that the store did not let be read stops no other; its
    error, the first, comes with the look."""
    bucket = access.bucket(plate.bucket)
    at, looks, errors = time.time() if now is None else now, [], []
    for tarball in plate.tarballs:
        try:
            looks.append(await _look(bucket, tarball, by, at, report, on_progress))
        except WaybillError as error:
            errors.append(error)
            why = f"the store did not let it be read: {error}"
            looks.append(TarballLook(key=tarball.key, state="not looked at", how="", why=why))
    return PlateLook(name=plate.name, tarballs=tuple(looks)), errors[0] if errors else None


async def _look(
    bucket: Bucket, tarball: DrillTarball, by: str, now: float, report: ChecksumReport | None, on_progress: OnProgress
) -> TarballLook:
    key = tarball.key
    if tarball.fault:
        return TarballLook(key=key, state="damaged", how="the listing", why=tarball.fault)
    try:
        there = await bucket.head(key) if tarball.cold else None
        if there is not None and there.cold:
            return await _cold(bucket, tarball, there, by, report)
        verdict = await verify_tarball(tarball.manifest_key, archive=bucket, on_progress=on_progress)
    except VerificationError as error:
        return TarballLook(key=key, state="damaged", how="reading", why=str(error))
    except ColdObject as error:
        return TarballLook(key=key, state="not looked at", how="", why=str(error))
    proof = proof_of(verdict.volume, verdict.checks, by=by, now=now)
    told = await _renewed(bucket, proof)
    facts: dict[str, Any] = {
        "how": "reading",
        "why": few(verdict.reasons, 3, _REST),
        "read_bytes": tarball.read_bytes,
        "proof": told,
    }
    states: Mapping[Outcome, State] = {Outcome.VERIFIED: "sound", Outcome.MISMATCH: "damaged"}
    return TarballLook(key=key, state=states.get(verdict.outcome, "not looked at"), **facts)


async def _cold(
    bucket: Bucket, tarball: DrillTarball, there: Head, by: str, report: ChecksumReport | None
) -> TarballLook:
    """What can be said of a tarball in cold storage without restoring it: S3's own reading of it, where a report has it; else
    whether the store still keeps the object, size and checksum that were sent."""
    key = tarball.key
    volume = parse_manifest(tarball.manifest_key, await bucket.read_all(tarball.manifest_key))
    read = tarball.manifest_bytes
    plan, sent = there.metadata.get(PLAN_METADATA), volume.head["stored_crc64nvme"]
    if there.size != volume.head["stored_bytes"]:
        why = f"{there.size} bytes are stored, {volume.head['stored_bytes']} were sent"
        return TarballLook(key=key, state="damaged", how="HEAD", why=why, read_bytes=read)
    if plan not in (None, volume.head["plan_digest"]):
        why = "it is not the object that its manifest is about"
        return TarballLook(key=key, state="damaged", how="HEAD", why=why, read_bytes=read)
    algorithm, kind, held = (*str(there.checksum or "").split(":", 2), "", "", "")[:3]
    kept = held if (algorithm, kind) == ("CRC64NVME", "FULL_OBJECT") else ""
    if kept and sent and kept != sent:
        why = "the CRC64NVME that the store keeps is not that of the bytes sent"
        return TarballLook(key=key, state="damaged", how="HEAD", why=why, read_bytes=read)
    computed, expected = report.of(bucket.name, there) if report else None, sent or kept
    if report is not None and computed is not None and computed.crc64nvme and expected:
        return await _by_report(
            bucket, tarball, there, volume.manifest_sha256, computed.crc64nvme == expected, by, report.made_at
        )
    also = f"; the report names it, but {computed.why}" if computed is not None and computed.why else ""
    if kept and sent:
        why = f"it was not read: the store keeps the size and the CRC64NVME that were sent{also}"
        return TarballLook(key=key, state="cold", how="the checksum that the store keeps", why=why, read_bytes=read)
    why = f"it lies in cold storage ({there.storage_class}), and the store keeps no checksum over the whole of it{also}"
    return TarballLook(key=key, state="not looked at", how="HEAD", why=why, read_bytes=read)


async def _by_report(
    bucket: Bucket, tarball: DrillTarball, there: Head, manifest_sha256: str, equal: bool, by: str, at: float
) -> TarballLook:
    said = "the CRC64NVME that S3 computed of it" + (
        " is that of the bytes sent" if equal else " is not that of the bytes sent"
    )
    proof = VolumeProof(
        key=tarball.key,
        etag=there.etag,
        version_id=there.version_id,
        stored_bytes=there.size,
        md5="",
        manifest_key=tarball.manifest_key,
        manifest_sha256=manifest_sha256,
        members=0,
    )
    outcome = Outcome.VERIFIED if equal else Outcome.MISMATCH
    checks = [Check(name="V3", outcome=outcome, detail=f"{tarball.key}: {said}")]
    told = await _renewed(bucket, proof_of(proof, checks, by=by, now=at, how="compute_checksum"))
    facts: dict[str, Any] = {
        "how": "Compute checksum",
        "why": said,
        "read_bytes": tarball.manifest_bytes,
        "proof": told,
    }
    return TarballLook(key=tarball.key, state="cold" if equal else "damaged", **facts)


async def _renewed(bucket: Bucket, proof: Proof | None) -> str:
    """Writes the proof; where that fails what was found stands, and the receipt says so."""
    if proof is None:
        return ""
    try:
        await write_proof(bucket, proof)
    except WaybillError as error:
        return f"its proof document could not be written: {error}"
    return "renewed"
