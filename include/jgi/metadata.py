"""Which files a project has: GOLD's analysis projects of its biosamples, JDP's files of each, what the filters leave out.

Invariant: one biosample that cannot be looked up stops no other; what was not looked up is named, and never counts as "no files".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from include.core.concurrency import map_concurrently
from include.core.errors import AuthError, Forbidden, VerificationError, WaybillError
from include.core.text import few, pluralize, printable
from include.jgi.gold import Analysis, GoldClient
from include.jgi.jdp import FoundFile, JdpClient
from include.jgi.models import FileState, Placement, Project, StagedFile, is_file_name
from include.jgi.tracking import Tracking

ALWAYS_KEPT = "input.corr.fastq.gz"
RAW_MARK = "fastq"
CONTIGS = "contigs"
UNASKED = (FileState.DISCOVERED, FileState.PLANNED)
AT_ONCE = 4  # biosamples looked up at once


@dataclass(frozen=True)
class AnalysisFiles:
    """The files of one analysis project; `left_out` says why a file is not staged, by id."""

    analysis: Analysis
    files: tuple[FoundFile, ...]
    left_out: Mapping[str, str]


@dataclass(frozen=True)
class Discovered:
    """What a project has, and what could not be looked up (`failed`: biosample → reason)."""

    biosamples: int
    analyses: tuple[AnalysisFiles, ...]
    failed: Mapping[str, str]


@dataclass(frozen=True)
class Recorded:
    """What was written: numbers of files, and which biosamples were not looked up."""

    biosamples: int
    analyses: int
    files: int
    new: int
    left_out: int
    failed: Mapping[str, str]


async def discover(gold: GoldClient, jdp: JdpClient, project: Project, biosamples: Sequence[str]) -> Discovered:
    """Looks up every biosample. Raises AuthError where a credential is refused: then nothing can be looked up."""
    wanted = list(biosamples) or await gold.biosamples(project.proposal_id)
    found: dict[str, list[AnalysisFiles]] = {}
    failed: dict[str, str] = {}

    async def look(biosample: str) -> None:
        try:
            analyses = await gold.analyses(biosample)
            found[biosample] = [await _files(jdp, analysis, project.remove_files) for analysis in analyses]
        except Forbidden as error:  # this one is not ours to see; the credential is good
            failed[biosample] = str(error)
        except AuthError:
            raise
        except WaybillError as error:
            failed[biosample] = str(error)

    await map_concurrently(wanted, look, AT_ONCE)
    ordered = [files for biosample in wanted for files in found.get(biosample, ())]
    return Discovered(len(wanted), tuple(ordered), failed)


async def _files(jdp: JdpClient, analysis: Analysis, remove_files: Sequence[str]) -> AnalysisFiles:
    files = await jdp.search(analysis.its_ap_id)
    return AnalysisFiles(analysis, tuple(files), left_out(files, remove_files))


def left_out(files: Iterable[FoundFile], remove_files: Sequence[str]) -> dict[str, str]:
    """Why a file is not staged, by id: its name holds one of `remove_files`, or it is raw data of another analysis.

    Raw data (`*fastq*`) belongs to this analysis where its name holds the first four parts of the name of a sequencing unit
    that the analysis' contigs were made from. Where no contigs file names any, all raw data is kept.
    """
    files = list(files)
    units = {unit for file in files if CONTIGS in file.file_type for unit in file.seq_units}
    prefixes = {".".join(unit.split(".")[:4]) for unit in units}
    reasons = {}
    for file in files:
        if not is_file_name(file.file_name):
            reasons[file.jdp_file_id] = f"its name {printable(file.file_name, 80)} cannot be a file's"
            continue
        mark = next((mark for mark in remove_files if mark in file.file_name), None)
        raw = RAW_MARK in file.file_name and file.file_name != ALWAYS_KEPT
        if mark is not None:
            reasons[file.jdp_file_id] = f"remove_files: its name contains {mark}"
        elif raw and prefixes and not any(prefix in file.file_name for prefix in prefixes):
            reasons[file.jdp_file_id] = "it is raw data of another analysis"
    return reasons


def record(tracking: Tracking, project: Project, found: Discovered, root: str, now: datetime) -> Recorded:
    """Writes what was found; may be repeated. `root`: the folder of all projects at the destination collection.

    Raises VerificationError where biosamples were looked up and not one file was found: that is never right.
    """
    staged: dict[str, StagedFile] = {}
    for group in found.analyses:
        for file in group.files:
            one = staged_file(file, group, project, now)
            staged[one.jdp_file_id] = _shared(staged.get(one.jdp_file_id), one)
    if not staged:
        looked_up = f"{pluralize(found.biosamples, 'biosample')}, {pluralize(len(found.analyses), 'analysis project')}"
        failed = few([f"{name}: {why}" for name, why in found.failed.items()], 3)
        raise VerificationError(
            f"project {project.name}: not one file was found for {looked_up}. {failed or 'Check proposal_id and biosamples'}"
        )
    new = tracking.put_files(staged.values())
    _refilter(tracking, staged)
    kept = {one.jdp_file_id for one in staged.values() if one.state != FileState.FILTERED}
    tracking.put_placements(placements(tracking, project, found.analyses, kept, root))
    out = len(staged) - len(kept)
    return Recorded(found.biosamples, len(found.analyses), len(staged), new, out, found.failed)


def staged_file(file: FoundFile, group: AnalysisFiles, project: Project, now: datetime) -> StagedFile:
    why = group.left_out.get(file.jdp_file_id, "")
    return StagedFile(
        jdp_file_id=file.jdp_file_id,
        file_name=file.file_name,
        size_bytes=file.size_bytes,
        project=project.name,
        state=FileState.FILTERED if why else FileState.DISCOVERED,
        md5=file.md5,
        jdp_status=file.status,
        purge_at=file.purge_at,
        priority=project.priority,
        waiting_since=now,
        biosample=group.analysis.biosample,
        analyses=() if why else (group.analysis.ap_gold_id,),
        why=why,
    )


def _shared(one: StagedFile | None, other: StagedFile) -> StagedFile:
    """A file that two analyses have is staged if one of them wants it, and placed for each that does."""
    if one is None:
        return other
    wanted, beside = (one, other) if one.state != FileState.FILTERED else (other, one)
    return replace(wanted, analyses=tuple(dict.fromkeys(wanted.analyses + beside.analyses)))


def _refilter(tracking: Tracking, staged: Mapping[str, StagedFile]) -> None:
    """Known files whose filters have changed since."""
    known = tracking.files(ids=list(staged), states=(*UNASKED, FileState.FILTERED))
    out_now = {one.jdp_file_id: one.state == FileState.FILTERED for one in known}
    wanted = [name for name, out in out_now.items() if (staged[name].state == FileState.FILTERED) != out]
    back = [name for name in wanted if staged[name].state == FileState.DISCOVERED]
    tracking.move_files(back, FileState.FILTERED, FileState.DISCOVERED, "the filters let it pass now")
    for why in {staged[name].why for name in wanted} - {""}:
        out = [name for name in wanted if staged[name].why == why]
        tracking.move_files(out, UNASKED, FileState.FILTERED, why)


def placements(
    tracking: Tracking, project: Project, analyses: Sequence[AnalysisFiles], kept: set[str], root: str
) -> list[Placement]:
    """One placement per file and analysis, each at a path of its own.

    `<root>/<project>/analysis_files/<analysis>/<file name>`; of files that share a name (JGI has such) the first one keeps it,
    and the others carry their id. What is placed already keeps its path.
    """
    ids = [file.jdp_file_id for group in analyses for file in group.files if file.jdp_file_id in kept]
    placed = {(one.jdp_file_id, one.analysis): one for one in tracking.placements(ids=ids)} if ids else {}
    taken = {one.destination.casefold() for one in tracking.placements(project=project.name)}
    made = []
    for group in analyses:
        name = group.analysis.ap_gold_id
        folder = f"{root.rstrip('/')}/{project.name}/analysis_files/{name}"
        for file in sorted(group.files, key=lambda one: one.jdp_file_id):
            key = (file.jdp_file_id, name)
            if file.jdp_file_id not in kept or file.jdp_file_id in group.left_out or key in placed:
                continue
            path = f"{folder}/{file.file_name}"
            if path.casefold() in taken:
                path = f"{folder}/{file.jdp_file_id}.{file.file_name}"
            taken.add(path.casefold())
            made.append(Placement(file.jdp_file_id, name, project.name, path, file.size_bytes, file.md5))
            placed[key] = made[-1]
    return made
