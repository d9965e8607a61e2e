"""From GOLD's analysis projects to files and placements in MongoDB, over real sockets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import pytest

from include.core.errors import AuthError, VerificationError
from include.jgi.gold import Analysis, GoldClient, OfflineToken
from include.jgi.jdp import FoundFile, JdpClient, SessionToken
from include.jgi.metadata import AnalysisFiles, Discovered, Recorded, discover, left_out, record
from include.jgi.models import FileState, JdpStatus, Project
from include.jgi.tracking import Tracking
from simulators.jgi import DEFAULT_OFFLINE_TOKEN, DEFAULT_SESSION, add_published
from tests.include.jgi.conftest import GROW, QUICK, in_a_loop, no_sleep
from tests.simulators.jgi_rehearsal import Gold, Jdp

NOW = datetime(2027, 1, 15, tzinfo=UTC)
PROJECT = Project("grow", GROW)
ROOT = "/staging"


@dataclass
class Archive:
    """GOLD and JDP with one catalog."""

    gold: Gold
    jdp: Jdp
    tracking: Tracking

    async def discover(self, project: Project = PROJECT, samples: Sequence[str] = (), token: str = "") -> Discovered:
        offline = OfflineToken(token or DEFAULT_OFFLINE_TOKEN)
        async with (
            GoldClient(self.gold.server.url, offline, name="waybill_gold", policy=QUICK, sleep=no_sleep) as gold,
            JdpClient(self.jdp.server.url, SessionToken(DEFAULT_SESSION), policy=QUICK, sleep=no_sleep) as jdp,
        ):
            return await discover(gold, jdp, project, samples)

    async def look_up(self, project: Project = PROJECT) -> Recorded:
        return record(self.tracking, project, await self.discover(project), ROOT, NOW)

    def states(self) -> dict[FileState, int]:
        found: dict[FileState, int] = {}
        for one in self.tracking.files():
            found[one.state] = found.get(one.state, 0) + 1
        return found


@pytest.fixture
def archive(jdp: Jdp, mongo: Any) -> Iterator[Archive]:
    jdp.server.call(lambda: add_published(jdp.catalog, GROW, "grow", biosamples=2, scale=1e-6, shared=3, trap_rate=0.0))
    gold = Gold(jdp.catalog)
    tracking = Tracking(mongo)
    tracking.ensure_indexes()
    yield Archive(gold, jdp, tracking)
    gold.close()


@in_a_loop
async def test_the_same_look_up_again_changes_nothing(archive: Archive) -> None:
    first = await archive.look_up()
    files, places = list(archive.tracking.files()), list(archive.tracking.placements())
    assert first.new == first.files == len(files) > 100
    assert first.left_out == sum(one.state == FileState.FILTERED for one in files) > 0
    again = await archive.look_up()
    assert replace(again, new=first.new) == first and again.new == 0
    assert list(archive.tracking.files()) == files
    assert list(archive.tracking.placements()) == places


@in_a_loop
async def test_a_file_of_two_analyses_is_asked_for_once_and_placed_twice(archive: Archive) -> None:
    await archive.look_up()
    shared = [one for one in archive.tracking.files() if len(one.analyses) == 2]
    assert shared
    places = list(archive.tracking.placements(ids=[shared[0].jdp_file_id]))
    assert [one.analysis for one in places] == list(shared[0].analyses)
    assert len({one.destination for one in places}) == 2
    assert all(one.destination.startswith(f"{ROOT}/grow/analysis_files/{one.analysis}/") for one in places)


@in_a_loop
async def test_filters_that_change_are_followed_until_a_file_is_asked_for(archive: Archive) -> None:
    await archive.look_up()
    before = archive.states()
    everything = replace(PROJECT, remove_files=())
    await archive.look_up(everything)
    assert archive.states()[FileState.DISCOVERED] > before[FileState.DISCOVERED]
    ids = [one.jdp_file_id for one in archive.tracking.files(states=(FileState.DISCOVERED,))]
    archive.tracking.claim(ids[:1], "restore-1")
    archive.tracking.claim(ids[1:2], "restore-2")
    archive.tracking.release("restore-2", FileState.PLANNED, "not sent")
    await archive.look_up(replace(PROJECT, remove_files=("a", "e", "i", "o", "u", "G", ".")))
    assert archive.states().keys() == {FileState.FILTERED, FileState.REQUESTING}


@in_a_loop
async def test_one_biosample_that_cannot_be_looked_up_stops_no_other(archive: Archive) -> None:
    samples = sorted(archive.jdp.catalog.biosamples)
    gold = archive.gold
    gold.server.call(lambda: gold.sim.change_settings(forbidden=[samples[0]]))
    done = await archive.look_up()
    assert set(done.failed) == {samples[0]} and done.biosamples == 2 and done.files > 50
    assert {one.biosample for one in archive.tracking.files()} == {samples[1]}


@in_a_loop
async def test_none_of_n_is_an_error_with_its_reasons(archive: Archive) -> None:
    gold = archive.gold
    gold.server.call(lambda: gold.sim.change_settings(forbidden=sorted(gold.sim.catalog.biosamples)))
    with pytest.raises(VerificationError, match=r"project grow: not one file was found for 2 biosamples.*403"):
        await archive.look_up()
    with pytest.raises(VerificationError, match="Check proposal_id and biosamples"):
        record(archive.tracking, PROJECT, await archive.discover(replace(PROJECT, proposal_id=1)), ROOT, NOW)
    assert not list(archive.tracking.files())


@in_a_loop
async def test_a_dead_token_ends_it_before_anything_is_written(archive: Archive) -> None:
    with pytest.raises(AuthError, match="waybill_gold"):
        await archive.discover(token="a-dead-token")


@in_a_loop
async def test_only_the_biosamples_of_the_conf_are_looked_up(archive: Archive) -> None:
    sample = sorted(archive.jdp.catalog.biosamples)[1]
    found = await archive.discover(samples=[sample])
    assert {group.analysis.biosample for group in found.analyses} == {sample}


# -- filters and places -----------------------------------------------------------------------------------------------


def a_file(number: int, name: str, *, kind: str = "tab", units: tuple[str, ...] = ()) -> FoundFile:
    return FoundFile(f"65aa{number:020x}", name, 10, JdpStatus.PURGED, None, None, (kind,), units, (1,), ("g",))


def test_raw_data_of_other_analyses_is_left_out() -> None:
    """By the first four parts of the names of the sequencing units that the contigs were made from."""
    files = [
        a_file(1, "contigs.fna", kind="contigs", units=("52614.1.394702.GCAC-CCAA.fastq.gz",)),
        a_file(2, "52614.1.394702.GCAC-CCAA.fastq.gz"),
        a_file(3, "52614.1.394702.GCAC-CCAA.filter-METAGENOME.fastq.gz"),
        a_file(4, "99999.9.999999.TTTT-TTTT.fastq.gz"),
        a_file(5, "input.corr.fastq.gz"),
        a_file(6, "x.domtblout"),
        a_file(7, "x.tsv"),
    ]
    reasons = left_out(files, ("domtblout",))
    assert {int(name[4:], 16): why for name, why in reasons.items()} == {
        4: "it is raw data of another analysis",
        6: "remove_files: its name contains domtblout",
    }
    assert left_out(files[1:], ()) == {}, "without contigs all raw data is kept"


@pytest.mark.parametrize("name", ["a/b", "..", "", "a\nb", "x" * 300])
def test_a_name_that_cannot_be_a_file_s_is_left_out(name: str) -> None:
    assert "cannot be a file's" in left_out([a_file(1, name)], ())[a_file(1, name).jdp_file_id]


def found(*names: str) -> Discovered:
    files = tuple(a_file(number, name) for number, name in enumerate(names, 1))
    return Discovered(1, (AnalysisFiles(Analysis("Ga1", 1, "x", "Gb1"), files, {}),), {})


def test_files_that_share_a_name_have_places_of_their_own(mongo: Any) -> None:
    """Also where they differ in the case of their letters alone: the destination may not see that."""
    tracking = Tracking(mongo)
    tracking.ensure_indexes()
    for _ in range(2):
        record(tracking, PROJECT, found("a.tsv", "a.tsv", "A.TSV"), ROOT, NOW)
    assert [one.destination.removeprefix("/staging/grow/analysis_files/Ga1/") for one in tracking.placements()] == [
        "a.tsv",
        f"65aa{2:020x}.a.tsv",
        f"65aa{3:020x}.A.TSV",
    ]


def test_a_file_keeps_its_place_when_another_of_its_name_comes(mongo: Any) -> None:
    tracking = Tracking(mongo)
    tracking.ensure_indexes()
    late = Discovered(1, (replace(found("x").analyses[0], files=(a_file(9, "a.tsv"),)),), {})
    record(tracking, PROJECT, late, ROOT, NOW)
    record(tracking, PROJECT, found("a.tsv"), ROOT, NOW)
    assert [one.destination.rsplit("/", 1)[1] for one in tracking.placements()] == [f"65aa{1:020x}.a.tsv", "a.tsv"]
