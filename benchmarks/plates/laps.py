"""One lap of a pipeline: fresh buckets, a fresh scratch folder, the chain in its launcher, and the proof of its result."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.plates.chains import HERE, REPOSITORY, Pipeline, Place, Step, environment
from benchmarks.plates.check import WrongArchive, prove
from benchmarks.plates.floor import TARGET
from benchmarks.plates.stores import Store
from benchmarks.plates.workloads import Workload

LIMIT_SECONDS = 300


class Failed(Exception):
    """A chain ended with an error; the message holds the end of what it said."""


@dataclass(frozen=True)
class Lap:
    """Seconds, bytes, and the wall time of each step."""

    wall: float
    cpu: float
    peak_bytes: int
    scratch_bytes: int
    stored_bytes: int
    steps: tuple[float, ...]
    checks: tuple[float, ...] = ()
    check_peak_bytes: int = 0


def launch(
    steps: Sequence[Step], place: Place, checkout: Path = REPOSITORY, limit: float = LIMIT_SECONDS
) -> dict[str, Any]:
    """What a chain cost. `checkout` is whose code ours is. Raises Failed."""
    chain, result = place.scratch.with_suffix(".chain.json"), place.scratch.with_suffix(".result.json")
    errors = place.scratch.with_suffix(".errors.txt")
    errors.write_bytes(b"")
    told = {"steps": steps, "environment": environment(place, checkout), "folder": str(checkout), "errors": str(errors)}
    chain.write_text(json.dumps(told))
    command = [sys.executable, "-I", "-S", str(HERE / "launch.py"), str(chain), str(result)]
    with subprocess.Popen(command, start_new_session=True) as process:
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise Failed(f"{steps[0][0][0]} and what follows took more than {limit} s") from None
    measured: dict[str, Any] = json.loads(result.read_text())
    if measured["status"]:
        raise Failed(
            f"{steps[len(measured['laps']) - 1][0]} ended with {measured['status']}: {errors.read_text()[-1500:]}"
        )
    return measured


class Course:
    """Runs laps. `folder` is for scratch."""

    def __init__(self, folder: Path, programs: Path):
        self.folder = folder
        self.programs = programs
        self._laps = 0

    def run(
        self,
        pipeline: Pipeline,
        plate: Workload,
        store: Store,
        url: str = "",
        *,
        check: bool = True,
        checkout: Path = REPOSITORY,
    ) -> Lap:
        """One lap, at `url` where that is a relay to the store. Raises Failed, and WrongArchive for a wrong result."""
        self._laps += 1
        cold = f"cold-{self._laps}"
        store.client.create_bucket(Bucket=cold)
        scratch = Path(tempfile.mkdtemp(prefix=f"lap{self._laps}-", dir=self.folder))
        place = Place(url or store.url, plate.name, cold, scratch, self.programs)
        (scratch / "stage").mkdir()
        try:
            measured = launch(pipeline.steps(place), place, checkout)
            used = sum(path.lstat().st_size for path in scratch.rglob("*") if path.is_file())
            stored = self._proved(pipeline, plate, store, cold, scratch)
            checked = launch(pipeline.check(place), place, checkout) if pipeline.check and check else None
        finally:
            shutil.rmtree(scratch)
            store.drop(cold)
            store.forget_listings(plate)
        return _lap(measured, used, stored, checked)

    def _proved(self, pipeline: Pipeline, plate: Workload, store: Store, cold: str, scratch: Path) -> int:
        """The stored bytes, once the result is what was asked for. Raises WrongArchive."""
        if not pipeline.tars:
            stored = int(store.client.head_object(Bucket=cold, Key=TARGET)["ContentLength"])
            if not pipeline.compressed and stored != plate.size_bytes:
                raise WrongArchive(f"{stored} bytes were sent on, not {plate.size_bytes}")
            return stored
        tarballs = store.tarballs(cold, scratch)
        prove(tarballs, plate, store.plates / plate.name, pipeline.lead)
        return sum(path.stat().st_size for path in tarballs)


def _lap(measured: dict[str, Any], used: int, stored: int, checked: dict[str, Any] | None) -> Lap:
    checks = (tuple(checked["laps"]), checked["peak_bytes"]) if checked else ((), 0)
    steps = tuple(measured["laps"])
    return Lap(measured["wall"], measured["cpu"], measured["peak_bytes"], used, stored, steps, *checks)
