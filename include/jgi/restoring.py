"""Asks JDP to restore files from tape: each file in one request at a time, each request once, never more than the window.

Read it in this order: `Restoring.ask` sends one planned request; `Restoring.search` looks for one whose answer was lost;
`believe` and `expire` say what became of its files.

Invariant: files are claimed in MongoDB before the intent is written, and the intent before the request leaves. What a crash
leaves behind between two of these steps is put right from the ledger (`take_up`), never guessed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol

from include.core.errors import AuthError, ConflictingRequest, RemoteError, RequestError, WaybillError
from include.core.ledger import (
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
from include.jgi.documents import TrackedRequest
from include.jgi.jdp import JdpClient
from include.jgi.manifest import ManifestRow
from include.jgi.models import FileState, Limits, RequestState, StagedFile
from include.jgi.tracking import Tracking

SYSTEM, KIND = "jdp", "restore"
VISIBLE_WITHIN_SECONDS = 48 * 3600.0  # a request's folder appears when its files are on disk: "up to 24 hours"
NOT_READY = (RequestState.SENT, RequestState.NEW, RequestState.PENDING)
OPEN_REQUESTS = (*NOT_READY, RequestState.READY)
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
        seen = self._last_generation(key)  # before the claim: who claims has seen that the files are not on disk
        won = self.tracking.claim(ids, key)
        if sorted(won) != ids:
            self.tracking.release(key, FileState.PLANNED, "another request has files of this one")
            raise ConflictingRequest(
                f"{len(ids) - len(won)} of {len(ids)} files belong to another restore request: plan anew"
            )
        if next(self.tracking.files(claim=key, states=STILL_WANTED), None) is not None:
            return self.ledger.generations(SYSTEM, KIND, key)[-1]  # another worker has sent it meanwhile
        size = sum(file.size_bytes for file in files)
        names = sorted({file.project for file in files})
        self.tracking.put_request(
            TrackedRequest(key, RequestState.INTENT, ids=len(ids), size_bytes=size, project=", ".join(names)[:200])
        )
        self.tracking.move_request(key, RequestState.ABORTED, RequestState.INTENT, "asked for after all")
        try:
            row = await submit_once(
                self.ledger,
                self._intent(key, ids, size, names),
                send=self._send,
                probe=self.probe(),
                quota=self.account.quota,
                seen_absent=seen,
            )
        except AuthError:
            raise  # nothing was sent, and nothing is wrong with the files: the intent waits for a credential
        except (RequestError, RemoteError) as error:
            self._refused(key, error)
            raise
        self.accepted(row)
        return row

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

    def _last_generation(self, key: str) -> int:
        rows = self.ledger.generations(SYSTEM, KIND, key)
        return rows[-1].generation if rows else 0

    async def _send(self, row: Submission, fence: SendFence) -> Sent:
        accepted = await self.jdp.request_restore(
            row.detail["ids"], globus_user=self.account.globus_user, mail_to=self.account.mail_to, fence=fence
        )
        facts = {"restored_count": accepted.restored_count, "updated_count": accepted.updated_count}
        return Sent(str(accepted.request_id), facts)

    def _refused(self, key: str, error: WaybillError) -> None:
        """JDP will not take this request: its files are planned anew, or held once their attempts are used up."""
        rows = self.ledger.generations(SYSTEM, KIND, key)
        if not rows or rows[-1].state != State.REJECTED:
            return
        self.tracking.move_request(key, RequestState.INTENT, RequestState.ABORTED, str(error))
        again(self.tracking, self.account.limits, key, (FileState.REQUESTING,), f"JDP refused it: {error}")

    def accepted(self, row: Submission) -> None:
        """Writes into MongoDB what the ledger knows of an accepted request; may be repeated."""
        key, request_id = row.business_key, int(row.external_id or 0)
        ids = list(row.detail["ids"])
        sent_at = datetime.fromtimestamp(row.sending_at or row.reserved_at, UTC)
        self.tracking.put_request(
            TrackedRequest(key, RequestState.INTENT, ids=len(ids), size_bytes=row.size_bytes, sent_at=sent_at)
        )
        before = (RequestState.INTENT, RequestState.DOUBTFUL)
        self.tracking.move_request(key, before, RequestState.SENT, request_id=request_id, sent_at=sent_at)
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
        ids = set(row.detail["ids"])
        numbers = [str(number) for number in await self.folders.request_ids()]
        unknown = sorted(set(numbers) - self.ledger.known(SYSTEM, KIND, numbers))
        found = []
        for number in unknown:
            status = await self.jdp.status(int(number))
            if status is not None and set(status.file_ids) == ids:
                found.append(number)
        return RemoteSearch(tuple(found), complete=True, remote_now=self.jdp.remote_now or self.ledger.now())


# -- what became of a request -----------------------------------------------------------------------------------------


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
    key = row.business_key
    count = 0
    wanted = [file.jdp_file_id for file in tracking.files(claim=key, states=STILL_WANTED)]
    waiting = {one.jdp_file_id for one in tracking.placements(ids=wanted) if not one.settled} if wanted else set()
    open_ids = [one for one in wanted if one in waiting]
    if open_ids:
        tracking.move_files(open_ids, STILL_WANTED, FileState.EXPIRED, why, claim=key)
        count = again(tracking, limits, key, (FileState.EXPIRED,), why, open_ids)
    tracking.move_request(key, OPEN_REQUESTS, RequestState.EXPIRED, why)
    if row.state == State.SENT:
        ledger.move(row, State.FAILED, why=why)
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
    held = f"{why}; it was asked for {limits.max_attempts} times: look at it at JDP, then set its state to PLANNED"
    tracking.move_files(spent, states, FileState.HELD, held, attempt=True)
    return len(files)
