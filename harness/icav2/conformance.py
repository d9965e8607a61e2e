"""ICAv2's copies, declared for the conformance kit: two files to one folder, by the engine that the operator runs.

Invariant: an effect is a job that ICA accepted for our folder and some of our files, by its journal.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any

from harness.conformance import Process, Remote, Worker
from harness.icav2.ica_world import SOURCE, TARGET
from include.core.effects import Phase
from include.core.errors import RemoteError
from include.core.watch import Wake
from include.icav2.client import ICAv2Client
from include.icav2.credentials import ApiKey
from include.icav2.engine import CopyEngine
from include.icav2.manifest import checked, flip
from include.icav2.plan import resolve
from include.icav2.rules import CopySettings
from include.icav2.watch import job_watch
from simulators.common import Clock, InProcessTransport, Simulator
from simulators.icav2 import DEFAULT_API_KEY, IcaSimulator, Outcome, Override, Settings

FOLDER = "/cache/d0/"
FILES = ("/run/f0.fastq.gz", "/run/f1.fastq.gz")
MANIFEST = {f"icav2://{SOURCE}{path}": [f"icav2://{TARGET}{FOLDER}"] for path in FILES}
OTHERS = "/run/other.fastq.gz"
SIZE = 5_000_000_000
CROWD = 3


class CopyWorker(Worker):
    """One pass of the engine at a time."""

    def __init__(self, engine: CopyEngine):
        self._engine = engine

    async def ask(self) -> float | None:
        progress = await self._engine.act()
        if progress.finished:
            (standing,) = progress.standings
            if standing.phase != Phase.PASSED:
                raise RemoteError(f"{standing.phase}: {standing.why}")
            return None
        if progress.standings[0].phase == Phase.RUNNING:
            return 5.0
        return max((progress.look_again_at or progress.now) - progress.now, 1.0)

    async def watch(self) -> object:
        rows = [row for found in self._engine.rows().values() for row in found]
        jobs = {str(row.external_id): row.sending_at or 0.0 for row in rows}
        return await job_watch(self._engine.client, jobs, Wake.END).observe()


class ICAv2Copies(Remote):
    name = "icav2/copy_batch"
    write: Mapping[str, Any] = {"method": "POST", "path": "dataCopyBatch$"}
    late_seconds = 55.0
    hidden_seconds = 55.0
    later_page: Mapping[str, Any] | None = {"path": "/api/jobs$", "query": r"pageOffset=[1-9]"}
    logins = ("/api/tokens",)

    @contextmanager
    def world(self, clock: Clock) -> Iterator[Simulator]:
        settings = Settings(failure_rate=0.0, folder_create_seconds=0.0, max_page_size=CROWD, duration_cv=0.0)
        sim = IcaSimulator(clock, settings, gzip=False)
        for project in (SOURCE, TARGET):
            sim.seed_project(project)
        for path in (*FILES, OTHERS):
            sim.seed_file(SOURCE, path, SIZE)
        yield sim

    @asynccontextmanager
    async def worker(self, process: Process) -> AsyncIterator[CopyWorker]:
        sim = process.simulator
        client = ICAv2Client(
            "http://ica.test/ica/rest",
            ApiKey(DEFAULT_API_KEY),
            transport=InProcessTransport(sim.app),
            sleep=process.sleep,
            rng=random.Random(3),
        )
        async with client:
            plan = await resolve(client, flip(checked(dict(MANIFEST), "manifest")))
            yield CopyWorker(CopyEngine(client, process.ledger, plan, process.owner, CopySettings(), process.sleep))

    def effects(self, simulator: Simulator) -> Sequence[str]:
        ours = {_node(simulator, path) for path in FILES}
        accepted = [entry.details for entry in simulator.journal.entries("job_accepted")]
        return [
            d["job_id"] for d in accepted if d["path"] == FOLDER and ours & {item["data_id"] for item in d["items"]}
        ]

    def harm(self, simulator: Simulator) -> Sequence[str]:
        return [f"job {d['jobs'][-1]} was not needed: {d['why']}" for d in simulator.counters()["duplicate_jobs"]]

    def present(self, simulator: Simulator) -> bool:
        assert isinstance(simulator, IcaSimulator)
        there = [simulator.tree.at(TARGET, FOLDER + path.rsplit("/", 1)[1]) for path in FILES]
        return all(node is not None and (node.status, node.size_bytes) == ("AVAILABLE", SIZE) for node in there)

    def bad_ends(self) -> Mapping[str, Callable[[Simulator], None]]:
        bad = set(Outcome) - {Outcome.SUCCEEDED, Outcome.STUCK}
        return {str(outcome): partial(_will_end, outcome) for outcome in sorted(bad)}

    def add_alike(self, simulator: Simulator) -> Sequence[str]:
        ours = [_node(simulator, path) for path in FILES]
        other = [_node(simulator, OTHERS)]
        elsewhere = [_copy(simulator, folder, ours) for folder in ("/cache/elsewhere/", FOLDER.upper())]
        return [*elsewhere, _copy(simulator, FOLDER, other)]

    def add_twin(self, simulator: Simulator) -> None:
        _copy(simulator, FOLDER, [_node(simulator, path) for path in FILES])

    def add_crowd(self, simulator: Simulator) -> None:
        for number in range(CROWD):
            _copy(simulator, f"/cache/others/{len(simulator.journal)}-{number}/", [_node(simulator, OTHERS)])

    def secrets(self, simulator: Simulator) -> Sequence[str]:
        assert isinstance(simulator, IcaSimulator)
        return simulator.tokens.issued()


def _node(simulator: Simulator, path: str) -> str:
    assert isinstance(simulator, IcaSimulator)
    node = simulator.tree.at(SOURCE, path)
    assert node is not None
    return node.id


def _will_end(outcome: Outcome, simulator: Simulator) -> None:
    assert isinstance(simulator, IcaSimulator)
    override = Override(destination=FOLDER, attempts=[1], outcome=outcome)
    simulator.change_settings(overrides=[override])


def _copy(simulator: Simulator, folder: str, data_ids: Sequence[str]) -> str:
    """A copy that somebody else has started. The id of its job."""
    assert isinstance(simulator, IcaSimulator)
    place = simulator.seed_folder(TARGET, folder)
    nodes = [simulator.tree.nodes[data_id] for data_id in data_ids]
    job = simulator.engine.accept(
        "copy", simulator.tokens.users["service"], TARGET, place, nodes, {"actionOnExist": "SKIP"}
    )
    return job.id
