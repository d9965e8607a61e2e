"""One bucket: reading, listing, writing, deleting, each with the condition that makes it safe.

Invariant: a condition (If-Match, If-None-Match) is always sent *and* settled from the answer or by HEAD,
because many stores ignore it without a word (docs/protocols/s3.md 6). obstore reads; it cannot name keys with empty or dot
segments, control characters or an outer slash, so those go through botocore.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import obstore
from obstore.exceptions import BaseError

from include.core.errors import Forbidden, NotFound, RequestError, TransientError, VerificationError
from include.core.text import pluralize, sentences
from include.s3.client import S3Client, obstore_error
from include.s3.errors import (
    BucketMissing,
    ObjectExists,
    ObjectVanished,
    OtherRegion,
    PreconditionFailed,
    SourceChanged,
    Unsupported,
)
from include.s3.headers import Headers, of_answer, of_attributes, tagging

Buffer = Any  # bytes or obstore's Bytes: whatever memoryview() takes
_ODD_KEY = re.compile(r"(^|/)(\.{0,2})(/|$)|[\x00-\x1f\x7f]")
_GOING_ON = {  # what the next page is asked by, and where the answer names it
    "list_object_versions": {"KeyMarker": "NextKeyMarker", "VersionIdMarker": "NextVersionIdMarker"},
    "list_objects_v2": {"ContinuationToken": "NextContinuationToken"},
}
_NEEDED = {  # why a listing that a store does not give cannot be done without
    "list_object_versions": "This bucket has versions, and only ListObjectVersions says which of them are current and which lie "
    "below: give the right s3:ListBucketVersions; on a store without it, nothing can be proved or deleted",
    "list_objects": "ListObjects is asked beside ListObjectsV2, since a list that a store cut short shows only beside a second "
    "one: give the right s3:ListBucket to both",
}
_PAGE_AGAIN = 997  # no divisor of other page sizes: what is lost at the seam of two pages is lost in one listing only
_LARGEST_DOCUMENT = 1 << 30  # what is read whole: a manifest of ten million files is smaller
_CHECKSUMS = ("CRC64NVME", "SHA256", "CRC32C", "CRC32", "SHA1")


@dataclass(frozen=True, slots=True)
class Head:
    """What HEAD says of an object. `restore` is the raw x-amz-restore header, `archive` an Intelligent-Tiering tier.

    `headers` are what a copy of it needs to be like it, all but its tags, of which HEAD gives the number only.
    """

    key: str
    size: int
    etag: str
    version_id: str | None
    modified: int
    metadata: Mapping[str, str] = field(default_factory=dict)
    storage_class: str | None = None
    checksum: str | None = None
    restore: str | None = None
    archive: str | None = None
    encryption: str | None = None
    retain_until: float | None = None
    legal_hold: bool = False
    headers: Headers = ()
    tag_count: int = 0

    @property
    def cold(self) -> bool:
        """Archived, and no restored copy is there to be read."""
        archived = self.storage_class in ("GLACIER", "DEEP_ARCHIVE") or self.archive is not None
        return archived and not (self.restore and 'ongoing-request="false"' in self.restore)


@dataclass(frozen=True, slots=True)
class VersionState:
    """What lies under a key on a versioned bucket: the newest version, the delete marker that hides it, if one does, and
    how many versions there are."""

    newest: str | None
    marker: str | None
    versions: int = 0


class ListedObject(NamedTuple):
    """One key as a listing shows it. `etag` without quotes, `modified` in epoch seconds (UTC).

    `checksum` names the algorithm alone ("CRC64NVME:"): HEAD gives the value.
    """

    key: str
    size: int
    etag: str
    modified: int
    version_id: str | None = None
    storage_class: str | None = None
    checksum: str | None = None


class KeyVersion(NamedTuple):
    """One version of a key, as the listing of versions shows it; `latest`: it is the current object."""

    key: str
    version_id: str
    etag: str
    size: int
    modified: int
    latest: bool


class Bucket:
    """One bucket. Get it from S3Access.bucket."""

    def __init__(self, name: str, access: S3Client, store: Any):
        self.name = name
        self.access = access
        self._store = store
        self._region = access.region
        self._answers_206 = True

    def what(self, verb: str, key: str) -> str:
        return f"{verb} s3://{self.name}/{key}"

    # Reading

    async def read(
        self,
        key: str,
        start: int,
        length: int,
        *,
        etag: str | None,
        size: int | None,
        version_id: str | None = None,
        learn: Callable[[Headers], None] | None = None,
    ) -> Buffer:
        """Exactly `length` bytes from `start` of the object with this ETag and total size. `learn` is told its headers.

        Raises SourceChanged where it is another object by now, NotFound, ColdObject, AuthError, TransientError.
        """
        if length == 0:
            return b""
        region = self._region
        try:
            data, found, total, headers = await self._read_by_either(key, start, length, etag, size, version_id)
        except OtherRegion as error:
            await self._follow(error, region)
            return await self.read(key, start, length, etag=etag, size=size, version_id=version_id, learn=learn)
        except PreconditionFailed:
            raise SourceChanged(f"s3://{self.name}/{key} was changed: its ETag is no longer {etag}") from None
        except NotFound as error:
            if etag is None or isinstance(error, BucketMissing):
                raise
            raise ObjectVanished(f"s3://{self.name}/{key} was listed and is gone") from None
        if (etag and found != etag) or (size is not None and total != size):
            # The store ignored If-Match; the answer still says which object this is.
            raise SourceChanged(
                f"s3://{self.name}/{key} was changed: ETag {found}, {total} bytes; listed {etag}, {size}"
            )
        if len(data) != length:
            raise TransientError(f"s3://{self.name}/{key}: {len(data)} bytes came instead of {length}")
        if learn is not None:
            learn(headers())
        return data

    async def _read_by_either(
        self, key: str, start: int, length: int, etag: str | None, size: int | None, version_id: str | None
    ) -> tuple[Buffer, str, int, Callable[[], Headers]]:
        """The bytes, the ETag, the size and the headers that came with them: by obstore, and where it cannot, by botocore."""
        ranged = size != length or start != 0
        if not _ODD_KEY.search(key) and (not ranged or self._answers_206):
            part = (start, start + length) if ranged else None
            try:
                return await self.access.patience.call(lambda: self._read_obstore(key, part, etag, version_id))
            except Unsupported:
                # A range answered with 200 (docs/protocols/s3.md 2.3): obstore refuses it, botocore does not mind and we check.
                self._answers_206 = False
        return await self._read_botocore(key, start, length, etag, version_id)

    async def _follow(self, error: OtherRegion, asked: str) -> None:
        """Asks in the bucket's own region from now on. Raises the error where that is not known, or was asked already."""
        if self._region != asked:
            return  # another read has found it meanwhile
        region = error.region or await self.access.region_of(self.name)
        if region is None or region == asked:
            raise error
        self._store, self._region = self.access.obstore(self.name, region), region

    async def _read_obstore(
        self, key: str, part: tuple[int, int] | None, etag: str | None, version_id: str | None
    ) -> tuple[Buffer, str, int, Callable[[], Headers]]:
        options: dict[str, Any] = {"range": part} if part else {}
        if etag:
            options["if_match"] = f'"{etag}"'
        if version_id:
            options["version"] = version_id
        try:
            answer = await obstore.get_async(self._store, key, options=options)  # type: ignore[arg-type]
            meta = answer.meta
            data = await answer.bytes_async()
        except (BaseError, FileNotFoundError) as error:
            raise obstore_error(error, self.what("GET", key)) from None
        return data, (meta["e_tag"] or "").strip('"'), int(meta["size"]), lambda: of_attributes(answer.attributes)

    async def _read_botocore(
        self, key: str, start: int, length: int, etag: str | None, version_id: str | None
    ) -> tuple[bytes, str, int, Callable[[], Headers]]:
        parameters = self._versioned(key, version_id) | {"Range": f"bytes={start}-{start + length - 1}"}
        if etag:
            parameters["IfMatch"] = f'"{etag}"'
        answer = await self.access.call("get_object", self.what("GET", key), **parameters)
        data = await self._body(answer, key)
        total = int(str(answer.get("ContentRange", f"/{answer['ContentLength']}")).rsplit("/", 1)[1])
        return data, str(answer["ETag"]).strip('"'), total, lambda: of_answer(answer)

    async def read_all(self, key: str, most: int = _LARGEST_DOCUMENT) -> bytes:
        """A small document. Raises NotFound, AuthError, TransientError; VerificationError for one of more than `most` bytes."""

        async def once() -> bytes:
            answer = await self.access.call("get_object", self.what("GET", key), Bucket=self.name, Key=key)
            if int(answer["ContentLength"]) > most:
                answer["Body"].close()
                size = answer["ContentLength"]
                raise VerificationError(
                    f"s3://{self.name}/{key} has {size} bytes, and no document of its name has more than {most}"
                )
            return await self._body(answer, key)

        return await self.access.patience.call(once)

    async def _body(self, answer: Mapping[str, Any], key: str) -> bytes:
        try:
            return bytes(await self.access.in_thread(answer["Body"].read))
        except Exception as error:
            raise TransientError(f"{self.what('GET', key)}: the read failed ({type(error).__name__})") from None

    async def head(self, key: str, version_id: str | None = None) -> Head | None:
        """What lies under a key, None where nothing does. Raises AuthError: 403 is never taken for absent."""
        parameters = self._versioned(key, version_id) | {"ChecksumMode": "ENABLED"}
        try:
            answer = await self.access.call("head_object", self.what("HEAD", key), **parameters)
        except NotFound:
            return None
        retain = answer.get("ObjectLockRetainUntilDate")
        return Head(
            key=key,
            size=int(answer["ContentLength"]),
            etag=str(answer.get("ETag", "")).strip('"'),
            version_id=answer.get("VersionId"),
            modified=int(answer["LastModified"].timestamp()),
            # Header names have no case, and some stores give them back capitalised.
            metadata={name.lower(): str(value) for name, value in answer.get("Metadata", {}).items()},
            storage_class=answer.get("StorageClass"),
            checksum=_checksum(answer),
            restore=answer.get("Restore"),
            archive=answer.get("ArchiveStatus"),
            encryption=answer.get("ServerSideEncryption") or answer.get("SSECustomerAlgorithm"),
            retain_until=retain.timestamp() if retain else None,
            legal_hold=answer.get("ObjectLockLegalHoldStatus") == "ON",
            headers=of_answer(answer),
            tag_count=int(answer.get("TagCount", 0)),
        )

    async def tags(self, key: str, version_id: str | None = None) -> str:
        """An object's tags, as in header x-amz-tagging. Raises AuthError without the right to read them, Unsupported."""
        what, where = self.what("tags of", key), self._versioned(key, version_id)
        return tagging((await self.access.call_without_waiting("get_object_tagging", what, **where)).get("TagSet", []))

    def _versioned(self, key: str, version_id: str | None) -> dict[str, Any]:
        parameters: dict[str, Any] = {"Bucket": self.name, "Key": key}
        if version_id:
            parameters["VersionId"] = version_id
        return parameters

    # Listing

    async def versioning(self) -> str:
        """ "Enabled", "Suspended" or "" (never switched on, or the store has none)."""
        try:
            answer = await self.access.call("get_bucket_versioning", f"versioning of {self.name}", Bucket=self.name)
        except Unsupported:
            return ""
        return str(answer.get("Status", ""))

    async def default_retention(self) -> str:
        """How long Object Lock keeps every new object, as "GOVERNANCE, 30 days"; "" where it does not. Raises Forbidden."""
        try:
            answer = await self.access.call(
                "get_object_lock_configuration", f"Object Lock of {self.name}", Bucket=self.name
            )
        except BucketMissing:
            raise
        except (NotFound, Unsupported):
            return ""
        rule = answer.get("ObjectLockConfiguration", {}).get("Rule", {}).get("DefaultRetention", {})
        for unit in ("Days", "Years"):
            if rule.get(unit):
                return f"{rule.get('Mode')}, {pluralize(int(rule[unit]), unit.lower()[:-1])}"
        return ""

    async def objects_under(self, prefix: str, *, versions: bool) -> AsyncIterator[ListedObject]:
        """Every current object under a prefix, in the store's order; with version ids where `versions`."""
        operation, rows = ("list_object_versions", "Versions") if versions else ("list_objects_v2", "Contents")
        async for page in self._pages(operation, Prefix=prefix):
            for row in page.get(rows, []):
                if not versions or row.get("IsLatest"):
                    yield _listed(row)

    async def objects_again(self, prefix: str) -> AsyncIterator[str]:
        """The keys of every current object under a prefix, by another request than `objects_under` sends (ListObjects, in
        pages of another size). It goes on until a page is empty, whatever the store says of the end of its list, since some
        stores say so too early (docs/protocols/s3.md 2.5)."""
        what, after = f"listing s3://{self.name}/{prefix}", ""
        while True:
            asked = {"Prefix": prefix, "Marker": after, "MaxKeys": _PAGE_AGAIN}
            answer = await self._page("list_objects", what, asked)
            keys = [str(row["Key"]) for row in answer.get("Contents", [])]
            if not keys:
                return
            if after in keys:
                raise VerificationError(
                    f"{what}: the store at {self.access.endpoint} does not go on after {after!r}, so the list is not whole. "
                    "Report it to those who run the store, or use another endpoint"
                )
            for key in keys:
                yield key
            after = keys[-1]

    async def versions_under(self, prefix: str) -> AsyncIterator[KeyVersion]:
        """Every version under a prefix, those of one key from new to old; delete markers are left out."""
        async for page in self._pages("list_object_versions", Prefix=prefix):
            for row in page.get("Versions", []):
                one = _listed(row)
                latest = bool(row.get("IsLatest"))
                yield KeyVersion(one.key, one.version_id or "null", one.etag, one.size, one.modified, latest)

    async def _pages(self, operation: str, **parameters: Any) -> AsyncIterator[dict[str, Any]]:
        """The pages of a listing, to its end. Raises VerificationError where the store does not say how it goes on, or says
        the same again: what was listed so far must not be taken for the whole (docs/protocols/s3.md 2.5)."""
        what = f"listing s3://{self.name}/{parameters['Prefix']}"
        seen: set[tuple[str, ...]] = set()
        while True:
            answer = await self._page(operation, what, parameters)
            yield answer
            if not answer.get("IsTruncated"):
                return
            going_on = {ask: str(answer.get(given) or "") for ask, given in _GOING_ON[operation].items()}
            missing = [_GOING_ON[operation][ask] for ask, given in going_on.items() if not given]
            place = tuple(going_on.values())
            if missing or place in seen:
                why = f"without {' and '.join(missing)}" if missing else "and sends the same page again"
                raise VerificationError(
                    f"{what}: the store at {self.access.endpoint} says that the list goes on, {why}, so the list is not "
                    "whole. Report it to those who run the store, or use another endpoint"
                )
            seen.add(place)
            parameters |= going_on

    async def _page(self, operation: str, what: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return await self.access.call(operation, what, Bucket=self.name, **parameters)
        except (Forbidden, Unsupported) as error:
            if operation == "list_objects_v2":
                raise
            told = sentences(str(error), _NEEDED[operation])
            raise (Forbidden(told) if isinstance(error, Forbidden) else Unsupported(told, no_effect=True)) from None

    async def past(self, key: str) -> VersionState:
        """The newest version of a key and its current delete marker, by the bucket's list of versions."""
        what = self.what("versions of", key)
        # A listing is ordered by key and then from new to old, so the key's own newest rows come first.
        answer = await self.access.call("list_object_versions", what, Bucket=self.name, Prefix=key, MaxKeys=20)
        versions = [row for row in answer.get("Versions", []) if row["Key"] == key]
        markers = [row for row in answer.get("DeleteMarkers", []) if row["Key"] == key and row.get("IsLatest")]
        return VersionState(
            str(versions[0]["VersionId"]) if versions else None,
            str(markers[0]["VersionId"]) if markers else None,
            len(versions),
        )

    async def folders(self, prefix: str) -> list[str]:
        """The prefixes one level below (up to the next slash) that begin with `prefix`."""
        pages = self._pages("list_objects_v2", Prefix=prefix, Delimiter="/")
        return [str(row["Prefix"]) async for page in pages for row in page.get("CommonPrefixes", [])]

    # Writing

    async def put_new(
        self,
        key: str,
        data: bytes,
        *,
        metadata: Mapping[str, str] | None = None,
        crc64nvme: str | None = None,
        **extra: Any,
    ) -> tuple[str, str | None]:
        """Writes an object that must not exist yet; gives its ETag and version. Raises ObjectExists.

        The same bytes found there count as written: a crash between PUT and the answer leaves exactly that. `crc64nvme`
        (base64) is sent in place of an MD5: large bodies are read back anyway, and a store that knows it keeps it.
        """
        before = await self.head(key)  # settles the case of a store that ignores If-None-Match
        if before is not None:
            return await self._same_or_refuse(key, data, before)
        parameters: dict[str, Any] = {"Bucket": self.name, "Key": key, "Body": data, "IfNoneMatch": "*", **extra}
        parameters |= {"Metadata": dict(metadata or {})}
        parameters |= {"ChecksumCRC64NVME": crc64nvme} if crc64nvme else {"ContentMD5": _content_md5(data)}
        try:
            answer = await self.access.call("put_object", self.what("PUT", key), **parameters)
        except PreconditionFailed:
            there = await self.head(key)
            if there is None:
                raise TransientError(f"{self.what('PUT', key)}: another writer was at work; try again") from None
            return await self._same_or_refuse(key, data, there)
        return str(answer.get("ETag", "")).strip('"'), answer.get("VersionId")

    async def _same_or_refuse(self, key: str, data: bytes, there: Head) -> tuple[str, str | None]:
        if there.size == len(data) and await self.read_all(key) == data:
            return there.etag, there.version_id
        raise ObjectExists(f"s3://{self.name}/{key} exists already with other content. Nothing was overwritten.")

    async def put(self, key: str, data: bytes, *, metadata: Mapping[str, str] | None = None, **extra: Any) -> None:
        """Writes a small object, over an older one if there is one. `extra`: as botocore's put_object takes it."""
        parameters: dict[str, Any] = {"Bucket": self.name, "Key": key, "Body": data, "ContentMD5": _content_md5(data)}
        parameters |= {"Metadata": dict(metadata or {}), **extra}
        await self.access.call("put_object", self.what("PUT", key), **parameters)

    # Deleting

    async def delete_one(
        self, key: str, *, version_id: str | None = None, etag: str | None = None, once: bool = False
    ) -> dict[str, Any]:
        """DELETE with the conditions given. On a versioned bucket without version_id: a marker.

        `once`: not repeated where the answer is lost, since a second one would set a second marker.
        """
        parameters = self._versioned(key, version_id)
        if etag:
            parameters["IfMatch"] = f'"{etag}"'
        call = self.access.call_without_retry if once else self.access.call
        return await call("delete_object", self.what("DELETE", key), **parameters)

    async def delete_many(self, objects: Sequence[Mapping[str, str]]) -> dict[str, Any]:
        """DeleteObjects of at most 1000 keys; the answer's Deleted and Errors are per key and must be read."""
        if len(objects) > 1000:
            raise VerificationError("more than 1000 keys in one deletion")
        what = f"DeleteObjects of {len(objects)} keys in {self.name}"
        delete = {"Objects": [dict(one) for one in objects], "Quiet": False}
        return await self.access.call("delete_objects", what, Bucket=self.name, Delete=delete)


def _content_md5(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()


def _listed(row: Mapping[str, Any]) -> ListedObject:
    return ListedObject(
        str(row["Key"]),
        int(row["Size"]),
        str(row.get("ETag", "")).strip('"'),
        int(row["LastModified"].timestamp()),
        row.get("VersionId"),
        row.get("StorageClass"),
        f"{row['ChecksumAlgorithm'][0]}:" if row.get("ChecksumAlgorithm") else None,
    )


def _checksum(answer: Mapping[str, Any]) -> str | None:
    kind = str(answer.get("ChecksumType", "FULL_OBJECT"))
    for name in _CHECKSUMS:
        value = answer.get(f"Checksum{name}")
        if value:
            return f"{name}:{'COMPOSITE' if '-' in value else kind}:{value}"
    return None


class S3Access(S3Client):
    """A store whose buckets can be opened. `options` are those of S3Client."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        self._buckets: dict[str, Bucket] = {}

    def bucket(self, name: str) -> Bucket:
        """A bucket by name, the same one each time. Nothing is asked of the store yet. Raises RequestError for an empty name."""
        if not name or "/" in name:
            raise RequestError(f"{name!r} is no bucket name: give the bare name")
        if name not in self._buckets:
            self._buckets[name] = Bucket(name, self, self.obstore(name))
        return self._buckets[name]
