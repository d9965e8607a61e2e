"""JGI's scenario says what is wrong by what the simulators hold and by their journals."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest

from include.core.ledger import Ledger, init, ledger_url
from rehearsal.scenes.jgi import DESTINATION, JGI, SOURCE_ROOT, JgiWorld, connections
from simulators.common import SERVICES, Clock, serve
from simulators.globus import DESTINATION_COLLECTION, JGI_COLLECTION, JGI_ROOT, Collections, GlobusSimulator
from simulators.jgi import DEFAULT_SESSION, ArchiveFile, Catalog, JdpSimulator, add_random

PROJECTS = {"grow": 503568}


@dataclass
class Staged:
    world: JgiWorld
    ledger: Ledger
    collections: Collections
    files: list[ArchiveFile]

    def place(self, file: ArchiveFile) -> str:
        path = f"/staging/grow/analysis_files/Ga1/{file.name}"
        self.collections.put(DESTINATION, path, data=file.content)
        return path

    def ask(self, *files: ArchiveFile) -> None:
        body = {"ids": [file.id for file in files], "globus_user_name": "person@example.org", "api_version": "2"}
        headers = {"Authorization": DEFAULT_SESSION}
        self.world.jdp.post("/download_files/", json=body, headers=headers).raise_for_status()

    def problems(self) -> list[str]:
        return self.world.problems(self.ledger, PROJECTS)


@pytest.fixture
def staged(tmp_path: Path) -> Iterator[Staged]:
    """Everything is at its place, and nothing was asked for twice."""
    catalog, collections = Catalog(), Collections(tmp_path / "collections")
    add_random(catalog, PROJECTS["grow"], "grow", total_bytes=4_000, biosamples=1, files_each=4, trap_rate=0.0)
    url = ledger_url(f"sqlite:///{tmp_path / 'ledger.db'}")
    init(url)
    with ExitStack() as stack:
        jdp = stack.enter_context(serve(JdpSimulator(catalog, collections, Clock(speed=0)).app))
        globus = stack.enter_context(serve(GlobusSimulator(collections, Clock(speed=0)).app))
        world = JgiWorld({"jdp": jdp.url, "globus": globus.url}, window_bytes=4_000)
        ledger = Ledger(url)
        stack.callback(ledger.close)
        wanted = {one["id"] for one in world.wanted([PROJECTS["grow"]])}
        made = Staged(world, ledger, collections, [file for file in catalog.files.values() if file.id in wanted])
        for file in made.files:
            made.place(file)
        yield made


def test_the_names_of_the_simulators_are_those_of_the_connections() -> None:
    assert (JGI_COLLECTION, DESTINATION_COLLECTION, f"/{JGI_ROOT}") == (JGI, DESTINATION, SOURCE_ROOT)
    addresses = {name: f"http://127.0.0.1:{number}" for number, name in enumerate(SERVICES, start=1)}
    assert set(connections(addresses)) == {f"AIRFLOW_CONN_WAYBILL_{name}" for name in ("GOLD", "JDP", "MONGO")}


def test_nothing_is_wrong_where_every_file_is_at_its_place(staged: Staged) -> None:
    assert staged.problems() == []


def test_a_missing_and_a_changed_file_are_seen(staged: Staged) -> None:
    path = staged.place(staged.files[0])
    staged.world.globus.post(f"/_sim/endpoints/{DESTINATION}/flip?path={quote(path)}").raise_for_status()
    assert staged.problems() == ["1 files are not at the destination", f"{path} has other bytes than JDP's file"]


def test_files_asked_for_twice_a_full_window_and_a_forgotten_request_are_seen(staged: Staged) -> None:
    staged.ask(*staged.files)
    staged.ask(*staged.files)
    again, window, *forgotten = staged.problems()
    assert again == f"{len(staged.files)} files were asked for again, and 0 had to be"
    assert window.startswith("a window held ") and window.endswith("bytes, and may hold 4000")
    assert [line.split(" ", 3)[3] for line in forgotten] == ["was accepted and is not in the ledger"] * 2
