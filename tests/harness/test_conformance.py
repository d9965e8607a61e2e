"""The conformance kit: the systems pass it, and it refuses liars by the name of the lie."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, ClassVar

import pytest

from harness import conformance
from harness.conformance import NotConforming
from harness.core.memory import Memory
from harness.globus.conformance import GlobusTransfers
from harness.icav2.conformance import ICAv2Copies
from harness.plates.conformance import S3Deletion
from include.core import errors
from include.core.errors import RemoteError, TransientError, WaybillError
from include.core.ledger import Intent, Probe, RemoteSearch, SendFence, Sent, State, Submission, submit_once
from tests.harness.ticket_office import KEY, SEAT, TIMEOUT_SECONDS, Tickets, TicketWorker

REMOTES = [ICAv2Copies(), S3Deletion(), GlobusTransfers(), Tickets()]


@pytest.mark.parametrize(
    ("remote", "scenario"),
    [(remote, name) for remote in REMOTES for name in conformance.scenarios(remote)],
    ids=lambda value: getattr(value, "name", value),
)
def test_it_withstands(remote, scenario):
    conformance.play(remote, scenario)


# -- liars ----------------------------------------------------------------------------------------------------------------


class ClaimsAbsenceTooEarly(TicketWorker):
    visibility_window_seconds = 0.0


class RecordsItsIdLate(TicketWorker):
    async def send(self, row: Submission, fence: SendFence) -> str | Sent:
        ticket = await self.post(fence)
        while ticket["state"] == "PRINTING":  # the id is known, and not written down
            ticket = await self.client.read(f"/tickets/{ticket['id']}", what="a ticket")
            await self.client._sleep(1.0)
        return str(ticket["id"])


class PostsTwice(TicketWorker):
    async def send(self, row: Submission, fence: SendFence) -> str | Sent:
        ticket = await self.post(fence)
        await self.client.write("/ping", what="a greeting", json={"ticket": ticket["id"]})
        return str(ticket["id"])


class MatchesLoosely(TicketWorker):
    def is_ours(self, ticket: Any) -> bool:
        return ticket["seat"] == SEAT


class LooksOnceAndBelievesIt(TicketWorker):
    """Judges by what it saw, and sends past the ledger's row of an effect that is there."""

    async def submit(self) -> Submission:
        known = [t["id"] for page in await self.pages() for t in page["tickets"] if self.is_ours(t)]
        row = await super().submit()
        if row.state == State.DONE and not known:  # "I have seen that it is not there"
            await self.client.write("/tickets", what="a ticket", json={"seat": SEAT, "name": "waybill"})
        return row


class WritesWhileItWatches(TicketWorker):
    async def watch(self) -> object:
        return await self.client.write("/ping", what="a keep-alive", json={})


class TellsItsKey(TicketWorker):
    async def post(self, fence: SendFence) -> Any:
        try:
            return await super().post(fence)
        except WaybillError as error:
            error.args = (f"{error} (with key {KEY})",)
            raise


class SendsAgain(TicketWorker):
    async def post(self, fence: SendFence) -> Any:
        try:
            return await super().post(fence)
        except TransientError as error:
            if error.no_effect:
                raise
            return await super().post(fence)


class TakesAPartForTheWhole(TicketWorker):
    async def pages(self) -> list[Any]:
        pages = [await self.client.read("/tickets", what="the list of tickets")]
        try:
            while pages[-1]["next"] is not None:
                query = {"page": pages[-1]["next"]}
                pages.append(await self.client.read("/tickets", what="the list of tickets", params=query))
        except (TransientError, RemoteError):
            pass
        return pages


class CancelsByName(TicketWorker):
    async def cancel(self, row: Submission) -> object:
        tickets = [t for page in await self.pages() for t in page["tickets"] if t["name"] == "waybill"]
        return await self.client.write(f"/tickets/{tickets[0]['id']}/cancel", what="a cancellation", json={})


class BelievesTheHostsClock(TicketWorker):
    async def search(self, row: Submission) -> RemoteSearch:
        return replace(await super().search(row), remote_now=self.ledger.now())


class ClosesUnseen(TicketWorker):
    async def ask(self) -> float | None:
        row = await self.submit()
        if row.state == State.SENT:
            self.ledger.move(row, State.DONE, why="it will be printed")
        return None


class TakesAnyEndForAGoodOne(TicketWorker):
    def is_good(self, ticket: Mapping[str, Any]) -> bool:
        return True


class TakesTheStateAtItsWord(TicketWorker):
    def is_good(self, ticket: Mapping[str, Any]) -> bool:
        return bool(ticket["state"] == "PRINTED")


class LooksAtTheFirstPageOnly(TicketWorker):
    async def pages(self) -> list[Any]:
        return [await self.client.read("/tickets", what="the list of tickets", params={"page": 0})]


class RemembersInItsProcess(LooksAtTheFirstPageOnly):
    """What it has sent it knows from a variable, which dies with its process."""

    mine: ClassVar[list[str]] = []
    newest = ""

    async def post(self, fence: SendFence) -> Any:
        ticket = await super().post(fence)
        self.mine.append(ticket["id"])
        type(self).newest = ticket["id"]
        return ticket

    async def search(self, row: Submission) -> RemoteSearch:
        found = await super().search(row)
        for known in dict.fromkeys([*self.mine, self.newest]):
            with suppress(WaybillError):
                if not found.candidates and self.is_ours(await self.client.read(f"/tickets/{known}", what="a ticket")):
                    return replace(found, candidates=(known,))
        return found


class TakesTheNewest(TicketWorker):
    async def search(self, row: Submission) -> RemoteSearch:
        found = await super().search(row)
        return replace(found, candidates=found.candidates[-1:])


class ForgetsTheCaseOfLetters(TicketWorker):
    def is_ours(self, ticket: Any) -> bool:
        return (ticket["seat"].lower(), ticket["name"].lower()) == (SEAT, "waybill")


class WritesItsKeyDown(TicketWorker):
    written: Callable[[], str]

    async def send(self, row: Submission, fence: SendFence) -> str | Sent:
        return Sent((await self.post(fence))["id"], {"how": type(self).written()})


class WritesItsKeyInBase64(WritesItsKeyDown):
    written = staticmethod(lambda: base64.b64encode(KEY.encode()).decode())


class WritesItsKeyWithinBase64(WritesItsKeyDown):
    written = staticmethod(lambda: base64.urlsafe_b64encode(f"me:{KEY}?".encode()).decode())


class WritesItsKeyInHexadecimal(WritesItsKeyDown):
    written = staticmethod(lambda: KEY.encode().hex())


class AsksForAnotherThingEachTime(TicketWorker):
    async def submit(self) -> Submission:
        intent = Intent("tickets", "ticket", SEAT, {"seat": SEAT, "at": self.ledger.now()}, self.owner)
        probe = Probe(self.search, self.visibility_window_seconds, TIMEOUT_SECONDS, proves_absence=True)
        return await submit_once(self.ledger, intent, send=self.send, probe=probe)


class Breaks(TicketWorker):
    async def ask(self) -> float | None:
        raise KeyError("seat")


class BreaksWhileItWatches(TicketWorker):
    async def watch(self) -> object:
        raise RemoteError("no such list")


LIARS = (
    (ClaimsAbsenceTooEarly, "a hidden job", "absence claimed too early"),
    (RecordsItsIdLate, "undisturbed", "id recorded late"),
    (PostsTwice, "undisturbed", "a second POST in `send`"),
    (MatchesLoosely, "jobs of others", "its probe matches loosely"),
    (LooksOnceAndBelievesIt, "a stale look", "a stale look"),
    (WritesWhileItWatches, "a watch", "a watch that writes"),
    (TellsItsKey, "secrets", "a secret in an error"),
    (SendsAgain, "a lost answer", "a retry of a POST"),
    (TakesAPartForTheWhole, "a page that fails", "a walk that swallows a page error"),
    (CancelsByName, "a cancellation", "a cancel by name instead of id"),
    (BelievesTheHostsClock, "a clock that changes", "absence claimed too early: by the host's clock"),
    (ClosesUnseen, "undisturbed", "green that is not there"),
    (TakesAnyEndForAGoodOne, "a bad end", "green that is not there: .*cancelled"),
    (TakesTheStateAtItsWord, "a bad end", "green that is not there: .*a copy is missing"),
    (LooksAtTheFirstPageOnly, "a long list", "it looked at a part of the list"),
    (
        RemembersInItsProcess,
        "a long list",
        "it looked at a part of the list, or relied on what a dead process remembered",
    ),
    (TakesTheNewest, "two that match", "it takes one of two that match, and hides the other"),
    (ForgetsTheCaseOfLetters, "jobs of others", "its probe matches loosely"),
    (WritesItsKeyInBase64, "secrets", "a secret in an error: .*the ledger holds"),
    (WritesItsKeyWithinBase64, "secrets", "a secret in an error: .*the ledger holds"),
    (WritesItsKeyInHexadecimal, "secrets", "a secret in an error: .*the ledger holds"),
    (AsksForAnotherThingEachTime, "killed at the step sending", "its payload differs between two workers"),
    (Breaks, "undisturbed", "it breaks with KeyError"),
    (BreaksWhileItWatches, "a watch", "it breaks with RemoteError"),
)


@pytest.mark.parametrize(("liar", "scenario", "lie"), LIARS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_liar_is_refused_by_the_name_of_its_lie(liar, scenario, lie):
    with pytest.raises(NotConforming, match=f"^tickets, {scenario}: {lie}"):
        conformance.play(Tickets(liar), scenario)


@pytest.mark.parametrize("liar", [AsksForAnotherThingEachTime, RemembersInItsProcess], ids=lambda liar: liar.__name__)
def test_the_kit_ends_by_telling_everything(liar):
    """Never with an error of the liar's own; and what was remembered in one scenario is of no use in the next."""
    with pytest.raises(NotConforming) as caught:
        conformance.conformance(Tickets(liar))
    lies = {line for line in str(caught.value).splitlines() if line.startswith("tickets, ")}
    assert len(lies) >= 2


def test_a_dead_process_takes_along_what_its_modules_and_classes_held():
    held = RemembersInItsProcess.mine
    memory = Memory(RemembersInItsProcess)
    held.append("x")
    RemembersInItsProcess.newest, RemembersInItsProcess.other = "x", 1  # type: ignore[attr-defined]
    errors.remembered = 1  # type: ignore[attr-defined]
    memory.forget()
    assert RemembersInItsProcess.mine is held and "x" not in held
    assert RemembersInItsProcess.newest != "x"
    assert not hasattr(RemembersInItsProcess, "other") and not hasattr(errors, "remembered")
