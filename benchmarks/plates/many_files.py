"""A store with plates of very many small files, in memory: `python -m benchmarks.plates.many_files PORT PLATES.json`.

PLATES.json gives buckets, each with `count` files of `size_bytes` under `folder`. It is the store of memory_store.py without
encryption: a file's ETag is its MD5, and DeleteObjects honours the ETag of each row, as S3 does.

Invariant: it answers as fast as Python can, since it shares the machine with the client that is measured: files of one kind
are one object in memory, and keys are sorted once and not for each page of a listing.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import sys
from bisect import bisect_left, bisect_right
from pathlib import Path
from xml.sax.saxutils import escape, unescape

from benchmarks.plates.memory_store import PAGE, Answer, Query, Store, Stored, listing_page, serve, stored, xml

KINDS = 16


def generate(store: Store, bucket: str, folder: str, count: int, size_bytes: int) -> None:
    noise = random.Random(size_bytes)
    kinds: list[Stored] = []
    for _ in range(min(KINDS, count)):
        body = noise.randbytes(size_bytes)
        kinds.append(stored(body))
        kinds[-1].etag = hashlib.md5(body, usedforsecurity=False).hexdigest()
    store.buckets[bucket] = {f"{folder}f{number:07}.tiff": kinds[number % len(kinds)] for number in range(count)}


class ManyFiles(Store):
    """The store of memory_store.py, for listings of a million keys and deletions of a thousand at once."""

    def __init__(self) -> None:
        super().__init__()
        self._sorted: dict[str, list[str]] = {}

    def answer(self, method: str, path: str, query: Query, headers: dict[str, str], body: bytes) -> Answer:
        status, told, answer = super().answer(method, path, query, headers, body)
        if method not in ("GET", "HEAD"):
            self._sorted.pop(path.lstrip("/").partition("/")[0], None)
        told.pop("x-amz-server-side-encryption", None)
        return status, told, answer

    def _of_bucket(self, method: str, bucket: str, query: Query, body: bytes) -> Answer:
        if method == "POST":
            return self._delete(self.buckets[bucket], body)
        return super()._of_bucket(method, bucket, query, body)

    def _delete(self, objects: dict[str, Stored], body: bytes) -> Answer:
        rows = []
        for row in re.findall(r"<Object>(.*?)</Object>", body.decode(), re.DOTALL):
            key = unescape(re.search(r"<Key>(.*?)</Key>", row, re.DOTALL)[1])  # type: ignore[index]
            asked = re.search(r"<ETag>(?:&quot;|\")?(.*?)(?:&quot;|\")?</ETag>", row)
            there = objects.get(key)
            if there is not None and asked is not None and asked[1] != there.etag:
                rows.append(f"<Error><Key>{escape(key)}</Key><Code>PreconditionFailed</Code></Error>")
            else:
                objects.pop(key, None)
                rows.append(f"<Deleted><Key>{escape(key)}</Key></Deleted>")
        return xml(f"<DeleteResult>{''.join(rows)}</DeleteResult>")

    def _listing(self, objects: dict[str, Stored], prefix: str, query: Query) -> Answer:
        if query.get("delimiter"):
            return super()._listing(objects, prefix, query)
        bucket = next(name for name, held in self.buckets.items() if held is objects)
        if bucket not in self._sorted:
            self._sorted[bucket] = sorted(objects)
        keys = self._sorted[bucket]
        after = next((query[name] for name in ("continuation-token", "key-marker", "marker") if query.get(name)), "")
        start = max(bisect_left(keys, prefix), bisect_right(keys, after))
        end = bisect_left(keys, prefix + "\U0010ffff")
        return listing_page(objects, keys[start : min(end, start + PAGE)], end > start + PAGE, query)


def main(port: str, plates: str) -> int:
    store = ManyFiles()
    for bucket, plate in json.loads(Path(plates).read_text()).items():
        generate(store, bucket, **plate)
    serve(store, int(port))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
