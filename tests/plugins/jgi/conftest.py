"""GOLD, JDP, Globus and MongoDB of a test, on loopback, and the connections that name them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pymongo  # noqa: TID253
import pytest

from harness.fixtures import Connect
from include.jgi.models import REMOVE_FILES, PlacementState
from include.jgi.tracking import Tracking
from simulators.common import Clock, serve
from simulators.common.server import RunningServer
from simulators.globus import (
    DEFAULT_CLIENT_ID,
    DEFAULT_CLIENT_SECRET,
    DESTINATION_COLLECTION,
    JGI_COLLECTION,
    JGI_ROOT,
    Collections,
    GlobusSimulator,
)
from simulators.jgi import (
    DEFAULT_OFFLINE_TOKEN,
    DEFAULT_SESSION,
    Catalog,
    GoldSimulator,
    JdpSettings,
    JdpSimulator,
    add_random,
)

SPEED, GLOBUS_SPEED = 3600.0, 60.0  # simulated seconds per second


@pytest.fixture(scope="session")
def mongo_uri(mongo_stand_in: str) -> str:
    """Never a real server: the connections of these tests have no login."""
    return mongo_stand_in


@dataclass(frozen=True)
class Run:
    """How a run ended, its receipt, and the states of its task instances by `task[map index]`."""

    state: str
    receipt: dict[str, Any]
    tasks: dict[str, str]


@dataclass
class Jgi:
    """The remotes of a test. Simulators run in threads: touch them through their servers' `call`."""

    catalog: Catalog
    collections: Collections
    jdp: JdpSimulator
    globus: GlobusSimulator
    servers: dict[str, RunningServer]
    tracking: Tracking
    mount: Path
    connections: dict[str, dict[str, Any]]
    receipts: Path
    give: Connect

    def project(self, proposal_id: int, name: str, files: int = 6, **more: Any) -> list[str]:
        """A project of one biosample with small files; returns the ids of those that are staged."""
        more = {"biosamples": 1, "files_each": files, "trap_rate": 0.0, "total_bytes": 1000 * files} | more
        self.servers["jdp"].call(lambda: add_random(self.catalog, proposal_id, name, **more))
        files = self.catalog.files_of_proposal(proposal_id)
        return [file.id for file in files if not any(mark in file.name for mark in REMOVE_FILES)]

    def all_but_one_byte(self, ids: Sequence[str]) -> int:
        """A window into which these files do not go at once."""
        return sum(self.catalog.files[one].size for one in ids) - 1

    def limits(self, **extra: Any) -> None:
        """Gives connection waybill_jdp other limits."""
        self.connections["waybill_jdp"]["extra"] |= extra
        self.give("waybill_jdp", json.dumps(self.connections["waybill_jdp"]))

    def without_mount(self) -> None:
        """Workers do not see the destination; JGI's collection can be read over HTTPS."""
        del self.connections["waybill_globus"]["extra"]["mount"]
        self.give("waybill_globus", json.dumps(self.connections["waybill_globus"]))
        place = f"{self.servers['globus'].url}/https/{JGI_COLLECTION}"
        self.servers["globus"].call(lambda: self.globus.change_endpoint(JGI_COLLECTION, https_server=place))

    def run(self, **conf: Any) -> Run:
        """One run of jgi_staging, without Airflow's retries."""
        from airflow.dag_processing.dagbag import DagBag

        dag = DagBag("dags/jgi_staging.py").dags["jgi_staging"]
        for task in dag.tasks:
            task.retries = 0
        before = set(self.receipts.rglob("receipt.json"))
        run = dag.test(run_conf=conf)
        (path,) = set(self.receipts.rglob("receipt.json")) - before
        states = {f"{one.task_id}[{one.map_index}]": str(one.state) for one in run.get_task_instances()}
        return Run(str(run.state), json.loads(path.read_text("utf-8")), states)

    def verified(self, project: str) -> int:
        return sum(1 for _ in self.tracking.placements(project=project, states=(PlacementState.VERIFIED,)))

    def fault(self, server: str, fault: str, **rule: Any) -> None:
        world = {"jdp": self.jdp, "globus": self.globus}[server]
        self.servers[server].call(lambda: world.faults.add(fault=fault, **rule))

    def tasks(self) -> list[dict[str, Any]]:
        """What every Globus task really was."""
        return self.servers["globus"].call(self.globus.task_truth)

    def requests(self) -> list[list[str]]:
        """The ids of every restore request that JDP has accepted, oldest first."""
        entries = self.servers["jdp"].call(lambda: self.jdp.journal.entries("restore_accepted"))
        return [list(entry.details["ids"]) for entry in entries]


@pytest.fixture
def jgi(
    tmp_path: Path, connect: Connect, mongo_uri: str, receipts_folder: Path, request: pytest.FixtureRequest
) -> Iterator[Jgi]:
    """Settings of JDP come from the marker `jdp(…)`."""
    marker = request.node.get_closest_marker("jdp")
    settings: dict[str, Any] = dict(marker.kwargs) if marker else {}
    catalog, collections = Catalog(), Collections(tmp_path / "collections")
    jdp = JdpSimulator(catalog, collections, Clock(speed=SPEED), settings=JdpSettings(**settings))
    globus = GlobusSimulator(collections, Clock(speed=GLOBUS_SPEED))
    worlds = {"gold": GoldSimulator(catalog, Clock(speed=SPEED)), "jdp": jdp, "globus": globus}
    with ExitStack() as stack, pymongo.MongoClient(mongo_uri) as mongo:
        servers = {name: stack.enter_context(serve(world.app)) for name, world in worlds.items()}
        collections.before_removal = lambda: None
        database = f"t{abs(hash(str(tmp_path))) % 10**12}"
        mount = collections.folder_of(DESTINATION_COLLECTION)
        mount.mkdir(parents=True, exist_ok=True)
        connections = _connections(servers, mongo_uri, database, mount)
        for conn_id, connection in connections.items():
            connect(conn_id, json.dumps(connection))
        tracking = Tracking(mongo[database])
        yield Jgi(catalog, collections, jdp, globus, servers, tracking, mount, connections, receipts_folder, connect)
        mongo.drop_database(database)


def _connections(
    servers: dict[str, RunningServer], mongo_uri: str, database: str, mount: Path
) -> dict[str, dict[str, Any]]:
    host, port = mongo_uri.partition("//")[2].partition("/")[0].split(":")
    return {
        "waybill_gold": {"conn_type": "http", "host": servers["gold"].url, "password": DEFAULT_OFFLINE_TOKEN},
        "waybill_jdp": {
            "conn_type": "http",
            "host": servers["jdp"].url,
            "login": "nmdc",
            "password": DEFAULT_SESSION,
            "extra": {"globus_user": "nmdc@globusid.org", "mail_to": "ops@example.org"},
        },
        "waybill_globus": {
            "conn_type": "generic",
            "host": servers["globus"].url,
            "login": DEFAULT_CLIENT_ID,
            "password": DEFAULT_CLIENT_SECRET,
            "extra": {
                "source_collection": JGI_COLLECTION,
                "source_root": JGI_ROOT,
                "destination_collection": DESTINATION_COLLECTION,
                "destination_root": "/staging",
                "mount": str(mount),
            },
        },
        "waybill_mongo": {
            "conn_type": "mongo",
            "host": host,
            "port": int(port),
            "schema": database,
            "extra": {"directConnection": True},
        },
    }
