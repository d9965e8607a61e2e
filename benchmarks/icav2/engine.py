"""How long a batch copy takes, beside the ideal and beside the step function that it replaces; and how often ICA is asked.

Every strategy meets the same random draws: the simulator draws the duration and the fate of a job from (seed, destination,
attempt). The engine itself runs, against the simulated API, on a clock that jumps; its makespan counts from the first
listing of the plan to the last proof. The original loop and its successor are replayed as plain policies, which are
given what they cannot have: no faults, and a truncated copy passes, since they look at no file.
One piece: `python -m benchmarks.icav2.engine COUNT SEED SLOTS`.

Invariant: a missed aim is mended in the engine, never here.
"""

from __future__ import annotations

import asyncio
import functools
import heapq
import json
import os
import random
import statistics
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from harness.icav2.ica_world import NOT_DEFERRED, SOURCE, TARGET, World, manifest, play
from include.core.watch import Wake, WatchPolicy, watch
from include.icav2.watch import job_watch
from simulators.icav2 import Draw, Outcome, draw

Row = dict[str, Any]
SEEDS, QUICK_SEEDS = 20, 2
COUNTS = (50, 200, 1000)
UNLIMITED, DEFAULT_SLOTS = 1000, 200
SUBMISSIONS = 6  # the SOP's five redeployments after the first
LATENCY_SECONDS = 0.05
BUDGET_MINUTES = 15


@dataclass(frozen=True)
class Piece:
    """One run of the engine: so many destinations of two files, under one seed, with so many slots."""

    count: int
    seed: int
    slots: int
    seconds: float
    ideal: float
    work: float
    submissions: int
    peak: int
    dead: int
    wrong: int

    @property
    def bound(self) -> float:
        """What no scheduler can beat: the longest chain of one destination, or all work over all slots."""
        return max(self.ideal, self.work / self.slots)


def destination(number: int) -> str:
    return f"{TARGET}/cache/d{number:04d}/"


@functools.lru_cache(maxsize=20_000)
def draws(seed: int, number: int) -> list[Draw]:
    return [draw(seed, destination(number), attempt) for attempt in range(1, SUBMISSIONS + 1)]


def chain(seed: int, number: int) -> tuple[list[float], bool]:
    """The durations of a destination's submissions up to the first that succeeds, six at most; and whether one did."""
    seconds = []
    for drawn in draws(seed, number):
        seconds.append(drawn.duration_seconds)
        if drawn.outcome is Outcome.SUCCEEDED:
            return seconds, True
    return seconds, False


def makespan(count: int, seed: int, slots: int) -> Piece:
    """Plans and copies `count` destinations with the engine, on virtual time."""
    chains = [chain(seed, number) for number in range(count)]

    async def scene(world: World) -> Piece:
        what = manifest(count, 2)
        world.seed(what)
        progress = await world.copy(what, max_in_flight=slots)
        seconds = world.loop.time()
        counters = world.sim.counters()
        if counters["duplicate_jobs"]:
            raise RuntimeError(f"seed {seed}: jobs were at work twice")
        return Piece(
            count=count,
            seed=seed,
            slots=slots,
            seconds=seconds,
            ideal=max(sum(part) for part, _ in chains),
            work=sum(sum(part) for part, _ in chains),
            submissions=counters["jobs"],
            peak=counters["peak_jobs_in_flight"],
            dead=progress.counts["failed"],
            wrong=len(world.wrong_files(what)),
        )

    return play(scene, seed=seed, api_latency_seconds=LATENCY_SECONDS)


# -- the peers, replayed on the same draws -----------------------------------------------------------------------

GET_JOB, LAMBDA, LAUNCH, MAP_WIDTH, PASS_LENGTH = 0.3, 0.2, (1.5, 2.0), 40, 11


@dataclass
class Copy:
    """One destination as a peer sees it: its attempt, and when that job ends."""

    number: int
    attempt: int
    ends: float


def _fate(seed: int, copy: Copy) -> bool:
    """What a job's status says once it has ended: truncated copies are reported as SUCCEEDED."""
    outcome = draw(seed, destination(copy.number), copy.attempt).outcome
    return outcome in (Outcome.SUCCEEDED, Outcome.TRUNCATED)


def _sent(seed: int, number: int, attempt: int, at: float) -> Copy:
    return Copy(number, attempt, at + draw(seed, destination(number), attempt).duration_seconds)


def original_loop(count: int, seed: int) -> float:
    """The step function: launch all, 40 wide; wait 10 s; then status passes of eleven jobs, one after the other, with
    failed ones launched again and put at the end; a pass that reaches the end of the list waits 60 s."""
    rng = random.Random(f"launches {seed}")
    workers = [0.0] * min(MAP_WIDTH, count)
    running = []
    for number in range(count):
        done = heapq.heappop(workers) + rng.uniform(*LAUNCH)
        heapq.heappush(workers, done)
        running.append(_sent(seed, number, 1, done))
    now = max(workers) + 10.0
    while running:
        now += LAMBDA
        handled, rest = running[:PASS_LENGTH], running[PASS_LENGTH:]
        still, again = [], []
        for copy in handled:
            now += GET_JOB
            if copy.ends > now:
                still.append(copy)
            elif not _fate(seed, copy):
                now += rng.uniform(*LAUNCH)
                again.append(_sent(seed, copy.number, copy.attempt + 1, now))
        running = still + rest + again
        if running and len(handled) < PASS_LENGTH:
            now += 60.0
    return now


def five_wide(count: int, seed: int) -> float:
    """Its successor: one machine per destination, five at a time, waiting 10, 20, 30, … s between two looks."""
    rng = random.Random(f"launches {seed}")
    workers = [0.0] * min(5, count)
    for number in range(count):
        now, attempt = heapq.heappop(workers), 0
        passed = False
        while not passed and attempt < 10:
            attempt += 1
            now += rng.uniform(*LAUNCH)
            copy, wait = _sent(seed, number, attempt, now), 0.0
            while copy.ends > now:
                wait += 10.0
                now += wait + LAMBDA + GET_JOB
            passed = _fate(seed, copy)
        heapq.heappush(workers, now)
    return max(workers)


def instant(count: int, seed: int, slots: int) -> float:
    """What slots cost a scheduler that does not know the draws, though it sees and acts at once and ICA answers at once:
    whenever a slot is free the next copy starts, failed ones first."""
    fresh, failed, running, now = list(range(count))[::-1], list[tuple[int, int]](), list[tuple[float, int, int]](), 0.0
    while fresh or failed or running:
        while len(running) < slots and (fresh or failed):
            number, attempt = failed.pop(0) if failed else (fresh.pop(), 1)
            heapq.heappush(running, (now + draws(seed, number)[attempt - 1].duration_seconds, number, attempt))
        now, number, attempt = heapq.heappop(running)
        if draws(seed, number)[attempt - 1].outcome is not Outcome.SUCCEEDED and attempt < SUBMISSIONS:
            failed.append((number, attempt + 1))
    return now


# -- status calls ------------------------------------------------------------------------------------------------

STATUS_CALLS = ("GET /api/jobs", "GET /api/jobs/{jobId}")


def status_calls(jobs: int, *, alone: bool) -> int:
    """Calls that ICA saw until `jobs` jobs were known to have ended: by one watch, or by one poller per job (`alone`)."""

    async def scene(world: World) -> int:
        made = _start(world, jobs)
        policy = WatchPolicy(quiet_seconds=NOT_DEFERRED.quiet_seconds)

        async def follow(some: dict[str, float], seed: int) -> None:
            look = job_watch(world.client, some, Wake.NOTHING).observe
            loop, rng = world.loop, random.Random(seed)
            await watch(look, deadline=1e12, policy=policy, now=loop.now, rng=rng, say=lambda _line: None)

        if alone:
            world.client.statuses = _one_by_one(world)  # type: ignore[method-assign]
            await asyncio.gather(*(follow({job: made[job]}, seed) for seed, job in enumerate(made)))
        else:
            await follow(made, 1)
        calls = world.sim.counters()["calls"]
        return sum(calls.get(name, 0) for name in STATUS_CALLS)

    return play(scene, seed=1)


def _one_by_one(world: World) -> Callable[..., Any]:
    async def statuses(wanted: dict[str, float]) -> dict[str, Any]:
        return {job_id: await world.client.job(job_id) for job_id in wanted}

    return statuses


def _start(world: World, jobs: int) -> dict[str, float]:
    """Puts so many jobs to work at once, each for a folder of its own."""
    for project in (SOURCE, TARGET):
        world.sim.seed_project(project)
    source, user = world.sim.seed_file(SOURCE, "/f", 1000), world.sim.tokens.users["service"]
    made = {}
    for number in range(jobs):
        folder = world.sim.seed_folder(TARGET, f"/cache/d{number:04d}/")
        job = world.sim.engine.accept("copy", user, TARGET, folder, [source], {"actionOnExist": "SKIP"})
        made[job.id] = job.created
    return made


# -- the rows ----------------------------------------------------------------------------------------------------


def run(quick: bool = False) -> list[Row]:
    """All rows. `quick`: two seeds, and no more than 200 destinations and 1,000 jobs."""
    seeds, counts = (QUICK_SEEDS, COUNTS[:2]) if quick else (SEEDS, COUNTS)
    print(
        f"icav2: {seeds} seeds for {counts} destinations, time budget {1 if quick else BUDGET_MINUTES} min", flush=True
    )
    with ProcessPoolExecutor(max_workers=max(1, len(os.sched_getaffinity(0)))) as pool:
        calls = {
            (jobs, alone): pool.submit(status_calls, jobs, alone=alone)
            for jobs in ((1000,) if quick else (10_000, 1000))
            for alone in (True, False)
        }
        plan = [
            (n, s, k) for n in sorted(counts, reverse=True) for s in range(seeds) for k in (UNLIMITED, DEFAULT_SLOTS)
        ]
        pieces = [future.result() for future in [pool.submit(makespan, *part) for part in plan]]
        counted = {key: future.result() for key, future in calls.items()}
    rows = [row for count in counts for row in _makespans(count, pieces)]
    rows += [_calls(jobs, counted[jobs, False], counted[jobs, True]) for jobs in sorted({jobs for jobs, _ in counted})]
    _tell(pieces)
    return rows


def _makespans(count: int, pieces: list[Piece]) -> list[Row]:
    rows = []
    for slots in (UNLIMITED, DEFAULT_SLOTS):
        some = [piece for piece in pieces if (piece.count, piece.slots) == (count, slots)]
        over = [piece.seconds / piece.bound for piece in some]
        name = f"{count} destinations, {slots} jobs at once"
        ideal = "ideal M*" if slots == UNLIMITED else "max(M*, work / slots)"
        for which, pick in (("median", statistics.median), ("p95", _p95)):
            seconds, bound, ratio = (pick(values) for values in zip(*_triples(some, over), strict=True))
            rows.append(
                {
                    "figure": f"makespan, {name}, {which}",
                    "value": round(seconds, 1),
                    "unit": "s",
                    "peer": ideal,
                    "peer_value": round(bound, 1),
                    "ratio": round(ratio, 3),
                    "aim": "≤ 1.3" if which == "median" else None,
                    "met": ratio <= 1.3 if which == "median" else None,
                }
            )
    if count > DEFAULT_SLOTS:
        rows.append(_beside_instant(count, some))
    return rows + _peers(count, [piece for piece in pieces if (piece.count, piece.slots) == (count, DEFAULT_SLOTS)])


def _beside_instant(count: int, pieces: list[Piece]) -> Row:
    """Where jobs queue for slots, nobody who does not know the draws comes near the bound: this is what can be reached."""
    reachable = [instant(count, piece.seed, piece.slots) for piece in pieces]
    ratio = statistics.median(piece.seconds / best for piece, best in zip(pieces, reachable, strict=True))
    return {
        "figure": f"makespan, {count} destinations, {DEFAULT_SLOTS} jobs at once, median beside an instant scheduler",
        "value": round(statistics.median(piece.seconds for piece in pieces), 1),
        "unit": "s",
        "peer": "instant scheduler without foresight",
        "peer_value": round(statistics.median(reachable), 1),
        "ratio": round(ratio, 3),
        "aim": "≤ 1.3",
        "met": ratio <= 1.3,
    }


def _triples(pieces: list[Piece], over: list[float]) -> list[tuple[float, float, float]]:
    return [(piece.seconds, piece.bound, ratio) for piece, ratio in zip(pieces, over, strict=True)]


def _p95(values: Any) -> float:
    ordered = sorted(values)
    return float(ordered[min(len(ordered) - 1, round(0.95 * (len(ordered) - 1)))])


def _peers(count: int, pieces: list[Piece]) -> list[Row]:
    """Ours, with the default slots, beside the two peers on the same draws."""
    rows = []
    ours = statistics.median(piece.seconds for piece in pieces)
    for name, policy in (("the original step function's loop", original_loop), ("the width-5 loop", five_wide)):
        theirs = [policy(count, piece.seed) for piece in pieces]
        faster = statistics.median(t / piece.seconds for t, piece in zip(theirs, pieces, strict=True))
        aimed = count == 1000 and policy is original_loop
        rows.append(
            {
                "figure": f"{count} destinations, times faster than {name}",
                "value": round(ours, 1),
                "unit": "s",
                "peer": name,
                "peer_value": round(statistics.median(theirs), 1),
                "ratio": round(faster, 1),
                "aim": "≥ 8" if aimed else None,
                "met": faster >= 8 if aimed else None,
            }
        )
    return rows


def _calls(jobs: int, ours: int, theirs: int) -> Row:
    return {
        "figure": f"status calls for {jobs:,} jobs",
        "value": ours,
        "unit": "calls",
        "peer": "one poller per job, same schedule",
        "peer_value": theirs,
        "ratio": round(theirs / ours, 1),
        "aim": "≥ 100 times fewer",
        "met": theirs >= 100 * ours,
    }


def _tell(pieces: list[Piece]) -> None:
    """What the rows leave out: destinations that died after six submissions (their runs are counted too)."""
    dead = sorted({(piece.count, piece.seed, piece.dead) for piece in pieces if piece.dead})
    for count, seed, number in dead:
        print(f"seed {seed}, {count} destinations: {number} failed all {SUBMISSIONS} submissions", flush=True)
    wrong = [piece for piece in pieces if piece.wrong and not piece.dead]
    if wrong:
        raise RuntimeError(f"wrong files at the end of {wrong}")


if __name__ == "__main__":
    print(json.dumps(asdict(makespan(*(int(argument) for argument in sys.argv[1:4])))))
