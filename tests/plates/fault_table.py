"""One table of faults, played by tests once each and by the benchmark with many seeds: what is lost, by us and by the SOP.

Each case happens to two worlds that hold the same plate: buckets on moto, where the engine archives, verifies and
deletes, and a dictionary, where the SOP's own check decides (tests/plates/sop_policy.py). Unsafe is an object that is gone
although no stored tarball, read with Python's own tarfile, holds the bytes it had at the end. The thing to know before
changing it: approval is always given, so what keeps an object here is proof, guard or refusal, never a person.
"""

from __future__ import annotations

import gzip
import io
import random
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from include.core.errors import WaybillError
from include.plates.deleting import DeleteOrder, delete_plate
from include.plates.deletion import DeleteBatch, DeleteReport, Outcomes, SendBatch
from include.plates.journal import FileJournal
from include.plates.layout import BROAD2018, tag_of, tell_apart
from include.plates.models import Plate
from tests.plates import proxy, servers, sop_policy
from tests.plates.conftest import Bench, new_bench, run
from tests.plates.servers import PROJECT, noise, plate, plate_files

ALL = ("images", "illum", "analysis", "backend")
BATCH = 4
Files = dict[str, bytes]
Draw = random.Random


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


def nothing(_: Live, __: Draw) -> None:
    """A hook of a case in which nothing happens there."""


def whole(data: bytes, _: Draw) -> bytes:
    return data


@dataclass(frozen=True)
class Case:
    """A fault. Hooks happen to both worlds at the same point; `rules` break the engine's way to the store."""

    name: str
    files: Callable[[Plate, Draw], Files] = lambda one, _: plate_files(one)
    full: str = "20586"
    after_listing: Happens = nothing
    after_reading: Happens = nothing
    at_rest: Damage = whole
    after_proof: Happens = nothing
    after_approval: Damage = whole
    between_batches: Happens = nothing
    hidden: bool = False  # one image is missing from the first listing
    crash: bool = False  # the deleting worker dies after a batch, and another one goes on
    versioned: bool = False
    rules: Callable[[Draw], Mapping[str, Any]] = lambda _: {}  # step of the engine → rule of the proxy
    sop_check: Callable[[sop_policy.SopRun], sop_policy.SopRun] = lambda run_of_sop: run_of_sop
    completes: bool = False  # no fault that should stop it: the engine must delete everything
    custom: Callable[[Bench, Draw], tuple[int, int]] | None = None


@dataclass
class Played:
    """How a case ended: unsafe deletions of both, how many objects the engine deleted, and what it said."""

    ours: int
    theirs: int
    deleted: int
    said: str = ""
    report: DeleteReport | None = field(default=None, repr=False)


def play(case: Case, url: str, seed: int) -> Played:
    """One seed of a case, on a server of moto at `url`."""
    with tempfile.TemporaryDirectory() as folder:
        bench = new_bench(url, Path(folder))
        try:
            if case.versioned:
                for name in (bench.live, bench.cold):
                    bench.client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
            if case.custom is not None:
                ours, theirs = case.custom(bench, Draw(seed))
                return Played(ours, theirs, 0)
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
    played = Played(0, 0, 0)
    try:
        played.report = _engine(case, bench, live, one, draw)
        played.deleted = played.report.deleted
    except (WaybillError, OSError) as error:
        played.said = f"{type(error).__name__}: {error}"
    left = bench.keys(bench.live)
    kept = stored(bench, one)
    played.ours = lost(live.truth, left, kept, one)
    return played


def _engine(case: Case, bench: Bench, live: LiveBucket, one: Plate, draw: Draw) -> DeleteReport:
    rules = dict(case.rules(draw))
    if case.hidden:
        rules["plan"] = hide(live.image(draw))
    planned = step(bench, rules, "plan", lambda b: run(b.plan(one)))
    case.after_listing(live, draw)
    try:
        step(bench, rules, "archive", lambda b: run(b.archive_it(planned)))
    except WaybillError:
        if not case.completes:
            raise
        run(bench.archive_it(planned))  # the next try of the task
    case.after_reading(live, draw)
    harm(bench, one, case.at_rest, draw)
    verdict = step(bench, rules, "verify", lambda b: run(b.verify(one)))
    case.after_proof(live, draw)
    harm(bench, one, case.after_approval, draw)
    order = DeleteOrder(verdict.manifests_sha256, ALL, retention="none", batch_size=BATCH)
    journal = FileJournal(bench.journals / "delete")
    happened: list[int] = []

    async def around(batch: DeleteBatch, send: SendBatch) -> Outcomes:
        outcomes = await send()
        if not happened:
            happened.append(batch.number)
            case.between_batches(live, draw)
            if case.crash:
                raise Crash
        return outcomes

    def delete(b: Bench) -> DeleteReport:
        work = {"source": b.source, "archive": b.archive, "journal": journal, "around_batch": around}
        return run(delete_plate(verdict, order, **work))

    try:
        return step(bench, rules, "delete", delete)
    except Crash:
        return delete(bench)


def step(bench: Bench, rules: Mapping[str, Any], name: str, work: Callable[[Bench], Any]) -> Any:
    """A step of the engine, through a proxy where the case has a rule for it."""
    with ExitStack() as stack:
        if name not in rules:
            return work(bench)
        front = stack.enter_context(proxy.proxied(bench.url))
        front.rules.append(rules[name])
        access = servers.access(front.url)
        stack.callback(access.close)
        return work(replace(bench, access=access))


def harm(bench: Bench, one: Plate, damage: Damage, draw: Draw) -> None:
    """What happens to the tarball of the images at rest, unseen: size and metadata are as the damage leaves them."""
    if damage is whole:
        return
    key = f"imaging_analysis/{PROJECT}/plates/{tag_of(BROAD2018, one)}_images_illum_analysis.tar.gz"
    there = bench.client.get_object(Bucket=bench.cold, Key=key)
    data = damage(there["Body"].read(), draw)
    if data is None:
        bench.client.delete_object(Bucket=bench.cold, Key=key)
    else:
        bench.client.put_object(Bucket=bench.cold, Key=key, Body=data, Metadata=there["Metadata"])


def stored(bench: Bench, one: Plate) -> list[bytes]:
    tarballs = sorted(key for key in bench.keys(bench.cold) if key.endswith(".tar.gz"))
    return [bench.get(key) for key in tarballs]


# The SOP


def procedure(case: Case, seed: int) -> int:
    """Unsafe deletions of the SOP: its listing, its copy, its check of two listings, its deletion by prefix."""
    draw, one = Draw(seed), plate(full=case.full)
    live = Live(case.files(one, Draw(seed)))
    unseen = live.image(draw) if case.hidden else None
    listed = {key: data for key, data in live.truth.items() if key != unseen}
    case.after_listing(live, draw)
    copied = {key: data for key, data in live.truth.items() if key != unseen and not key.endswith("/")}
    tag = tag_of(BROAD2018, one)
    done = sop_policy.backup(one, listed, copied, tag)
    tarball: bytes | None = pack(copied, tag)
    case.after_reading(live, draw)
    tarball = case.at_rest(tarball or b"", draw)
    if not sop_policy.check_plate(case.sop_check(done)):
        return 0
    case.after_proof(live, draw)
    tarball = case.after_approval(tarball, draw) if tarball is not None else None
    # `aws s3 rm` has listed the plate, and deletes key by key; the fault comes after as many keys as the engine's batch.
    listed_now = sop_policy.deleted(one, live.truth)
    first = dict.fromkeys(sorted(listed_now)[:BATCH])
    before = {key: live.truth[key] for key in first}
    case.between_batches(live, draw)
    back = {key for key in first if live.truth[key] != before[key]}
    rest = sop_policy.deleted(one, live.truth) if case.crash else listed_now - first.keys()
    left = live.truth.keys() - rest - (first.keys() - back)
    return lost(live.truth, left, [tarball] if tarball else [], one)


# What both are judged by


def lost(truth: Mapping[str, bytes], left: Any, tarballs: list[bytes], one: Plate) -> int:
    """Objects that are gone, and whose last bytes no tarball holds under their name."""
    held: list[Files] = [contents(data) for data in tarballs]
    tags = {tag_of(BROAD2018, one), tag_of(BROAD2018, one.model_copy(update={"tag_by_full": True}))}

    def safe(key: str) -> bool:
        names = [f"{tag}/{key.removeprefix('projects/').rstrip('/')}" for tag in tags]
        return any(files.get(name) == truth[key] for files in held for name in names)

    return sum(key not in left and not safe(key) for key in truth)


def contents(data: bytes) -> Files:
    """Files by name, as far as a damaged tarball can be read."""
    found: Files = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:*") as tar:
            for member in tar:
                body = tar.extractfile(member) if member.isfile() else None
                found[member.name] = body.read() if body is not None else b""
    except (tarfile.TarError, EOFError, OSError, ValueError, zlib.error):
        pass
    return found


def pack(files: Mapping[str, bytes], tag: str) -> bytes:
    """A tarball as `tar czf` makes one."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w:gz", compresslevel=1) as tar:
        for key, data in sorted(files.items()):
            info = tarfile.TarInfo(f"{tag}/{key.removeprefix('projects/')}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return target.getvalue()


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
        twins = draw.choice([group for group in sizes.values() if len(group) > 1])
        one, other = draw.sample(twins, 2)
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


def add(live: Live, draw: Draw) -> None:
    live.put(f"{live.image(draw).rsplit('/', 1)[0]}/late{draw.randrange(99)}.tiff", noise(draw.random(), 500))


def vanish(live: Live, draw: Draw) -> None:
    live.remove(live.image(draw))


def hide(key: str) -> Any:
    """A listing that lags: one key is not in it."""
    import re

    def rule(request: proxy.Request, forward: proxy.Forward) -> Any:
        if request.method != "GET" or "list-type" not in request.query:
            return None
        answer = forward(request)
        for row in re.findall(rb"<Contents>.*?</Contents>", answer.body, re.DOTALL):
            if key.encode() in row:
                answer.body = answer.body.replace(row, b"")
        return answer

    return rule


def refusing(step_name: str, method: str, where: str, status: int, code: str, *, once: bool = False) -> Any:
    rule = proxy.refuse(method, where, status, code)
    return lambda _: {step_name: proxy.once(rule) if once else rule}


# Shapes


def odd_names(one: Plate, draw: Draw) -> Files:
    root = f"projects/{PROJECT}/{one.batch}/images/{one.plate_id_full}/Images"
    names = ["a b.tiff", "é.tiff", "é.tiff", "Case.tiff", "case.tiff", "x" * 180 + ".tiff", "y'\"$.tiff", "a+b%20.tiff"]
    names += ["deep/" * 30 + "n.tiff", "same/1.tiff", "other/1.tiff"]
    return plate_files(one) | {f"{root}/{name}": noise((name, draw.random()), 300) for name in names}


def even(one: Plate, draw: Draw) -> Files:
    """Raw images have one size."""
    files = plate_files(one)
    return {key: noise((key, draw.random()), 3000) if key.endswith(".tiff") else data for key, data in files.items()}


def without_backend(one: Plate, _: Draw) -> Files:
    return {key: data for key, data in plate_files(one).items() if "/backend/" not in key}


def with_markers(one: Plate, _: Draw) -> Files:
    return plate_files(one) | {f"projects/{PROJECT}/{one.batch}/images/{one.plate_id_full}/Empty/": b""}


def with_sibling(one: Plate, _: Draw) -> Files:
    return plate_files(one) | plate_files(plate("205861"))


def only_sibling(_: Plate, __: Draw) -> Files:
    return plate_files(plate("205861"))


# Cases with a story of their own


def two_measurements(bench: Bench, draw: Draw) -> tuple[int, int]:
    """Two measurements of one plate id: the SOP gives both archives one name."""
    names = [f"20586__m-Measurement{n}" for n in (1, 2)]
    plates = tell_apart(plate(full=name) for name in names)
    images = [
        {
            f"projects/{PROJECT}/BBBC022/images/{name}/Images/r{n}.tiff": noise((name, n, draw.random()), 400)
            for n in range(3)
        }
        for name in names
    ]
    truth = images[0] | images[1]
    bench.put(truth)
    for one in plates:
        run(bench.archive_it(run(bench.plan(one))))
        verdict = run(bench.verify(one))
        order = DeleteOrder(verdict.manifests_sha256, ("images",), retention="none")
        journal = FileJournal(bench.journals / one.plate_id_full)
        run(delete_plate(verdict, order, source=bench.source, archive=bench.archive, journal=journal))
    tarballs = stored(bench, plates[0])
    ours = sum(lost(files, bench.keys(bench.live), tarballs, one) for files, one in zip(images, plates, strict=True))
    # One after the other, under one name: under Python 3 its guard never sees the first archive.
    last = pack(images[1], tag_of(BROAD2018, plate()))
    theirs = lost(truth, set(), [last], plate())
    return ours, theirs


def existing_archive(bench: Bench, draw: Draw) -> tuple[int, int]:
    """An archive of that name lies there already, of images whose sources are gone."""
    one = plate()
    old = {f"projects/{PROJECT}/BBBC022/images/20586/Images/old{n}.tiff": noise(draw.random(), 400) for n in range(3)}
    tag = tag_of(BROAD2018, one)
    key = f"imaging_analysis/{PROJECT}/plates/{tag}_images_illum_analysis.tar.gz"
    bench.client.put_object(Bucket=bench.cold, Key=key, Body=pack(old, tag))
    files = plate_files(one)
    bench.put(files)
    try:
        run(bench.archive_it(run(bench.plan(one))))
        verdict = run(bench.verify(one))
        order, journal = DeleteOrder(verdict.manifests_sha256, ALL, retention="none"), FileJournal(bench.journals / "d")
        run(delete_plate(verdict, order, source=bench.source, archive=bench.archive, journal=journal))
    except WaybillError:
        pass
    ours = lost(files | old, bench.keys(bench.live), stored(bench, one), one)
    return ours, lost(files | old, set(), [pack(files, tag)], one)


def cold_source(bench: Bench, draw: Draw) -> tuple[int, int]:
    """One image lies in an archived storage class: `aws s3 sync` skips it with a warning."""
    one = plate()
    files = plate_files(one)
    bench.put(files)
    frozen = Live(files).image(draw)
    bench.client.put_object(Bucket=bench.live, Key=frozen, Body=files[frozen], StorageClass="DEEP_ARCHIVE")
    try:
        run(bench.archive_it(run(bench.plan(one))))
    except WaybillError:
        pass
    tag = tag_of(BROAD2018, one)
    copied = {key: data for key, data in files.items() if key != frozen}
    passes = sop_policy.check_plate(sop_policy.backup(one, files, copied, tag))
    theirs = lost(files, set(), [pack(copied, tag)], one) if passes else 0
    return lost(files, bench.keys(bench.live), stored(bench, one), one), theirs


def whose_answer(_: Bench, draw: Draw) -> tuple[int, int]:
    """An approval by somebody who may not give it, or by nobody. The SOP asks nobody, so anybody starts it."""
    from operators.approval import Approvers
    from operators.gate import decision

    by, triggered_by = draw.choice(
        [("vic", "uli"), ("amy", "amy"), ("", "uli"), (None, "uli"), ("amy", None), ("uli", "uli")]
    )
    answer = {"chosen_options": ["Approve"], "responded_at": "now"}
    answer["responded_by_user"] = None if by is None else {"id": by, "name": by}  # type: ignore[assignment]
    try:
        decided = decision({"answer": answer, "sha256": "abc"}, "abc", Approvers(("amy", "uli")), triggered_by)
    except WaybillError:
        return 0, 1
    return int(decided.approved), 1


CASES = (
    Case("no fault", completes=True),
    Case("no fault, on versioned buckets", versioned=True, completes=True),
    Case("F16 the stored tarball is short", at_rest=short),
    Case("F16 the stored tarball is missing", at_rest=missing),
    Case("F17 one flipped bit at rest", at_rest=flipped),
    Case("F18 zeros after byte N", at_rest=zeros),
    Case("F19 a part is lost", at_rest=part_lost),
    Case("F19 parts are out of order", at_rest=parts_swapped),
    Case("F20 an object overwritten after the proof", after_proof=overwrite),
    Case("F20 an object overwritten while the deletion runs", between_batches=overwrite),
    Case("F20 the same, on versioned buckets", between_batches=overwrite, versioned=True),
    Case("F21 a new object after the proof", after_proof=add),
    Case("F21 a new object while the deletion runs", between_batches=add),
    Case("F22 a listing lags behind", hidden=True),
    Case("F23 an object changed between listing and reading", after_listing=overwrite),
    Case("F23 an object changed after it was read", after_reading=overwrite),
    Case(
        "F24 the store fails in the middle of reading", rules=refusing("archive", "GET", ".tiff", 500, "InternalError")
    ),
    Case("F25 odd names", files=odd_names, completes=True),
    Case("F34 the tarball is replaced after the approval", files=even, after_approval=contents_swapped),
    Case("F35 an approval by somebody who may not", custom=whose_answer),
    Case("F36 a crash in the middle of a deletion", crash=True, completes=True),
    Case("F36 a crash, and a new object before the next try", crash=True, between_batches=add),
    Case(
        "a space in the full name, two images swapped",
        files=even,
        full="20586__x-Measurement 1",
        at_rest=contents_swapped,
    ),
    Case("a plate id that begins another's", files=with_sibling, completes=True),
    Case("the plate is empty, another's id begins with its id", files=only_sibling),
    Case("unequal ids", full="20586__2016-04-21T03_34_00-Measurement1", completes=True),
    Case("two measurements of one plate id", custom=two_measurements),
    Case("an empty backend", files=without_backend, completes=True),
    Case("folder markers", files=with_markers, completes=True),
    Case("an object vanishes between listing and reading", after_listing=vanish),
    Case("a new object between listing and reading", after_listing=add),
    Case("a new object after the reading", after_reading=add),
    Case("one image is not in the tarball", at_rest=member_dropped),
    Case(
        "the same, and HEAD is answered 403",
        at_rest=member_dropped,
        rules=refusing("verify", "HEAD", "imaging_analysis", 403, "AccessDenied"),
        sop_check=lambda _: sop_policy.SopRun(None, None),
    ),
    Case(
        "a crash between tarball and manifest",
        rules=refusing("archive", "PUT", "analysis.manifest", 403, "AccessDenied", once=True),
        completes=True,
    ),
    Case("an archive of that name exists", custom=existing_archive),
    Case("an archived-class source", custom=cold_source),
    Case("some keys fail in a deletion", rules=refusing("delete", "DELETE", "Images/r01", 403, "AccessDenied")),
)
