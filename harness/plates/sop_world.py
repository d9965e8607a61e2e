"""The procedure at work on buckets of its own: backup, check, deletion, giving back (docs/protocols/s3.md 1.4 to 1.9).

Stories happen to it as they happen to the engine, so what it loses is played, too. It is taken at its best: no step of it
fails by itself, and its check is obeyed, though nothing joins it to the deletion.

Invariant: it decides by what it can see alone: names, sizes, times and the MD5 that it wrote beside its tarball.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from harness.plates import sop_policy
from harness.plates.fault_judge import Files, contents, lost
from include.plates.layout import BROAD2018, tag_of
from include.plates.models import Plate


class Stored(NamedTuple):
    data: bytes
    at: int  # when it was written
    metadata: tuple[tuple[str, str], ...] = ()


@dataclass
class SopWorld:
    """A live bucket, and the tarballs by name with the MD5 beside each."""

    versioned: bool = False
    live: dict[str, Stored] = field(default_factory=dict)
    below: dict[str, list[bytes]] = field(default_factory=dict)  # older versions, and what lies under a marker
    tarballs: Files = field(default_factory=dict)
    md5: dict[str, str] = field(default_factory=dict)
    listings: dict[str, sop_policy.SopRun] = field(default_factory=dict)  # the two of each plate
    now: int = 0

    def put(self, files: Mapping[str, bytes], *, metadata: tuple[tuple[str, str], ...] = ()) -> None:
        for key, data in files.items():
            self.now += 1
            self._hide(key)
            self.live[key] = Stored(data, self.now, metadata)

    def _hide(self, key: str) -> None:
        there = self.live.pop(key, None)
        if there is not None and self.versioned:
            self.below.setdefault(key, []).append(there.data)

    def remove(self, keys: Collection[str]) -> None:
        for key in keys:
            self._hide(key)

    def bring_back(self, key: str) -> None:
        """A user removes the marker on top of an object."""
        self.put({key: self.below[key].pop()})

    def backup(self, one: Plate, *, skipped: Collection[str] = ()) -> None:
        """Lists, copies (but what `sync` skips with a warning), packs. A tarball of that name is overwritten: under Python 3
        its guard never sees it."""
        tag = tag_of(BROAD2018, one.model_copy(update={"tag_by_full": False}))
        listed = {key: there.data for key, there in self.live.items()}
        mine = sop_policy.deleted(one, listed)
        copied = {key: listed[key] for key in mine if not key.endswith("/") and key not in skipped}
        self.listings[one.plate_id_full] = sop_policy.backup(one, listed, copied, tag)
        for name, backend in (("images_illum_analysis", False), ("backend", True)):
            part = {key: data for key, data in copied.items() if ("/backend/" in key) is backend}
            packed = self._pack(part, tag)
            self.tarballs[f"{tag}_{name}"] = packed
            self.md5[f"{tag}_{name}"] = hashlib.md5(packed).hexdigest()

    def _pack(self, files: Mapping[str, bytes], tag: str) -> bytes:
        target = io.BytesIO()
        with tarfile.open(fileobj=target, mode="w:gz", compresslevel=1) as tar:
            for key, data in sorted(files.items()):
                info = tarfile.TarInfo(f"{tag}/{key.removeprefix('projects/')}")
                info.size, info.mtime = len(data), self.live[key].at
                tar.addfile(info, io.BytesIO(data))
        return target.getvalue()

    def checks(self, one: Plate) -> bool:
        """Its check of an archive, at any time: whether the two listings are equal."""
        return sop_policy.check_plate(self.listings[one.plate_id_full])

    def delete(self, one: Plate) -> set[str]:
        """Runs the delete script, if the check passed: by prefix, whatever is there now. It may be run again at any time."""
        if not self.checks(one):
            return set()
        gone = sop_policy.deleted(one, {key: there.data for key, there in self.live.items()})
        self.remove(gone)
        return gone

    def give_back(self) -> set[str]:
        """Which keys it calls restored. `aws s3 sync` sends what is missing, of another size or older than the tarball's."""
        said: set[str] = set()
        for name, data in self.tarballs.items():
            if hashlib.md5(data).hexdigest() != self.md5[name]:
                continue
            times = _times(data)
            for member, content in contents(data).items():
                key = "projects/" + member.split("/", 1)[1]
                there = self.live.get(key)
                if there is None or len(there.data) != len(content) or there.at < times[member]:
                    self.put({key: content})
                said.add(key)
        return said

    # How it ended

    def holding(self, truth: Mapping[str, bytes]) -> set[str]:
        return {key for key, data in truth.items() if key in self.live and self.live[key].data == data}

    def lost(self, truth: Mapping[str, bytes], one: Plate, *, kept: Collection[str] = ()) -> int:
        return lost(truth, self.holding(truth), list(self.tarballs.values()), one, kept=kept)

    def misreported(self, said: set[str], truth: Mapping[str, bytes]) -> int:
        """Files that it calls restored, and that hold other bytes."""
        return len(said & truth.keys() - self.holding(truth))

    def came_back(self, truth: Mapping[str, bytes]) -> int:
        """Keys that are current with content that is not the last."""
        return len(self.live.keys() & truth.keys() - self.holding(truth))


def backed_up(one: Plate, files: Mapping[str, bytes], *, versioned: bool = False) -> SopWorld:
    world = SopWorld(versioned)
    world.put(files)
    world.backup(one)
    return world


def _times(data: bytes) -> dict[str, int]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {member.name: int(member.mtime) for member in tar}
