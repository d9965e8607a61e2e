"""Makes projects: shaped like the published analysis project of 85 files, or random ones of a given total size.

Invariant: a file up to `KEEP_BELOW_BYTES` has real bytes and their true MD5; of a larger one only size and MD5 exist. So a
project of a petabyte costs memory by its number of files only.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from simulators.jgi.catalog import (
    METAGENOME,
    METATRANSCRIPTOME,
    SELF_MAPPING,
    Analysis,
    ArchiveFile,
    Biosample,
    Catalog,
    Group,
    Proposal,
    md5_of,
)

DATA = Path(__file__).resolve().parent.parent / "data" / "jgi"
KEEP_BELOW_BYTES = 256 * 1024
ODD_NAMES = ("two words, a comma.txt", 'a "quoted" name.txt', "naïve_e\u0301té.tsv", "#hash & 100%.txt", "it's.txt")
TRAPS = ("float_size", "no_md5", "text_seq_unit", "list_analysis", "backup_complete", "no_purge_date")
# Names and numbers of the published record, each replaced by those of the made analysis.
_GOLD, _ITS, _TAXON, _SUBMISSION = "Ga0499978", "1323348", "3300049478", "258754"
_UNIT, _SPID = "52614.1.394702.GCACTAAC-CCAAGACT", "1323445"


@dataclass(frozen=True)
class Shape:
    """A published record: its JSON, and what of it is needed before it is shown."""

    text: str
    name: str
    size: int
    directory: str


@dataclass(frozen=True)
class Options:
    """What is odd in a project.

    `shared`: so many files of each analysis belong to the one before it too. `groups`: every analysis's search gives so many
    groups. `trap_rate`: of each kind of odd record, this fraction. `on_disk_rate`: files that lie on disk at the start.
    """

    shared: int = 0
    groups: int = 1
    trap_rate: float = 0.05
    on_disk_rate: float = 0.0
    private_rate: float = 0.0
    odd_names: bool = False


def published_answer() -> dict[str, Any]:
    """JDP's answer to a search for one analysis project, as published."""
    answer: dict[str, Any] = json.loads((DATA / "jdp_search_response.json").read_text(encoding="utf-8"))
    return answer


@cache
def shapes() -> tuple[Shape, ...]:
    """The 85 published records."""
    found = []
    for record in published_answer()["organisms"][0]["files"]:
        location = record["metadata"]["portal"]["display_location"][0]
        text = json.dumps(record)
        found.append(Shape(text, record["file_name"], int(record["file_size"]), location.replace(" ", "_")))
    return tuple(found)


def add_published(
    catalog: Catalog, proposal_id: int, name: str, *, biosamples: int = 1, scale: float = 1.0, **options: Any
) -> Proposal:
    """A project each of whose analyses has the 85 published files, their sizes multiplied by `scale`; see `Options`."""
    sizes = [max(1, round(shape.size * scale)) for shape in shapes()]
    return _project(catalog, proposal_id, name, [sizes] * biosamples, Options(**options))


def add_random(
    catalog: Catalog,
    proposal_id: int,
    name: str,
    *,
    total_bytes: int,
    biosamples: int = 10,
    files_each: int = 80,
    **options: Any,
) -> Proposal:
    """A project of exactly `total_bytes`, in files whose sizes spread over four orders of magnitude; see `Options`."""
    count = biosamples * files_each
    if total_bytes < count:
        raise ValueError(f"{count} files have at least {count} bytes, not {total_bytes}")
    weights = [catalog.random.lognormvariate(0, 2.5) for _ in range(count)]
    per_weight = (total_bytes - count) / sum(weights)
    sizes = [1 + int(weight * per_weight) for weight in weights]
    sizes[sizes.index(max(sizes))] += total_bytes - sum(sizes)
    each = [sizes[start : start + files_each] for start in range(0, count, files_each)]
    return _project(catalog, proposal_id, name, each, Options(**options))


def _project(
    catalog: Catalog, proposal_id: int, name: str, sizes: Sequence[Sequence[int]], options: Options
) -> Proposal:
    if proposal_id in catalog.proposals:
        raise ValueError(f"proposal {proposal_id} is there already")
    proposal = Proposal(proposal_id, name, f"Gs{900000 + len(catalog.proposals):07d}")
    catalog.proposals[proposal_id] = proposal
    before: list[ArchiveFile] = []
    for at, of_analysis in enumerate(sizes):
        before = _sample(catalog, proposal, at, of_analysis, options, before)
    return proposal


def _sample(
    catalog: Catalog,
    proposal: Proposal,
    at: int,
    sizes: Sequence[int],
    options: Options,
    before: list[ArchiveFile],
) -> list[ArchiveFile]:
    """A biosample with its sequencing project, its analysis and the files of that; every third is a metatranscriptome."""
    number = len(catalog.biosamples) + 1
    sample = Biosample(
        f"Gb{300000 + number:07d}",
        proposal.id,
        f"{proposal.name} sample {at + 1}",
        f"Gp{580000 + number:07d}",
        1400000 + number,
    )
    catalog.biosamples[sample.gold_id] = sample
    kind = METATRANSCRIPTOME if at % 3 == 2 else METAGENOME
    main = _analysis(catalog, proposal, sample, kind)
    if kind == METATRANSCRIPTOME:
        _analysis(catalog, proposal, sample, SELF_MAPPING, main.gold_id)
    elif at == 0:
        _analysis(catalog, proposal, sample, "Metagenome-Assembled Genome", main.gold_id)
    group = Group(f"IMG_AP-{main.its_ap_id}", "IMG_AP", main.its_ap_id, main.name, f"{sample.name} analysis")
    catalog.groups[group.id] = group
    texts = _texts(main, sample)
    files = [_file(catalog, main, texts, index, size, options) for index, size in enumerate(sizes)]
    for file in files:
        catalog.add_file(file, [group])
    for file in before[: options.shared]:
        catalog.share(file, main.its_ap_id, group)
    for extra in range(1, options.groups):
        library = Group(
            f"LIB-{main.its_ap_id}-{extra}", "LIB", main.its_ap_id * 100 + extra, main.name, f"library {extra}"
        )
        for file in files[extra % len(files) :: options.groups]:
            catalog.show_in(file, library)
    return files


def _analysis(
    catalog: Catalog, proposal: Proposal, sample: Biosample, kind: str, reference: str | None = None
) -> Analysis:
    number = len(catalog.analyses) + 1
    made = Analysis(
        gold_id=f"Ga{600000 + number:07d}",
        its_ap_id=1500000 + number,
        type=kind,
        name=f"{sample.name} - {kind}",
        study=proposal.study,
        proposal_id=proposal.id,
        biosample=sample.gold_id,
        project=sample.project,
        taxon=3300100000 + number,
        submission=300000 + number,
        reference=reference,
    )
    catalog.analyses[made.gold_id] = made
    return made


def _texts(analysis: Analysis, sample: Biosample) -> dict[str, str]:
    """What stands in the files' records in place of the published names and numbers."""
    return {
        _GOLD: analysis.gold_id,
        _TAXON: str(analysis.taxon),
        _SUBMISSION: str(analysis.submission),
        _ITS: str(analysis.its_ap_id),
        _SPID: str(sample.its_sp_id),
        _UNIT: f"{sample.its_sp_id % 100000:05d}.1.394702.GCACTAAC-CCAAGACT",
    }


def _file(
    catalog: Catalog, analysis: Analysis, texts: dict[str, str], index: int, size: int, options: Options
) -> ArchiveFile:
    draws, shape = catalog.random, shapes()[index % len(shapes())]
    name = shape.name
    for old, new in texts.items():
        name = name.replace(old, new)
    if index >= len(shapes()):
        name = f"{index // len(shapes())}_{name}"
    if options.odd_names and index < len(ODD_NAMES):
        name = ODD_NAMES[index]
    content = draws.randbytes(size) if size <= KEEP_BELOW_BYTES else None
    return ArchiveFile(
        id=draws.randbytes(12).hex(),
        number=13_000_000 + len(catalog.files),
        name=name,
        size=size,
        md5=md5_of(content) if content is not None else draws.randbytes(16).hex(),
        directory=f"{_short(analysis, catalog)}/{shape.directory}",
        shape=shape.text,
        texts=texts,
        analyses=(analysis.its_ap_id,),
        content=content,
        private=draws.random() < options.private_rate,
        traps=frozenset(trap for trap in TRAPS if draws.random() < options.trap_rate),
        on_disk=draws.random() < options.on_disk_rate,
    )


def _short(analysis: Analysis, catalog: Catalog) -> str:
    """JGI's short name of an organism, the first folder of its files in a manifest."""
    words = catalog.biosamples[analysis.biosample].name.split()
    kind = "metat" if analysis.type == METATRANSCRIPTOME else "metag"
    return "".join(char for word in words for char in word[:4] if char.isalnum()) + f"{kind}_{analysis.submission}"
