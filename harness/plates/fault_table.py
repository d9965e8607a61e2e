"""Plays a fault to the engine and to the SOP, and judges what both have lost. The faults are in fault_cases.py.

Each case happens to two worlds that hold the same plate: buckets on a server, where the engine archives, verifies and
deletes, and a dictionary, where the SOP's own check decides (sop_policy.py; it is taken to be obeyed, though nothing joins
it to the deletion). Unsafe is an object that is gone although no stored tarball, read with Python's own tarfile, holds the
bytes it had at the end, or although nobody allowed it.

Invariant: each case says how it must end, so that none is safe only because it broke off early.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from harness import proxy
from harness.plates import servers, sop_policy
from harness.plates.bench import Bench, new_bench, run
from harness.plates.fault_judge import Files, lost, pack, still_there, stored, unlined
from harness.plates.servers import noise, plate, plate_files
from include.core.errors import WaybillError
from include.core.journal import FileJournal, PartJournal
from include.plates.delete import delete_plate
from include.plates.delete_report import DeleteReport
from include.plates.errors import ApprovalVoid
from include.plates.layout import BROAD2018, fill, tag_of
from include.plates.models import DeleteOrder, Outcome, Plate, Verdict
from include.s3.guarded_delete import DeleteBatch, Outcomes, SendBatch

ALL = ("images", "illum", "analysis", "backend")
BATCH = 4
Draw = random.Random
# How a case ends: all deleted; some left and listed; approval void at the last look; not proved; refused before that; no
# approval that counts.
DELETED, LEFT, VOID, MISMATCH, UNVERIFIABLE, REFUSED, UNAPPROVED = (
    "deleted", "left", "void", "mismatch", "unverifiable", "refused", "unapproved",
)  # fmt: skip


class Crash(Exception):
    """The worker dies here."""


class Live:
    """The live bucket as users see it: `truth` is what every object that nobody removed holds."""

    def __init__(self, files: Mapping[str, bytes]):
        self.truth: Files = {}
        for key, data in files.items():
            self.put(key, data)

    def put(self, key: str, data: bytes) -> None:
        self.truth[key] = data

    def remove(self, key: str) -> None:
        del self.truth[key]

    def image(self, draw: Draw) -> str:
        return draw.choice(sorted(key for key in self.truth if "/images/" in key and not key.endswith("/")))


class LiveBucket(Live):
    """The same, on a server."""

    def __init__(self, bench: Bench, files: Mapping[str, bytes]):
        self._bench = bench
        super().__init__(files)

    def put(self, key: str, data: bytes) -> None:
        super().put(key, data)
        self._bench.put({key: data})

    def remove(self, key: str) -> None:
        super().remove(key)
        self._bench.client.delete_object(Bucket=self._bench.live, Key=key)


Happens = Callable[[Live, Draw], None]
Damage = Callable[[bytes, Draw], bytes | None]
Rules = Mapping[str, Sequence[proxy.RuleDict]]  # step of the engine → what the proxy before the store does there


def few_files(one: Plate) -> Files:
    """A plate of eight objects, in all four parts."""
    return plate_files(one, sites=2) | {f"{images_of(one)}/Images/r09.tiff": noise(one, 500)}


def images_of(one: Plate) -> str:
    return fill(BROAD2018.parts[0].prefix, one).rstrip("/")


def nothing(_: Live, __: Draw) -> None:
    """A hook of a case in which nothing happens there."""


def whole(data: bytes, _: Draw) -> bytes:
    return data


@dataclass
class Played:
    """How a case ended: unsafe deletions of both, what the engine said, and which deletions have no line of their own."""

    ours: int
    theirs: int
    ended: str
    said: str = ""
    unlined: int = 0
    report: DeleteReport | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Case:
    """A fault. Hooks happen to both worlds at the same point; `rules` break the engine's way to the store."""

    name: str
    ends: tuple[str, ...]
    files: Callable[[Plate, Draw], Files] = lambda one, _: few_files(one)
    full: str = "20586"
    after_listing: Happens = nothing
    while_reading: Happens = nothing  # at a random moment of the copying
    after_reading: Happens = nothing
    at_rest: Damage = whole
    after_proof: Happens = nothing
    after_approval: Damage = whole
    at_first_delete: Happens = nothing  # when the deletion is on its way, past every look but the one at each key
    between_batches: Happens = nothing
    crash: bool = False  # the deleting worker dies after a batch, and another one goes on
    hidden: str = ""  # one image is missing from the listings of this step, "plan" or "verify" or "delete"
    versioned: bool = False
    real: bool = False  # on rclone, which holds what moto cannot
    rules: Callable[[Draw], Rules] = lambda _: {}
    journal: Callable[[PartJournal, Draw], PartJournal] = lambda journal, _: journal
    sop_check: Callable[[sop_policy.SopRun], sop_policy.SopRun] = lambda run_of_sop: run_of_sop
    sop_stops: bool = False  # its script ends with an error before anything could be deleted
    story: Callable[[Bench, Draw], Played] | None = None


def play(case: Case, url: str, seed: int) -> Played:
    """One seed of a case, on the server at `url` (moto, or rclone for a case that is `real`)."""
    with tempfile.TemporaryDirectory() as folder:
        bench = new_bench(url, Path(folder))
        try:
            if case.versioned:
                for name in (bench.live, bench.cold):
                    bench.client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
            if case.story is not None:
                return case.story(bench, Draw(seed))
            played = engine(case, bench, seed)
            played.theirs = procedure(case, seed)
            return played
        finally:
            bench.access.close()


# The engine


def engine(case: Case, bench: Bench, seed: int) -> Played:
    """Archive, verify and delete; whatever the engine refuses ends the story, as it would end the task."""
    draw, one = Draw(seed), plate(full=case.full)
    live = LiveBucket(bench, case.files(one, Draw(seed)))
    work = _Engine(case, bench, live, one, draw)
    played = Played(0, 0, "")
    try:
        played.report = work.run()
    except WaybillError as error:
        played.said = f"{type(error).__name__}: {error}"
        played.ended = how_it_ended(error, work.verdict)
    if played.report is not None:
        played.ended = DELETED if played.report.complete else LEFT
    left = still_there(bench, live.truth)
    played.ours = lost(live.truth, left, stored(bench), one)
    played.unlined = unlined(bench, live.truth.keys() - left, played.report)
    return played


def how_it_ended(error: WaybillError, verdict: Verdict | None) -> str:
    if verdict is not None and verdict.outcome is not Outcome.VERIFIED:
        return str(verdict.outcome.value)
    return VOID if isinstance(error, ApprovalVoid) else REFUSED


class _Engine:
    def __init__(self, case: Case, bench: Bench, live: LiveBucket, one: Plate, draw: Draw):
        self.case, self.bench, self.live, self.one, self.draw = case, bench, live, one, draw
        self.rules = {name: list(rules) for name, rules in case.rules(draw).items()}
        self.verdict: Verdict | None = None
        if case.hidden:
            self.rules.setdefault(case.hidden, []).append(hide(live.image(draw)))
        if case.while_reading is not nothing:
            self.rules.setdefault("archive", []).append(
                self._at(draw.randrange(len(live.truth)), "GET", case.while_reading)
            )
        if case.at_first_delete is not nothing:
            self.rules.setdefault("delete", []).insert(0, self._at(0, "DELETE", case.at_first_delete))

    def run(self) -> DeleteReport:
        case, live, draw = self.case, self.live, self.draw
        planned = self.step("plan", lambda b: run(b.plan(self.one)))
        case.after_listing(live, draw)
        self.step(
            "archive",
            lambda b: run(b.archive_it(planned, journal_for=self._failing(b))),
            again=lambda b: run(b.archive_it(planned)),
        )
        case.after_reading(live, draw)
        harm(self.bench, self.one, case.at_rest, draw)
        self.verdict = self.step("verify", lambda b: run(b.verify(self.one)))
        case.after_proof(live, draw)
        harm(self.bench, self.one, case.after_approval, draw)
        kept = FileJournal(self.bench.journals / "delete")
        report: DeleteReport = self.step(
            "delete", lambda b: self._delete(b, case.journal(kept, draw)), again=lambda b: self._delete(b, kept)
        )
        return report

    def _delete(self, bench: Bench, journal: PartJournal) -> DeleteReport:
        assert self.verdict is not None
        verdict = self.verdict
        order = DeleteOrder(verdict.manifests_sha256, ALL, retention="none", batch_size=BATCH)
        happened: list[int] = []

        async def around(batch: DeleteBatch, send: SendBatch) -> Outcomes:
            outcomes = await send()
            if not happened and not batch.resumed:
                happened.append(batch.number)
                if batch.number == 1:
                    self.case.between_batches(self.live, self.draw)
                    if self.case.crash:
                        raise Crash
            return outcomes

        places: dict[str, Any] = {"source": bench.source, "archive": bench.archive, "journal": journal}
        return run(delete_plate(verdict, order, around_batch=around, **places))

    def _failing(self, bench: Bench) -> Any:
        return lambda name: self.case.journal(bench.journal_for(name), self.draw)

    def _at(self, number: int, method: str, happens: Happens) -> proxy.RuleDict:
        """Something happens just before the store sees a request of this kind."""
        seen: list[int] = []

        def hook(request: proxy.Call, _: proxy.Forward) -> None:
            many = request.method == "POST" and "delete" in request.query
            kind = "DELETE" if many else request.method
            data = proxy.key_of(request) in self.live.truth or many
            if kind == method and data:
                seen.append(number)
                if len(seen) == number + 1:
                    happens(self.live, self.draw)

        return proxy.call(hook)

    def step(self, name: str, work: Callable[[Bench], Any], again: Callable[[Bench], Any] | None = None) -> Any:
        """A step, through a proxy where the case has rules for it; a broken one is tried again, as the task would be."""
        with ExitStack() as stack:
            bench = self.bench
            if name in self.rules:
                front = stack.enter_context(proxy.proxied(bench.url))
                front.add(*self.rules[name])
                access = servers.access(front.url)
                stack.callback(access.close)
                bench = replace(bench, access=access)
            try:
                return work(bench)
            except (Crash, OSError):
                if again is None:
                    raise
                return again(bench)


def harm(bench: Bench, one: Plate, damage: Damage, draw: Draw) -> None:
    """What happens to the tarball of the images at rest, unseen: size and metadata are as the damage leaves them."""
    if damage is whole:
        return
    key = tarball_of(one)
    there = bench.client.get_object(Bucket=bench.cold, Key=key)
    data = damage(there["Body"].read(), draw)
    if data is None:
        bench.client.delete_object(Bucket=bench.cold, Key=key)
    else:
        bench.client.put_object(Bucket=bench.cold, Key=key, Body=data, Metadata=there["Metadata"])


def tarball_of(one: Plate, name: str = "images_illum_analysis") -> str:
    return f"{fill(BROAD2018.archive_prefix, one)}{tag_of(BROAD2018, one)}_{name}.tar.gz"


def hide(key: str) -> proxy.RuleDict:
    """Listings that lag: one key is not in them."""
    return proxy.peculiarity("hide_from_listing", method="GET", query="list-type=|marker=", text=key)


# The SOP


def procedure(case: Case, seed: int) -> int:
    """Unsafe deletions of the SOP: its listing, its copy, its check of two listings, its deletion by prefix."""
    draw, one = Draw(seed), plate(full=case.full)
    live = Live(case.files(one, Draw(seed)))
    unseen = live.image(draw) if case.hidden == "plan" else None
    listed = {key: data for key, data in live.truth.items() if key != unseen}
    case.after_listing(live, draw)
    copied: Files = {}
    names = [key for key in sorted(live.truth) if key != unseen and not key.endswith("/")]
    moment = draw.randrange(len(names) + 1)
    for number, key in enumerate(names):
        if number == moment:
            case.while_reading(live, draw)
        if key in live.truth:
            copied[key] = live.truth[key]
    tag = tag_of(BROAD2018, one)
    done = sop_policy.backup(one, listed, copied, tag)
    backend = {key: data for key, data in copied.items() if "/backend/" in key}
    tarball: bytes | None = pack({key: data for key, data in copied.items() if key not in backend}, tag)
    case.after_reading(live, draw)
    tarball = case.at_rest(tarball or b"", draw)
    if case.sop_stops or not sop_policy.check_plate(case.sop_check(done)):
        return 0
    case.after_proof(live, draw)
    tarball = case.after_approval(tarball, draw) if tarball is not None else None
    left = _removed(case, live, one, draw)
    # A folder marker is in none of its tarballs, and holds nothing.
    truth = {key: data for key, data in live.truth.items() if data or not key.endswith("/")}
    return lost(truth, left, [pack(backend, tag), *([tarball] if tarball else [])], one)


def _removed(case: Case, live: Live, one: Plate, draw: Draw) -> set[str]:
    """What `aws s3 rm --recursive` leaves: it lists the plate, and then deletes key by key."""
    listed = sop_policy.deleted(one, live.truth)
    case.at_first_delete(live, draw)
    first = dict.fromkeys(sorted(listed)[:BATCH])
    before = {key: live.truth[key] for key in first}
    case.between_batches(live, draw)  # after as many keys as the engine's batch has
    back = {key for key in first if live.truth[key] != before[key]}
    rest = sop_policy.deleted(one, live.truth) if case.crash else listed - first.keys()
    return set(live.truth.keys() - rest - (first.keys() - back))
