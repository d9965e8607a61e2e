"""The conformance kit: the systems pass it, and it refuses ten liars by the name of the lie."""

from __future__ import annotations

from typing import Any

import pytest

from harness import conformance
from harness.conformance import NotConforming
from harness.icav2.conformance import ICAv2Copies
from harness.plates.conformance import S3Deletion
from include.core.errors import RemoteError, TransientError, WaybillError
from include.core.ledger import SendFence, Sent, State, Submission
from tests.harness.ticket_office import KEY, SEAT, Tickets, TicketWorker

REMOTES = [ICAv2Copies(), S3Deletion(), Tickets()]


@pytest.mark.parametrize(
    ("remote", "scenario"),
    [(remote, name) for remote in REMOTES for name in conformance.scenarios(remote)],
    ids=lambda value: getattr(value, "name", value),
)
def test_it_withstands(remote, scenario):
    conformance.play(remote, scenario)


# -- ten liars ------------------------------------------------------------------------------------------------------------


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


LIARS = {
    ClaimsAbsenceTooEarly: "absence claimed too early",
    RecordsItsIdLate: "id recorded late",
    PostsTwice: "a second POST in `send`",
    MatchesLoosely: "its probe matches loosely",
    LooksOnceAndBelievesIt: "a stale look",
    WritesWhileItWatches: "a watch that writes",
    TellsItsKey: "a secret in an error",
    SendsAgain: "a retry of a POST",
    TakesAPartForTheWhole: "a walk that swallows a page error",
    CancelsByName: "a cancel by name instead of id",
}


@pytest.mark.parametrize(("liar", "lie"), LIARS.items(), ids=lambda value: getattr(value, "__name__", value))
def test_a_liar_is_refused_by_the_name_of_its_lie(liar, lie):
    with pytest.raises(NotConforming, match=f"tickets, .*: {lie}"):
        conformance.conformance(Tickets(liar))


def test_there_are_ten_and_each_tells_one_lie():
    assert len(LIARS) == len(set(LIARS.values())) == 10
