"""Push notifications of the simulated ICA: who may be notified, what is posted, and how letters are lost or late."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from ica_rehearsal import CONFORMANCE, MEDIA_TYPE, SOURCE, START, TARGET, Rehearsal, _formats
from jsonschema import Draft202012Validator
from push_receiver import PushReceiver

from harness.virtual_time import run_virtual
from simulators.common import Clock, InProcessTransport
from simulators.icav2 import DEFAULT_API_KEY, IcaSimulator, Override, Settings

CHANNELS = "/api/notificationChannels"
SUBSCRIPTIONS = f"/api/projects/{TARGET}/notificationSubscriptions"
LIFE = ["WAITING_FOR_RESOURCES", "RUNNING", "SUCCEEDED"]
ENVELOPE = Path(__file__).parents[1] / "fixtures" / "icav2" / "ica_notification_envelope_ICA_EXEC_028.json"
HUNDRED = [Override(destination=".", duration_seconds=100)]  # waits from 5 s on, runs from 15 s on


@pytest.fixture
def receiver() -> Iterator[PushReceiver]:
    with PushReceiver() as running:
        yield running


def channel(ica: Rehearsal, address: str, enabled: bool = True) -> str:
    made = ica.http.post(CHANNELS, json={"type": "HTTP", "address": address, "enabled": enabled})
    assert made.status_code == 201, made.text
    return made.json()["id"]


def subscription(ica: Rehearsal, channel_id: str, **more) -> httpx.Response:
    body = {"eventCode": "ICA_JOB_001", "enabled": True, "notificationChannelId": channel_id}
    return ica.http.post(SUBSCRIPTIONS, json=body | more)


def subscribe(ica: Rehearsal, receiver: PushReceiver, **more) -> str:
    """A channel to the receiver with one subscription; returns the channel's id."""
    made = channel(ica, receiver.address)
    assert subscription(ica, made, **more).status_code == 201
    return made


def start_job(ica: Rehearsal, name: str = "a") -> str:
    """A job of 100 s; its id."""
    answer = ica.submit([ica.seed(f"/r/{name}.gz", 10**9)], ica.folder(f"/in/{name}/"))
    assert answer.status_code == 201, answer.text
    return answer.json()["job"]["id"]


def flush(ica: Rehearsal) -> int:
    """Waits until everything that is due has been posted."""
    return ica.control.post("/deliver").json()["posted"]


def fates(ica: Rehearsal) -> list[str]:
    return [entry["fate"] for entry in ica.journal("notification")]


# -- what is posted ----------------------------------------------------------------------------------------------


def test_every_change_of_a_jobs_status_is_posted_without_anybody_asking(rehearse, receiver):
    ica = rehearse(overrides=HUNDRED)
    subscribe(ica, receiver)
    job_id = start_job(ica)
    for count, seconds in enumerate((6, 10, 90), 1):
        ica.server.call(
            lambda by=seconds: ica.sim.clock.advance(by)
        )  # no request, nothing that is due is run: only time passes
        receiver.wait_for(count)
    assert receiver.statuses() == LIFE
    assert {letter["payload"]["id"] for letter in receiver.letters} == {job_id}


def test_a_clock_that_runs_by_itself_is_enough(rehearse, receiver):
    ica = rehearse(speed=400.0, overrides=HUNDRED)
    subscribe(ica, receiver)
    start_job(ica)
    receiver.wait_for(3)
    assert receiver.statuses() == LIFE


def test_the_envelope_has_the_fields_of_a_real_one_and_its_payload_is_the_job(rehearse, receiver):
    ica = rehearse(overrides=HUNDRED)
    subscribe(ica, receiver)
    job_id = start_job(ica)
    ica.advance(6)
    (letter,) = receiver.wait_for(1)
    real = json.loads(ENVELOPE.read_text(encoding="utf-8"))
    assert {name: type(value) for name, value in letter.items()} == {name: type(value) for name, value in real.items()}
    assert (letter["eventCode"], letter["projectId"]) == ("ICA_JOB_001", TARGET)
    assert letter["eventParameters"] == {
        "job": job_id,
        "jobPreviousStatus": "INITIALIZED",
        "jobStatus": "WAITING_FOR_RESOURCES",
    }
    assert letter["payload"] == ica.get(f"/api/jobs/{job_id}")
    schema = {**CONFORMANCE.schemas["Job"], "components": {"schemas": CONFORMANCE.schemas}}
    Draft202012Validator(schema, format_checker=_formats).validate(letter["payload"])
    assert receiver.headers[0]["content-type"] == "application/json"
    assert "authorization" not in receiver.headers[0]


def test_a_letter_tells_the_job_as_it_was_when_it_changed(rehearse, receiver):
    ica = rehearse(overrides=HUNDRED, notification_delay_seconds=500)
    subscribe(ica, receiver)
    start_job(ica)
    ica.run_until_idle()
    first, second, _ = receiver.wait_for(3)
    assert (first["payload"]["status"], first["payload"]["timeStarted"]) == ("WAITING_FOR_RESOURCES", None)
    assert (second["payload"]["status"], second["payload"]["timeStarted"]) == ("RUNNING", second["timestamp"])
    assert first["timestamp"].endswith("05.000Z")


def test_a_failed_job_says_why_in_its_last_letter(rehearse, receiver):
    ica = rehearse(overrides=[Override(destination=".", outcome="failed_clean", duration_seconds=10)])
    subscribe(ica, receiver)
    start_job(ica)
    ica.run_until_idle()
    last = receiver.wait_for(3)[-1]["payload"]
    assert (last["status"], last["additionalStatusInformation"]) == ("FAILED", "The job did not complete.")
    assert last["timeFinished"] is not None


def test_only_enabled_subscriptions_of_the_jobs_project_are_served(rehearse, receiver):
    ica = rehearse(overrides=HUNDRED)
    made = channel(ica, receiver.address)
    assert subscription(ica, made, enabled=False).status_code == 201
    assert subscription(ica, channel(ica, receiver.address, enabled=False)).status_code == 201
    elsewhere = SUBSCRIPTIONS.replace(TARGET, SOURCE)
    body = {"eventCode": "ICA_JOB_001", "enabled": True, "notificationChannelId": made}
    assert ica.http.post(elsewhere, json=body).status_code == 201
    start_job(ica)
    ica.run_until_idle()
    assert flush(ica) == 0
    assert receiver.letters == []


def test_without_channels_nothing_runs_and_with_the_last_one_the_pump_ends(rehearse, receiver):
    ica = rehearse()
    notifications = ica.sim.notifications
    assert ica.server.call(lambda: notifications._pump) is None
    made = channel(ica, receiver.address)
    assert ica.server.call(lambda: notifications._pump.done()) is False
    assert ica.http.delete(f"{CHANNELS}/{made}").status_code == 204
    ica.control.get("/health")
    assert ica.server.call(lambda: notifications._pump.done()) is True


# -- loss, delay, duplicates, order ------------------------------------------------------------------------------


def test_a_delayed_letter_comes_that_much_later(rehearse, receiver):
    ica = rehearse(overrides=HUNDRED, notification_delay_seconds=50)
    subscribe(ica, receiver)
    start_job(ica)
    ica.advance(54)
    assert flush(ica) == 0
    ica.advance(2)
    receiver.wait_for(1)
    flush(ica)
    assert receiver.statuses() == LIFE[:1]


def test_lost_letters_do_not_arrive_and_the_journal_counts_them(rehearse, receiver):
    ica = rehearse(overrides=HUNDRED, notification_loss_rate=1.0)
    subscribe(ica, receiver)
    start_job(ica)
    ica.advance(20)
    ica.control.patch("/settings", json={"notification_loss_rate": 0.0})
    ica.advance(100)
    receiver.wait_for(1)
    flush(ica)
    assert receiver.statuses() == ["SUCCEEDED"]
    assert fates(ica) == ["lost", "lost", "sent"]
    assert ica.control.get("/counters").json()["notifications"] == {"lost": 2, "sent": 1}


def lost_of_twenty(rehearse, receiver, names: list[str], **settings) -> set[tuple[str, str]]:
    """Destination and status of what did not arrive from twenty jobs that were sent in this order."""
    ica = rehearse(overrides=HUNDRED, notification_loss_rate=0.3, **settings)
    subscribe(ica, receiver)
    jobs = {start_job(ica, name): name for name in names}
    ica.run_until_idle()
    flush(ica)
    lost = [entry for entry in ica.journal("notification") if entry["fate"] == "lost"]
    return {(jobs[entry["job_id"]], entry["job_status"]) for entry in lost}


def test_which_letters_are_lost_depends_on_the_seed_and_not_on_the_order_of_the_jobs(rehearse, receiver):
    names = [f"d{number}" for number in range(20)]
    one, same = (lost_of_twenty(rehearse, receiver, order) for order in (names, names[::-1]))
    other = lost_of_twenty(rehearse, receiver, names, seed=2)
    assert one == same != other
    assert 6 <= len(one) <= 30, "60 letters, each lost with probability 0.3"


def test_a_duplicate_is_the_same_envelope_once_more_and_later(rehearse, receiver):
    ica = rehearse(overrides=HUNDRED, notification_duplicate_rate=1.0, notification_straggle_seconds=200)
    subscribe(ica, receiver)
    start_job(ica)
    ica.run_until_idle()
    letters = receiver.wait_for(6)
    assert receiver.statuses() == LIFE * 2
    assert letters[:3] == letters[3:]


def test_a_letter_that_is_held_back_is_overtaken(rehearse, receiver):
    ica = rehearse(overrides=HUNDRED, notification_reorder_rate=1.0, notification_straggle_seconds=200)
    subscribe(ica, receiver)
    start_job(ica)
    ica.advance(6)
    ica.control.patch("/settings", json={"notification_reorder_rate": 0.0})
    ica.run_until_idle()
    receiver.wait_for(3)
    assert receiver.statuses() == ["RUNNING", "SUCCEEDED", "WAITING_FOR_RESOURCES"]


@pytest.mark.parametrize("status", [500, 302])
def test_a_receiver_that_does_not_take_it_is_not_asked_again(rehearse, status):
    ica = rehearse(overrides=HUNDRED)
    with PushReceiver(status) as unwilling:
        subscribe(ica, unwilling)
        start_job(ica)
        ica.run_until_idle()
        unwilling.wait_for(3)
        flush(ica)
        assert unwilling.statuses() == LIFE
    assert fates(ica) == ["refused"] * 3


def test_a_receiver_that_is_gone_loses_its_letters_and_stops_nothing(rehearse, receiver):
    ica = rehearse(overrides=HUNDRED)
    with PushReceiver() as gone:
        subscribe(ica, gone)
    subscribe(ica, receiver)
    start_job(ica)
    ica.run_until_idle()
    receiver.wait_for(3)
    flush(ica)
    assert receiver.statuses() == LIFE
    assert sorted(fates(ica)) == ["failed"] * 3 + ["sent"] * 3


# -- the API -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "http://192.0.2.1/hook",
        "http://example.org/hook",
        "http://localhost:8000/hook",
        "https://127.0.0.1/hook",
        "http://127.0.0.1@192.0.2.1/hook",
        "http://0.0.0.0/hook",
        "http://127.0.0.1:port/hook",
        "ftp://127.0.0.1/hook",
        "127.0.0.1:8000",
        "http://",
        "http://127.0.0.1/" + "x" * 100,
    ],
)
def test_addresses_off_this_machine_are_refused_with_a_problem(rehearse, address):
    ica = rehearse()
    answer = ica.call("POST", CHANNELS, json={"type": "HTTP", "address": address, "enabled": True})
    assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json")
    assert ica.http.get(CHANNELS).json() == {"items": []}


@pytest.mark.parametrize("address", ["http://127.0.0.1:1/", "http://127.9.9.9:1/hook", "http://[::1]:1/hook"])
def test_addresses_of_this_machine_are_taken(rehearse, address):
    assert channel(rehearse(), address)


@pytest.mark.parametrize("kind", ["MAIL", "SQS", "SNS"])
def test_other_kinds_of_channel_are_refused_and_not_pretended(rehearse, kind):
    body = {"type": kind, "address": "http://127.0.0.1:1/", "enabled": True}
    assert rehearse().call("POST", CHANNELS, json=body).status_code == 400


@pytest.mark.parametrize(
    "change",
    [
        {"eventCode": "ICA_EXEC_028"},
        {"payloadVersion": "v4"},
        {"filterExpression": "[?($.status == 'FAILED')]"},
        {"enabled": "yes"},
        {"notificationChannelId": None},
    ],
    ids=lambda change: next(iter(change)),
)
def test_subscriptions_that_would_never_fire_are_refused(rehearse, change):
    ica = rehearse()
    made = channel(ica, "http://127.0.0.1:1/")
    assert subscription(ica, made, **change).status_code == 400
    assert subscription(ica, made).status_code == 201


def test_channels_and_subscriptions_are_listed_looked_up_and_deleted(rehearse):
    ica = rehearse()
    one, two = channel(ica, "http://127.0.0.1:1/"), channel(ica, "http://127.0.0.1:2/")
    made = subscription(ica, two, payloadVersion="v3").json()
    shown = ica.http.get(f"{CHANNELS}/{two}").json()
    assert shown.keys() == {"id", "timeCreated", "timeModified", "ownerId", "tenantId", "enabled", "type", "address"}
    assert ica.http.get(CHANNELS).json()["items"] == [ica.http.get(f"{CHANNELS}/{one}").json(), shown]
    assert made["notificationChannel"] == shown
    assert (made["eventCode"], made["payloadVersion"], made["enabled"]) == ("ICA_JOB_001", "v3", True)
    assert ica.http.get(SUBSCRIPTIONS).json() == {"items": [made]}
    assert ica.http.get(f"{SUBSCRIPTIONS}/{made['id']}").json() == made
    gone = ica.http.delete(f"{SUBSCRIPTIONS}/{made['id']}")
    assert (gone.status_code, gone.content) == (204, b"")
    assert ica.call("GET", f"{SUBSCRIPTIONS}/{made['id']}").status_code == 404
    assert ica.http.delete(f"{CHANNELS}/{two}").status_code == 204
    assert ica.call("DELETE", f"{CHANNELS}/{two}").status_code == 404


def test_a_deleted_channel_takes_its_subscriptions_and_the_letters_on_their_way_with_it(rehearse, receiver):
    ica = rehearse(overrides=HUNDRED, notification_delay_seconds=50)
    made = subscribe(ica, receiver)
    start_job(ica)
    ica.advance(6)
    assert ica.http.delete(f"{CHANNELS}/{made}").status_code == 204
    assert ica.http.get(SUBSCRIPTIONS).json() == {"items": []}
    ica.run_until_idle()
    flush(ica)
    assert (receiver.letters, fates(ica)) == ([], ["dropped"])


def test_channels_are_their_owners_and_subscribing_needs_the_right_to_write(rehearse):
    ica = rehearse()
    ica.control.post("/users", json={"name": "guest", "api_key": "guest-key", "default_right": "viewer"})
    mine = channel(ica, "http://127.0.0.1:1/")
    as_guest = {"headers": {"X-API-Key": "guest-key"}}
    assert ica.http.get(CHANNELS, **as_guest).json() == {"items": []}
    assert ica.call("DELETE", f"{CHANNELS}/{mine}", **as_guest).status_code == 404
    body = {"eventCode": "ICA_JOB_001", "enabled": True, "notificationChannelId": mine}
    assert ica.call("POST", SUBSCRIPTIONS, json=body, **as_guest).status_code == 403
    assert ica.call("GET", CHANNELS, headers={"Authorization": ""}).status_code == 401


# -- in one process ----------------------------------------------------------------------------------------------


def test_in_virtual_time_letters_come_at_the_instant_of_the_change_or_when_they_are_asked_for():
    arrived: list[tuple[float, str]] = []

    async def main(loop) -> None:
        clock = Clock(loop.time, epoch=START)

        async def receive(request: httpx.Request) -> httpx.Response:
            arrived.append((round(clock.now() - START, 3), json.loads(request.content)["payload"]["status"]))
            return httpx.Response(200)

        settings = Settings(failure_rate=0, overrides=HUNDRED, folder_create_seconds=0)
        sim = IcaSimulator(clock, settings, push_transport=httpx.MockTransport(receive))
        for project in (SOURCE, TARGET):
            sim.seed_project(project)
        data, folder = sim.seed_file(SOURCE, "/r/a.gz", 10**9), sim.seed_folder(TARGET, "/in/")
        headers = {"X-API-Key": DEFAULT_API_KEY, "Accept": MEDIA_TYPE}
        async with httpx.AsyncClient(
            transport=InProcessTransport(sim.app), base_url="http://ica.invalid", headers=headers
        ) as client:
            body = {"type": "HTTP", "address": "http://127.0.0.1:1/", "enabled": True}
            made = (await client.post(CHANNELS, json=body)).json()["id"]
            body = {"eventCode": "ICA_JOB_001", "enabled": True, "notificationChannelId": made}
            assert (await client.post(SUBSCRIPTIONS, json=body)).status_code == 201
            flags = dict.fromkeys(("copyUserTags", "copyTechnicalTags", "copyInstrumentInfo"), False)
            batch = {"items": [{"dataId": data.id}], "destinationFolderId": folder.id, "actionOnExist": "SKIP", **flags}
            answer = await client.post(f"/api/projects/{TARGET}/dataCopyBatch", json=batch)
            assert answer.status_code == 201, answer.text
            await asyncio.sleep(20)
            sim.clock.advance(100)
            assert await sim.deliver() == 1
            await client.delete(f"{CHANNELS}/{made}")

    run_virtual(main)
    assert arrived == [(5.0, "WAITING_FOR_RESOURCES"), (15.0, "RUNNING"), (120.0, "SUCCEEDED")]
