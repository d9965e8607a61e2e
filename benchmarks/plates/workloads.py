"""Plates to measure with, written straight into the folder that the S3 server serves.

Images are 16-bit noise of which 12 bits are used, as a camera gives it: hardly compressible, and expensive to try.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

PROJECT, BATCH, PLATE = "2013_Gustafsdottir_PLOSONE", "BBBC022", "20586"
ROOT = f"projects/{PROJECT}"
KIB, MIB = 1024, 1024 * 1024
IMAGE_BYTES = 2160 * 2160 * 2
_TWELVE_BITS = bytes(value & 0x0F for value in range(256))
_TIFF = b"II*\0" + bytes(60)


@dataclass(frozen=True)
class Workload:
    """One plate: `name` for folders, `title` for people, its keys with sizes and kinds."""

    name: str
    title: str
    files: tuple[tuple[str, int, str], ...]

    @property
    def size_bytes(self) -> int:
        return sum(size for _, size, _ in self.files)


def _images(count: int, size: int, kind: str = "tiff") -> tuple[tuple[str, int, str], ...]:
    folder = f"{ROOT}/{BATCH}/images/{PLATE}/Images"
    names = (f"r{n // 24 + 1:02}c{n % 24 + 1:02}f{n % 9 + 1:02}p01-ch1sk{n}fk1fl1.tiff" for n in range(count))
    return tuple((f"{folder}/{name}", size, kind) for name in names)


def _mix(scale: int) -> tuple[tuple[str, int, str], ...]:
    """A plate's own proportions (docs/protocols/s3.md 1.3): images, illum, CSV and outlines per site, the database."""
    analysis = f"{ROOT}/workspace/analysis/{BATCH}/{PLATE}/analysis"
    files = list(_images(2 * scale, IMAGE_BYTES))
    files += [(f"{ROOT}/{BATCH}/illum/{PLATE}/{PLATE}_Illum{c}.npy", 512 * KIB, "random") for c in ("DNA", "ER", "RNA")]
    for site in range(3 * scale):
        folder = f"{analysis}/{chr(65 + site % 16)}{site // 16 + 1:02}-{site % 9 + 1}"
        sizes = {"Cells": 400, "Cytoplasm": 300, "Nuclei": 250, "Image": 20, "Experiment": 2}
        files += [(f"{folder}/{name}.csv", kib * KIB, "csv") for name, kib in sizes.items()]
        files += [(f"{folder}/outlines/{name}.png", 30 * KIB, "random") for name in ("Cells", "Nuclei")]
    files.append((f"{ROOT}/workspace/backend/{BATCH}/{PLATE}/{PLATE}.sqlite", 2 * scale * MIB, "csv"))
    return tuple(files)


def workloads(quick: bool) -> list[Workload]:
    cut = 20 if quick else 1
    return [
        Workload("small", f"{2000 // cut:,} × 128 KiB", _images(2000 // cut, 128 * KIB)),
        Workload("medium", f"{400 // cut} × 1 MiB", _images(400 // cut, MIB)),
        Workload("tiff", f"{40 // cut} × 9.33 MB", _images(40 // cut, IMAGE_BYTES)),
        Workload("mix", "a plate's mix, scaled down", _mix(1 if quick else 8)),
    ]


def content(key: str, size: int, kind: str) -> bytes:
    rng = random.Random(key)
    if kind == "csv":
        return _rows(rng, size)
    data = bytearray(rng.randbytes(size))
    if kind == "tiff":
        data[1::2] = data[1::2].translate(_TWELVE_BITS)
        data[: len(_TIFF)] = _TIFF
    return bytes(data)


def _rows(rng: random.Random, size: int) -> bytes:
    """Measurements as CellProfiler writes them: integers, repeated values and long decimals."""
    rows: list[str] = []
    length = 0
    while length < size:
        area = rng.randrange(200, 4000)
        row = f"{len(rows) // 90 + 1},{len(rows) % 90 + 1},{area},{area / 5184:.15f},{rng.random():.12f},0.0,nan,1\n"
        rows.append(row)
        length += len(row)
    return "".join(rows).encode()[:size]


def write(workload: Workload, bucket: Path) -> None:
    for key, size, kind in workload.files:
        path = bucket / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content(key, size, kind))
