"""Asks JDP to restore files from tape: each file in one request at a time, each request once, never more than the window.

Read it in this order: `Restoring.ask` sends one planned request; `Restoring.search` looks for one whose answer was lost;
`believe` and `expire` say what became of its files.

Invariant: files are claimed in MongoDB before the intent is written, and the intent before the request leaves. What a crash
leaves behind between two of these steps is put right from the ledger (`take_up`), never guessed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol

from include.core.errors import ConflictingRequest, NotFound, RequestError, WaybillError
from include.core.ledger import (
    OPEN,
    Intent,
    Ledger,
    Owner,
    Probe,
    Quota,
    RemoteSearch,
    SendFence,
    Sent,
    State,
    Submission,
    submit_once,
)
from include.core.text import printable
from include.jgi.documents import TrackedRequest
from include.jgi.jdp import EXPIRED, JdpClient, RequestStatus
from include.jgi.manifest import ManifestRow
from include.jgi.models import FileState, Limits, RequestState, StagedFile
from include.jgi.tracking import Tracking

SYSTEM, KIND = "jdp", "restore"
VISIBLE_WITHIN_SECONDS = 48 * 3600.0  # a request's folder appears when its files are on disk: "up to 24 hours"
NOT_READY = (RequestState.SENT, RequestState.NEW, RequestState.PENDING)
OPEN_REQUESTS = (*NOT_READY, RequestState.READY)
UNSENT_REQUESTS = (RequestState.INTENT, RequestState.DOUBTFUL, RequestState.ABORTED)
ENDED_REQUESTS = (RequestState.ABORTED, RequestState.DRAINED, RequestState.EXPIRED)
NOT_ACCEPTED = (State.CANCELLED, State.REJECTED, State.FAILED)
STILL_WANTED = (FileState.QUEUED, FileState.ON_DISK)


class RequestFolders(Protocol):
    """Looks at our root on JGI's collection."""

    async def request_ids(self) -> list[int]:
        """The numbers of all `R<id>` folders. Raises where the listing is not whole."""


@dataclass(frozen=True)
class JdpAccount:
    """Whose window it is, and with whom JGI shares what is restored: from connection waybill_jdp."""

    name: str
    globus_user: str
    mail_to: str = ""
    limits: Limits = field(default_factory=Limits)

    @property
    def quota(self) -> Quota:
        """A doubt that is older than a window counts no more: even if JDP accepted it, that window is over."""
        limits = self.limits
        return Quota(limits.window_bytes, limits.window_seconds, limits.margin_seconds, doubt_expires=True)


def request_key(files: Collection[StagedFile]) -> str:
    """Names the effect: these files on disk, at this attempt of each."""
    text = "\n".join(sorted(f"{file.jdp_file_id} {file.attempts}" for file in files))
    return "restore-" + hashlib.sha256(text.encode()).hexdigest()[:20]


def request_number(row: Submission) -> int:
    """JDP's number of an accepted request; a person may have written it as its folder is called (R473828)."""
    found = re.fullmatch(r"R?([0-9]+)", row.external_id or "")
    if found is None:
        raise RequestError(
            f"{row} was given the id {printable(row.external_id, 40)}, which is no number of a restore request"
        )
    return int(found.group(1))


@dataclass(frozen=True)
class Restoring:
    jdp: JdpClient
    ledger: Ledger
    tracking: Tracking
    account: JdpAccount
    folders: RequestFolders
    owner: Owner

    async def ask(self, files: Sequence[StagedFile]) -> Submission:
        """Asks for these files in one request, and returns its row.

        Raises ConflictingRequest where another request has one of them, QuotaExceeded where they do not fit into the window
        now, and what `submit_once` raises. After a refusal its files are planned anew, with one attempt less.
        """
        key = request_key(files)
        ids = sorted(file.jdp_file_id for file in files)
        if len(ids) > self.account.limits.request_ids:
            raise RequestError(
                f"{len(ids)} files are more than the {self.account.limits.request_ids} of one restore request"
            )
        rows = self.ledger.generations(SYSTEM, KIND, key)
        seen = rows[-1].generation if rows else 0  # looked at before the claim, which finds that no file is on disk
        claimed = self._claim(files, key)
        size = sum(file.size_bytes for file in files)
        names = sorted({file.project for file in files})
        if any(one.state in STILL_WANTED for one in claimed):
            rows = self.ledger.generations(SYSTEM, KIND, key)
            if rows:
                return rows[-1]  # another worker has sent it meanwhile
        intent = TrackedRequest(key, RequestState.INTENT, ids=len(ids), size_bytes=size, project=", ".join(names)[:200])
        self.tracking.put_request(intent)
        self.tracking.begin_request_again(key, ENDED_REQUESTS)
        try:
            row = await submit_once(
                self.ledger,
                self._intent(key, ids, size, names),
                send=self._send,
                probe=self.probe(),
                quota=self.account.quota,
                seen_absent=seen,
            )
        except WaybillError as error:
            with suppress(WaybillError):  # where a database or JDP is away: `take_up` does the rest
                if isinstance(error, NotFound):
                    await self._lost(key, ids)
                self._not_sent(key, error)
            raise
        self.accepted(row)
        return row

    def _claim(self, files: Sequence[StagedFile], key: str) -> list[StagedFile]:
        """Claims all of them, as they were planned, or none. Raises ConflictingRequest."""
        planned = {file.jdp_file_id: file.attempts for file in files}
        claimed = self.tracking.claim(list(planned), key)
        changed = [one.jdp_file_id for one in claimed if one.attempts != planned[one.jdp_file_id]]
        if len(claimed) == len(planned) and not changed:
            return claimed
        why = "another restore request has had files of this one"
        self.tracking.move_files(changed, FileState.REQUESTING, FileState.PLANNED, why, claim=key)
        rows = self.ledger.generations(SYSTEM, KIND, key)
        if not rows or rows[-1].state not in OPEN:
            self.tracking.release(key, FileState.PLANNED, why)
        count = len(planned) - len(claimed) + len(changed)
        raise ConflictingRequest(
            f"{count} of {len(planned)} files belong to another restore request, or have been in one since: plan anew"
        )

    def _intent(self, key: str, ids: list[str], size: int, projects: list[str]) -> Intent:
        digest = hashlib.sha256("\n".join(ids).encode()).hexdigest()
        return Intent(
            system=SYSTEM,
            kind=KIND,
            business_key=key,
            payload={"ids_sha256": digest, "ids": len(ids), "globus_user": self.account.globus_user},
            owner=self.owner,
            size_bytes=size,
            detail={"ids": ids, "files": len(ids), "projects": projects},
            account=self.account.name,
        )

    async def _send(self, row: Submission, fence: SendFence) -> Sent:
        accepted = await self.jdp.request_restore(
            row.detail["ids"], globus_user=self.account.globus_user, mail_to=self.account.mail_to, fence=fence
        )
        facts = {"restored_count": accepted.restored_count, "updated_count": accepted.updated_count}
        return Sent(str(accepted.request_id), facts)

    def _not_sent(self, key: str, error: WaybillError) -> None:
        """What an error of `submit_once` leaves: what was certainly not accepted is planned anew, the rest is in doubt."""
        rows = self.ledger.generations(SYSTEM, KIND, key)
        last = self._withdrawn(rows[-1]) if rows and rows[-1].state == State.RESERVED else rows[-1] if rows else None
        if last is not None and last.state == State.REJECTED:
            self.tracking.move_request(key, RequestState.INTENT, RequestState.ABORTED, str(error))
            again(self.tracking, self.account.limits, key, (FileState.REQUESTING,), f"JDP refused it: {error}")
        elif last is None or last.state in NOT_ACCEPTED:
            self.abort(key, f"it was not sent: {error}")
        else:
            self.tracking.move_request(key, RequestState.INTENT, RequestState.DOUBTFUL, "its answer was lost")

    async def _lost(self, key: str, ids: Sequence[str]) -> None:
        """JDP refuses a request whole where it does not know one of its files: that one is left out, the others are no worse."""
        known = await self.jdp.by_ids(ids)
        lost = [one for one in ids if one not in known]
        if lost:
            self.tracking.move_files(
                lost, FileState.REQUESTING, FileState.LOST, "JDP does not list it any more", claim=key
            )
            self.tracking.release(key, FileState.PLANNED, "JDP refused a request with a file that it does not know")

    def withdraw(self, row: Submission) -> bool:
        """Takes back an intent whose request never left: its files are planned anew, since the plan of today may be another.
        False where another worker is just sending it."""
        if self._withdrawn(row).state != State.CANCELLED:
            return False
        self.abort(row.business_key, "its request was never sent")
        return True

    def _withdrawn(self, row: Submission) -> Submission:
        return self.ledger.move(row, State.CANCELLED, why="never sent; its files are planned anew")

    def abort(self, key: str, why: str) -> int:
        """Ends a request that JDP has not accepted. Returns how many files are planned anew."""
        count = self.tracking.release(key, FileState.PLANNED, why)
        ended = self.tracking.move_request(key, (RequestState.INTENT, RequestState.DOUBTFUL), RequestState.ABORTED, why)
        return count + ended

    def accepted(self, row: Submission) -> None:
        """Writes into MongoDB what the ledger knows of an accepted request; may be repeated. Raises RequestError where
        its id is no number."""
        key, request_id = row.business_key, request_number(row)
        ids = list(row.detail["ids"])
        sent_at = datetime.fromtimestamp(row.sending_at or row.reserved_at, UTC)
        self.tracking.put_request(
            TrackedRequest(key, RequestState.INTENT, ids=len(ids), size_bytes=row.size_bytes, sent_at=sent_at)
        )
        self.tracking.move_request(key, UNSENT_REQUESTS, RequestState.SENT, request_id=request_id, sent_at=sent_at)
        self.tracking.claim(ids, key)
        why = f"restore request {request_id}"
        self.tracking.move_files(ids, FileState.REQUESTING, FileState.QUEUED, why, claim=key, request_id=request_id)

    # -- a request whose answer was lost ----------------------------------------------------------------------------

    def probe(self) -> Probe:
        """The search can only find: JDP has no list of requests, and a folder comes with the files."""
        timeout = self.jdp.policy.timeout_seconds
        return Probe(self.search, VISIBLE_WITHIN_SECONDS, timeout, proves_absence=False)

    async def search(self, row: Submission) -> RemoteSearch:
        """Folders of our own root that no row has, whose request holds exactly these files."""
        ids, remote_now = set(row.detail["ids"]), await self.jdp.now()
        numbers = [str(number) for number in await self.folders.request_ids()]
        unknown = sorted(set(numbers) - self.ledger.known(SYSTEM, KIND, numbers))
        found = []
        for number in unknown:
            status = await self.jdp.status(int(number))
            if status is not None and set(status.file_ids) == ids:
                found.append(number)
        return RemoteSearch(tuple(found), complete=True, remote_now=remote_now)


# -- what became of a request -----------------------------------------------------------------------------------------


def gone(status: RequestStatus | None, row: Submission, now: float) -> str:
    """Why nothing of a request is to be had any more, "" while it is. A number that JDP does not show is waited for as long as a
    young one may be hidden. `now` by the ledger's clock, which has the instant of sending too."""
    if status is not None:
        return "JDP took its files off the disk" if status.status == EXPIRED else ""
    young = now - (row.sending_at or row.reserved_at) < VISIBLE_WITHIN_SECONDS
    return "" if young else "JDP does not know it any more"


def believe(
    tracking: Tracking, ledger: Ledger, row: Submission, rows: Collection[ManifestRow], limits: Limits
) -> tuple[list[str], list[str]]:
    """Ready, by its manifest: files that it lists are on disk, others are planned anew. Returns (listed, missing) ids."""
    ids = list(row.detail["ids"])
    listed = {one.jdp_file_id for one in rows}
    there = [one for one in ids if one in listed]
    missing = [one for one in ids if one not in listed]
    key = row.business_key
    tracking.move_request(key, NOT_READY, RequestState.READY)
    tracking.move_files(there, FileState.QUEUED, FileState.ON_DISK, "its manifest lists it", claim=key)
    again(tracking, limits, key, (FileState.QUEUED,), "JDP said ready, and its manifest does not list it", missing)
    if row.state == State.SENT:
        ledger.move(row, State.DONE, why=f"ready: {len(there)} of {len(ids)} files are in its manifest")
    return there, missing


def expire(tracking: Tracking, ledger: Ledger, row: Submission, limits: Limits, why: str) -> int:
    """JDP took the request's files off its disk, or does not know it: what has not arrived is planned anew."""
    count = give_up(tracking, row.business_key, limits, why)
    if row.state == State.SENT:
        ledger.move(row, State.FAILED, why=why)
    return count


def give_up(tracking: Tracking, key: str, limits: Limits, why: str) -> int:
    """Plans anew what a request has not brought, and ends it. Returns how many files that are."""
    wanted = [file.jdp_file_id for file in tracking.files(claim=key, states=STILL_WANTED)]
    places = list(tracking.placements(ids=wanted))
    arrived = {one.jdp_file_id for one in places} - {one.jdp_file_id for one in places if not one.settled}
    open_ids = [one for one in wanted if one not in arrived]
    count = 0
    if open_ids:
        tracking.move_files(open_ids, STILL_WANTED, FileState.EXPIRED, why, claim=key)
        count = again(tracking, limits, key, (FileState.EXPIRED,), why, open_ids)
    tracking.move_request(key, OPEN_REQUESTS, RequestState.EXPIRED, why)
    return count


def again(
    tracking: Tracking,
    limits: Limits,
    claim: str,
    states: Collection[FileState],
    why: str,
    ids: Collection[str] | None = None,
) -> int:
    """Plans a claim's files anew; those whose attempts are used up are held, for a person. Returns how many it concerns."""
    files = [one for one in tracking.files(claim=claim, states=states) if ids is None or one.jdp_file_id in ids]
    if FileState.EXPIRED in states and ids:  # their claim has ended with their state
        files = list(tracking.files(ids=list(ids), states=states))
    spent = [one.jdp_file_id for one in files if one.attempts + 1 >= limits.max_attempts]
    rest = [one.jdp_file_id for one in files if one.attempts + 1 < limits.max_attempts]
    tracking.move_files(rest, states, FileState.PLANNED, why, attempt=True)
    look = "look at it at JDP, then set its state to PLANNED and its attempts to 0"
    held = f"{why}; it was asked for {limits.max_attempts} times: {look}"
    tracking.move_files(spent, states, FileState.HELD, held, attempt=True)
    return len(files)
