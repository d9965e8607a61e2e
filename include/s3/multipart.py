"""One multipart upload that survives crashes: which parts are done, sending one part, completing exactly once.

Know before changing: a part counts as done when the journal *and* the store's ListParts agree on it. Completing is not
repeatable, so whatever the store answers, HEAD decides: ours (same plan digest and size) is success, anything else under
the name is somebody else's and is never overwritten.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from include.core.errors import AuthError, RemoteError, TransientError, VerificationError, WaybillError
from include.core.journal import PartJournal
from include.plates.plan import PLAN_METADATA
from include.plates.volume_reader import FETCH_BYTES
from include.s3 import checksums
from include.s3.bucket import Bucket, Head
from include.s3.errors import ArchiveExists, ConcurrentWriter, PreconditionFailed, Unsupported, UploadLost
from include.s3.pieces import Pieces

_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class PartDone:
    """A finished part: which uncompressed bytes it holds and what was learned of them.

    `frames` are (raw length, stored length) in order; `members` are (index, sha256, crc64nvme, etag_is_md5) of members
    that end in this part. `crc64nvme` is None where the store copied the part and named none.
    """

    number: int
    start: int
    end: int
    size: int
    etag: str
    crc64nvme: str | None
    frames: tuple[tuple[int, int], ...] = ()
    members: tuple[tuple[int, str, str, bool], ...] = ()


@dataclass
class Upload:
    """The upload of one tarball: its journal's view of it."""

    bucket: Bucket
    key: str
    digest: str
    settings: Mapping[str, Any]
    journal: PartJournal
    upload_id: str | None = None
    done: dict[int, PartDone] = field(default_factory=dict)
    resumed: int = 0
    checksummed: bool = False
    md5_etags: bool = True
    _metadata: Mapping[str, str] = field(default_factory=dict)

    async def load(self) -> None:
        """Takes over what an earlier process finished, if it was for the same plan and the store still has it."""
        for row in await asyncio.to_thread(self.journal.load):
            if "upload" in row:
                same = row["plan"] == self.digest and row["settings"] == dict(self.settings)
                self.upload_id = row["upload"] if same else None
                self.checksummed, self.md5_etags = row.get("checksummed", False), row.get("md5_etags", True)
                self.done = {}
            elif "part" in row and self.upload_id is not None:
                part = _part(row["part"])
                self.done[part.number] = part
        if self.upload_id is not None:
            await self._compare_with_store()
        self.resumed = len(self.done)

    async def _compare_with_store(self) -> None:
        try:
            stored = await self._list_parts()
        except UploadLost:
            there = await self.bucket.head(self.key)
            if there is None:
                self.upload_id, self.done = None, {}
            return  # it may have been completed: complete() settles that by HEAD
        self.done = {n: part for n, part in self.done.items() if stored.get(n) == (part.etag, part.size)}

    async def _list_parts(self) -> dict[int, tuple[str, int]]:
        found: dict[int, tuple[str, int]] = {}
        parameters: dict[str, Any] = {"Bucket": self.bucket.name, "Key": self.key, "UploadId": self.upload_id}
        while True:
            answer = await self.bucket.access.call("list_parts", f"parts of {self.key}", **parameters)
            for row in answer.get("Parts", []):
                found[int(row["PartNumber"])] = (str(row["ETag"]).strip('"'), int(row["Size"]))
            if not answer.get("IsTruncated"):
                return found
            parameters["PartNumberMarker"] = answer["NextPartNumberMarker"]

    async def begin(self, metadata: Mapping[str, str], storage_class: str | None) -> None:
        """Creates the upload, once; with a CRC64NVME over the whole object where the store can keep one."""
        self._metadata = metadata
        if self.upload_id is not None:
            return
        what = f"upload of {self.key}"
        parameters: dict[str, Any] = {"Bucket": self.bucket.name, "Key": self.key, "Metadata": dict(metadata)}
        if storage_class:
            parameters["StorageClass"] = storage_class
        checksum = {"ChecksumAlgorithm": "CRC64NVME", "ChecksumType": "FULL_OBJECT"}
        try:
            answer = await self.bucket.access.call("create_multipart_upload", what, **parameters, **checksum)
        except (Unsupported, RemoteError) as error:
            if isinstance(error, PreconditionFailed):
                raise
            answer = await self.bucket.access.call("create_multipart_upload", what, **parameters)
        self.upload_id = str(answer["UploadId"])
        self.checksummed = answer.get("ChecksumAlgorithm") == "CRC64NVME"
        # With SSE-KMS or SSE-C a part's ETag is not its MD5.
        self.md5_etags = (
            answer.get("ServerSideEncryption", "AES256") == "AES256" and "SSECustomerAlgorithm" not in answer
        )
        row = {"upload": self.upload_id, "plan": self.digest, "settings": dict(self.settings)}
        await self._note(row | {"checksummed": self.checksummed, "md5_etags": self.md5_etags})

    async def send(self, number: int, body: Pieces) -> tuple[str, str]:
        """Sends a part until the store confirms these very bytes; gives its ETag and CRC64NVME (base64)."""
        crc = checksums.encode(checksums.crc64nvme_of(body))
        parameters: dict[str, Any] = {
            "Bucket": self.bucket.name,
            "Key": self.key,
            "UploadId": self.upload_id,
            "PartNumber": number,
            "Body": body,
            "ChecksumCRC64NVME": crc,
        }
        for attempt in range(1, _ATTEMPTS + 1):
            body.seek(0)
            answer = await self.bucket.access.call("upload_part", f"part {number} of {self.key}", **parameters)
            etag = str(answer["ETag"]).strip('"')
            if await self._confirmed(answer, etag, crc, body):
                return etag, crc
            if attempt == _ATTEMPTS:
                break
        raise VerificationError(f"part {number} of {self.key} arrived changed {_ATTEMPTS} times")

    async def _confirmed(self, answer: Mapping[str, Any], etag: str, crc: str, body: Pieces) -> bool:
        echoed = answer.get("ChecksumCRC64NVME")
        if echoed is not None and self.checksummed:
            return bool(echoed == crc)
        if not self.md5_etags or not checksums.plain_md5(etag):
            return True  # nothing to compare here: the verifier reads every byte again
        return bool(etag == await asyncio.to_thread(_md5, body))

    async def copy(
        self, number: int, source: Bucket, key: str, etag: str, version: str | None, span: range
    ) -> PartDone:
        """Has the store copy a stretch of one source object into a part. The condition is settled by the caller's HEAD."""
        copied: dict[str, Any] = {"Bucket": source.name, "Key": key}
        if version:
            copied["VersionId"] = version
        answer = await self.bucket.access.call(
            "upload_part_copy",
            f"copy of part {number} of {self.key}",
            Bucket=self.bucket.name,
            Key=self.key,
            UploadId=self.upload_id,
            PartNumber=number,
            CopySource=copied,
            CopySourceIfMatch=f'"{etag}"',
            CopySourceRange=f"bytes={span.start}-{span.stop - 1}",
        )
        result = answer.get("CopyPartResult") or {}
        if not result.get("ETag"):
            raise TransientError(f"copy of part {number} of {self.key}: the store's answer holds no ETag")
        return PartDone(number, 0, 0, len(span), str(result["ETag"]).strip('"'), result.get("ChecksumCRC64NVME"))

    async def finished(self, part: PartDone) -> None:
        """A part is done: in memory, and durably."""
        self.done[part.number] = part
        await self._note({"part": asdict(part)})

    async def complete(self) -> Head:
        """Joins the parts under the final name, unless something lies there. Gives the stored object's HEAD.

        An answer that names exactly our parts needs no HEAD, which some stores read the whole object for. (The verifier
        asks for one in any case.)
        """
        there = await self.bucket.head(self.key)
        if there is not None:
            ours = await self.ours_or_refuse(there)
            await self._give_up_twin()
            return ours
        await self._all_there()
        parts = [self.done[number] for number in sorted(self.done)]
        try:
            answer = await self.bucket.access.call(
                "complete_multipart_upload", f"completing {self.key}", **self._completion(parts)
            )
        except PreconditionFailed as error:
            there = await self.bucket.head(self.key)
            if there is None:
                raise ConcurrentWriter(f"{self.key}: another writer is completing this tarball ({error})") from None
        except AuthError:
            raise
        except WaybillError:
            # Lost answer, 5xx, or "no such upload" because an earlier attempt got through: HEAD says which.
            there = await self.bucket.head(self.key)
            if there is None:
                raise
        else:
            joined = self._named_in(answer)
            if joined is not None:
                return joined
            there = await self.bucket.head(self.key)
            if there is None:
                raise TransientError(f"{self.key} was completed and is not there yet; try again")
            if PLAN_METADATA not in there.metadata and there.size == self.stored_bytes:
                return there  # just joined by this very call, on a store that keeps no metadata
        return await self.ours_or_refuse(there)

    def _named_in(self, answer: Mapping[str, Any]) -> Head | None:
        """What was joined, where the answer holds our CRC64NVME of the whole, or the ETag made of all our parts' ETags."""
        etag, crc = str(answer.get("ETag", "")).strip('"'), answer.get("ChecksumCRC64NVME")
        unlike = etag != self._composite_etag() if crc is None else crc != self.whole_crc()
        if unlike or not self._metadata:  # a run that sent nothing does not know what the upload began with
            return None
        return Head(self.key, self.stored_bytes, etag, answer.get("VersionId"), 0, metadata=self._metadata)

    def _composite_etag(self) -> str | None:
        """The MD5 of the parts' MD5s with their count; None where a part's ETag is no MD5."""
        etags = [self.done[number].etag for number in sorted(self.done)]
        if not all(checksums.plain_md5(etag) for etag in etags):
            return None
        whole = hashlib.md5(bytes.fromhex("".join(etags)), usedforsecurity=False).hexdigest()
        return f"{whole}-{len(etags)}"

    async def _all_there(self) -> None:
        """Every part as it was sent, or nothing is joined: some stores join what they have without a word."""
        sent = dict(self.done)
        await self._compare_with_store()
        lost = sorted(sent.keys() - self.done.keys())
        if lost:
            raise TransientError(f"{self.key}: the store lost or changed parts {lost}; run again to send them again")

    def _completion(self, parts: list[PartDone]) -> dict[str, Any]:
        rows: list[dict[str, Any]] = [{"PartNumber": part.number, "ETag": f'"{part.etag}"'} for part in parts]
        parameters: dict[str, Any] = {
            "Bucket": self.bucket.name,
            "Key": self.key,
            "UploadId": self.upload_id,
            "IfNoneMatch": "*",
            "MpuObjectSize": self.stored_bytes,
            "MultipartUpload": {"Parts": rows},
        }
        whole = self.whole_crc()
        if self.checksummed and whole is not None:
            parameters |= {"ChecksumCRC64NVME": whole, "ChecksumType": "FULL_OBJECT"}
            for row, part in zip(rows, parts, strict=True):
                row["ChecksumCRC64NVME"] = part.crc64nvme
        return parameters

    @property
    def stored_bytes(self) -> int:
        return sum(part.size for part in self.done.values())

    def whole_crc(self) -> str | None:
        """CRC64NVME of the tarball from that of its parts; None where a copied part has none."""
        pieces = [(self.done[n].crc64nvme, self.done[n].size) for n in sorted(self.done)]
        if any(crc is None for crc, _ in pieces):
            return None
        return checksums.encode(checksums.combine((checksums.decode(crc), size) for crc, size in pieces if crc))

    async def ours_or_refuse(self, there: Head) -> Head:
        """An object under our name is ours when it carries this plan's digest, or holds these very bytes."""
        named = there.metadata.get(PLAN_METADATA)
        if there.size != self.stored_bytes or named not in (None, self.digest):
            raise ArchiveExists(
                f"s3://{self.bucket.name}/{self.key} exists and is not of this plan; nothing was changed"
            )
        whole = self.whole_crc()
        held = checksums.whole_checksum(there.checksum)
        if whole is not None and held is not None and held[0] == "CRC64NVME" and held[1] != whole:
            raise VerificationError(
                f"s3://{self.bucket.name}/{self.key}: the store's CRC64NVME is not that of the parts"
            )
        if named is None and whole != await self._read_crc(there):
            # rclone, for one, drops metadata: then only content can tell whose it is.
            raise ArchiveExists(f"s3://{self.bucket.name}/{self.key} exists with other content; nothing was changed")
        return there

    async def _read_crc(self, there: Head) -> str:
        crc = 0
        for start in range(0, there.size, FETCH_BYTES):
            length = min(FETCH_BYTES, there.size - start)
            data = await self.bucket.read(self.key, start, length, etag=there.etag, size=there.size)
            crc = checksums.crc64nvme(memoryview(data), crc)
        return checksums.encode(crc)

    async def _give_up_twin(self) -> None:
        """The tarball is there already (its journal was lost, or the answer): parts sent beside it would only cost."""
        where = {"Bucket": self.bucket.name, "Key": self.key, "UploadId": self.upload_id}
        try:
            await self.bucket.access.call("abort_multipart_upload", f"aborting {self.key}", **where)
        except WaybillError:
            pass  # most often: no such upload, because it is the one that was completed

    async def abort(self) -> None:
        """Gives the parts up. For a caller who knows that nobody will resume."""
        if self.upload_id is not None:
            where = {"Bucket": self.bucket.name, "Key": self.key, "UploadId": self.upload_id}
            await self.bucket.access.call("abort_multipart_upload", f"aborting {self.key}", **where)
            await self._note({"upload": None, "plan": self.digest, "settings": {}})
            self.upload_id, self.done = None, {}

    async def _note(self, row: Mapping[str, Any]) -> None:
        await asyncio.to_thread(self.journal.append, row)


def _part(row: Mapping[str, Any]) -> PartDone:
    lists = {"frames": tuple(tuple(f) for f in row["frames"]), "members": tuple(tuple(m) for m in row["members"])}
    return PartDone(**{**row, **lists})


def _md5(body: Pieces) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    checksums.feed(digest.update, body)
    return digest.hexdigest()
