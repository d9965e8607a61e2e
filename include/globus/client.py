"""The dozen calls of Globus Transfer that a batch needs, over globus-sdk (docs/protocols/globus.md).

The SDK blocks, so triggers and tasks use these calls through `asyncio.to_thread`, one client per wait. It repeats by itself what
reads; a submission is sent once, and the ledger decides what follows (a submission_id makes a repetition harmless).

Invariant: every call ends: connecting and each silence are bounded by `timeout_seconds`, the whole of an exchange by twice
that, and retries are counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from include.core.errors import (
    AuthError,
    Forbidden,
    NotFound,
    RemoteError,
    RequestError,
    TransientError,
    WaybillError,
    error_for_status,
)
from include.core.http import Conflict
from include.core.ledger import SendFence
from include.core.text import hiding, printable
from include.globus.bounded import bounded_transport, within

if TYPE_CHECKING:
    from globus_sdk import GlobusAPIError, TransferClient
    from globus_sdk.authorizers import GlobusAuthorizer

T = TypeVar("T")
READ_RETRIES = 4
PAGE = 1000


@dataclass(frozen=True, slots=True)
class Task:
    """A Globus task as it is now. `ended`: it will not change any more."""

    task_id: str
    status: str  # ACTIVE INACTIVE SUCCEEDED FAILED
    nice_status: str
    nice_details: str
    label: str
    is_paused: bool
    files: int
    files_transferred: int
    files_skipped: int
    bytes_transferred: int
    faults: int
    fatal_code: str
    fatal_text: str
    canceled: bool
    deadline: datetime | None
    history_deleted: bool

    @property
    def ended(self) -> bool:
        return self.status in ("SUCCEEDED", "FAILED")

    @property
    def end(self) -> str:
        """How it ended, for people."""
        return f"{self.status} ({self.fatal_code}: {self.fatal_text})" if self.fatal_code else self.status


@dataclass(frozen=True, slots=True)
class Moved:
    """One file that a finished task really moved."""

    source: str
    destination: str
    size_bytes: int | None
    checksum: str | None
    algorithm: str | None


@dataclass(frozen=True, slots=True)
class Skipped:
    """One file that a finished task left out, since its source could not be read."""

    source: str
    destination: str
    code: str


@dataclass(frozen=True, slots=True)
class Listed:
    """One entry of a folder."""

    name: str
    is_folder: bool
    size_bytes: int


@dataclass(frozen=True, slots=True)
class CollectionInfo:
    """A collection: its name for people, and whether files can be read over HTTPS."""

    id: str
    name: str
    https_server: str


class GlobusClient:
    """Sync client. `name` is the id of the connection, for messages. `data_access`: mapped collections that need that consent.
    `base_url`: of a simulator, which is Auth and Transfer in one.

    Raises Waybill's errors. Use as a context manager, or `close` it.
    """

    def __init__(
        self,
        client_id: str,
        client_secret: str,
        *,
        name: str = "",
        data_access: Sequence[str] = (),
        timeout_seconds: float = 60.0,
        read_retries: int = READ_RETRIES,
        base_url: str | None = None,
    ):
        if not client_id.strip() or not client_secret.strip():
            raise AuthError(f"connection {name} has no client id (login) or no client secret (password): enter both")
        self.where = f"connection {name}" if name else "the connection"
        self.timeout_seconds = timeout_seconds
        self.remote_now: float | None = None
        self._readers: dict[str, GlobusAuthorizer] = {}
        self._hide = hiding([client_secret.strip()])
        self.name = name
        self._base_url = base_url
        self._client = self._build(client_id.strip(), client_secret.strip(), data_access, base_url, read_retries)

    def _build(
        self, client_id: str, client_secret: str, data_access: Sequence[str], base_url: str | None, read_retries: int
    ) -> TransferClient:
        import logging

        import globus_sdk
        from globus_sdk.scopes import GCSCollectionScopes, TransferScopes
        from globus_sdk.transport import RetryConfig

        for noisy in ("globus_sdk", "urllib3"):  # their lines hold headers and bodies, secrets included
            logging.getLogger(noisy).setLevel(logging.WARNING)
        scope = TransferScopes.all
        for collection in data_access:
            scope = scope.with_dependency(GCSCollectionScopes(collection).data_access)
        auth = self._auth = globus_sdk.ConfidentialAppAuthClient(
            client_id,
            client_secret,
            base_url=base_url,
            transport=bounded_transport(self.timeout_seconds),
            retry_config=RetryConfig(max_retries=2),
        )
        authorizer = _lazily(lambda: globus_sdk.ClientCredentialsAuthorizer(auth, scope))
        transport = bounded_transport(self.timeout_seconds)
        return globus_sdk.TransferClient(
            authorizer=authorizer,
            transport=transport,
            retry_config=RetryConfig(max_retries=read_retries),
            base_url=base_url,
        )

    def _authorizer_for(self, collection_id: str) -> GlobusAuthorizer:
        """One whose tokens are good for reading this collection over HTTPS, and for nothing else."""
        import globus_sdk
        from globus_sdk.scopes import GCSCollectionScopes

        if collection_id not in self._readers:
            scope = GCSCollectionScopes(collection_id).https
            self._readers[collection_id] = _lazily(lambda: globus_sdk.ClientCredentialsAuthorizer(self._auth, scope))
        return self._readers[collection_id]

    def __enter__(self) -> GlobusClient:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._client.close()

    # -- collections ------------------------------------------------------------------------------------------------

    def collection(self, collection_id: str) -> CollectionInfo:
        """Raises NotFound where there is no such collection."""

        def read(found: Any) -> CollectionInfo:
            name = found.get("display_name") or found.get("canonical_name") or ""
            return CollectionInfo(str(found["id"]), str(name), str(found.get("https_server") or ""))

        return self._call(f"collection {collection_id}", lambda: self._client.get_endpoint(collection_id), read)

    def listing(self, collection_id: str, folder: str) -> list[Listed]:
        """What a folder shows. Private files may be missing though they can be transferred. Raises NotFound."""
        what = f"listing {folder} of collection {collection_id}"
        return self._call(
            what,
            lambda: self._client.operation_ls(collection_id, path=folder),
            lambda found: [_listed(one) for one in found["DATA"]],
        )

    def stat(self, collection_id: str, path: str) -> Listed | None:
        """One file or folder; None where there is none."""
        what = f"looking for {path} of collection {collection_id}"
        try:
            return self._call(what, lambda: self._client.operation_stat(collection_id, path=path), _listed)
        except NotFound:
            return None

    def read(self, collection_id: str, path: str, *, limit_bytes: int) -> bytes:
        """A small file, over the collection's own HTTPS address. Raises NotFound; RequestError where the collection has no
        such address; RemoteError where the file is larger."""
        what = f"{path} of collection {collection_id}"
        place = self.collection(collection_id).https_server
        if not place.startswith("https://" if self._base_url is None else "http"):
            raise RequestError(
                f"{what} cannot be read: the collection has no HTTPS address. Ask its administrator for one, or give "
                f"{self.where} the extra mount"
            )
        authorizer = self._authorizer_for(collection_id)
        url = f"{place.rstrip('/')}/{quote(path.lstrip('/'))}"
        status, data, location = self._fetched(what, authorizer, url, limit_bytes)
        if status == 401 and authorizer.handle_missing_authorization():
            status, data, location = self._fetched(what, authorizer, url, limit_bytes)
        if status != 200:
            raise error_for_status(status, what, where=self.where, location=location)
        if len(data) > limit_bytes:
            raise RemoteError(f"{what} has more than {limit_bytes} bytes: it is not what it should be")
        return data

    def _fetched(self, what: str, authorizer: GlobusAuthorizer, url: str, limit_bytes: int) -> tuple[int, bytes, str]:
        """Status, body up to one byte more than the limit, and where a redirect points to: none is followed with a token."""
        import globus_sdk
        import requests
        from globus_sdk.exc import NetworkError

        def bearer(request: Any) -> Any:
            request.headers["Authorization"] = authorizer.get_authorization_header()
            return request

        def get() -> tuple[int, bytes, str]:
            with requests.get(
                url, auth=bearer, timeout=self.timeout_seconds, stream=True, allow_redirects=False
            ) as answer:
                data = bytearray()
                for piece in answer.iter_content(65_536) if answer.status_code == 200 else ():
                    data += piece
                    if len(data) > limit_bytes:
                        break
                return answer.status_code, bytes(data), answer.headers.get("Location", "")

        try:
            return within(10 * self.timeout_seconds, get)
        except globus_sdk.AuthAPIError as error:
            raise self._no_token(what, error) from None
        except NetworkError as error:
            raise _no_answer(what, error) from None
        except requests.RequestException as error:
            raise TransientError(f"{what}: no answer over HTTPS ({type(error).__name__})") from None

    # -- tasks --------------------------------------------------------------------------------------------------------

    def submission_id(self) -> str:
        return self._call("a submission id", self._client.get_submission_id, lambda found: str(found["value"]))

    def submit(self, document: Mapping[str, Any], fence: SendFence) -> tuple[str, bool]:
        """POST a transfer document once; returns the task's id, and whether it had been submitted before.

        A 401 is proof of no effect, so the document is sent once more with a new token. Raises Conflict where a task with the
        same paths is at work.
        """
        what = f"transfer {document.get('label') or document['submission_id']}"

        def post() -> Any:
            fence()
            with self._client.retry_config.tune(max_retries=0):
                return self._client.post("/v0.10/transfer", data=dict(document))

        def read(found: Any) -> tuple[str, bool]:
            return str(found["task_id"]), found["code"] == "Duplicate"

        try:
            return self._call(what, post, read)
        except Forbidden:
            raise
        except AuthError:
            if not self._client.authorizer or not self._client.authorizer.handle_missing_authorization():
                raise
            return self._call(what, post, read)

    def task(self, task_id: str) -> Task | None:
        """A task as it is now; None where Globus does not know it (any more)."""
        try:
            return self._call(f"task {task_id}", lambda: self._client.get_task(task_id), _task)
        except NotFound:
            return None

    def tasks_of(self, key: str) -> list[Task]:
        """All tasks of ours whose label holds this key, newest first; `remote_now` is then when the search began."""
        rows = self._pages(f"tasks of {key}", self._client.paginated.task_list, filter=f"label:~*{key}*", limit=PAGE)
        return [task for task in map(_task, rows) if key in task.label.split()]

    def moved(self, task_id: str) -> list[Moved]:
        """The files that a finished task really moved; one that sync found identical is not among them."""
        rows = self._pages(f"files of task {task_id}", self._client.paginated.task_successful_transfers, task_id)
        return [_moved(row) for row in rows]

    def skipped(self, task_id: str) -> list[Skipped]:
        what = f"files left out of task {task_id}"
        rows = self._pages(what, self._client.paginated.task_skipped_errors, task_id)
        return [Skipped(str(one["source_path"]), str(one["destination_path"]), str(one["error_code"])) for one in rows]

    def pause_reason(self, task_id: str) -> str:
        """What an administrator says of a paused task."""

        def read(found: Any) -> str:
            said = [str(rule.get("message") or "") for rule in found.get("pause_rules") or ()]
            said += [str(found.get(name) or "") for name in ("source_pause_message", "destination_pause_message")]
            return printable("; ".join(one for one in said if one), 200, quotes=False)

        return self._call(f"pause of task {task_id}", lambda: self._client.task_pause_info(task_id), read)

    def cancel(self, task_id: str) -> str:
        """Asks for an end by exact id; returns Globus' word: Canceled, CancelAccepted, TaskComplete."""
        what = f"cancelling task {task_id}"
        return self._call(what, lambda: self._client.cancel_task(task_id), lambda found: str(found["code"]))

    # -- answers and errors -------------------------------------------------------------------------------------------

    def _pages(self, what: str, ask: Callable[..., Iterable[Any]], *args: Any, **kwargs: Any) -> list[Any]:
        """All rows of all pages. A page that fails fails the whole."""
        rows: list[Any] = []
        pages, began = iter(ask(*args, **kwargs)), None
        while (page := self._call(what, lambda: next(pages, None), _page)) is not None:
            rows += page
            began = began or self.remote_now
        self.remote_now = began or self.remote_now
        return rows

    def _call(self, what: str, ask: Callable[[], Any], read: Callable[[Any], T]) -> T:
        """`read` takes from the answer what is needed; an answer without it is none of Globus'."""
        import globus_sdk
        from globus_sdk.exc import GlobusError, NetworkError

        try:
            answer = ask()
            self._note_clock(getattr(answer, "headers", None))
            return read(answer)
        except globus_sdk.AuthAPIError as error:  # before the request: no token was to be had
            raise self._no_token(what, error) from None
        except globus_sdk.GlobusAPIError as error:
            self._note_clock(error.headers)
            raise self._refusal(what, error) from None
        except NetworkError as error:
            raise _no_answer(what, error) from None
        except GlobusError as error:
            raise RemoteError(f"{what}: {type(error).__name__}; check {self.where}", no_effect=True) from None
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise TransientError(
                f"{what}: the answer is not one of Globus' ({type(error).__name__}): a login page or proxy may stand before it; "
                f"check {self.where}"
            ) from None

    def _note_clock(self, headers: Mapping[str, str] | None) -> None:
        from include.core.http_reply import remote_time

        lower = {name.lower(): value for name, value in (headers or {}).items()}
        self.remote_now = remote_time(lower) or self.remote_now

    def _no_token(self, what: str, error: GlobusAPIError) -> WaybillError:
        if error.http_status >= 500 or error.http_status == 429:
            return TransientError(f"{what}: Globus Auth answers {error.http_status}", no_effect=True)
        return AuthError(
            f"{what}: Globus Auth refuses client id and secret of {self.where} ({error.http_status}): enter them anew"
        )

    def _refusal(self, what: str, error: GlobusAPIError) -> WaybillError:
        status, code = error.http_status, error.code or ""
        said = self._hide(printable(error.message or "", 200, quotes=False))
        text = f"{what}: Globus answers {status} {code}. {said}".strip()
        consent = error.info.consent_required
        if consent:
            scopes = " ".join(consent.required_scopes)
            return AuthError(
                f"{what}: a collection wants the consent {scopes}: add its id to the extra data_access of {self.where}"
            )
        if error.info.authorization_parameters:
            return AuthError(
                f"{what}: the collection wants a login by a person, which a service account cannot give. Ask its "
                f"administrator for a guest collection. {said}"
            )
        if status == 401:
            return AuthError(f"{text} Check {self.where}")
        if status == 403:
            return Forbidden(f"{text} The service account of {self.where} lacks this right")
        if status == 404:
            return NotFound(text)
        if status == 409 and "identical paths" in said.lower():
            return Conflict(text, no_effect=True)
        if status == 409:  # such as too many tasks; its code is not written down
            return TransientError(text, no_effect=True, status=409)
        if status == 429:
            return TransientError(text, retry_after=_retry_after(error), no_effect=True, status=429)
        if status >= 500 or status in (408, 425):
            return TransientError(text, retry_after=_retry_after(error), status=status)
        return RemoteError(text, no_effect=True)


def _lazily(make: Callable[[], GlobusAuthorizer]) -> GlobusAuthorizer:
    """An authorizer that asks for its first token with the first request, not when the client is made."""
    import globus_sdk

    class Lazily(globus_sdk.authorizers.GlobusAuthorizer):
        made: GlobusAuthorizer | None = None

        def _authorizer(self) -> GlobusAuthorizer:
            self.made = self.made or make()
            return self.made

        def get_authorization_header(self) -> str | None:
            return self._authorizer().get_authorization_header()

        def handle_missing_authorization(self) -> bool:
            return self._authorizer().handle_missing_authorization()

    return Lazily()


def _retry_after(error: GlobusAPIError) -> float | None:
    from include.core.http_reply import retry_after

    return retry_after({name.lower(): value for name, value in error.headers.items()}, time.time())


def _no_answer(what: str, error: Any) -> TransientError:
    """No connection is proof of no effect; anything after it is not."""
    from globus_sdk.exc import GlobusConnectionTimeoutError
    from urllib3.exceptions import NewConnectionError

    cause = error.underlying_exception
    reason = getattr(cause.args[0] if cause.args else None, "reason", None)
    unsent = isinstance(error, GlobusConnectionTimeoutError) or isinstance(reason, NewConnectionError)
    return TransientError(f"{what}: no answer from Globus ({type(error).__name__})", no_effect=unsent)


def _page(answer: Any) -> list[Any] | None:
    return None if answer is None else list(answer["DATA"])


def _listed(found: Any) -> Listed:
    return Listed(str(found["name"]), found["type"] == "dir", int(found.get("size") or 0))


def _moved(found: Any) -> Moved:
    size, checksum = found.get("size"), found.get("checksum")
    return Moved(
        str(found["source_path"]),
        str(found["destination_path"]),
        None if size is None else int(size),
        str(checksum).lower() if checksum else None,
        str(found.get("checksum_algorithm") or "").upper() or None,
    )


def _task(found: Any) -> Task:
    fatal = found.get("fatal_error") or {}

    def number(name: str) -> int:
        return int(found.get(name) or 0)

    return Task(
        task_id=str(found["task_id"]),
        status=str(found["status"]),
        nice_status=str(found.get("nice_status") or ""),
        nice_details=printable(str(found.get("nice_status_details") or ""), 300, quotes=False),
        label=str(found.get("label") or ""),
        is_paused=bool(found.get("is_paused")),
        files=number("files"),
        files_transferred=number("files_transferred"),
        files_skipped=number("files_skipped"),
        bytes_transferred=number("bytes_transferred"),
        faults=number("faults"),
        fatal_code=str(fatal.get("code") or ""),
        fatal_text=printable(str(fatal.get("description") or ""), 300, quotes=False),
        canceled="cancel" in str(fatal.get("code") or "").lower() or bool(found.get("canceled_by_admin")),
        deadline=_instant(found.get("deadline")),
        history_deleted=bool(found.get("history_deleted")),
    )


def _instant(text: Any) -> datetime | None:
    try:
        return datetime.fromisoformat(str(text)) if text else None
    except ValueError:
        return None
