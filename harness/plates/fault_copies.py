"""Faults of an archive that the store puts together itself: copies of other bytes, and what is stored changes unseen.

The plate is archived, proved by checksums alone and deleted at that level, on the S3 simulator. The procedure meets the same
fault on its way to its local disk. Each story can be played without the archiver's own look at what was copied: then the
verifier has to find it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from unittest import mock

from harness.plates import sop_policy
from harness.plates.bench import Bench, run
from harness.plates.fault_judge import Files, lost, pack, still_there, stored
from harness.plates.fault_stories import deletion, ended
from harness.plates.fault_table import DELETED, MISMATCH, REFUSED, Draw, Played, how_it_ended, images_of
from harness.plates.servers import noise, plate
from harness.plates.simulated import Simulated, simulated
from include.core.errors import WaybillError
from include.plates.layout import BROAD2018, fill, tag_of
from include.plates.models import MIB, ArchiveSettings, Level, Outcome, Verdict
from include.s3.multipart import Upload

BY_SERVER = ArchiveSettings(compression="none", part_bytes=5 * MIB, volume_bytes=1 << 30, copy_by="server")
KINDS = ("swapped", "short", "stale", "flipped")
Story = Callable[[Bench, Draw], Played]


def big_files(draw: Draw) -> Files:
    """Two images of one size that the store can copy, and a small file."""
    images = f"{images_of(plate())}/Images"
    size = 5 * MIB + draw.randrange(2000)
    seed = draw.random()
    return {f"{images}/r{n}.tiff": noise((seed, n), size) for n in range(2)} | {f"{images}/Index.xml": b"<xml/>"}


def spoilt(kind: str, data: bytes, other: bytes, older: bytes, bit: int) -> bytes:
    """What a copy of this kind holds."""
    flipped = bytearray(data)
    flipped[bit // 8] ^= 1 << bit % 8
    return {"swapped": other, "short": data[:-1], "stale": older, "flipped": bytes(flipped)}[kind]


def wrong_copy(kind: str, *, trusting: bool = False) -> Story:
    """An image is copied wrong. `trusting`: the archiver does not look at the checksum of what was copied."""
    return functools.partial(_wrong_copy, kind, trusting)


def _wrong_copy(kind: str, trusting: bool, bench: Bench, draw: Draw) -> Played:
    files = big_files(draw)
    key, other = draw.sample(sorted(name for name in files if name.endswith(".tiff")), 2)
    older, bit = noise(draw.random(), len(files[key])), draw.randrange(8 * len(files[key]))

    def harm(store: Simulated) -> None:
        if kind == "stale":
            store.bench.put({key: older})
            store.bench.put({key: files[key]})
        options = {"source": key, "key": other, "bit": bit}
        store.fault(f"copy_{kind}", times=None, method="PUT", query="partNumber=", options=options)

    copied = files | {key: spoilt(kind, files[key], files[other], older, bit)}
    return _play(bench, files, copied, harm, trusting=trusting)


def flipped_at_rest(bench: Bench, draw: Draw) -> Played:
    """A bit of the tarball flips after the store has computed its checksum: only reading finds it, so the default level
    of a deletion keeps the plate."""
    files = big_files(draw)
    key = draw.choice(sorted(files))
    flipped = spoilt("flipped", files[key], b"", b"", draw.randrange(8 * len(files[key])))
    return _play(bench, files, files | {key: flipped}, lambda _: None, at_rest=True)


def _play(
    bench: Bench,
    files: Files,
    copied: Files,
    harm: Callable[[Simulated], None],
    *,
    trusting: bool = False,
    at_rest: bool = False,
) -> Played:
    one = plate()
    tag = tag_of(BROAD2018, one)
    passes = sop_policy.check_plate(sop_policy.backup(one, files, copied, tag))
    played = Played(0, lost(files, set(), [pack(copied, tag)], one) if passes else 0, DELETED)
    verdict: Verdict | None = None
    with simulated(bench.journals, versioned=True) as store, mock.patch.object(Upload, "copy", _copy_of(trusting)):
        own = store.bench
        own.settings = BY_SERVER
        own.put(files)
        harm(store)
        try:
            run(own.archive_it(run(own.plan(one))))
            if at_rest:
                _flip(store, f"{fill(BROAD2018.archive_prefix, one)}{tag}_images_illum_analysis.tar")
            verdict = run(own.verify(one, level=Level.STORE_PROVED))
            needs = Level.READ_BACK if at_rest else Level.STORE_PROVED
            played.report = deletion(own, verdict, needs=needs, older_versions="keep_hidden")
            played.ended = ended(played.report)
        except WaybillError as error:
            played.said = f"{type(error).__name__}: {error}"
            proved = verdict if verdict is None or verdict.outcome is not Outcome.VERIFIED else None
            played.ended = how_it_ended(error, proved)
        played.ours = lost(files, still_there(own, files), stored(own), one)
    return played


def _copy_of(trusting: bool) -> object:
    checked = Upload.copy
    return (lambda self, number, source, *, expected=None: checked(self, number, source)) if trusting else checked


def _flip(store: Simulated, key: str) -> None:
    store.fault("flip_bit", method="HEAD", path=key)
    store.bench.client.head_object(Bucket=store.bench.cold, Key=key)


# A copy that is short is found by its size, too, before anything is joined.
COPIES = (
    *((f"copied inside the store: {kind}", wrong_copy(kind), (REFUSED,)) for kind in KINDS),
    *(
        (
            f"copied inside the store, past the archiver's look: {kind}",
            wrong_copy(kind, trusting=True),
            (MISMATCH, REFUSED),
        )
        for kind in KINDS
    ),
    ("copied inside the store, a bit flipped at rest", flipped_at_rest, (REFUSED,)),
)
