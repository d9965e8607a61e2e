"""The base of all simulators: clock, agenda, journal, in-process use, and the command that starts them."""

from __future__ import annotations

import asyncio
import heapq
import json
import selectors
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from ica_rehearsal import MEDIA_TYPE, SOURCE, START, TARGET

from simulators import __main__ as simulators_main
from simulators.common import (
    SERVICES,
    Agenda,
    Clock,
    ConnectionDropped,
    HttpServices,
    InProcessTransport,
    Journal,
    RunningServer,
    Setup,
    Simulator,
    SimulatorSettings,
    named,
)
from simulators.icav2 import DEFAULT_API_KEY, IcaSimulator, Settings, draw, seed_scenario

ROOT = Path(__file__).resolve().parents[2]


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time jumps to the next timer instead of waiting for it."""

    def __init__(self) -> None:
        self._virtual = 0.0
        super().__init__(selectors.SelectSelector())

    def time(self) -> float:
        return self._virtual

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:
            self._virtual = max(self._virtual, heapq.nsmallest(1, self._scheduled)[0].when())
        super()._run_once()


def run_virtually(main) -> None:
    loop = VirtualLoop()
    try:
        loop.run_until_complete(main(loop))
    finally:
        loop.close()


def client_of(sim: IcaSimulator, **more) -> httpx.AsyncClient:
    headers = {"X-API-Key": DEFAULT_API_KEY, "Accept": MEDIA_TYPE}
    transport = InProcessTransport(sim.app)
    return httpx.AsyncClient(transport=transport, base_url="http://ica.invalid", headers=headers, **more)


def test_the_clock_runs_at_its_speed_and_can_be_pushed():
    source = [10.0]
    clock = Clock(lambda: source[0], epoch=1000.0, speed=5.0)
    source[0] += 2
    assert clock.now() == 1010.0
    clock.speed = 0.0
    source[0] += 100
    assert clock.now() == 1010.0
    assert clock.advance(5) == 1015.0
    with pytest.raises(ValueError, match="forward"):
        clock.advance(-1)


def test_a_sleeper_feels_the_speed_and_a_push():
    async def main() -> None:
        fast, frozen = Clock(speed=100.0), Clock(speed=0.0)
        begin = time.monotonic()
        await fast.sleep(10)
        assert 0.09 < time.monotonic() - begin < 2
        sleeper = asyncio.create_task(frozen.sleep(3600))
        await asyncio.sleep(0.05)
        assert not sleeper.done()
        frozen.advance(3601)
        await asyncio.wait_for(sleeper, 1)

    asyncio.run(main())


def test_the_agenda_runs_events_in_time_order_at_their_own_time():
    clock = Clock(speed=0.0, epoch=0.0)
    agenda, seen = Agenda(clock), []
    agenda.schedule(5, lambda: seen.append(("late", agenda.time)))
    agenda.schedule(
        3, lambda: (seen.append(("early", agenda.time)), agenda.schedule(4, lambda: seen.append("chained")))
    )
    agenda.run_due()
    assert seen == []
    clock.advance(10)
    agenda.run_due()
    assert seen == [("early", 3), "chained", ("late", 5)]
    assert agenda.time == 10


def test_the_journal_is_numbered_without_gaps_and_filtered():
    journal = Journal(lambda: 1.5)
    for kind in ("a", "b", "a"):
        journal.record(kind, x=1)
    assert [entry.seq for entry in journal.entries()] == [1, 2, 3]
    assert [entry.seq for entry in journal.entries("a", since=1)] == [3]


def test_a_thousand_seconds_of_copying_pass_at_once_in_a_virtual_loop():
    async def main(loop: VirtualLoop) -> None:
        sim = IcaSimulator(Clock(loop.time, epoch=START), Settings(failure_rate=0, api_latency_seconds=0.05))
        for project in (SOURCE, TARGET):
            sim.seed_project(project)
        data, folder = sim.seed_file(SOURCE, "/a.gz", 10**10), sim.seed_folder(TARGET, "/in/")
        async with client_of(sim) as client:
            flags = dict.fromkeys(("copyUserTags", "copyTechnicalTags", "copyInstrumentInfo"), False)
            body = {"items": [{"dataId": data.id}], "destinationFolderId": folder.id, "actionOnExist": "SKIP"} | flags
            job = (await client.post(f"/api/projects/{TARGET}/dataCopyBatch", json=body)).json()["job"]
            accepted = loop.time()
            while job["status"] != "SUCCEEDED":
                await asyncio.sleep(1)
                job = (await client.get(f"/api/jobs/{job['id']}")).json()
        expected = draw(1, f"{TARGET}/in/", 1).duration_seconds
        assert expected - 0.1 < loop.time() - accepted < expected + 1.2
        assert sim.journal.entries("request")[-1].details["seconds"] == pytest.approx(0.05, abs=1e-3)

    begin = time.monotonic()
    run_virtually(main)
    assert time.monotonic() - begin < 5


def test_in_process_a_read_timeout_is_felt_and_the_simulator_goes_on():
    async def main(loop: VirtualLoop) -> None:
        sim = IcaSimulator(Clock(loop.time, epoch=START), Settings())
        sim.seed_project(TARGET)
        sim.faults.add(fault="slow", path="createFolder", seconds=60)
        async with client_of(sim, timeout=5) as client:
            with pytest.raises(httpx.ReadTimeout):
                await client.post(f"/api/projects/{TARGET}/data:createFolder", json={"name": "late"})
            assert loop.time() == pytest.approx(5)
            assert sim.dump(TARGET) == []
            await asyncio.sleep(56)
        assert [node["path"] for node in sim.dump(TARGET)] == ["/late/"]

    run_virtually(main)


@pytest.mark.parametrize("transport", [InProcessTransport, lambda app: httpx.ASGITransport(app=app)])
def test_in_process_a_drop_is_a_transport_error(transport):
    async def main() -> None:
        sim = IcaSimulator()
        sim.faults.add(fault="drop_before_commit", path="jobs")
        async with httpx.AsyncClient(transport=transport(sim.app), base_url="http://ica.invalid") as client:
            with pytest.raises(httpx.TransportError) as dropped:
                await client.get("/api/jobs", headers={"X-API-Key": DEFAULT_API_KEY})
            assert isinstance(dropped.value, ConnectionDropped)

    asyncio.run(main())


def test_simulators_refuse_to_listen_beyond_loopback():
    with pytest.raises(ValueError, match="loopback"):
        RunningServer(IcaSimulator().app, host="0.0.0.0")


def test_the_sop_scenario_holds_every_source_and_no_destination():
    sim = IcaSimulator()
    scenario = seed_scenario(sim, "sop")
    source, target = scenario["projects"]
    files = {node["path"]: node for node in sim.dump(source) if node["type"] == "FILE"}
    assert len(files) == 7
    reads = [node for path, node in files.items() if path.endswith(".fastq.gz")]
    assert len(reads) == 2
    assert all(node["size_bytes"] > 10**10 and "-" in node["etag"] for node in reads)
    assert all("-" not in node["etag"] for node in files.values() if node not in reads)
    assert sim.dump(target) == []
    with pytest.raises(ValueError, match="sop"):
        seed_scenario(sim, "other")


def test_the_command_publishes_addresses_serves_the_scenario_and_stops_on_sigterm(tmp_path):
    state = tmp_path / "deep" / "simulators.json"
    command = [sys.executable, "-m", "simulators", "--only", "icav2", "--scenario", "sop", "--seed", "9"]
    process = subprocess.Popen([*command, "--speed", "50", "--state-file", str(state)], cwd=ROOT)
    try:
        deadline = time.monotonic() + 20
        while not state.exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        url = json.loads(state.read_text())["icav2"]
        assert httpx.get(f"{url}/_sim/settings").json()["seed"] == 9
        assert httpx.get(f"{url}/_sim/clock").json()["speed"] == 50
        assert len(httpx.get(f"{url}/_sim/projects").json()) == 2
        answer = httpx.post(f"{url}/ica/rest/api/tokens", headers={"X-API-Key": DEFAULT_API_KEY})
        assert answer.status_code == 200
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def arguments(*words: str):
    return simulators_main._arguments(list(words))


def test_each_service_has_its_own_speed_and_all_share_a_folder_and_their_worlds(tmp_path):
    setups = simulators_main.setups(arguments("--speed", "10", "--speed", "s3=1440"), tmp_path)
    assert {name: setup.clock.speed for name, setup in setups.items()} == dict.fromkeys(SERVICES, 10) | {"s3": 1440}
    made = [setup.world("archive", lambda setup: object()) for setup in setups.values()]
    assert made[0] is made[1]
    assert {setup.folder for setup in setups.values()} == {tmp_path}
    assert setups["s3"].world("other", lambda setup: setup.clock) is setups["s3"].clock


def test_a_simulator_built_alone_has_a_world_of_its_own_and_says_what_it_lacks():
    setup = Setup(Clock())
    assert setup.world("archive", lambda setup: object()) is not setup.world("archive", lambda setup: object())
    with pytest.raises(ValueError, match=r"Shared\(folder\)"):
        setup.folder  # noqa: B018


@pytest.mark.parametrize("speed", ["fast", "-1", "tape=3", "s3=", "inf", "s3=nan"])
def test_a_speed_that_is_none_is_refused_by_name(speed, capsys):
    with pytest.raises(SystemExit):
        arguments("--speed", speed)
    assert speed in capsys.readouterr().err


def test_one_service_may_have_several_addresses_by_name():
    async def main() -> None:
        simulators = {name: Simulator(name, SimulatorSettings()) for name in ("archiver", "ingest")}
        service = HttpServices(simulators)
        addresses = named("hca", await service.start())
        async with httpx.AsyncClient(verify=False) as client:
            for name, address in addresses.items():
                health = await client.get(f"{address}/_sim/health")
                assert name == f"hca.{health.json()['name']}"
        await service.stop()
        assert list(addresses) == ["hca.archiver", "hca.ingest"]
        assert named("s3", "http://127.0.0.1:1") == {"s3": "http://127.0.0.1:1"}

    asyncio.run(main())
