"""What earlier runs left behind: MongoDB is put right from the ledger; submissions in doubt, and files that expired, are found.

Invariant: the ledger decides what was sent. Each step here may be repeated, and may die between any two writes: what it finds
the next time is the same or less.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from include.core.errors import AuthError, Held, RequestError, TransientError, WaybillError
from include.core.ledger import State, Submission, resolve
from include.core.ledger.submit import held_message
from include.jgi.documents import TrackedRequest
from include.jgi.models import FileState, RequestState
from include.jgi.restoring import (
    ENDED_REQUESTS,
    KIND,
    NOT_ACCEPTED,
    NOT_READY,
    OPEN_REQUESTS,
    SYSTEM,
    UNSENT_REQUESTS,
    Restoring,
    expire,
    give_up,
    gone,
)
from include.jgi.tracking import CLAIMABLE

UNSENT = (State.RESERVED,)
UNCERTAIN = (State.SENDING, State.IN_DOUBT)
SEEN = {"new": RequestState.NEW, "pending": RequestState.PENDING}


@dataclass
class TakenUp:
    """What was found, for the receipt. Lines name requests by their key or number."""

    open_requests: list[str] = field(default_factory=list)  # business keys of requests to wait for, or to move
    withdrawn: list[str] = field(default_factory=list)
    repaired: list[str] = field(default_factory=list)
    in_doubt: list[str] = field(default_factory=list)
    held: list[str] = field(default_factory=list)
    expired: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)  # requests that could not be looked at now
    refused: str = ""  # the credential that JDP refuses, if it does


async def take_up(restoring: Restoring) -> TakenUp:
    """All of it, in order. Raises TransientError where MongoDB or the ledger is away; trouble at JDP is in the result."""
    found = TakenUp()
    found.failed += restoring.tracking.read_older_files()
    for row in _rows(restoring, *UNSENT):
        if restoring.withdraw(row):
            found.withdrawn.append(row.business_key)
    for row in _rows(restoring, *UNCERTAIN, State.HELD):
        await _look_into(restoring, row, found)
    repair(restoring, found)
    await _statuses(restoring, found)
    found.open_requests = [one.key for one in restoring.tracking.requests(OPEN_REQUESTS)]
    return found


def repair(restoring: Restoring, found: TakenUp) -> None:
    """MongoDB knows of every request that JDP has accepted, and holds no file for one that it has not. Asks no remote."""
    for row in _rows(restoring, State.SENT):
        try:
            _repair(restoring, row, found)
        except RequestError as error:  # a person's slip: JDP bears it to be asked for the same files again
            restoring.ledger.move(row, State.FAILED, why=str(error))
            found.failed.append(f"{error}: its files are planned anew")
    _settle_claims(restoring, found)


def _rows(restoring: Restoring, *states: State) -> list[Submission]:
    rows = restoring.ledger.in_states(*states, system=SYSTEM)
    return [row for row in rows if row.kind == KIND and row.account == restoring.account.name]


async def _look_into(restoring: Restoring, row: Submission, found: TakenUp) -> None:
    """A submission in doubt: JDP is searched once. What is found becomes an open request."""
    ledger, tracking = restoring.ledger, restoring.tracking
    tracking.move_request(row.business_key, RequestState.INTENT, RequestState.DOUBTFUL, "its answer was lost")
    try:
        if row.state == State.SENDING:
            if row.accept_deadline is not None and ledger.now() < row.accept_deadline:
                found.in_doubt.append(f"{row}: a worker may just be sending it")
                return
            row = ledger.move(row, State.IN_DOUBT, why="found sending, without its sender")
        if row.state == State.HELD:
            raise Held(held_message(row))
        row = await resolve(ledger, row, restoring.probe())
    except Held as error:
        found.held.append(str(error))
    except AuthError as error:
        found.refused = str(error)
        found.in_doubt.append(str(row))
    except WaybillError as error:
        found.in_doubt.append(str(error))
    if row.state == State.SENT:
        found.repaired.append(f"{row}: found as restore request {row.external_id}")


def _repair(restoring: Restoring, row: Submission, found: TakenUp) -> None:
    """Also where MongoDB was restored from an older copy: a file of an open request is not free to be asked for."""
    tracking, key = restoring.tracking, row.business_key
    known = tracking.requests(key=key)
    if known and known[0].state not in (*UNSENT_REQUESTS, *NOT_READY):
        return
    if known and known[0].state in NOT_READY:
        sent = tracking.files(claim=key, states=(FileState.REQUESTING,))
        free = tracking.files(ids=list(row.detail["ids"]), states=CLAIMABLE)
        if next(sent, None) is None and next(free, None) is None:
            return
    restoring.accepted(row)
    found.repaired.append(f"restore request {row.external_id}")


def _settle_claims(restoring: Restoring, found: TakenUp) -> None:
    """Files claimed by a request that the ledger does not know, or that has ended: accepted, or not."""
    tracking = restoring.tracking
    claims = {str(file.claim) for file in tracking.files(states=(FileState.REQUESTING,))}
    claims |= {one.key for one in tracking.requests((RequestState.INTENT, RequestState.DOUBTFUL))}
    rows = restoring.ledger.latest(SYSTEM, KIND, sorted(claims))
    for claim in sorted(claims):
        last = rows[claim][-1] if rows.get(claim) else None
        known = tracking.requests(key=claim)
        ended = bool(known) and known[0].state in ENDED_REQUESTS
        if last is not None and last.state == State.DONE and not ended:
            restoring.accepted(last)  # ready once, by a request that MongoDB has forgotten: JDP is asked what is left
            found.repaired.append(f"restore request {last.external_id}")
        elif last is None or last.state in (*NOT_ACCEPTED, State.DONE):
            why = "the ledger knows of no such request" if last is None else f"its request has ended ({last.state})"
            if count := restoring.abort(claim, why):
                found.repaired.append(f"{claim}: {count} files are planned anew, since {why}")


async def _statuses(restoring: Restoring, found: TakenUp) -> None:
    """What JDP says of each open request: expired ones give their files back."""
    for request in _numbered(restoring.tracking.requests(OPEN_REQUESTS)):
        try:
            status = await restoring.jdp.status(int(request.request_id or 0))
        except AuthError as error:
            found.refused = str(error)
            return
        except WaybillError as error:
            found.failed.append(str(error))
            if isinstance(error, TransientError):
                return  # JDP is away: the others would only be waited for in vain
            continue
        rows = restoring.ledger.generations(SYSTEM, KIND, request.key)
        why = gone(status, rows[-1], restoring.ledger.now()) if rows else "the ledger does not know it"
        if why:
            limits = restoring.account.limits
            if rows:
                expire(restoring.tracking, restoring.ledger, rows[-1], limits, why)
            else:
                give_up(restoring.tracking, request.key, limits, why)
            found.expired.append(f"restore request {request.request_id}: {why}")
        elif status is not None:
            facts = {"jdp_status": status.status, "expires_at": status.expires_at}
            restoring.tracking.note_request(request.key, **facts)
            if status.status in SEEN and request.state != RequestState.READY:
                before = (RequestState.SENT, RequestState.NEW)
                restoring.tracking.move_request(request.key, before, SEEN[status.status])


def _numbered(requests: Iterable[TrackedRequest]) -> list[TrackedRequest]:
    return [one for one in requests if one.request_id]
