"""What may happen to an object of a plate after its proof, and what verify, approval, gate and delete must say of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from include.s3.bucket import Bucket, ListedObject

SAME_SIZE, OTHER_SIZE = b"<XML/>", b"something longer"


@dataclass(frozen=True)
class SourceChange:
    """One row of the table. `says` is "" where nothing may be said; `hidden`: the listing does not show the object.

    `same_bytes`: only deletion minds, since it is another object; verify says that the bytes are those archived.
    """

    name: str
    happen: Callable[[Any, str, str], None]
    says: str
    unversioned: bool = True
    versioned: bool = True
    hidden: bool = False
    same_bytes: bool = False

    @property
    def listing_lags(self) -> bool:
        return self.hidden and not self.says


def nothing(_: Any, bucket: str, key: str) -> None:
    """Nothing happens to it."""


def other_etag(client: Any, bucket: str, key: str) -> None:
    client.put_object(Bucket=bucket, Key=key, Body=SAME_SIZE)


def other_size(client: Any, bucket: str, key: str) -> None:
    client.put_object(Bucket=bucket, Key=key, Body=OTHER_SIZE)


def same_bytes_again(client: Any, bucket: str, key: str) -> None:
    data = client.get_object(Bucket=bucket, Key=key)["Body"].read()
    client.put_object(Bucket=bucket, Key=key, Body=data)


def same_bytes_in_parts(client: Any, bucket: str, key: str) -> None:
    """As a restore writes a large file: its ETag is no MD5."""
    data = client.get_object(Bucket=bucket, Key=key)["Body"].read()
    upload = client.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
    where = {"Bucket": bucket, "Key": key, "UploadId": upload}
    etag = client.upload_part(**where, PartNumber=1, Body=data)["ETag"]
    client.complete_multipart_upload(**where, MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": etag}]})


def deleted(client: Any, bucket: str, key: str) -> None:
    """On a versioned bucket this sets a delete marker, and the archived version still answers to its id."""
    client.delete_object(Bucket=bucket, Key=key)


def deleted_permanently(client: Any, bucket: str, key: str) -> None:
    version = client.head_object(Bucket=bucket, Key=key)["VersionId"]
    client.delete_object(Bucket=bucket, Key=key, VersionId=version)


def appeared(client: Any, bucket: str, key: str) -> None:
    client.put_object(Bucket=bucket, Key=f"{key}.new", Body=SAME_SIZE)


CHANGES = [
    SourceChange("listed, same", nothing, ""),
    SourceChange("not listed, HEAD says the same", nothing, "", hidden=True),
    SourceChange("not listed, HEAD says 404", deleted, "vanished", versioned=False),
    SourceChange("not listed, HEAD says 404, no version left", deleted_permanently, "vanished", unversioned=False),
    SourceChange("not listed, HEAD says another object", other_etag, "changed", hidden=True),
    SourceChange("other ETag", other_etag, "changed"),
    SourceChange("other size", other_size, "changed"),
    SourceChange("other version with the same bytes", same_bytes_again, "changed", unversioned=False, same_bytes=True),
    SourceChange("other ETag of the same bytes", same_bytes_in_parts, "changed", same_bytes=True),
    SourceChange("written again with the same bytes", same_bytes_again, "", versioned=False),
    SourceChange("delete marker on top of the archived version", deleted, "vanished", unversioned=False),
    SourceChange("appeared", appeared, "appeared"),
]
TABLE = [
    (change, versioned)
    for change in CHANGES
    for versioned in (False, True)
    if (change.versioned if versioned else change.unversioned)
]
IDS = [f"{change.name}, {'versioned' if versioned else 'unversioned'}" for change, versioned in TABLE]


def lagging(hidden_key: str) -> dict[str, Callable[..., AsyncIterator[Any]]]:
    """The listings of a `Bucket` whose store does not show one key yet, by the names of their methods."""
    listing, again = Bucket.objects_under, Bucket.objects_again

    async def objects_under(self: Bucket, *arguments: Any, **options: Any) -> AsyncIterator[ListedObject]:
        async for one in listing(self, *arguments, **options):
            if one.key != hidden_key:
                yield one

    async def objects_again(self: Bucket, prefix: str) -> AsyncIterator[str]:
        async for key in again(self, prefix):
            if key != hidden_key:
                yield key

    return {"objects_under": objects_under, "objects_again": objects_again}
