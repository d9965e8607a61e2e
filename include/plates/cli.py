"""What each command of the command line does: options in, engine calls, a table or JSON, an exit status out.

Invariant: results go to stdout, progress and complaints to stderr; a status of 0 promises that all of it is
proved, so every command computes its status from the results and never from "no exception came". Each command imports
what it runs itself, so that none waits for the modules of the others.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ValidationError

from include.core import terminal as screen
from include.core.errors import AuthError, ConflictingRequest, RequestError, VerificationError, WaybillError
from include.core.journal import journals_in
from include.core.progress import OnProgress
from include.plates.layout import PRESETS, check_layout, disambiguate, layout_faults, plates_from_csv
from include.plates.models import (
    GIB,
    MIB,
    ArchiveResult,
    ArchiveSettings,
    Layout,
    Outcome,
    Plate,
    PlatePlan,
    Verdict,
    compression_faults,
)
from include.s3.bucket import S3Access
from include.s3.errors import ColdObject

if TYPE_CHECKING:
    from include.plates.restore_target import Sink

Options = argparse.Namespace
_OPTION = {"part_bytes": "--part-mib", "volume_bytes": "--volume-gib", "copy_from_bytes": "--copy-from-mib"}
STATUS = {Outcome.VERIFIED: 0, Outcome.MISMATCH: 1, Outcome.UNVERIFIABLE: 3}


def check_options(options: Options) -> None:
    """Raises RequestError with every fault of the options that shows without the store."""
    problems: list[str] = []
    layout: Layout | None = None
    for check in (_plates, _layout):
        try:
            found = check(options)
            layout = found if isinstance(found, Layout) else layout
        except RequestError as error:
            problems += error.problems
    if layout is not None:
        problems += layout_faults(layout, options.source, {"--part": getattr(options, "part", [])})
        try:
            if "compression" in options:
                _settings(options, layout)
        except RequestError as error:
            problems += error.problems
    if problems:
        raise RequestError(problems)


async def plan(options: Options) -> int:
    async with _access(options) as access:
        with screen.bars() as report:
            probe = not options.no_probe
            plans = [await _plan(options, plate, access, report, probe=probe) for plate in _plates(options)]
    _show_plans(options, plans)
    return 1 if any(one.problems for one in plans) else 0


async def archive(options: Options) -> int:
    """Every plate by itself: one that fails stops nobody else, and the command fails at the end with its status."""
    results: list[ArchiveResult] = []
    refused: list[PlatePlan] = []
    status = 0
    # What writes is loaded while the store lists.
    loading = asyncio.create_task(asyncio.to_thread(importlib.import_module, "include.plates.archive"))
    async with _access(options) as access:
        with screen.bars() as report:
            for plate in _plates(options):
                try:
                    done = await _plan_and_archive(options, plate, access, report)
                    (results if isinstance(done, ArchiveResult) else refused).append(done)  # type: ignore[arg-type]
                except (WaybillError, OSError) as error:
                    status = max(status, 1 if isinstance(error, VerificationError | ConflictingRequest) else 4)
                    screen.say(f"{plate.plate_id_full}: {error}")
    await loading
    _show_plans(options, refused)
    rows = [
        (
            r.tag,
            v.key,
            v.stored_bytes,
            v.members,
            f"{v.sent_parts} sent, {v.resumed_parts} kept",
            v.manifest_sha256[:16],
        )
        for r in results
        for v in r.volumes
    ]
    _show(options, results, ("tag", "tarball", "bytes", "members", "parts", "manifest sha256"), rows)
    return max(status, 1 if refused else 0)


async def _plan_and_archive(
    options: Options, plate: Plate, access: S3Access, report: OnProgress
) -> ArchiveResult | PlatePlan:
    """The result, or a plan with problems.

    Each object is read in a moment anyway, so none is tried before. Where one may not be read, all are tried: whoever repairs
    it wants to know them all.
    """
    planned = await _plan(options, plate, access, report, probe=False)
    if planned.problems:
        return planned
    try:
        return await _archive(options, planned, access, report)
    except (AuthError, ColdObject):
        tried = planned if options.no_probe else await _plan(options, plate, access, report, probe=True)
        if tried.problems:
            return tried
        raise


async def _archive(options: Options, planned: PlatePlan, access: S3Access, report: OnProgress) -> ArchiveResult:
    from include.plates.archive import archive_plate

    journals = journals_in(options.journal / planned.tag)
    source, cold = access.bucket(options.bucket), access.bucket(options.cold_bucket)
    return await archive_plate(planned, source=source, archive=cold, journal_for=journals, on_progress=report)


async def verify(options: Options) -> int:
    verdicts = await _verify(options)
    rows = [(v.tag, v.outcome.value, v.objects, v.size_bytes, "; ".join(v.reasons) or "all proved") for v in verdicts]
    _show(options, verdicts, ("tag", "outcome", "objects", "bytes", "reasons"), rows)
    for verdict in verdicts:
        if verdict.outcome is Outcome.VERIFIED and not options.json:
            print(f"{verdict.tag}: digest to approve {verdict.manifests_sha256}")  # on one line, to be copied
    outcomes = {verdict.outcome for verdict in verdicts}
    return next(STATUS[o] for o in (Outcome.MISMATCH, Outcome.UNVERIFIABLE, Outcome.VERIFIED) if o in outcomes)


async def ls(options: Options) -> int:
    from include.plates.restore import find_manifests, select

    async with _access(options) as access:
        for plate in _plates(options):
            manifests = await find_manifests(plate, _layout(options), access.bucket(options.cold_bucket))
            for manifest, member in select(manifests, parts=options.part):
                if options.json:
                    row = {"key": member.key, "size": member.size, "part": member.part, "sha256": member.sha256}
                    print(json.dumps(row | {"tarball": manifest.head.key}, ensure_ascii=False))
                else:
                    print(f"{member.size:>14} {member.part:<10} {member.key}")
    return 0


async def restore_files(options: Options) -> int:
    from include.core.text import pluralize
    from include.plates.restore import find_manifests, request_restore, restore, select, tarball_states

    async with _access(options) as access:
        cold = access.bucket(options.cold_bucket)
        manifests = [m for plate in _plates(options) for m in await find_manifests(plate, _layout(options), cold)]
        if options.request or options.status:
            if options.request:
                states = await request_restore(manifests, cold, days=options.days, tier=options.tier)
            else:
                states = await tarball_states(manifests, cold)
            rows = [(s.key, s.status.value, s.storage_class, s.size_bytes) for s in states]
            _show(options, [], ("tarball", "state", "class", "bytes"), rows)
            return 0 if all(state.status.value == "ready" for state in states) else 3
        wanted = select(manifests, parts=options.part, files=options.file)
        with screen.bars() as report:
            done = await restore(
                wanted, _sink(options, access), archive=cold, overwrite=options.overwrite, on_progress=report
            )
    left = [(one.key, one.result.value, one.detail) for one in done.files if one.result.value not in ("restored",)]
    _show(options, [done], ("key", "result", "detail"), left)
    restored = pluralize(len(done.files) - len(left), "file")
    screen.say(f"{restored} restored, {done.read_bytes} bytes read", "green")
    return 0 if done.complete else 1


async def delete(options: Options) -> int:
    """Verifies afresh, then deletes what the approved digest covers. One plate at a time: an approval is for one."""
    from include.plates.delete import delete_plate
    from include.plates.models import DeleteOrder

    if len(_plates(options)) != 1:
        raise RequestError("delete takes one plate: each plate has a digest of its own to approve")
    order = DeleteOrder(
        approved_sha256=options.approve,
        parts=tuple(options.part),
        phase=options.phase,
        retention=options.retention,
        undo_days=options.undo_days,
    )
    layout, plate = _layout(options), _plates(options)[0]
    async with _access(options) as access:
        source, cold = access.bucket(options.bucket), access.bucket(options.cold_bucket)
        journals = journals_in(options.journal)
        verdict = await _proof(plate, layout, access, options)
        with screen.bars() as report:
            journal = journals(f"{verdict.tag}_delete")
            done = await delete_plate(verdict, order, source=source, archive=cold, journal=journal, on_progress=report)
    _show(
        options,
        [done],
        ("tag", "deleted", "bytes", "changed", "failed", "unknown, left", "guard"),
        [
            (
                done.tag,
                done.deleted,
                done.deleted_bytes,
                len(done.changed),
                len(done.failed),
                len(done.unknown),
                done.guard,
            )
        ],
    )
    return 0 if done.complete else 1


async def _proof(plate: Plate, layout: Layout, access: S3Access, options: Options) -> Verdict:
    """The verdict that a deletion rests on: fresh, or the one kept when the deletion first began (its own doing since)."""
    from include.plates.verify import verify_archive

    kept = options.journal / f"{options.approve}.verdict.json"
    if kept.exists():
        return Verdict.model_validate_json(kept.read_text())
    source, cold = access.bucket(options.bucket), access.bucket(options.cold_bucket)
    with screen.bars() as report:
        verdict = await verify_archive(plate, layout, source=source, archive=cold, on_progress=report)
    if verdict.outcome is Outcome.VERIFIED and verdict.manifests_sha256 == options.approve:
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(verdict.model_dump_json())
    return verdict


async def _verify(options: Options) -> list[Verdict]:
    from include.plates.verify import verify_archive

    layout = _layout(options)
    async with _access(options) as access:
        source, cold = access.bucket(options.bucket), access.bucket(options.cold_bucket)
        with screen.bars() as report:
            return [
                await verify_archive(plate, layout, source=source, archive=cold, on_progress=report)
                for plate in _plates(options)
            ]


async def _plan(options: Options, plate: Plate, access: S3Access, report: OnProgress, *, probe: bool) -> PlatePlan:
    from include.plates.plan import plan_plate

    layout = _layout(options)
    settings = _settings(options, layout)
    source, cold = access.bucket(options.bucket), access.bucket(options.cold_bucket)
    return await plan_plate(plate, layout, settings, source=source, archive=cold, probe=probe, on_progress=report)


def _settings(options: Options, layout: Layout) -> ArchiveSettings:
    """How tarballs are written. Raises RequestError with every fault of these options."""
    compression = options.compression or layout.compression
    problems = compression_faults(compression, options.level, options.copy_from_mib, ("--level", "--copy-from-mib"))
    try:
        settings = ArchiveSettings(
            compression=compression,
            level=options.level,
            part_bytes=options.part_mib * MIB,
            volume_bytes=min(options.volume_gib * GIB, 9_900 * options.part_mib * MIB),
            copy_from_bytes=options.copy_from_mib * MIB if options.copy_from_mib else None,
        )
    except ValidationError as error:
        faults = error.errors(include_input=False)
        problems += [f"{_OPTION[str(e['loc'][0])]}: {e['msg']}" for e in faults]
    if problems:
        raise RequestError(problems)
    return settings


def _access(options: Options) -> S3Access:
    return S3Access(endpoint_url=options.endpoint_url)


def _layout(options: Options) -> Layout:
    if options.layout in PRESETS:
        return PRESETS[options.layout]
    try:
        layout = Layout.model_validate_json(Path(options.layout).read_bytes())
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_input=False)]
        raise RequestError([f"layout {options.layout}: {fault}" for fault in faults]) from None
    check_layout(layout)
    return layout


def _plates(options: Options) -> list[Plate]:
    if options.plates is not None:
        text = options.plates.read_text(encoding="utf-8")
        return plates_from_csv(text, project=options.project, batch=options.batch, source=options.source)
    if not options.plate_id:
        raise RequestError("give --plate-id or --plates")
    full = options.plate_id_full or options.plate_id
    ids = {"project": options.project, "batch": options.batch, "source": options.source}
    return disambiguate([Plate(plate_id=options.plate_id, plate_id_full=full, **ids)])


def _sink(options: Options, access: S3Access) -> Sink:
    from include.plates.restore_target import BucketSink, FolderSink

    if not options.to:
        raise RequestError("give --to: a folder, or s3://bucket/prefix")
    parts = urlsplit(options.to)
    if parts.scheme == "s3":
        return BucketSink(access.bucket(parts.netloc), parts.path.lstrip("/"))
    return FolderSink(Path(options.to))


def _show_plans(options: Options, plans: Sequence[PlatePlan]) -> None:
    rows = []
    for one in plans:
        parts = ", ".join(f"{part.name} {part.objects} ({part.size_bytes} B)" for part in one.parts)
        notes = [f"PROBLEM: {problem}" for problem in one.problems] + list(one.warnings)
        rows.append((one.tag, parts, len(one.volumes), one.digest[:16], "; ".join(notes) or "ready"))
    slim = [one.model_copy(update={"volumes": tuple(_slim(one))}) for one in plans]
    _show(options, slim, ("tag", "parts", "tarballs", "plan", "notes"), rows)


def _slim(one: PlatePlan) -> Iterator[BaseModel]:
    for volume in one.volumes:
        yield volume.model_copy(update={"objects": (), "folders": ()})


def _show(
    options: Options, models: Sequence[BaseModel], columns: Sequence[str], rows: Sequence[Sequence[object]]
) -> None:
    """A table, or one JSON line per result."""
    if options.json:
        for model in models:
            print(model.model_dump_json())
        if not models:
            for row in rows:
                print(json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False))
        return
    if not rows:
        return
    screen.table(columns, rows)


COMMANDS: dict[str, Callable[[Options], Coroutine[Any, Any, int]]] = {
    "plan": plan,
    "archive": archive,
    "verify": verify,
    "ls": ls,
    "restore": restore_files,
    "delete": delete,
}
