"""JDP and Globus over the same collections: what is restored is moved, what is purged is missed, and each journal agrees."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from globus_rehearsal import START, Globus

from simulators.common import Clock
from simulators.globus import DESTINATION_COLLECTION, JGI_COLLECTION
from simulators.jgi import Catalog, JdpSimulator, add_published, add_random
from simulators.jgi.catalog import ArchiveFile
from simulators.jgi.restores import Restore


class Both:
    """Globus by its SDK, and a JDP whose clock a test moves by hand."""

    def __init__(self, globus: Globus, catalog: Catalog) -> None:
        self.globus = globus
        self.jdp = JdpSimulator(catalog, globus.files, Clock(epoch=START, speed=0))
        globus.files.before_removal = globus.sim.run_due

    def ready(self, files: list[ArchiveFile]) -> Restore:
        def run() -> Restore:
            request = self.jdp.engine.accept("wrangler", "", files)
            self.jdp.run_until_idle()
            return request

        return self.globus.on(run)

    def pairs(self, request: Restore) -> list[tuple[str, str]]:
        return [(path, f"/staging/{number}") for number, path in enumerate(request.paths.values())]


@pytest.fixture
def small(globus: Globus) -> Both:
    catalog = Catalog()
    add_published(catalog, 503568, "grow", scale=1e-7)
    return Both(globus, catalog)


def test_restored_files_and_their_manifest_are_moved(small: Both) -> None:
    files = list(small.jdp.catalog.files.values())
    request, globus = small.ready(files), small.globus
    folder = globus.on(lambda: small.jdp.engine.folder(request))
    names = [row["name"] for row in globus.client.operation_ls(JGI_COLLECTION, path=folder)]
    assert f"Globus_Download_{request.id}_File_Manifest.csv" in names
    manifest = f"{folder}/Globus_Download_{request.id}_File_Manifest.csv"
    task = globus.submit([*small.pairs(request), (manifest, "/staging/manifest.csv")])
    globus.advance(3600)
    assert globus.status(task)[0] == "SUCCEEDED"
    arrived = globus.arrived()
    assert [arrived[f"/staging/{number}"] for number in range(85)] == [file.md5 for file in files]
    mounted = globus.files.folder_of(DESTINATION_COLLECTION) / "staging" / "manifest.csv"
    assert all(file.id in mounted.read_text("utf-8") for file in files)


def test_what_is_purged_before_its_transfer_is_skipped_and_named(small: Both) -> None:
    files = list(small.jdp.catalog.files.values())[:5]
    request = small.ready(files)
    pairs, globus = small.pairs(request), small.globus
    globus.on(lambda: small.jdp.purge([file.id for file in files[:2]]))
    task = globus.submit(pairs, skip_source_errors=True)
    globus.advance(3600)
    assert globus.status(task)[0] == "SUCCEEDED"
    assert {row["error_code"] for row in globus.skipped(task)} == {"FILE_NOT_FOUND"}
    assert {row["source_path"] for row in globus.skipped(task)} == {source for source, _ in pairs[:2]}
    assert len(globus.moved(task)) == 3


def test_terabytes_are_moved_without_a_byte(start: Callable[..., Globus]) -> None:
    catalog = Catalog()
    add_random(catalog, 503568, "large", total_bytes=3 * 10**13, biosamples=1, files_each=20)
    both = Both(start(task_bytes_per_second=1e10), catalog)
    task = both.globus.submit(both.pairs(both.ready(list(catalog.files.values()))))
    both.globus.advance(3600)
    assert both.globus.task(task)["bytes_transferred"] == 3 * 10**13
    assert sorted(both.globus.arrived().values()) == sorted(file.md5 for file in catalog.files.values())
