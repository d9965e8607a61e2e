"""One multipart upload: parts from memory or from a stream, with a journal that survives crashes or with none.

Invariant: a part counts as done when the journal *and* the store's ListParts agree on it, and completing is not repeatable:
whatever the store answers, HEAD decides. Ours (by its metadata or its content) is success; anything else under the key is
somebody else's and is replaced only by an upload that asks for overwriting.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Generic, TypeVar

from include.core.errors import AuthError, RemoteError, TransientError, VerificationError, WaybillError
from include.core.journal import PartJournal
from include.s3 import checksums
from include.s3.bucket import Bucket, Head
from include.s3.errors import ConcurrentWriter, ObjectExists, PreconditionFailed, SourceChanged, UploadLost
from include.s3.pieces import Pieces

_ATTEMPTS = 3
_READ_BYTES = 8 * 1024 * 1024
_PARTS_OF_ONE_SIZE = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class PartDone:
    """A part that the store holds. `crc64nvme` is None where the store copied it and named none.

    A subclass may add what its owner wants to find in the journal; `Upload.part_of_row` reads it back.
    """

    number: int
    size: int
    etag: str
    crc64nvme: str | None

    def row(self) -> dict[str, Any]:
        """As the journal keeps it."""
        return {one.name: getattr(self, one.name) for one in fields(self)}


P = TypeVar("P", bound=PartDone)


@dataclass(frozen=True, slots=True)
class CopySource:
    """What the store copies into a part: `size` bytes, all of an object or its stretch `span`."""

    bucket: str
    key: str
    etag: str
    version_id: str | None
    size: int
    span: range | None = None


@dataclass(frozen=True, slots=True)
class Mark:
    """How our object is told from others under the same key: by this value under this metadata key."""

    metadata_key: str
    value: str


@dataclass
class Upload(Generic[P]):
    """The upload of one object. Without a `mark` only its content says that an object is ours.

    `settings` are what the cut of the parts depends on: a journal of other settings, or of another mark, is not used.
    `overwrite` replaces what lies under the key. `read_bytes` is the block in which a stored object is read back.
    `read_back`: the owner reads all of it again before anybody relies on it, so that no MD5 of a part is made where the store
    does not confirm its CRC64NVME.
    """

    bucket: Bucket
    key: str
    mark: Mark | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    journal: PartJournal | None = None
    part_of_row: Callable[[Mapping[str, Any]], P] | None = None
    overwrite: bool = False
    read_back: bool = False
    read_bytes: int = _READ_BYTES
    upload_id: str | None = None
    done: dict[int, P] = field(default_factory=dict)
    resumed: int = 0
    checksummed: bool = False
    md5_etags: bool = True
    _metadata: Mapping[str, str] = field(default_factory=dict)

    async def load(self) -> None:
        """Takes over what an earlier process finished, if it was for the same mark and the store still has it."""
        if self.journal is None or self.part_of_row is None:
            return
        for row in await asyncio.to_thread(self.journal.load):
            if "upload" in row:
                same = row["plan"] == self._marked and row["settings"] == dict(self.settings)
                self.upload_id = row["upload"] if same else None
                self.checksummed, self.md5_etags = row.get("checksummed", False), row.get("md5_etags", True)
                self.done = {}
            elif "part" in row and self.upload_id is not None:
                part = self.part_of_row(row["part"])
                self.done[part.number] = part
        if self.upload_id is not None:
            await self._compare_with_store()
        self.resumed = len(self.done)

    @property
    def _marked(self) -> str | None:
        return self.mark.value if self.mark else None

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

    async def begin(
        self, metadata: Mapping[str, str] | None = None, storage_class: str | None = None, **extra: str
    ) -> None:
        """Creates the upload, once; with a CRC64NVME over the whole object where the store can keep one.

        `extra`: more of what botocore's create_multipart_upload takes.
        """
        self._metadata = dict(metadata or {})
        if self.upload_id is not None:
            return
        what = f"upload of {self.key}"
        parameters: dict[str, Any] = {"Bucket": self.bucket.name, "Key": self.key, "Metadata": self._metadata, **extra}
        if storage_class:
            parameters["StorageClass"] = storage_class
        checksum = {"ChecksumAlgorithm": "CRC64NVME", "ChecksumType": "FULL_OBJECT"}
        try:
            answer = await self.bucket.access.call("create_multipart_upload", what, **parameters, **checksum)
        except PreconditionFailed:
            raise
        except RemoteError:  # a store without this checksum
            answer = await self.bucket.access.call("create_multipart_upload", what, **parameters)
        self.upload_id = str(answer["UploadId"])
        self.checksummed = answer.get("ChecksumAlgorithm") == "CRC64NVME"
        # With SSE-KMS or SSE-C a part's ETag is not its MD5 (docs/protocols/s3.md 2.1).
        self.md5_etags = (
            answer.get("ServerSideEncryption", "AES256") == "AES256" and "SSECustomerAlgorithm" not in answer
        )
        # "plan" is the mark's name in stored journals.
        row = {"upload": self.upload_id, "plan": self._marked, "settings": dict(self.settings)}
        await self._journal(row | {"checksummed": self.checksummed, "md5_etags": self.md5_etags})

    async def send(self, number: int, body: Pieces) -> tuple[str, str]:
        """Sends a part until the store confirms these very bytes, as far as it does; gives its ETag and CRC64NVME (base64)."""
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
        if self.read_back:
            return True
        encrypted = answer.get("ServerSideEncryption", "AES256") != "AES256" or "SSECustomerAlgorithm" in answer
        if encrypted or not self.md5_etags or not checksums.plain_md5(etag):
            return True  # nothing to compare here
        return bool(etag == await asyncio.to_thread(_md5, body))

    async def send_stream(self, chunks: AsyncIterator[memoryview], part_bytes: int) -> AsyncGenerator[PartDone, None]:
        """Cuts a stream into parts and sends each before the next is read. Gives each part sent, for `finished`.

        Later parts grow, so that 10,000 of them hold any object without its size being known here.
        """
        held: list[memoryview] = []
        number, length, size = 1, 0, part_bytes
        async for chunk in chunks:
            while len(chunk):
                taken = chunk[: size - length]
                held.append(taken)
                chunk, length = chunk[len(taken) :], length + len(taken)
                if length == size:
                    yield await self._send_pieces(number, held)
                    number, held, length = number + 1, [], 0
                    size = part_bytes * (1 + (number - 1) // _PARTS_OF_ONE_SIZE)
        if held or number == 1:
            yield await self._send_pieces(number, held)

    async def _send_pieces(self, number: int, held: list[memoryview]) -> PartDone:
        body = Pieces(held)
        etag, crc = await self.send(number, body)
        done = PartDone(number=number, size=len(body), etag=etag, crc64nvme=crc)
        body.free()
        return done

    async def copy(self, number: int, source: CopySource, *, expected: str | None = None) -> PartDone:
        """Has the store copy one object, or a stretch of it, into a part; gives what the store says that it copied.

        `expected` is the CRC64NVME (base64) that the copied bytes must have. Raises SourceChanged where the object has another
        ETag by now, VerificationError where other bytes were copied, or the store does not say which.
        """
        what = f"copy of part {number} of {self.key}"
        copied: dict[str, Any] = {"Bucket": source.bucket, "Key": source.key}
        if source.version_id and source.version_id != "null":
            copied["VersionId"] = source.version_id
        parameters: dict[str, Any] = {
            "Bucket": self.bucket.name,
            "Key": self.key,
            "UploadId": self.upload_id,
            "PartNumber": number,
            "CopySource": copied,
            "CopySourceIfMatch": f'"{source.etag}"',
        }
        if source.span is not None:
            parameters["CopySourceRange"] = f"bytes={source.span.start}-{source.span.stop - 1}"
        for _ in range(_ATTEMPTS):
            try:
                answer = await self.bucket.access.call("upload_part_copy", what, **parameters)
            except PreconditionFailed:
                raise SourceChanged(
                    f"s3://{source.bucket}/{source.key} was changed: its ETag is not {source.etag}"
                ) from None
            result = answer.get("CopyPartResult") or {}
            if not result.get("ETag"):
                raise TransientError(f"{what}: the store's answer holds no ETag")
            crc = result.get("ChecksumCRC64NVME")
            if crc is None:
                raise VerificationError(f"{what}: the store names no CRC64NVME of what it copied, so nothing proves it")
            if expected in (None, crc):
                etag = str(result["ETag"]).strip('"')
                return PartDone(number=number, size=source.size, etag=etag, crc64nvme=crc)
        raise VerificationError(
            f"{what}: the store copied other bytes of s3://{source.bucket}/{source.key} than those whose CRC64NVME it keeps, "
            f"{_ATTEMPTS} times"
        )

    async def finished(self, part: P) -> None:
        """A part is done: in memory, and durably."""
        self.done[part.number] = part
        await self._journal({"part": part.row()})

    async def complete(self) -> Head:
        """Joins the parts under the key: unless something lies there, or over it where `overwrite` is set.

        Gives the stored object's HEAD. An answer that names exactly our parts needs no HEAD, which some stores read the whole
        object for. Raises ObjectExists, ConcurrentWriter, VerificationError and the core's errors.
        """
        there = None if self.overwrite else await self.bucket.head(self.key)
        if there is not None:
            ours = await self.ours_or_refuse(there)
            await self.abort()  # a duplicate upload: its parts would only cost
            return ours
        await self._all_there()
        try:
            answer = await self._join()
        except PreconditionFailed as error:
            there = await self.bucket.head(self.key)
            if there is None:
                raise ConcurrentWriter(f"{self.key}: another writer is completing the same object ({error})") from None
            return await self.ours_or_refuse(there)
        except AuthError:
            raise
        except WaybillError as error:
            # Lost answer, 5xx, or "no such upload" because an earlier attempt got through: HEAD says which.
            return await self._joined_all_the_same(error)
        return self._named_in(answer) or await self._joined_here()

    async def _join(self) -> dict[str, Any]:
        parts = [self.done[number] for number in sorted(self.done)]
        what = f"completing {self.key}"
        return await self.bucket.access.call("complete_multipart_upload", what, **self._completion(parts))

    async def _joined_all_the_same(self, error: WaybillError) -> Head:
        there = await self.bucket.head(self.key)
        if there is None:
            raise error
        try:
            return await self.ours_or_refuse(there)
        except ObjectExists:
            if self.overwrite:
                raise error from None  # what was to be replaced lies there still
            raise

    async def _joined_here(self) -> Head:
        there = await self.bucket.head(self.key)
        if there is None:
            raise TransientError(f"{self.key} was completed and is not there yet; try again")
        if self.mark is not None and self.mark.metadata_key not in there.metadata and there.size == self.stored_bytes:
            return there  # just joined by this very call, on a store that keeps no metadata
        try:
            return await self.ours_or_refuse(there)
        except ObjectExists:
            if self.overwrite:
                raise ConcurrentWriter(f"{self.key} was written, and another writer has replaced it since") from None
            raise

    def _named_in(self, answer: Mapping[str, Any]) -> Head | None:
        """What was joined, where the answer holds our CRC64NVME of the whole, or the ETag made of all our parts' ETags."""
        etag, crc = str(answer.get("ETag", "")).strip('"'), answer.get("ChecksumCRC64NVME")
        unlike = etag != self._composite_etag() if crc is None else crc != self.whole_crc()
        if unlike or (self.mark is not None and not self._metadata):
            return None  # a run that sent nothing does not know what the upload began with
        return Head(self.key, self.stored_bytes, etag, answer.get("VersionId"), 0, metadata=self._metadata)

    def _composite_etag(self) -> str | None:
        """The MD5 of the parts' MD5s with their count; None where a part's ETag is no MD5."""
        etags = [self.done[number].etag for number in sorted(self.done)]
        if not all(checksums.plain_md5(etag) for etag in etags):
            return None
        whole = hashlib.md5(bytes.fromhex("".join(etags)), usedforsecurity=False).hexdigest()
        return f"{whole}-{len(etags)}"

    async def _all_there(self) -> None:
        """Every part as it was sent, or nothing is joined: some stores join what they have without a word.

        Without a journal all parts were confirmed in this very process, and the right to list them is not needed.
        """
        if self.journal is None:
            return
        sent = dict(self.done)
        await self._compare_with_store()
        lost = sorted(sent.keys() - self.done.keys())
        if lost:
            raise TransientError(f"{self.key}: the store lost or changed parts {lost}; run again to send them again")

    def _completion(self, parts: list[P]) -> dict[str, Any]:
        rows: list[dict[str, Any]] = [{"PartNumber": part.number, "ETag": f'"{part.etag}"'} for part in parts]
        parameters: dict[str, Any] = {
            "Bucket": self.bucket.name,
            "Key": self.key,
            "UploadId": self.upload_id,
            "MpuObjectSize": self.stored_bytes,
            "MultipartUpload": {"Parts": rows},
        }
        if not self.overwrite:
            parameters["IfNoneMatch"] = "*"
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
        """CRC64NVME of the object from that of its parts; None where a copied part has none."""
        pieces = [(self.done[n].crc64nvme, self.done[n].size) for n in sorted(self.done)]
        if any(crc is None for crc, _ in pieces):
            return None
        return checksums.encode(checksums.combine((checksums.decode(crc), size) for crc, size in pieces if crc))

    async def ours_or_refuse(self, there: Head) -> Head:
        """An object under our key is ours when it carries our mark, or holds these very bytes. Raises ObjectExists."""
        named = there.metadata.get(self.mark.metadata_key) if self.mark else None
        if there.size != self.stored_bytes or named not in (None, self._marked):
            raise ObjectExists(f"s3://{self.bucket.name}/{self.key} exists and is another object; nothing was changed")
        whole = self.whole_crc()
        held = checksums.whole_checksum(there.checksum)
        if whole is not None and held is not None and held[0] == "CRC64NVME":
            if held[1] != whole and self.mark is not None:
                what = f"s3://{self.bucket.name}/{self.key}"
                raise VerificationError(f"{what}: the store's CRC64NVME is not that of the parts")
            if self.mark is None:
                return self._same(there, held[1] == whole)
        if self.mark is None and there.etag == self._composite_etag():
            return there
        # Some stores lose metadata (docs/protocols/s3.md 3.8): then only content can tell whose it is.
        return there if named is not None else self._same(there, whole == await self._read_crc(there))

    def _same(self, there: Head, alike: bool) -> Head:
        if not alike:
            raise ObjectExists(f"s3://{self.bucket.name}/{self.key} exists with other content; nothing was changed")
        return there

    async def _read_crc(self, there: Head) -> str:
        crc = 0
        for start in range(0, there.size, self.read_bytes):
            length = min(self.read_bytes, there.size - start)
            data = await self.bucket.read(self.key, start, length, etag=there.etag, size=there.size)
            crc = checksums.crc64nvme(memoryview(data), crc)
        return checksums.encode(crc)

    async def abort(self) -> None:
        """Gives the parts up, as far as the store lets it: a bucket's lifecycle rule removes what is left."""
        if self.upload_id is None:
            return
        where = {"Bucket": self.bucket.name, "Key": self.key, "UploadId": self.upload_id}
        try:
            await self.bucket.access.call("abort_multipart_upload", f"aborting {self.key}", **where)
        except WaybillError:
            pass  # most often: no such upload, because it is the one that was completed

    async def _journal(self, row: Mapping[str, Any]) -> None:
        if self.journal is not None:
            await asyncio.to_thread(self.journal.append, row)


def _md5(body: Pieces) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    checksums.feed(digest.update, body)
    return digest.hexdigest()
