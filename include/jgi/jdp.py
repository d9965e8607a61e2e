"""The JGI Data Portal: search, restore requests and their status, files by id (docs/protocols/jgi.md 2).

Invariant: `_id` (24 hex digits) names a file everywhere; a word of JDP that is not known means "ask again", never an error.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from include.core.errors import AuthError, TransientError
from include.core.http import Credential, HttpClient, usable_secret
from include.core.http_body import Downloaded
from include.core.http_reply import parse_answer
from include.core.ledger import SendFence
from include.jgi.models import is_file_id

PAGE_GROUPS = 50  # organism groups of one page of search: more is refused
BY_IDS = 50  # file ids of one look-up
SEARCH = {"f": "project_id", "a": "false", "h": "false", "d": "asc", "api_version": "2", "include_private_data": "1"}
REQUESTS = "/request_archived_files/requests"
RUNNING, READY, EXPIRED = ("new", "pending"), "ready", "expired"


@dataclass(frozen=True)
class SessionToken:
    """The token that a person copies from JDP's page, with or without `Bearer `; or a partner's `Token <orcid>_<secret>`.

    It cannot be refreshed: refused, it is renewed by a person.
    """

    token: str = field(repr=False)

    async def credential(self, client: HttpClient, *, refresh: bool) -> Credential:
        token = usable_secret(self.token, client.where)
        scheme, _, bare = token.rpartition(" ")
        scheme = scheme.strip() or "Bearer"
        scheme = "Bearer" if scheme.lower() == "bearer" else scheme
        return Credential({"Authorization": f"{scheme} {bare}"}, (bare,))


@dataclass(frozen=True, slots=True)
class FoundFile:
    """One file as search shows it. `groups`: the organism groups that show it; `seq_units` name its raw data."""

    jdp_file_id: str
    file_name: str
    size_bytes: int
    status: str
    md5: str | None
    purge_at: datetime | None
    file_type: tuple[str, ...]
    seq_units: tuple[str, ...]
    analysis_ids: tuple[int, ...]
    groups: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RequestStatus:
    """What JDP says of a restore request, as a whole: there is no status of single files in it."""

    request_id: int
    status: str
    file_ids: tuple[str, ...]
    expires_at: datetime | None


@dataclass(frozen=True, slots=True)
class AcceptedRequest:
    """JDP's answer to a restore request: files on the tape queue, and files on disk whose purge was put off."""

    request_id: int
    restored_count: int | None
    updated_count: int | None


class JdpClient(HttpClient):
    """Typed calls of JDP. `remote_now` is JDP's clock after any answer."""

    async def now(self) -> float:
        """JDP's clock, by an answer of now. Raises TransientError where its answers bear no date."""
        what = "JDP's clock"
        self.remote_now = None
        await self.get("/search/", what=what, params={**SEARCH, "q": "0", "x": "1", "p": "1"})
        now: float | None = self.remote_now
        if now is None:
            raise TransientError(f"{what}: the answers of {self.where} bear no Date header")
        return now

    async def search(self, its_ap_id: int) -> list[FoundFile]:
        """All files of an analysis project, each once, all pages.

        Raises TransientError where JDP shows fewer files than it says there are: the listing moved meanwhile.
        """
        what = f"search of analysis project {its_ap_id}"
        found: dict[str, FoundFile] = {}
        total = seen = 0
        async for page in self._pages(its_ap_id, what):
            total = parse_answer(lambda answer: int(answer["file_total"]), page, what)
            files = parse_answer(files_of, page, what)
            seen += len(files)
            for file in files:
                found[file.jdp_file_id] = merged(found.get(file.jdp_file_id), file)
        if seen < total and len(found) < total:
            raise TransientError(f"{what}: JDP says {total} files and shows {seen}, {len(found)} of them different")
        return list(found.values())

    async def _pages(self, its_ap_id: int, what: str) -> AsyncIterator[Any]:
        params = {**SEARCH, "q": str(its_ap_id), "x": str(PAGE_GROUPS)}
        number = 1
        while True:
            page = await self.read("/search/", what=what, params={**params, "p": str(number)})
            yield page
            if not parse_answer(lambda answer: bool(answer.get("next_page")), page, what):
                return
            number += 1

    async def by_ids(self, ids: Sequence[str]) -> dict[str, FoundFile]:
        """Files by id, as they are now; those that JDP does not list are left out."""
        found: dict[str, FoundFile] = {}
        for start in range(0, len(ids), BY_IDS):
            chunk = list(ids[start : start + BY_IDS])
            what = f"look-up of {len(chunk)} files"
            body = {"ids": chunk, "aggregations": False, "include_private_data": 1}
            answer = await self.write_again("/search/by_file_ids/", what=what, json=body)
            for file in parse_answer(files_of, answer, what):
                if file.jdp_file_id in chunk:
                    found[file.jdp_file_id] = merged(found.get(file.jdp_file_id), file)
        return found

    async def request_restore(
        self, ids: Sequence[str], *, globus_user: str, mail_to: str, fence: SendFence
    ) -> AcceptedRequest:
        """POST a restore request, once. JDP takes no key of ours: what is not answered is in doubt."""
        what = f"a restore request for {len(ids)} files"
        body = {
            "ids": list(ids),
            "api_version": "2",
            "send_mail": "true" if mail_to else "false",
            "restore_related_ap_data": "false",
            "globus_user_name": globus_user,
            "href": f"mailto: {mail_to}",
        }
        answer = await self.write("/download_files/", what=what, json=body, fence=fence)
        return parse_answer(_accepted, answer, what)

    async def status(self, request_id: int, *, by_anyone: bool = False) -> RequestStatus | None:
        """The status of one restore request; None where JDP knows no such request.

        JDP shows it to anyone, but refuses a token that is not good. `by_anyone`: then it is asked without one, so that a session
        that has ended keeps nothing from being moved.
        """
        what = f"restore request {request_id}"
        asked: dict[str, Any] = {"what": what, "params": {"api_version": "1"}, "answers": (404,)}
        try:
            reply = await self.get(f"{REQUESTS}/{request_id}", **asked)
        except AuthError:
            if not by_anyone:
                raise
            reply = await self.get(f"{REQUESTS}/{request_id}", **asked, signed=False)
        return None if reply.status == 404 else parse_answer(_status, reply.json(), what)

    async def download_file(self, file: FoundFile, target: Path) -> Downloaded:
        """The bytes of one file on JDP's disk, without Globus. Raises RemoteError where it is on tape alone (409)."""
        what = f"file {file.file_name}"
        path = f"/download_files/{file.jdp_file_id}/"
        return await self.download(path, target, what=what, limit_bytes=file.size_bytes, size_bytes=file.size_bytes)


def files_of(answer: Any) -> list[FoundFile]:
    """The files of one page of search, as often as it shows them."""
    return [_file(row, str(group.get("id") or "")) for group in answer["organisms"] for row in group.get("files") or ()]


def _file(row: dict[str, Any], group: str) -> FoundFile:
    metadata = row.get("metadata") or {}
    name = str(row["_id"])
    if not is_file_id(name):
        raise ValueError(f"{name!r} is no file id")
    return FoundFile(
        jdp_file_id=name,
        file_name=str(row["file_name"]),
        size_bytes=_bytes(row["file_size"]),
        status=str(row.get("file_status") or ""),
        md5=str(row.get("md5sum") or "").lower() or None,
        purge_at=instant_of(row.get("dt_to_purge")),
        file_type=_texts(row.get("file_type")),
        seq_units=_texts(metadata.get("seq_unit_name")),
        analysis_ids=tuple(int(float(one)) for one in _texts(metadata.get("analysis_project_id"))),
        groups=(group,) if group else (),
    )


def merged(one: FoundFile | None, other: FoundFile) -> FoundFile:
    """The same file from two groups."""
    if one is None or one.groups == other.groups:
        return other
    facts = {name: getattr(other, name) for name in FoundFile.__slots__}
    facts["groups"] = tuple(dict.fromkeys(one.groups + other.groups))
    facts["analysis_ids"] = tuple(dict.fromkeys(one.analysis_ids + other.analysis_ids))
    facts["seq_units"] = tuple(dict.fromkeys(one.seq_units + other.seq_units))
    return FoundFile(**facts)


def _accepted(answer: Any) -> AcceptedRequest:
    counts = {
        name: None if answer.get(name) is None else int(answer[name]) for name in ("restored_count", "updated_count")
    }
    return AcceptedRequest(request_id=int(answer["request_id"]), **counts)


def _status(answer: Any) -> RequestStatus:
    ids = tuple(str(one) for one in answer.get("file_ids") or ())
    expires = answer.get("expiration_date")
    return RequestStatus(int(answer["request_id"]), str(answer.get("status") or ""), ids, instant_of(expires))


def instant_of(text: Any) -> datetime | None:
    """`expiration_date` has an offset; `dt_to_purge` has none and is read as UTC, the earlier reading in California. What is
    no date is none."""
    found = _date(text)
    return found.replace(tzinfo=UTC) if found is not None and found.tzinfo is None else found


def _date(text: Any) -> datetime | None:
    try:
        return datetime.fromisoformat(str(text)) if text else None
    except ValueError:
        return None


def _bytes(value: Any) -> int:
    """A size that may come as 44000 or 44000.0."""
    size = float(value)
    if size < 0 or size != int(size):
        raise ValueError(f"{value!r} is no size in bytes")
    return int(value) if isinstance(value, int) else int(size)


def _texts(value: Any) -> tuple[str, ...]:
    """A text, a number, a list of them, or nothing."""
    if value is None or value == "":
        return ()
    return tuple(str(one) for one in value) if isinstance(value, list | tuple) else (str(value),)
