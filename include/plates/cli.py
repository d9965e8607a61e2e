"""What each command of the command line does: options in, engine calls, a table or JSON, an exit status out.

Invariant: results go to stdout, progress and complaints to stderr; a status of 0 promises that all of it is
proved, so every command computes its status from the results and never from "no exception came". Each command imports
what it runs itself, so that none waits for the modules of the others.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import importlib
import json
import os
import re
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from include.core import terminal as screen
from include.core.errors import Forbidden, NotFound, RequestError, VerificationError, WaybillError
from include.core.journal import journals_in
from include.core.patience import Patience
from include.core.progress import OnProgress
from include.plates.exit_status import NOT_YET, PROBLEM, status_of, status_of_outcome
from include.plates.journal_place import alone_with, journal_folder, restores_folder
from include.plates.layout import PRESETS, check_layout, disambiguate, layout_faults, plates_from_csv, tag_of
from include.plates.models import (
    GIB,
    MIB,
    ArchiveResult,
    ArchiveSettings,
    Layout,
    Level,
    ManifestMember,
    Outcome,
    Plate,
    PlatePlan,
    Verdict,
    compression_faults,
)
from include.plates.plates_csv import read_plates_csv
from include.s3.bucket import S3Access
from include.s3.errors import ColdObject

if TYPE_CHECKING:
    from include.plates.restore import RestoreReport
    from include.plates.restore_target import Sink

Options = argparse.Namespace
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/")  # a Path has made one slash of two
_OPTION = {"part_bytes": "--part-mib", "volume_bytes": "--volume-gib"}
_PROBE_FROM_BYTES = 8 * GIB  # what is read in a minute or two tells by itself whether it may be read
R = TypeVar("R")


def check_options(options: Options) -> None:
    """Raises RequestError with every fault of the options that shows without the store."""
    problems = _path_faults(options)
    if "layout" not in options:  # `where` and `index` are asked for no plate
        if problems:
            raise RequestError(problems)
        return
    layout: Layout | None = None
    for check in (_plates, _layout, *((_target,) if options.command == "restore" and _gives_files(options) else ())):
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


def _path_faults(options: Options) -> list[str]:
    """Addresses where only a folder or file of this machine can be meant; a folder's name may begin with `./`."""
    given = ((f"--{name}", getattr(options, name, None)) for name in ("plates", "journal", "index"))
    faults = [
        f"{name} {path}: give a path of this machine" for name, path in given if path and _ADDRESS.match(str(path))
    ]
    journal: Path | None = getattr(options, "journal", None)
    if journal is not None and journal.exists() and not journal.is_dir():
        faults.append(f"--journal {journal}: it is no folder; give one, or a name that nothing has")
    return faults


def _gives_files(options: Options) -> bool:
    return not options.request and not options.status


async def plan(options: Options) -> int:
    async with _access(options) as access:
        with screen.bars() as report:
            probe = not options.no_probe
            plans, status = await _each(options, lambda plate: _plan(options, plate, access, report, probe=probe))
    _show_plans(options, plans)
    return max(status, 1 if any(one.problems for one in plans) else 0)


async def _each(options: Options, work: Callable[[Plate], Coroutine[Any, Any, R]]) -> tuple[list[R], int]:
    """Every plate by itself: one that fails is told and stops nobody else; the status is the highest of all."""
    results, status = [], 0
    for plate in _plates(options):
        try:
            results.append(await work(plate))
        except (WaybillError, OSError) as error:
            status = max(status, status_of(error))
            screen.say(f"{plate.plate_id_full}: {error}")
    return results, status


async def archive(options: Options) -> int:
    refused: list[PlatePlan] = []
    # What writes is loaded while the store lists.
    loading = asyncio.create_task(asyncio.to_thread(importlib.import_module, "include.plates.archive"))
    async with _access(options) as access:
        with screen.bars() as report:

            async def one(plate: Plate) -> ArchiveResult | None:
                done = await _plan_and_archive(options, plate, access, report)
                if isinstance(done, ArchiveResult):
                    return done
                refused.append(done)
                return None

            ended, status = await _each(options, one)
    await loading
    results = [result for result in ended if result is not None]
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

    A large plate's objects are all tried before, since it would take hours to come to the one that may not be read. Those of a
    smaller one are read within minutes; where one may not be read, all are tried: whoever repairs it wants to know them all.
    """
    try_all = not options.no_probe
    planned = await _plan(options, plate, access, report, probe=try_all, probe_from_bytes=_PROBE_FROM_BYTES)
    if planned.problems:
        return planned
    try:
        return await _archive(options, planned, access, report)
    except (Forbidden, ColdObject):
        tried = await _plan(options, plate, access, report, probe=True) if try_all else planned
        if tried.problems:
            return tried
        raise


async def _archive(options: Options, planned: PlatePlan, access: S3Access, report: OnProgress) -> ArchiveResult:
    from include.plates.archive import archive_plate

    folder = _journal(options)
    journals = journals_in(folder / planned.tag)
    source, cold = access.bucket(options.bucket), access.bucket(options.cold_bucket)
    with alone_with(planned.tag, folder):
        return await archive_plate(planned, source=source, archive=cold, journal_for=journals, on_progress=report)


async def verify(options: Options) -> int:
    verdicts, status = await _verify(options)
    rows = [
        (v.tag, v.outcome.value, v.objects, v.size_bytes, "; ".join(v.reasons) or f"all proved, {v.level.words}")
        for v in verdicts
    ]
    _show(options, verdicts, ("tag", "outcome", "objects", "bytes", "reasons"), rows)
    for verdict in verdicts:
        if verdict.outcome is Outcome.VERIFIED and not options.json:
            print(f"{verdict.tag}: digest to approve {verdict.manifests_sha256}")  # on one line, to be copied
    statuses = [status_of_outcome(verdict.outcome, verdict.stopped_by) for verdict in verdicts]
    # A mismatch is the worst that can be found: it counts before what could not be found out.
    return PROBLEM if PROBLEM in statuses else max([status, *statuses])


async def ls(options: Options) -> int:
    from include.plates.script_archive import find_archive, rows_without_manifest

    async with _access(options) as access:
        source, cold = access.bucket(options.bucket), access.bucket(options.cold_bucket)

        async def one(plate: Plate) -> None:
            manifests, without = await find_archive(plate, _layout(options), cold)
            held: list[tuple[str, Sequence[ManifestMember]]] = [(one.head.key, one.members) for one in manifests]
            if without:
                more, told = await rows_without_manifest(without, source, cold)
                screen.say(told, "yellow")
                held += [(tarball, [member]) for tarball, member in more]
            known = {member.part for _, members in held for member in members}
            strange = [name for name in options.part if name not in known]
            if strange:
                raise NotFound(f"not in this archive: {', '.join(map(repr, strange))}")
            for tarball, members in held:
                for member in members:
                    if member.key is not None and (not options.part or member.part in options.part):
                        _print_member(options, tarball, member)

        return (await _each(options, one))[1]


def _print_member(options: Options, tarball: str, member: ManifestMember) -> None:
    if options.json:
        row = {"key": member.key, "size": member.size, "part": member.part, "sha256": member.sha256}
        print(json.dumps(row | {"tarball": tarball}, ensure_ascii=False))
    else:
        print(f"{member.size:>14} {member.part or '-':<10} {screen.shown(member.key or '')}")


async def restore_files(options: Options) -> int:
    """Every plate by itself. A name that no plate's archive holds is a problem; of several plates, one may lack it."""
    from include.core.text import pluralize
    from include.plates.restore import not_in_archive

    async with _access(options) as access:
        if not _gives_files(options):
            return await _tarball_states(options, access)
        async with _sink(options, access) as sink:
            with screen.bars() as report:
                ended, status = await _each(options, lambda plate: _restore_plate(options, plate, access, sink, report))
    done = [one for one, _, _ in ended]
    files = [one for report in done for one in report.files]
    told = [(one.key, one.result.value, one.detail) for one in files if one.result.value != "restored" or one.detail]
    _show(options, done, ("key", "result", "detail"), told)
    nowhere = [name for name in (ended[0][1] if ended else ()) if all(name in missing for _, missing, _ in ended)]
    if nowhere:
        screen.say(not_in_archive(nowhere))
    restored = pluralize(sum(one.result.value == "restored" for one in files), "file")
    screen.say(f"{restored} restored, {sum(one.read_bytes for one in done)} bytes read", "green")
    right = not nowhere and all(one.complete and not doubts for one, _, doubts in ended)
    return max(status, 0 if right else PROBLEM)


async def _restore_plate(
    options: Options, plate: Plate, access: S3Access, sink: Sink, report: OnProgress
) -> tuple[RestoreReport, list[str], list[str]]:
    """What came back, the names that this plate's archive does not hold, and what of its tarballs is not as it should be."""
    from include.plates.restore import not_in_archive, restore, search
    from include.plates.script_archive import NO_MANIFEST, find_archive, inspect_to_restore

    source, cold, doubts = access.bucket(options.bucket), access.bucket(options.cold_bucket), list[str]()
    manifests, without = await find_archive(plate, _layout(options), cold)
    if without:
        seen, doubts = await inspect_to_restore(without, source=source, archive=cold, on_progress=report)
        manifests = [*manifests, *(one.manifest for one in seen)]
    for tarball in without:
        screen.say(f"{tarball.key} {NO_MANIFEST}: its files are restored as they lie in it", "yellow")
    for doubt in doubts:
        screen.say(f"{plate.plate_id_full}: {doubt}")
    wanted, missing = search(manifests, parts=options.part, files=options.file)
    if missing and len(_plates(options)) == 1:
        raise NotFound(not_in_archive(missing))
    done = await restore(wanted, sink, archive=cold, overwrite=options.overwrite, on_progress=report)
    return done, missing, doubts


async def _tarball_states(options: Options, access: S3Access) -> int:
    """How near each plate's tarballs are, with `--request` after cold storage was asked for them."""
    from include.plates.restore import TarballState, request_restore, tarball_states
    from include.plates.script_archive import find_archive

    cold = access.bucket(options.cold_bucket)

    async def one(plate: Plate) -> list[TarballState]:
        manifests, without = await find_archive(plate, _layout(options), cold)
        tarballs = [*manifests, *(tarball.manifest() for tarball in without)]
        if options.request:
            return await request_restore(tarballs, cold, days=options.days, tier=options.tier)
        return await tarball_states(tarballs, cold)

    found, status = await _each(options, one)
    states = [state for of_plate in found for state in of_plate]
    rows = [(s.key, s.status.value, s.storage_class, s.size_bytes) for s in states]
    _show(options, [], ("tarball", "state", "class", "bytes"), rows)
    return max(status, 0 if all(state.status.value == "ready" for state in states) else NOT_YET)


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
        older_versions=options.older_versions,
        needs=Level(options.needs),
    )
    layout, plate = _layout(options), _plates(options)[0]
    async with _access(options) as access:
        source, cold = access.bucket(options.bucket), access.bucket(options.cold_bucket)
        journals = journals_in(_journal(options))
        with alone_with(tag_of(layout, plate), _journal(options)):
            verdict = await _proof(plate, layout, access, options)
            journal = journals(f"{verdict.tag}_delete")
            ways: dict[str, Any] = {"source": source, "archive": cold, "journal": journal}
            with screen.bars() as report:
                done = await delete_plate(verdict, order, on_progress=report, **ways)
    _show(
        options,
        [done],
        ("tag", "deleted", "bytes freed", "changed", "failed", "current again", "unknown, left", "guard"),
        [
            (
                done.tag,
                done.deleted,
                done.freed_bytes,
                len(done.changed),
                len(done.failed),
                len(done.current_again),
                len(done.unknown),
                done.guard,
            )
        ],
    )
    for key in done.current_again:
        screen.say(f"current again, with old content: {key}")
    for key in done.left_behind:
        screen.say(f"could not be removed: {key}", "yellow")
    return 0 if done.complete else 1


async def where(options: Options) -> int:
    from include.plates import where_cli

    return await where_cli.where(options)


async def index(options: Options) -> int:
    from include.plates import where_cli

    return await where_cli.index(options)


async def _proof(plate: Plate, layout: Layout, access: S3Access, options: Options) -> Verdict:
    """The verdict that a deletion rests on: read afresh while the plate is whole.

    Once its deletion has begun the source differs by our own doing: then it is the proof kept when it began, of this very
    plate, and its age is said. One that is too old is read again: all of it that concerns the tarballs.
    """
    from include.plates.compare import changes
    from include.plates.models import PROOF_DAYS
    from include.plates.verify import verify_archive

    path = _journal(options) / f"{options.approve}.verdict.json"
    source, cold = access.bucket(options.bucket), access.bucket(options.cold_bucket)
    kept = Verdict.model_validate_json(path.read_text()) if path.exists() else None
    if kept is not None:
        of, asked = (kept.bucket, kept.archive_bucket, kept.plate, kept.layout), (source.name, cold.name, plate, layout)
        if of != asked:
            raise RequestError(
                f"--approve: this digest is of plate {kept.plate.plate_id_full} in {kept.bucket} (layout {kept.layout.name}), "
                f"and not of {plate.plate_id_full} in {source.name} (layout {layout.name}); verify prints a plate's own"
            )
        days = None if kept.verified_at is None else (time.time() - kept.verified_at) / 86_400
        if await changes(kept, source, cold) is None:
            kept = None  # nothing is gone, or all is there again
        elif days is None or days <= PROOF_DAYS + options.undo_days:
            screen.say(
                f"{kept.tag}: proved {'at an unknown time' if days is None else f'{days:.1f} days ago'}", "yellow"
            )
            return kept
    with screen.bars() as report:
        level = Level(options.proof) if kept is None else kept.level
        verdict = await verify_archive(plate, layout, source=source, archive=cold, level=level, on_progress=report)
    if kept is not None:
        verdict = _renewed(kept, verdict)
    enough = verdict.level is Level.READ_BACK or options.needs == Level.STORE_PROVED
    if verdict.outcome is Outcome.VERIFIED and verdict.manifests_sha256 == options.approve and enough:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(verdict.model_dump_json())
    return verdict


def _renewed(kept: Verdict, fresh: Verdict) -> Verdict:
    """The proof of before, with the time of now: the tarballs are what they were (V3 to V5); V1 and V2 look at the source."""
    again = {check.name: check.outcome for check in fresh.checks if check.name in ("V3", "V4", "V5")}
    if set(again.values()) != {Outcome.VERIFIED} or fresh.volumes != kept.volumes:
        raise VerificationError(f"{kept.tag}: its tarballs are not what was proved: {'; '.join(fresh.reasons)}")
    return kept.model_copy(update={"verified_at": fresh.verified_at})


async def _verify(options: Options) -> tuple[list[Verdict], int]:
    from include.plates.verify import verify_archive

    layout, level = _layout(options), Level(options.proof)
    async with _access(options) as access:
        source, cold = access.bucket(options.bucket), access.bucket(options.cold_bucket)
        with screen.bars() as report:
            return await _each(
                options,
                lambda plate: verify_archive(
                    plate, layout, source=source, archive=cold, level=level, on_progress=report
                ),
            )


async def _plan(
    options: Options, plate: Plate, access: S3Access, report: OnProgress, *, probe: bool, probe_from_bytes: int = 0
) -> PlatePlan:
    from include.plates.plan import plan_plate

    layout = _layout(options)
    settings = _settings(options, layout)
    source, cold = access.bucket(options.bucket), access.bucket(options.cold_bucket)
    return await plan_plate(
        plate,
        layout,
        settings,
        source=source,
        archive=cold,
        probe=probe,
        probe_from_bytes=probe_from_bytes,
        on_progress=report,
    )


def _settings(options: Options, layout: Layout) -> ArchiveSettings:
    """How tarballs are written. Raises RequestError with every fault of these options."""
    compression = options.compression or layout.compression
    problems = compression_faults(compression, options.level, options.copy_by == "server", ("--level", "--copy-by"))
    try:
        settings = ArchiveSettings(
            compression=compression,
            level=options.level,
            part_bytes=options.part_mib * MIB,
            volume_bytes=min(options.volume_gib * GIB, 9_900 * options.part_mib * MIB),
            copy_by=options.copy_by,
        )
    except ValidationError as error:
        faults = error.errors(include_input=False)
        problems += [f"{_OPTION[str(e['loc'][0])]}: {e['msg']}" for e in faults]
    if problems:
        raise RequestError(problems)
    return settings


def _access(options: Options) -> S3Access:
    patience = Patience(options.store_patience * 60, say=functools.partial(screen.say, style="yellow"))
    return S3Access(endpoint_url=options.endpoint_url, patience=patience, request_payer=options.request_payer)


def _journal(options: Options) -> Path:
    """The folder of the journals, found once: what an earlier release left in the working directory is taken over."""
    if options.journal is None:
        say = functools.partial(screen.say, style="yellow")
        options.journal = journal_folder(options.cold_bucket, options.endpoint_url, say)
    folder: Path = options.journal
    return folder


def _layout(options: Options) -> Layout:
    if options.layout in PRESETS:
        return PRESETS[options.layout]
    try:
        layout = Layout.model_validate_json(_read(Path(options.layout), "--layout"))
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_input=False)]
        raise RequestError([f"layout {options.layout}: {fault}" for fault in faults]) from None
    check_layout(layout)
    return layout


def _read(path: Path, option: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RequestError(f"{option} {path}: {error.strerror or error}; give the name of a file") from None


def _plates(options: Options) -> list[Plate]:
    if getattr(options, "read_plates", None) is None:  # once: how the file was read is told once
        options.read_plates = _read_plates(options)
    plates: list[Plate] = options.read_plates
    return plates


def _read_plates(options: Options) -> list[Plate]:
    if options.plates is not None:
        document, name = _read(options.plates, "--plates"), str(options.plates)
        ids = {"project": options.project, "batch": options.batch, "source": options.source}
        plates = plates_from_csv(document, name=name, **ids)
        told = read_plates_csv(document, name).told
        if told:
            screen.say(told, "yellow")
        return plates
    if not options.plate_id:
        raise RequestError("give --plate-id or --plates")
    full = options.plate_id_full or options.plate_id
    ids = {"project": options.project, "batch": options.batch, "source": options.source}
    return disambiguate([Plate(plate_id=options.plate_id, plate_id_full=full, **ids)])


def _target(options: Options) -> tuple[str, str] | Path:
    """Bucket and prefix, or a folder. Raises RequestError for what is neither, and for a folder that cannot be written to."""
    to = options.to
    if not to:
        raise RequestError("give --to: a folder, or s3://bucket/prefix")
    if to.startswith("s3://"):
        bucket, _, path = to.removeprefix("s3://").partition("/")
        prefix = path.strip("/")  # `s3://b/back` means a folder: back/projects/..., not backprojects/...
        if not bucket:
            raise RequestError(f"--to {to}: it names no bucket; give s3://bucket/prefix")
        return bucket, f"{prefix}/" if prefix else ""
    if _ADDRESS.match(to):
        raise RequestError(f"--to {to}: give a folder of this machine, or s3://bucket/prefix")
    folder = Path(to).absolute()
    there = next(one for one in (folder, *folder.parents) if os.path.lexists(one))
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        why = "you may not write there" if there.is_dir() else "it is no folder"
        raise RequestError(f"--to {to}: {there}: {why}; give another folder")
    return folder


@contextlib.asynccontextmanager
async def _sink(options: Options, access: S3Access) -> AsyncIterator[Sink]:
    """Where files go to; a bucket is asked for before any tarball is read."""
    from include.plates.restore_target import BucketSink, FolderSink
    from include.plates.restore_uploads import uploads_in

    target = _target(options)
    if isinstance(target, Path):
        yield FolderSink(target)
        return
    bucket, prefix = access.bucket(target[0]), target[1]
    with contextlib.suppress(Forbidden):  # whoever may write there need not be allowed to list
        async for _ in bucket.objects_under(prefix, versions=False):
            break
    folder = restores_folder(bucket.name, options.endpoint_url)
    with contextlib.ExitStack() as stack:
        uploads = None
        try:
            uploads = stack.enter_context(uploads_in(folder))
        except OSError as error:
            screen.say(f"{folder}: {error.strerror}; should this be killed, its uploads stay in the bucket", "yellow")
        yield BucketSink(bucket, prefix, uploads=uploads)


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
            print(_json_of(model))
        if not models:
            for row in rows:
                print(json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False))
        return
    if not rows:
        return
    screen.table(columns, rows)


def _json_of(model: BaseModel) -> str:
    """The tag first: a layout has a template of that name, which whoever searches the text would find before it."""
    if not hasattr(model, "tag"):
        return model.model_dump_json()
    row = model.model_dump(mode="json")
    return json.dumps({"tag": row.pop("tag"), **row}, ensure_ascii=False, separators=(",", ":"))


COMMANDS: dict[str, Callable[[Options], Coroutine[Any, Any, int]]] = {
    "plan": plan,
    "archive": archive,
    "verify": verify,
    "ls": ls,
    "restore": restore_files,
    "delete": delete,
    "where": where,
    "index": index,
}
