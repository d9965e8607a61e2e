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

from benchmarks.plates.chains import HERE, Pipeline, Place, Step, environment
from benchmarks.plates.check import prove
from benchmarks.plates.workloads import PROJECT, Workload

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


def launch(steps: Sequence[Step], place: Place) -> dict[str, Any]:
    """What a chain cost. Raises Failed."""
    chain, result = place.scratch.with_suffix(".chain.json"), place.scratch.with_suffix(".result.json")
    errors = place.scratch.with_suffix(".errors.txt")
    errors.write_bytes(b"")
    told = {"steps": steps, "environment": environment(place), "folder": str(HERE.parent.parent), "errors": str(errors)}
    chain.write_text(json.dumps(told))
    command = [sys.executable, "-I", "-S", str(HERE / "launch.py"), str(chain), str(result)]
    with subprocess.Popen(command, start_new_session=True) as process:
        try:
            process.wait(LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise Failed(f"{steps[0][0][0]} and what follows took more than {LIMIT_SECONDS} s") from None
    measured: dict[str, Any] = json.loads(result.read_text())
    if measured["status"]:
        raise Failed(
            f"{steps[len(measured['laps']) - 1][0]} ended with {measured['status']}: {errors.read_text()[-1500:]}"
        )
    return measured


class Course:
    """The server's folder and address, and a client to tidy up behind a lap. `folder` is for scratch."""

    def __init__(self, client: Any, served: Path, folder: Path, programs: Path):
        self.client = client
        self.served = served
        self.folder = folder
        self.programs = programs
        self._laps = 0

    def run(self, pipeline: Pipeline, workload: Workload, url: str, *, check: bool = True) -> Lap:
        """Raises Failed, and WrongArchive where the result is not right."""
        self._laps += 1
        cold = f"cold-{self._laps}"
        self.client.create_bucket(Bucket=cold)
        scratch = Path(tempfile.mkdtemp(prefix=f"lap{self._laps}-", dir=self.folder))
        place = Place(url, workload.name, cold, scratch, self.programs)
        (scratch / "stage").mkdir()
        try:
            measured = launch(pipeline.steps(place), place)
            used = sum(path.lstat().st_size for path in scratch.rglob("*") if path.is_file())
            tarballs = [path for path in (self.served / cold).rglob("*.tar*") if path.suffix in (".tar", ".gz")]
            stored = sum(path.stat().st_size for path in tarballs)
            prove(tarballs, workload, self.served / workload.name, pipeline.lead)
            checked = launch(pipeline.check(place), place) if pipeline.check and check else None
        finally:
            shutil.rmtree(scratch)
            shutil.rmtree(self.served / cold, ignore_errors=True)
            self._forget_listings(workload)
        checks = (tuple(checked["laps"]), checked["peak_bytes"]) if checked else ((), 0)
        steps = tuple(measured["laps"])
        return Lap(measured["wall"], measured["cpu"], measured["peak_bytes"], used, stored, steps, *checks)

    def _forget_listings(self, workload: Workload) -> None:
        """What ours writes beside the plate must not be in the next one's way."""
        prefix = f"projects/{PROJECT}/workspace/backup/"
        answer = self.client.list_objects_v2(Bucket=workload.name, Prefix=prefix)
        for row in answer.get("Contents", []):
            self.client.delete_object(Bucket=workload.name, Key=row["Key"])
