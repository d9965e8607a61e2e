"""What the fault table is made of: damage at rest, what users and stores do meanwhile, failing disks, shapes of plates."""

from __future__ import annotations

import errno
import gzip
import io
import json
import tarfile
from collections.abc import Mapping
from typing import Any

from harness.plates.fault_judge import Files
from harness.plates.fault_table import Draw, Live, few_files
from harness.plates.servers import PROJECT, noise, plate
from harness.proxy import Answer, Call, Forward, RuleDict, call, peculiarity, refuse
from include.core.journal import FileJournal, PartJournal
from include.plates.models import Plate

# Damage at rest


def place_in(data: bytes, draw: Draw) -> int:
    return draw.randrange(len(data) // 10, len(data) * 9 // 10)


def short(data: bytes, draw: Draw) -> bytes:
    return data[: place_in(data, draw)]


def missing(_: bytes, __: Draw) -> None:
    return None


def flipped(data: bytes, draw: Draw) -> bytes:
    at = place_in(data, draw)
    return data[:at] + bytes([data[at] ^ (1 << draw.randrange(8))]) + data[at + 1 :]


def zeros(data: bytes, draw: Draw) -> bytes:
    at = place_in(data, draw)
    return data[:at] + bytes(len(data) - at)


def part_lost(data: bytes, draw: Draw) -> bytes:
    size = len(data) // 5
    at = size * draw.randrange(1, 4)
    return data[:at] + data[at + size :]


def parts_swapped(data: bytes, draw: Draw) -> bytes:
    size = len(data) // 5
    first = draw.randrange(1, 3)
    parts = [data[n * size : (n + 1) * size] for n in range(4)] + [data[4 * size :]]
    parts[first], parts[first + 1] = parts[first + 1], parts[first]
    return b"".join(parts)


def bomb(_: bytes, draw: Draw) -> bytes:
    """A few hundred kilobytes that unpack to as many megabytes."""
    return gzip.compress(bytes(draw.randrange(60, 120) * 1024 * 1024), 9)


def contents_swapped(data: bytes, draw: Draw) -> bytes:
    """A well-formed tarball of the same names and sizes, in which two images have each other's bytes."""
    return _rebuilt(data, draw, swap=True)


def member_dropped(data: bytes, draw: Draw) -> bytes:
    """A well-formed tarball in which one image is not."""
    return _rebuilt(data, draw, swap=False)


def _rebuilt(data: bytes, draw: Draw, *, swap: bool) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(data)) as old:
        members = [(info, old.extractfile(info)) for info in old]
        rows = [(info, body.read() if body else b"") for info, body in members]
    images = [n for n, (info, body) in enumerate(rows) if info.name.endswith(".tiff")]
    sizes: dict[int, list[int]] = {}
    for n in images:
        sizes.setdefault(len(rows[n][1]), []).append(n)
    if swap:
        duplicates = draw.choice([group for group in sizes.values() if len(group) > 1])
        one, other = draw.sample(duplicates, 2)
        rows[one], rows[other] = (rows[one][0], rows[other][1]), (rows[other][0], rows[one][1])
    else:
        del rows[draw.choice(images)]
    with gzip.GzipFile(fileobj=target, mode="wb", mtime=0) as packed, tarfile.open(fileobj=packed, mode="w") as new:
        for info, body in rows:
            new.addfile(info, io.BytesIO(body))
    return target.getvalue()


# What users and the store do


def overwrite(live: Live, draw: Draw) -> None:
    """Other bytes of the same size under a name that is archived."""
    key = live.image(draw)
    live.put(key, noise(draw.random(), len(live.truth[key])))


def overwrite_last(live: Live, draw: Draw) -> None:
    """The object that is deleted last."""
    key = max(live.truth)
    live.put(key, noise(draw.random(), len(live.truth[key])))


def add(live: Live, draw: Draw) -> None:
    live.put(f"{live.image(draw).rsplit('/', 1)[0]}/late{draw.randrange(99)}.tiff", noise(draw.random(), 500))


def vanish(live: Live, draw: Draw) -> None:
    live.remove(live.image(draw))


# Stores that break


def refusing(step: str, method: str, where: str, status: int, code: str, *, once: bool = False) -> Any:
    rule = refuse(method, where, status, code, times=1 if once else None)
    return lambda _: {step: [rule]}


def at(step: str, *rules: RuleDict) -> Any:
    return lambda _: {step: rules}


CUT_UPLOAD = peculiarity("cut_body", method="PUT", path=r"\.tar\.gz$")
FORGOTTEN_PART = peculiarity("forget_part", method="POST", query="uploadId=")
CUT_VERSIONS = peculiarity("cut_listing", method="GET", query="^versions", element="Version", keep=3)
ONE_ERROR = peculiarity("fail_one_key", method="POST", query="^delete", times=1)
SOME_FAIL = peculiarity("fail_one_key", method="POST", query="^delete")


def _goes_on(request: Call, forward: Forward) -> Answer:
    answer = forward(request)
    answer.body = answer.content().replace(b"<IsTruncated>false", b"<IsTruncated>true")
    return answer


OBJECTS_CUT = peculiarity("cut_listing", method="GET", query="list-type=", element="Contents", keep=3)
NO_MARKER = call(_goes_on, method="GET", query="^versions")


def no_batches(draw: Draw) -> dict[str, list[RuleDict]]:
    """DeleteObjects is answered 501 or 400."""
    status, code = draw.choice([(501, "NotImplemented"), (400, "InvalidRequest")])
    return {"delete": [refuse("POST", None, status, code, query="^delete")]}


class FullDisk(PartJournal):
    """A journal whose disk fails at one append, in the middle of the line."""

    def __init__(self, journal: FileJournal, at: int, number: int):
        self._journal, self._left, self._errno = journal, at, number

    def load(self) -> list[dict[str, Any]]:
        return self._journal.load()

    def append(self, row: Mapping[str, Any]) -> None:
        self._left -= 1
        if self._left == 0:
            line = json.dumps(row).encode()
            self._journal.path.parent.mkdir(parents=True, exist_ok=True)
            with self._journal.path.open("ab") as file:
                file.write(line[: len(line) // 2])
            raise OSError(self._errno, errno.errorcode[self._errno])
        self._journal.append(row)


def full_disk(journal: PartJournal, draw: Draw) -> PartJournal:
    failing = draw.choice([errno.ENOSPC, errno.EIO, errno.EACCES, errno.ESTALE, errno.ELOOP])
    return FullDisk(journal, draw.randrange(1, 7), failing)  # type: ignore[arg-type]


# Shapes


def odd_names(one: Plate, draw: Draw) -> Files:
    root = f"projects/{PROJECT}/{one.batch}/images/{one.plate_id_full}/Images"
    names = ["a b.tiff", "é.tiff", "é.tiff", "Case.tiff", "case.tiff", "x" * 180 + ".tiff", "y'\"$.tiff", "a+b%20.tiff"]
    names += ["deep/" * 30 + "n.tiff", "same/1.tiff", "other/1.tiff"]
    return few_files(one) | {f"{root}/{name}": noise((name, draw.random()), 300) for name in names}


def even(one: Plate, draw: Draw) -> Files:
    """Raw images have one size."""
    files = few_files(one)
    return {key: noise((key, draw.random()), 3000) if key.endswith(".tiff") else data for key, data in files.items()}


def without_backend(one: Plate, _: Draw) -> Files:
    return {key: data for key, data in few_files(one).items() if "/backend/" not in key}


def with_markers(one: Plate, _: Draw) -> Files:
    return few_files(one) | {f"projects/{PROJECT}/{one.batch}/images/{one.plate_id_full}/Empty/": b""}


def with_sibling(one: Plate, _: Draw) -> Files:
    return few_files(one) | few_files(plate("205861"))


def only_sibling(_: Plate, __: Draw) -> Files:
    return few_files(plate("205861"))


def new_lines(one: Plate, draw: Draw) -> Files:
    root = f"projects/{PROJECT}/{one.batch}/images/{one.plate_id_full}/Images"
    names = ["new\nline.tiff", "tab\there.tiff", "back\\slash.tiff", "é.tiff", "e\u0301.tiff"]
    return few_files(one) | {f"{root}/{name}": noise((name, draw.random()), 300) for name in names}


def long_names(one: Plate, draw: Draw) -> Files:
    """Beyond 100 characters, beyond ustar's 255 bytes, and beyond what it can split."""
    root = f"projects/{PROJECT}/{one.batch}/images/{one.plate_id_full}/Images"
    names = ["n" * 101, "日本語" * 27, "d" * 200 + "/" + "f" * 200, "deep/" * 60 + "n"]
    return few_files(one) | {f"{root}/{name}.tiff": noise((name, draw.random()), 300) for name in names}


def large(one: Plate, draw: Draw) -> Files:
    """Enough for a multipart upload."""
    root = f"projects/{PROJECT}/{one.batch}/images/{one.plate_id_full}/Images"
    return few_files(one) | {f"{root}/large{n}.tiff": noise((n, draw.random()), 3_000_000) for n in range(3)}


def empty(_: Plate, __: Draw) -> Files:
    return {}
