"""Push notifications: event `ICA_JOB_001` posted to HTTP channels at every change of a job's status (docs/protocols/icav2.md 6).

Invariant: a status change only puts notifications on the agenda, and the agenda puts them into the outbox when they are due.
What needs time of its own is the posting: a pump, a task of the server's own loop, that lives while there are channels.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import itertools
import random
from collections import Counter, deque
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx

from simulators.common import Agenda, Journal, ProblemError, iso_millis
from simulators.icav2.model import Ids, Job, User
from simulators.icav2.render import job_json
from simulators.icav2.settings import Settings, destination_key

EVENT_CODE = "ICA_JOB_001"
PAYLOAD_VERSION = "v3"  # the version of `Job` that this simulator knows
_ANSWER_WITHIN_SECONDS = 5.0
_AFTER_DUE_SECONDS = 1e-5  # a sleep may end a microsecond early, and a clock that stands still would leave it there


@dataclass(eq=False)
class Channel:
    """Where notifications go: `url` is what was checked, and what is posted to."""

    id: str
    owner: User
    enabled: bool
    address: str
    url: httpx.URL
    created: float


@dataclass(eq=False)
class Subscription:
    """One project's events to one channel; `number` (from 1) stands for it in the draws, since ids differ between starts."""

    id: str
    number: int
    project_id: str
    owner: User
    enabled: bool
    channel: Channel
    created: float


@dataclass(frozen=True)
class Notification:
    """An envelope on its way."""

    channel: Channel
    envelope: dict[str, Any]


def loopback_url(address: str) -> httpx.URL:
    """The address as it will be called. Raises `ProblemError` 400 for whatever is not plain HTTP to this machine.

    Names are refused too, since what they mean is decided elsewhere; the parser is the one that will send.
    """
    try:
        url = httpx.URL(address)
        if url.scheme == "http" and ipaddress.ip_address(url.host).is_loopback:
            return url
    except (httpx.InvalidURL, ValueError):
        pass
    raise ProblemError(
        400, "Bad request", "This simulator notifies http://127.0.0.1:PORT/… or http://[::1]:PORT/… only."
    )


class Notifications:
    """Channels, subscriptions and the outbox. `transport` replaces the network, for notifications in virtual time."""

    def __init__(
        self,
        agenda: Agenda,
        journal: Journal,
        settings: Settings,
        ids: Ids,
        tenant_id: str,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._agenda = agenda
        self._journal = journal
        self._settings = settings
        self._ids = ids
        self._tenant_id = tenant_id
        self._transport = transport
        self._numbers = itertools.count(1)
        self.channels: dict[str, Channel] = {}
        self.subscriptions: dict[str, Subscription] = {}
        self.counts: Counter[str] = Counter()
        self._outbox: deque[Notification] = deque()
        self._posting = asyncio.Lock()
        self._pump: asyncio.Task[None] | None = None
        self._woken = asyncio.Event()
        agenda.on_sooner = self._wake

    # What the API does

    def add_channel(self, owner: User, enabled: bool, address: str) -> Channel:
        """A new channel. Raises `ProblemError` 400 for an address off this machine."""
        url = loopback_url(address)
        channel = Channel(self._ids.uuid(), owner, enabled, address, url, self._agenda.time)
        self.channels[channel.id] = channel
        self._wake()
        return channel

    def remove_channel(self, channel: Channel) -> None:
        """Its subscriptions go with it, and what is on its way to it is not sent any more (a guess, not documented)."""
        del self.channels[channel.id]
        for each in [each for each in self.subscriptions.values() if each.channel is channel]:
            del self.subscriptions[each.id]
        self._wake()

    def subscribe(self, project_id: str, owner: User, enabled: bool, channel: Channel) -> Subscription:
        number = next(self._numbers)
        made = Subscription(self._ids.uuid(), number, project_id, owner, enabled, channel, self._agenda.time)
        self.subscriptions[made.id] = made
        return made

    # From a status change to the outbox

    def status_changed(self, job: Job, before: str) -> None:
        """Write the notifications of one status change; they tell the job as it is at this instant."""
        for subscription in self.subscriptions.values():
            if subscription.project_id == job.project_id and subscription.enabled and subscription.channel.enabled:
                self._plan(subscription, job, Notification(subscription.channel, self._envelope(job, before)))

    def _envelope(self, job: Job, before: str) -> dict[str, Any]:
        """As ICA's own (docs/protocols/icav2.md 6.2); which event parameters this code has is not documented."""
        return {
            "correlationId": self._ids.uuid(),
            "timestamp": iso_millis(self._agenda.time),
            "eventCode": EVENT_CODE,
            "eventParameters": {"job": job.id, "jobPreviousStatus": before, "jobStatus": job.status},
            "description": "Job status changed",
            "projectId": job.project_id,
            "payloadVersion": PAYLOAD_VERSION,
            "payload": job_json(job, self._tenant_id),
        }

    def _plan(self, subscription: Subscription, job: Job, notification: Notification) -> None:
        """Draw the notification's fate. As for jobs, a draw does not depend on the order in which things happen."""
        settings = self._settings
        key = f"{settings.seed}|{destination_key(job.project_id, job.path)}|{job.attempt}|{job.status}|{subscription.number}"
        source = random.Random(int.from_bytes(hashlib.sha256(key.encode()).digest(), "big"))
        # All numbers are drawn always and in this order, so that changing one setting leaves the other draws alone.
        loss, duplicate, reorder = source.random(), source.random(), source.random()
        due = self._agenda.time + settings.notification_delay_seconds
        late = due + settings.notification_straggle_seconds
        if loss < settings.notification_loss_rate:
            self._note("lost", notification)
            return
        send = partial(self._put_out, notification)
        self._agenda.schedule(late if reorder < settings.notification_reorder_rate else due, send)
        if duplicate < settings.notification_duplicate_rate:
            self._agenda.schedule(late, send)

    def _put_out(self, notification: Notification) -> None:
        self._outbox.append(notification)
        self._wake()

    # From the outbox to the channel

    async def deliver(self) -> int:
        """Post every notification that is due by now, in turn, and return how many; also those the pump is posting."""
        self._agenda.run_due()
        posted = 0
        async with self._posting:
            if not self._outbox:
                return posted
            # No proxy, no redirect: nothing leads off this machine.
            quiet: dict[str, Any] = {"trust_env": False, "verify": False, "timeout": _ANSWER_WITHIN_SECONDS}
            async with httpx.AsyncClient(transport=self._transport, **quiet) as client:
                while self._outbox:
                    posted += await self._post(client, self._outbox.popleft())
        return posted

    async def _post(self, client: httpx.AsyncClient, notification: Notification) -> int:
        """One attempt: whether ICA tries again is not documented, and nobody may count on it."""
        if notification.channel.id not in self.channels:
            self._note("dropped", notification)
            return 0
        try:
            answer = await client.post(notification.channel.url, json=notification.envelope)
        except httpx.HTTPError as error:
            self._note("failed", notification, error=type(error).__name__)
        else:
            self._note("sent" if answer.is_success else "refused", notification, status=answer.status_code)
        return 1

    def _note(self, fate: str, notification: Notification, **more: Any) -> None:
        payload = notification.envelope["payload"]
        self.counts[fate] += 1
        facts = {"job_id": payload["id"], "job_status": payload["status"], "channel_id": notification.channel.id}
        self._journal.record(
            "notification", fate=fate, correlation_id=notification.envelope["correlationId"], **facts, **more
        )

    # The pump

    def _wake(self) -> None:
        """Let the pump look again; start it when there is need for one and a loop to run it on."""
        self._woken.set()
        if self.channels and (self._pump is None or self._pump.done()):
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:  # used without a loop: nothing is posted before somebody awaits `deliver`
                return
            self._woken = asyncio.Event()  # an old one may belong to a loop that has ended
            self._pump = loop.create_task(self._keep_delivering())

    async def _keep_delivering(self) -> None:
        while self.channels:
            self._woken.clear()
            await self.deliver()
            due = self._agenda.next_due()
            if due is None or due > self._agenda.clock.now():
                await self._sleep_until(due)

    async def _sleep_until(self, due: float | None) -> None:
        """Until simulated time `due` (None: for ever), or until woken."""
        waits: list[asyncio.Future[Any]] = [asyncio.ensure_future(self._woken.wait())]
        if due is not None:
            seconds = due - self._agenda.clock.now() + _AFTER_DUE_SECONDS
            waits.append(asyncio.ensure_future(self._agenda.clock.sleep(seconds)))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waits:
                each.cancel()
