"""What JGI holds: proposals, biosamples, sequencing and analysis projects as GOLD knows them, their files as JDP knows them.

Invariant: the catalog is what was sequenced and archived, the same for GOLD and JDP. Of a file, only what tape, disk and
purges do to it changes, and only JDP changes that.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from zlib import crc32

METAGENOME = "Metagenome Analysis"
METATRANSCRIPTOME = "Metatranscriptome Analysis"
SELF_MAPPING = "Metatranscriptome mapping (self)"
TAPES = 400


@dataclass(frozen=True)
class Proposal:
    """A project of a user of JGI, by its number (`itsProposalId`)."""

    id: int
    name: str
    study: str


@dataclass(frozen=True)
class Biosample:
    """A sample with its one sequencing project."""

    gold_id: str
    proposal_id: int
    name: str
    project: str
    its_sp_id: int


@dataclass(frozen=True)
class Analysis:
    """An analysis project (`Ga…`). `its_ap_id` is what JDP is searched by; `reference` the analysis that a mapping is of."""

    gold_id: str
    its_ap_id: int
    type: str
    name: str
    study: str
    proposal_id: int
    biosample: str
    project: str
    taxon: int
    submission: int
    reference: str | None = None


@dataclass(slots=True, eq=False)
class ArchiveFile:
    """A file of JDP. `shape` is the published record that it resembles, `texts` what differs from it in names and paths.

    `content`: its bytes where they are kept. `traps`: what is odd in its record (see `simulators.jgi.search`). The last
    four change: on disk or on tape only, the date of its purge (epoch seconds, past on tape), its last change, withdrawn.
    """

    id: str
    number: int
    name: str
    size: int
    md5: str
    directory: str
    shape: str
    texts: dict[str, str]
    analyses: tuple[int, ...]
    content: bytes | None = None
    private: bool = False
    traps: frozenset[str] = frozenset()
    on_disk: bool = False
    dt_to_purge: float | None = None
    modified: float | None = None
    withdrawn: bool = False

    @property
    def tape(self) -> int:
        """The number of its cartridge: the files of one analysis lie on few."""
        return (self.analyses[0] * 7 + crc32(self.directory.encode()) % 4) % TAPES

    @property
    def position(self) -> float:
        """Where on its cartridge, from 0 to 1."""
        return crc32(self.id.encode()) / 2**32


@dataclass
class Group:
    """What JDP's search calls an organism: files that are shown together, as `IMG_AP-1323348`."""

    id: str
    agg: str
    agg_id: int
    name: str
    title: str
    files: list[ArchiveFile] = field(default_factory=list)


class Catalog:
    """All that is archived, with look-ups. Ids are drawn from the seed, so that the same steps give the same world."""

    def __init__(self, seed: int = 1) -> None:
        self.random = random.Random(f"jgi|{seed}")
        self.proposals: dict[int, Proposal] = {}
        self.biosamples: dict[str, Biosample] = {}
        self.analyses: dict[str, Analysis] = {}
        self.files: dict[str, ArchiveFile] = {}
        self.groups: dict[str, Group] = {}
        self._groups_of: dict[str, list[Group]] = {}
        self._files_of: dict[int, list[ArchiveFile]] = {}

    def add_file(self, file: ArchiveFile, groups: Iterable[Group]) -> ArchiveFile:
        """Archive a file and show it in these groups. Raises ValueError for an id that is taken."""
        if file.id in self.files:
            raise ValueError(f"file {file.id} is archived already")
        self.files[file.id] = file
        for its_ap_id in file.analyses:
            self._files_of.setdefault(its_ap_id, []).append(file)
        for group in groups:
            self.show_in(file, group)
        return file

    def share(self, file: ArchiveFile, its_ap_id: int, group: Group) -> None:
        """Make a file one of a further analysis too."""
        file.analyses = (*file.analyses, its_ap_id)
        self._files_of.setdefault(its_ap_id, []).append(file)
        self.show_in(file, group)

    def show_in(self, file: ArchiveFile, group: Group) -> None:
        """Show a file in a further group."""
        self.groups.setdefault(group.id, group)
        group.files.append(file)
        self._groups_of.setdefault(file.id, []).append(group)

    def groups_of(self, file: ArchiveFile) -> list[Group]:
        """The groups that show this file; the first is the one that manifests name."""
        return self._groups_of[file.id]

    def files_of(self, its_ap_ids: Iterable[int]) -> list[ArchiveFile]:
        """The files of these analyses, each once."""
        files = [file for its_ap_id in its_ap_ids for file in self._files_of.get(its_ap_id, ())]
        return list({file.id: file for file in files}.values())

    def files_of_proposal(self, proposal_id: int) -> list[ArchiveFile]:
        """The files of a proposal's analyses, each once."""
        return self.files_of(each.its_ap_id for each in self.analyses.values() if each.proposal_id == proposal_id)


def md5_of(content: bytes) -> str:
    """The MD5 of bytes, in hex."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()
