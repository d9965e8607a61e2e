"""What a restore drill finds of damage that was planted, what it costs beside what was announced, and how `where` scales.

Each kind of harness/plates/damage.py is planted in one of two plates that are drawn, with 25 seeds. The peer is a listing, as
`aws s3 ls` gives it: it sees what is missing, and a size that is not the manifest's.

Invariant: a plate counts as found only by its own name, and a sound one that is called damaged is counted too.
"""

from __future__ import annotations

import random
import resource
import tempfile
from pathlib import Path
from typing import Any

from harness.plates import servers
from harness.plates.bench import Bench, new_bench
from harness.plates.bench import run as play
from harness.plates.damage import MANIFEST, PLANTED
from harness.plates.drill_stories import BAD, GOOD, PREFIX, drawn, drilled
from harness.plates.servers import plate, plate_files
from include.plates.drill import look_at_plate
from include.plates.drill_plan import chance, plan_drill
from include.plates.file_index import FileIndex
from include.plates.manifest import decode_manifest, encode_manifest
from include.plates.models import ManifestMember
from include.plates.where import answer, places_of

SEEDS, PLATES, DRAWN, DRAWS = 25, 8, 2, 2000
BASE = "imaging_analysis/2013_Gustafsdottir_PLOSONE/plates/2013_Gustafsdottir_PLOSONE_BBBC022_{}_images_illum_analysis"
PEER = "a listing"
Row = dict[str, Any]


def run(*, quick: bool) -> list[Row]:
    seeds = 2 if quick else SEEDS
    with servers.moto() as url, tempfile.TemporaryDirectory() as folder:
        rows = _planted(url, Path(folder), seeds)
        rows += _draws(url, Path(folder), 100 if quick else DRAWS)
        rows += _cost(url, Path(folder))
    return rows + _where(20_000 if quick else 1_000_000)


def _planted(url: str, folder: Path, seeds: int) -> list[Row]:
    rows, wrong, missed = [], 0, 0
    bench = new_bench(url, folder / "planted")
    _archive(bench, GOOD, BAD)
    whole = {key: _stored(bench, key) for key in bench.keys(bench.cold)}
    sizes = {key: len(data) for key, (data, _) in whole.items()}
    for name, plant in PLANTED.items():
        found = listed = 0
        for seed in range(seeds):
            plant(bench, BASE.format(BAD), BASE.format(GOOD), random.Random(f"{name} {seed}"))
            states, faults = drilled(bench, folder / f"{name[:9]} {seed}")
            found += states.get(BAD) == "damaged" or any(BAD in line for line in faults)
            wrong += states.get(GOOD) != "sound"
            listed += _seen_in_a_listing(bench, sizes)
            for key, (data, metadata) in whole.items():
                bench.client.put_object(Bucket=bench.cold, Key=key, Body=data, Metadata=metadata)
        rows.append(_row(f"found: {name}", found, f"of {seeds}", PEER, listed, seeds, found == seeds))
        missed += seeds - found
    count = len(PLANTED) * seeds
    rows.append(
        _row(f"sound plates called otherwise beside them, {count} drills", wrong, "plates", aim=0, met=wrong == 0)
    )
    bench.access.close()
    return rows


def _archive(bench: Bench, *ids: str, sites: int = 2) -> None:
    for one in map(plate, ids):
        bench.put(plate_files(one, sites=sites))
        play(bench.archive_it(play(bench.plan(one))))


def _stored(bench: Bench, key: str) -> tuple[bytes, dict[str, str]]:
    there = bench.client.get_object(Bucket=bench.cold, Key=key)
    return there["Body"].read(), there["Metadata"]


def _seen_in_a_listing(bench: Bench, sizes: dict[str, int]) -> bool:
    pages = bench.client.get_paginator("list_objects_v2").paginate(Bucket=bench.cold)
    there = {row["Key"]: row["Size"] for page in pages for row in page.get("Contents", [])}
    keys = (BASE.format(BAD) + ".tar.gz", BASE.format(BAD) + MANIFEST)
    return any(there.get(key) != sizes[key] for key in keys)


def _draws(url: str, folder: Path, draws: int) -> list[Row]:
    """How often one damaged plate of several is among those that are drawn, beside what the receipt says."""
    bench = new_bench(url, folder / "draws")
    _archive(bench, *(str(number) for number in range(PLATES)), sites=1)
    with FileIndex(folder / "draws.sqlite", "store") as index:
        listing = play(index.refresh(bench.archive, PREFIX))
        rows = index.archived(bench.cold, PREFIX)
        met = 0
        for seed in range(draws):
            plan = play(plan_drill([(bench.archive, listing, rows)], seed=str(seed), plates=DRAWN, max_gib=1))
            met += any(one.name.endswith(" 3") for one in plan.drawn)
    bench.access.close()
    said, seen = chance(PLATES, DRAWN), met / draws
    close = abs(seen - said) < 4 * (said * (1 - said) / draws) ** 0.5
    figure = f"one damaged plate of {PLATES} is met by a drill of {DRAWN}, {draws} seeds"
    return [_row(figure, round(seen, 3), "of drills", "the probability in the receipt", said, "within 4 sigma", close)]


def _cost(url: str, folder: Path) -> list[Row]:
    from benchmarks.plates.counting import counting

    bench = new_bench(url, folder / "cost")
    bench.put(plate_files(plate(), sites=40, image_bytes=500_000))
    play(bench.archive_it(play(bench.plan(plate()))))
    plan = drawn(bench, folder / "cost")
    announced = plan.cost()["STANDARD"]
    with counting(url) as counter:
        access = servers.access(counter.url)
        state = play(look_at_plate(plan.drawn[0], access, by="benchmark"))[0].state
        access.close()
    bench.access.close()
    if state != "sound":
        raise RuntimeError(f"the drill of a sound plate ended as {state}")
    rows = [
        _row("bytes that a drill reads", counter.answered_bytes, "bytes", "announced before", announced["read_bytes"])
    ]
    ratio = counter.answered_bytes / announced["read_bytes"]
    rows[0] |= {"aim": "0.99 to 1.05", "met": 0.99 <= ratio <= 1.05}
    return rows


def _where(files: int) -> list[Row]:
    """An index of plates of 4,000 files under the names that a microscope gives, beside reading all the manifests."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index.sqlite"
        sample = None
        with FileIndex(path, "store") as index:
            for number in range(1, files // 4000 + 1):
                members = [_member(number, at) for at in range(4000)]
                head = _HEAD | {"plate_id": str(number), "plate_id_full": str(number), "members": 4000}
                sample = sample or _manifest_bytes(head, members)
                _add(index, number, head, members)
            index._database.execute("INSERT INTO places VALUES ('store', 'cold', '', 0)")
            places = places_of(index)
            exact = _cpu(lambda: answer(index, "plate77/Images/r01c02f01p01-ch1sk1fk1fl1.tiff", places, now=0))
            pattern = _cpu(lambda: answer(index, "*/plate2/Images/r01c0*", places, now=0))
        size = path.stat().st_size
        data = sample or b""
        whole = _cpu(lambda: decode_manifest(data)) * (files / 4000)
    what = f"{files:,} files"
    return [
        _row(f"where: index of {what}", round(size / files, 1), "bytes per file", aim="< 60", met=size < 60 * files),
        _row(
            f"where: CPU for one name among {what}", exact, "s", "decoding all manifests", whole, "< 0.1 s", exact < 0.1
        ),
        _row(
            f"where: CPU for a pattern among {what}",
            pattern,
            "s",
            "decoding all manifests",
            whole,
            "< 5 s",
            pattern < 5,
        ),
    ]


_HEAD: dict[str, Any] = {
    "tag": "P_B_1", "project": "P", "batch": "B", "bucket": "live", "archive_bucket": "cold", "key": "P_B_1_images.tar",
    "tarball": "images", "number": 1, "of": 1, "compression": "none", "level": 1, "part_bytes": 1, "group_bytes": 1,
    "plan_digest": "", "raw_bytes": 1, "stored_bytes": 1, "stored_crc64nvme": None, "upload_parts": 1,
}  # fmt: skip


def _member(number: int, at: int) -> ManifestMember:
    name = f"r{at // 96 + 1:02}c{at % 96 + 1:02}f01p01-ch1sk1fk1fl1.tiff"
    key = f"projects/P/B/images/plate{number}/Images/{name}"
    return ManifestMember(
        key, 4_000_000, at * 4_000_768, at * 4_000_768 + 512, 0, key=key, part="images", etag="0" * 32, sha256="0" * 64
    )


def _manifest_bytes(head: dict[str, Any], members: list[ManifestMember]) -> bytes:
    from include.plates.models import ManifestHead

    return encode_manifest(ManifestHead.model_validate(head), (), members)


def _add(index: FileIndex, number: int, head: dict[str, Any], members: list[ManifestMember]) -> None:
    import json

    insert = "INSERT INTO manifests (id, store, bucket, key, mark, head) VALUES (?, 'store', 'cold', ?, 'e:1:1', ?)"
    with index._transaction():
        index._database.execute(insert, (number, f"m{number}", json.dumps(head)))
        index._add(number, members)


def _cpu(work: Any) -> float:
    """CPU seconds, the median of five."""
    times = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_SELF)
        work()
        after = resource.getrusage(resource.RUSAGE_SELF)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return round(sorted(times)[2], 4)


def _row(
    figure: str, value: float, unit: str, peer: str | None = None, peer_value: float | None = None,
    aim: object = None, met: bool | None = None,
) -> Row:  # fmt: skip
    ratio = round(value / peer_value, 5) if peer_value else None
    return {
        "figure": figure, "value": value, "unit": unit, "peer": peer, "peer_value": peer_value, "ratio": ratio,
        "aim": aim, "met": met,
    }  # fmt: skip
