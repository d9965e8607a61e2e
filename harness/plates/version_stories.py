"""Faults on versioned buckets: deletion in two phases, versions below, versions from before."""

from __future__ import annotations

from typing import Any

from harness.plates.bench import Bench
from harness.plates.fault_judge import Files, lost, still_there, stored, unlined
from harness.plates.fault_stories import deletion, ended, proved
from harness.plates.fault_table import (
    BATCH,
    DELETED,
    LEFT,
    REFUSED,
    VOID,
    Crash,
    Draw,
    Live,
    Played,
    few_files,
    how_it_ended,
)
from harness.plates.servers import noise, plate
from harness.plates.sop_world import SopWorld, backed_up
from include.core.errors import WaybillError
from include.plates.delete_report import DeleteReport
from include.plates.models import Plate
from include.s3.guarded_delete import DeleteBatch, Outcomes, SendBatch

# Two phases: markers, and the purge. The SOP deletes once; on a versioned bucket its deletion is a marker for ever.


def undo(bench: Bench, key: str) -> None:
    markers = bench.client.list_object_versions(Bucket=bench.live, Prefix=key)["DeleteMarkers"]
    bench.client.delete_object(Bucket=bench.live, Key=key, VersionId=markers[0]["VersionId"])


def brought_back(bench: Bench, draw: Draw) -> Played:
    """One marker is removed before the purge: nothing of the plate is purged."""
    one = plate()
    files = few_files(one)
    verdict = proved(bench, one, files)
    deletion(bench, verdict, phase="marker")
    back = Live(files).image(draw)
    undo(bench, back)
    world = backed_up(one, files, versioned=True)
    world.delete(one)
    world.bring_back(back)
    played = Played(0, world.lost(files, one, kept={back}), "")
    try:
        played.ended = ended(deletion(bench, verdict, phase="purge"))
    except WaybillError as error:
        played.said, played.ended = str(error), how_it_ended(error, verdict)
    played.ours = lost(files, still_there(bench, files), stored(bench), one, kept={back})
    return played


def brought_back_late(bench: Bench, draw: Draw) -> Played:
    """A marker is removed while the purge runs: that object stays."""
    one = plate()
    files = few_files(one)
    verdict = proved(bench, one, files)
    deletion(bench, verdict, phase="marker")
    back = draw.choice(sorted(files)[BATCH:])
    crash = draw.random() < 0.5

    async def around(batch: DeleteBatch, send: SendBatch) -> Outcomes:
        outcomes = await send()
        if batch.number == 1 and not batch.resumed:
            undo(bench, back)
            if crash:
                raise Crash
        return outcomes

    try:
        report = deletion(bench, verdict, phase="purge", around=around)
    except Crash:
        report = deletion(bench, verdict, phase="purge")
    ours = lost(files, still_there(bench, files), stored(bench), one, kept={back})
    world = backed_up(one, files, versioned=True)
    world.delete(one)
    world.bring_back(back)
    theirs = world.lost(files, one, kept={back})
    return Played(ours, theirs, ended(report), unlined=unlined(bench, files.keys() - {back}, report), report=report)


def marker_lost(bench: Bench, draw: Draw) -> Played:
    """The worker dies after it has set markers and before it has written their ids down."""
    one = plate()
    files = few_files(one)
    verdict = proved(bench, one, files)
    last = draw.randrange(1, 3)

    async def around(batch: DeleteBatch, send: SendBatch) -> Outcomes:
        outcomes = await send()
        if batch.number == last:
            raise Crash
        return outcomes

    try:
        deletion(bench, verdict, phase="marker", around=around)
    except Crash:
        pass
    marked = deletion(bench, verdict, phase="marker")
    unknown = [key for key in files if key not in _lines(bench, marked)]
    report = deletion(bench, verdict, phase="purge")
    left = {row["Key"] for kind in ("Versions", "DeleteMarkers") for row in _versions(bench).get(kind, [])}
    whole = report.complete and not left & files.keys() and not unknown
    world = backed_up(one, files, versioned=True)
    for _ in range(2):
        world.delete(one)
    theirs = world.lost(files, one)
    return Played(lost(files, left, stored(bench), one), theirs, DELETED if whole else LEFT, report=report)


def _lines(bench: Bench, report: DeleteReport) -> str:
    return bench.get(report.outcomes_key).decode()


def _versions(bench: Bench) -> dict[str, Any]:
    return dict(bench.client.list_object_versions(Bucket=bench.live))


# Versions below, and versions from before


def _put_older(bench: Bench, files: Files, draw: Draw) -> str:
    """One image has an older version, of other content."""
    key = Live(files).image(draw)
    bench.client.put_object(Bucket=bench.live, Key=key, Body=noise(("old", draw.random()), 300))
    return key


def _seen(bench: Bench, files: Files) -> int:
    """Keys of the plate that a user sees with content that is not the last: what came back."""
    pages = bench.client.get_paginator("list_objects_v2").paginate(Bucket=bench.live)
    current = {row["Key"] for page in pages for row in page.get("Contents", [])}
    return len(current & files.keys() - still_there(bench, files))


def _theirs_over(one: Plate, files: Files) -> int:
    """The procedure on a versioned bucket: one image has an older version below."""
    world = SopWorld(versioned=True)
    world.put({Live(files).image(Draw(0)): b"older"})
    world.put(files)
    world.backup(one)
    world.delete(one)
    return world.lost(files, one) + world.came_back(files)


def older_refused(bench: Bench, draw: Draw) -> Played:
    """The SOP deletes by a marker for ever, so nothing comes back by it."""
    one = plate()
    files = few_files(one)
    _put_older(bench, files, draw)
    verdict = proved(bench, one, files)
    played = Played(0, _theirs_over(one, files), "")
    try:
        played.ended = ended(deletion(bench, verdict))
    except WaybillError as error:
        played.said, played.ended = str(error), REFUSED
    played.ours = lost(files, still_there(bench, files), stored(bench), one) + _seen(bench, files)
    return played


def older_hidden(bench: Bench, draw: Draw) -> Played:
    """Deleted, or marked and purged; the worker may die in between. What lay below must not come to light."""
    return _older(bench, draw, "keep_hidden")


def older_deleted(bench: Bench, draw: Draw) -> Played:
    """The same, and what lies below is to be deleted, too."""
    return _older(bench, draw, "delete")


def _older(bench: Bench, draw: Draw, what: str) -> Played:
    one = plate()
    files = few_files(one)
    key = _put_older(bench, files, draw)
    verdict = proved(bench, one, files)
    seen: list[int] = []
    last = draw.randrange(1, 3)

    async def around(batch: DeleteBatch, send: SendBatch) -> Outcomes:
        outcomes = await send()
        seen.append(_seen(bench, files))
        if batch.number == last and not batch.resumed:
            raise Crash
        return outcomes

    for phase in draw.choice([("delete",), ("marker", "purge")]):
        options: dict[str, Any] = {"phase": phase, "older_versions": what}
        try:
            report = deletion(bench, verdict, around=around, **options)
        except Crash:
            report = deletion(bench, verdict, **options)
    left = {row["Key"] for row in _versions(bench).get("Versions", [])} & files.keys()
    ours = lost(files, still_there(bench, files), stored(bench), one) + sum(seen) + _seen(bench, files)
    whole = report.complete and left == ({key} if what == "keep_hidden" else set())
    return Played(ours, _theirs_over(one, files), DELETED if whole else LEFT, report=report)


def versioned_later(bench: Bench, draw: Draw) -> Played:
    """The bucket got versions after the upload, or after the proof: its objects are versions `null`."""
    one = plate()
    files = few_files(one)
    early = draw.random() < 0.5
    if early:
        bench.put(files)
        _enable(bench)
    verdict = proved(bench, one, {} if early else files)
    if not early:
        bench.client.put_bucket_versioning(Bucket=bench.live, VersioningConfiguration={"Status": "Enabled"})
    phases = draw.choice([("delete",), ("marker", "purge")])
    for phase in phases:
        report = deletion(bench, verdict, phase=phase)
    kept = {row["Key"] for kind in ("Versions", "DeleteMarkers") for row in _versions(bench).get(kind, [])}
    really = report.complete and not kept & files.keys() and report.freed_bytes == sum(map(len, files.values()))
    ours = lost(files, still_there(bench, files), stored(bench), one)
    world = backed_up(one, files)
    world.versioned = True
    world.delete(one)
    return Played(
        ours,
        world.lost(files, one),
        DELETED if really else LEFT,
        unlined=unlined(bench, files.keys(), report),
        report=report,
    )


def _enable(bench: Bench) -> None:
    for name in (bench.live, bench.cold):
        bench.client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})


VERSIONS = {
    older_refused: (REFUSED,),
    older_hidden: (DELETED,),
    older_deleted: (DELETED,),
    versioned_later: (DELETED,),
    brought_back: (VOID,),
    brought_back_late: (LEFT,),
    marker_lost: (DELETED,),
}
