"""A made-up remote that gives out tickets, honest code of ours for it, and its declaration: what liars are made of.

A ticket has two copies, and may end with fewer. Two tickets may have one name. A new one may be in
no list for 20 s, and the list has pages of 5.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from harness.conformance import Process, Remote, Worker
from include.core.credentials import Header
from include.core.errors import RemoteError
from include.core.http import HttpClient
from include.core.ledger import (
    Intent,
    Ledger,
    Owner,
    Probe,
    RemoteSearch,
    SendFence,
    Sent,
    State,
    Submission,
    submit_once,
)
from simulators.common import Answer, Call, Clock, InProcessTransport, ProblemError, Rule, Simulator, SimulatorSettings

KEY, SEAT = "ticket-office-key-7d1", "seat 4"
PAGE, HIDDEN_SECONDS, TIMEOUT_SECONDS, PRINT_SECONDS = 5, 20.0, 30.0, 5.0
COPIES = 2


class TicketOffice(Simulator):
    """Takes every request for a new one. A ticket is printed for 5 s."""

    def __init__(self, clock: Clock) -> None:
        super().__init__("tickets", SimulatorSettings(), clock, special_faults=frozenset({"hide_job"}), gzip=False)
        self.tickets: list[dict[str, Any]] = []
        self.next_end = ("PRINTED", COPIES)
        self.route("POST", "/tickets", self.create)
        self.route("GET", "/tickets", self.list)
        self.route("GET", "/tickets/{id}", self.get)
        self.route("POST", "/tickets/{id}/cancel", self.cancel)
        self.route("POST", "/ping", lambda call: Answer(200, {}))

    def guard(self, call: Call) -> None:
        if call.template.startswith(("/tickets", "/ping")) and call.headers.get("authorization") != f"Bearer {KEY}":
            raise ProblemError(401, "Unauthorized", "No.")

    def accept(self, seat: str, name: str) -> dict[str, Any]:
        ticket = {
            "id": f"ticket-{len(self.tickets) + 1}",
            "seat": seat,
            "name": name,
            "state": "PRINTING",
            "copies": 0,
            "hidden": 0.0,
        }
        end, self.next_end = self.next_end, ("PRINTED", COPIES)
        self.tickets.append(ticket)
        self.journal.record("accepted", id=ticket["id"], seat=seat)
        self.agenda.schedule(self.agenda.time + PRINT_SECONDS, lambda: self._print(ticket, *end))
        return ticket

    def _print(self, ticket: dict[str, Any], state: str, copies: int) -> None:
        if ticket["state"] == "PRINTING":
            ticket |= {"state": state, "copies": copies}

    def create(self, call: Call) -> Answer:
        body = call.json()
        ticket = self.accept(body["seat"], body["name"])
        return Answer(201, ticket, ref=ticket["id"])

    def list(self, call: Call) -> Answer:
        page = int(call.query.get("page", "0"))
        seen = [ticket for ticket in self.tickets if ticket["hidden"] <= self.agenda.time]
        more = len(seen) > (page + 1) * PAGE
        some = seen[page * PAGE : (page + 1) * PAGE]
        return Answer(200, {"now": self.agenda.time, "tickets": some, "next": page + 1 if more else None})

    def get(self, call: Call) -> Answer:
        return Answer(200, self._by_id(call.params["id"]))

    def cancel(self, call: Call) -> Answer:
        ticket = self._by_id(call.params["id"])
        ticket["state"] = "CANCELLED"
        self.journal.record("cancelled", id=ticket["id"])
        return Answer(200, ticket)

    def apply_special_fault(self, rule: Rule, call: Call, answer: Answer) -> None:
        if answer.ref:
            self._by_id(answer.ref)["hidden"] = self.agenda.time + rule.seconds

    def _by_id(self, ticket_id: str) -> dict[str, Any]:
        for ticket in self.tickets:
            if ticket["id"] == ticket_id:
                return ticket
        raise ProblemError(404, "Not found", "No such ticket.")


class TicketWorker(Worker):
    """Honest code. A liar changes one method."""

    visibility_window_seconds = HIDDEN_SECONDS

    def __init__(self, client: HttpClient, ledger: Ledger, owner: Owner):
        self.client, self.ledger, self.owner = client, ledger, owner

    async def ask(self) -> float | None:
        row = await self.submit()
        if row.state != State.SENT:
            return None
        ticket = await self.client.read(f"/tickets/{row.external_id}", what="a ticket")
        if ticket["state"] == "PRINTING":
            return PRINT_SECONDS
        if not self.is_good(ticket):
            self.ledger.move(row, State.FAILED, why=f"{ticket['state']}, {ticket['copies']} copies")
            raise RemoteError(f"ticket {row.external_id}: {ticket['state']}, {ticket['copies']} copies")
        self.ledger.move(row, State.DONE, why="printed")
        return None

    def is_good(self, ticket: Mapping[str, Any]) -> bool:
        return (ticket["state"], ticket["copies"]) == ("PRINTED", COPIES)

    async def submit(self) -> Submission:
        intent = Intent("tickets", "ticket", SEAT, {"seat": SEAT}, self.owner)
        probe = Probe(self.search, self.visibility_window_seconds, TIMEOUT_SECONDS, proves_absence=True)
        return await submit_once(self.ledger, intent, send=self.send, probe=probe)

    async def send(self, row: Submission, fence: SendFence) -> str | Sent:
        return str((await self.post(fence))["id"])

    async def post(self, fence: SendFence) -> Any:
        body = {"seat": SEAT, "name": "waybill"}
        return await self.client.write("/tickets", what=f"a ticket for {SEAT}", json=body, fence=fence)

    async def search(self, row: Submission) -> RemoteSearch:
        pages = await self.pages()
        found = tuple(t["id"] for page in pages for t in page["tickets"] if self.is_ours(t))
        return RemoteSearch(found, complete=True, remote_now=pages[0]["now"])

    def is_ours(self, ticket: Mapping[str, Any]) -> bool:
        return (ticket["seat"], ticket["name"]) == (SEAT, "waybill")

    async def pages(self) -> list[Any]:
        pages, number = [], 0
        while number is not None:
            pages.append(await self.client.read("/tickets", what="the list of tickets", params={"page": number}))
            number = pages[-1]["next"]
        return pages

    async def watch(self) -> object:
        return await self.pages()

    async def cancel(self, row: Submission) -> object:
        return await self.client.write(f"/tickets/{row.external_id}/cancel", what="a cancellation", json={})


class Tickets(Remote):
    name = "tickets"
    write: Mapping[str, Any] = {"method": "POST", "path": "/tickets$"}
    late_seconds, hidden_seconds = TIMEOUT_SECONDS - 1, HIDDEN_SECONDS - 1
    later_page: Mapping[str, Any] | None = {"path": "/tickets$", "query": "page=[1-9]"}
    can_cancel = True

    def __init__(self, worker: type[TicketWorker] = TicketWorker):
        self._worker = worker

    @contextmanager
    def world(self, clock: Clock) -> Iterator[Simulator]:
        yield TicketOffice(clock)

    @asynccontextmanager
    async def worker(self, process: Process) -> AsyncIterator[TicketWorker]:
        transport = InProcessTransport(process.simulator.app)
        async with HttpClient(
            "http://tickets.test", Header("Authorization", KEY, "Bearer"), transport=transport, sleep=process.sleep
        ) as client:
            yield self._worker(client, process.ledger, process.owner)

    def effects(self, simulator: Simulator) -> Sequence[str]:
        return [t["id"] for t in _office(simulator).tickets if (t["seat"], t["name"]) == (SEAT, "waybill")]

    def add_alike(self, simulator: Simulator) -> Sequence[str]:
        office = _office(simulator)
        others = ((SEAT, "somebody"), ("seat 40", "waybill"), (SEAT.upper(), "waybill"), (SEAT, "Waybill"))
        return [office.accept(seat, name)["id"] for seat, name in others]

    def add_twin(self, simulator: Simulator) -> None:
        _office(simulator).accept(SEAT, "waybill")

    def present(self, simulator: Simulator) -> bool:
        ours = [t for t in _office(simulator).tickets if (t["seat"], t["name"]) == (SEAT, "waybill")]
        return any((ticket["state"], ticket["copies"]) == ("PRINTED", COPIES) for ticket in ours)

    def bad_ends(self) -> Mapping[str, Callable[[Simulator], None]]:
        return {
            "cancelled": lambda simulator: setattr(_office(simulator), "next_end", ("CANCELLED", 0)),
            "a copy is missing": lambda simulator: setattr(_office(simulator), "next_end", ("PRINTED", COPIES - 1)),
        }

    def add_crowd(self, simulator: Simulator) -> None:
        for _ in range(PAGE):
            _office(simulator).accept("seat 9", "somebody")

    def add_namesake(self, simulator: Simulator) -> None:
        _office(simulator).accept("seat 40", "waybill")

    def cancelled(self, simulator: Simulator) -> Sequence[str]:
        return [entry.details["id"] for entry in simulator.journal.entries("cancelled")]

    def secrets(self, simulator: Simulator) -> Sequence[str]:
        return (KEY,)


def _office(simulator: Simulator) -> TicketOffice:
    assert isinstance(simulator, TicketOffice)
    return simulator
