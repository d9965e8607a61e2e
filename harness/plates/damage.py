"""Damage to an archive that lies at rest, each kind by a seed: what the restore drill must find, for tests and benchmarks.

Invariant: each kind changes what is stored of one tarball and nothing else, metadata kept, as a fault at rest would have it.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from harness.plates.bench import Bench

MANIFEST = ".manifest.jsonl.zst"
Plant = Callable[[Bench, str, str, random.Random], object]


def replace(bench: Bench, key: str, data: bytes) -> None:
    head = bench.client.head_object(Bucket=bench.cold, Key=key)
    bench.client.put_object(Bucket=bench.cold, Key=key, Body=data, Metadata=head["Metadata"])


def put(bench: Bench, key: str, data: bytes) -> None:
    bench.client.put_object(Bucket=bench.cold, Key=key, Body=data)


def remove(bench: Bench, key: str) -> None:
    bench.client.delete_object(Bucket=bench.cold, Key=key)


def _flip(bench: Bench, base: str, _: str, draw: random.Random) -> None:
    key = base + ".tar.gz"
    data = bytearray(bench.get(key))
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    replace(bench, key, bytes(data))


def _cut(bench: Bench, base: str, _: str, draw: random.Random) -> None:
    data = bench.get(base + ".tar.gz")
    replace(bench, base + ".tar.gz", data[: draw.randrange(len(data))])


def _zeros(bench: Bench, base: str, _: str, draw: random.Random) -> None:
    data = bench.get(base + ".tar.gz")
    begin = draw.randrange(len(data) - 1)
    replace(bench, base + ".tar.gz", data[:begin] + bytes(len(data) - begin))


def _flip_manifest(bench: Bench, base: str, _: str, draw: random.Random) -> None:
    data = bytearray(bench.get(base + MANIFEST))
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    replace(bench, base + MANIFEST, bytes(data))


PLANTED: dict[str, Plant] = {
    "a flipped bit in the tarball": _flip,
    "a tarball that was cut": _cut,
    "zeros from some byte on, of the same size": _zeros,
    "another plate's tarball under its name": lambda b, base, other, _: replace(
        b, base + ".tar.gz", b.get(other + ".tar.gz")
    ),
    "a missing tarball": lambda b, base, *_: remove(b, base + ".tar.gz"),
    "a missing manifest": lambda b, base, *_: remove(b, base + MANIFEST),
    "a flipped bit in the manifest": _flip_manifest,
    "another plate's manifest under its name": lambda b, base, other, _: replace(
        b, base + MANIFEST, b.get(other + MANIFEST)
    ),
    "a wrong .md5 beside it": lambda b, base, *_: put(b, base + ".md5", b"0" * 32 + b"  wrong\n"),
}
