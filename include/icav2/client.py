"""The dozen ICA endpoints that a copy needs, typed (docs/protocols/icav2.md 2 to 5).

Invariant: the server matches paths without regard to case, so every look-up compares the full
path here, to the letter. Paging ends at an empty `nextPageToken`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import httpx

from include.core.concurrency import map_by_key
from include.core.errors import NotFound, RemoteError, TransientError
from include.core.http import Conflict, Credentials, HttpClient, HttpPolicy
from include.core.http_reply import parse_answer as _read
from include.icav2.credentials import MEDIA_TYPE
from include.icav2.models import Data, Frozen, Job

PAGE_SIZE = 1000
QUERY_BYTES = 5000  # of file paths in one query, as they are written in a URL; servers and proxies cut at 8 kB
FILE_SECONDS = 600.0  # for a small file on its way to or from the worker
SINGLE_LOOKUPS = 16  # when a listing has shown all but so many of the jobs, the rest is asked for one by one
T = TypeVar("T")


class CopyBatch(Frozen):
    """A copy batch: where to, and the job that does it."""

    id: str
    folder_id: str | None
    job: Job


class BatchItem(Frozen):
    """One item of a batch. `created_id`: the file or folder it made, once made."""

    data_id: str
    status: str
    created_id: str | None
    message: str


class ICAv2Client:
    """Async client. `base_url` as `https://ica.illumina.com/ica/rest`. All errors are Waybill's; see `core.http`."""

    def __init__(
        self,
        base_url: str,
        credentials: Credentials,
        *,
        name: str = "",
        policy: HttpPolicy | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        rng: random.Random | None = None,
    ):
        headers = {"Accept": MEDIA_TYPE, "Content-Type": MEDIA_TYPE}
        policy = policy or HttpPolicy(file_seconds=FILE_SECONDS)
        self.http = HttpClient(
            base_url, credentials, name=name, headers=headers, policy=policy, transport=transport, sleep=sleep, rng=rng
        )

    async def __aenter__(self) -> ICAv2Client:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.http.__aexit__(*exc)

    # -- project data -------------------------------------------------------------------------------------------

    async def list_folder(self, project_id: str, path: str) -> list[Data]:
        """What lies directly in a folder (`path` ends with `/`). A folder that does not exist is empty."""
        found = await self._data(project_id, {"parentFolderPath": path}, f"listing {path}")
        return [data for data in found if _parent(data.path) == path]

    async def list_tree(self, project_id: str, path: str) -> list[Data]:
        """All files under a folder, at any depth."""
        found = await self._data(project_id, {"filePath": path, "type": "FILE"}, f"listing all under {path}")
        return [data for data in found if data.path.startswith(path)]

    async def data(self, project_id: str, data_id: str) -> Data:
        """One file or folder as it is now: unlike a listing, this does not lag."""
        what = f"data {data_id}"
        return _read(_data, await self.http.read(f"/api/projects/{project_id}/data/{data_id}", what=what), what)

    async def find_folders(self, project_id: str, paths: Sequence[str]) -> dict[str, str]:
        """The ids of those of these folders that exist, by path. One that is being deleted is as good as gone."""
        mode = {"filePathMatchMode": "FULL_CASE_INSENSITIVE", "type": "FOLDER"}
        pages = await map_by_key(
            _chunks(paths),
            lambda chunk: self._data(project_id, {"filePath": list(chunk), **mode}, "looking for folders"),
        )
        wanted = set(paths)
        found = [data for page in pages.values() for data in page]
        return {data.path: data.id for data in found if data.path in wanted and data.status != "DELETING"}

    async def make_folder(self, project_id: str, path: str) -> str:
        """The id of a folder, made if it is not there. After a lost answer or a race it looks for the folder.

        Raises RemoteError where a file has the name, TransientError where somebody else is just making or deleting it.
        """
        parent, name = _parent(path), path.rstrip("/").rsplit("/", 1)[-1]
        what = f"making folder {path}"
        body = {"name": name, "folderPath": parent}
        try:
            made = await self.http.write(f"/api/projects/{project_id}/data:createFolder", what=what, json=body)
            return _read(lambda answer: str(answer["data"]["id"]), made, what)
        except (TransientError, RemoteError) as error:
            found = await self.find_folders(project_id, [path])
            if path in found:
                return found[path]
            if not isinstance(error, Conflict):
                raise error
        file = path.rstrip("/")
        if any(data.path == file for data in await self._data(project_id, {"filePath": file, "type": "FILE"}, what)):
            raise RemoteError(f"{what}: a file of that name is there; choose another folder", no_effect=True)
        raise TransientError(f"{what}: it is just being made or deleted by somebody else", retry_after=2.0)

    async def make_file(
        self, project_id: str, folder_id: str | None, name: str, *, key: str, fence: Callable[[], None]
    ) -> str:
        """The id of a new file without content; `folder_id` None is the project's root. The same `key` gives the same file,
        for a week. Raises TransientError, nothing done, where there is one of that name (409): look again."""
        what = f"making file {name}"
        body = {"name": name, **({"folderPath": "/"} if folder_id is None else {"folderId": folder_id})}
        path, headers = f"/api/projects/{project_id}/data:createFileWithUploadUrl", {"Idempotency-Key": key}
        try:
            made = await self.http.write(path, what=what, json=body, headers=headers, fence=fence)
        except Conflict as error:
            raise TransientError(str(error), retry_after=5.0, no_effect=True) from None
        return _read(lambda answer: str(answer["data"]["id"]), made, what)

    async def download(self, project_id: str, data_id: str, target: Path, *, size_bytes: int) -> None:
        """The content of a file, into a file here."""
        what = f"downloading {data_id}"
        url = await self._signed_url(project_id, data_id, "createDownloadUrl", what)
        await self.http.download(
            url, target, what=what, limit_bytes=size_bytes, size_bytes=size_bytes, signed=False, secrets=[url]
        )

    async def upload(self, project_id: str, data_id: str, source: Path) -> None:
        """The content of a file that was made and is PARTIAL, from a file here. Repeating it does no harm."""
        what = f"uploading {data_id}"
        url = await self._signed_url(project_id, data_id, "createUploadUrl", what)
        headers = {"Content-Type": "application/octet-stream"}
        await self.http.send_again("PUT", url, what=what, file=source, headers=headers, signed=False, secrets=[url])

    async def _signed_url(self, project_id: str, data_id: str, verb: str, what: str) -> str:
        """A URL of ICA's object store, good for a while and for whoever has it: it is a secret."""
        path = f"/api/projects/{project_id}/data/{data_id}:{verb}"
        return _read(lambda answer: str(answer["url"]), await self.http.write_again(path, what=what), what)

    async def delete_data(self, project_id: str, data_id: str, *, fence: Callable[[], None] | None = None) -> None:
        """Asks for the deletion of one exact id; it happens later. Already gone is as good."""
        try:
            path = f"/api/projects/{project_id}/data/{data_id}:delete"
            await self.http.write_again(path, what=f"deleting {data_id}", fence=fence)
        except NotFound:
            return

    async def _data(self, project_id: str, params: Mapping[str, Any], what: str) -> list[Data]:
        path = f"/api/projects/{project_id}/data"
        return [_read(_data, item, what) async for item in self._pages(path, params, what)]

    async def _pages(self, path: str, params: Mapping[str, Any], what: str) -> AsyncIterator[Any]:
        token = ""
        while True:
            query = {**params, "pageSize": PAGE_SIZE, **({"pageToken": token} if token else {})}
            page = await self.http.read(path, what=what, params=query)
            for item in _read(lambda answer: list(answer["items"]), page, what):
                yield item
            token = page.get("nextPageToken") or ""
            if not token:
                return

    # -- copy batches -------------------------------------------------------------------------------------------

    async def copy(
        self, project_id: str, folder_id: str | None, data_ids: Sequence[str], *, fence: Callable[[], None]
    ) -> CopyBatch:
        """Starts one copy batch; `folder_id` None is the project's root. Never repeated here: the ledger decides what
        follows a lost answer. Raises TransientError, nothing done, where the folder is just being deleted (409)."""
        body = {
            "items": [{"dataId": data_id} for data_id in data_ids],
            "copyUserTags": True,
            "copyTechnicalTags": True,
            "copyInstrumentInfo": True,
            "actionOnExist": "SKIP",
        }
        if folder_id is not None:
            body["destinationFolderId"] = folder_id
        what = f"copying {len(data_ids)} items into {folder_id or 'the root of ' + project_id}"
        path = f"/api/projects/{project_id}/dataCopyBatch"
        try:
            return _read(_batch, await self.http.write(path, what=what, json=body, fence=fence), what)
        except Conflict as error:
            raise TransientError(str(error), retry_after=15.0, no_effect=True) from None

    async def batch(self, project_id: str, batch_id: str) -> CopyBatch:
        what = f"batch {batch_id}"
        return _read(
            _batch, await self.http.read(f"/api/projects/{project_id}/dataCopyBatch/{batch_id}", what=what), what
        )

    async def batch_items(self, project_id: str, batch_id: str) -> list[BatchItem]:
        path, what = f"/api/projects/{project_id}/dataCopyBatch/{batch_id}/items", f"items of batch {batch_id}"
        return [_read(_item, item, what) async for item in self._pages(path, {}, what)]

    # -- jobs ---------------------------------------------------------------------------------------------------

    async def _job_pages(self) -> AsyncIterator[list[Job]]:
        """All jobs, newest first: one call per 1,000, or as many as ICA gives at a time."""
        offset = 0
        while True:
            query = {"pageSize": PAGE_SIZE, "pageOffset": offset, "sort": "timeCreated desc"}
            answer = await self.http.read("/api/jobs", what="listing jobs", params=query)
            page = _read(lambda answer: [_job(item) for item in answer["items"]], answer, "listing jobs")
            yield page
            # A job made meanwhile pushes others to the next page: they come twice, none is missed.
            offset += len(page)
            if not page or offset >= (answer.get("totalItemCount") or offset + 1):
                return

    async def jobs_since(self, created: float) -> list[Job]:
        """All jobs made at or after `created` (epoch seconds of ICA's clock), newest first."""
        jobs: dict[str, Job] = {}
        async for page in self._job_pages():
            jobs |= {job.id: job for job in page if job.created >= created}
            if page and page[-1].created < created:
                break
        return list(jobs.values())

    async def job(self, job_id: str) -> Job:
        what = f"job {job_id}"
        return _read(_job, await self.http.read(f"/api/jobs/{job_id}", what=what), what)

    async def statuses(self, wanted: Mapping[str, float]) -> dict[str, Job]:
        """Jobs by id, given each one's time of creation. What the listing does not show is asked for by id; what ICA does
        not know at the moment is absent from the answer."""
        if not wanted:
            return {}
        found: dict[str, Job] = {}
        oldest = min(wanted.values()) - 1.0
        async for page in self._job_pages():
            found |= {job.id: job for job in page if job.id in wanted}
            # A few old jobs are not worth reading all that came after them.
            if len(wanted) - len(found) <= SINGLE_LOOKUPS or (page and page[-1].created < oldest):
                break

        async def ask(job_id: str) -> Job | None:
            try:
                return await self.job(job_id)
            except NotFound:
                return None

        asked = await map_by_key([job_id for job_id in wanted if job_id not in found], ask, SINGLE_LOOKUPS)
        return found | {job_id: job for job_id, job in asked.items() if job is not None}


def _chunks(paths: Sequence[str]) -> list[tuple[str, ...]]:
    """As many paths at a time as one URL holds."""
    chunks: list[tuple[str, ...]] = []
    some: list[str] = []
    room = QUERY_BYTES
    for path in paths:
        cost = len(quote(path, safe="")) + len("&filePath=")
        if some and cost > room:
            chunks.append(tuple(some))
            some, room = [], QUERY_BYTES
        some.append(path)
        room -= cost
    return [*chunks, tuple(some)] if some else chunks


def _parent(path: str) -> str:
    return path.rstrip("/").rsplit("/", 1)[0] + "/"


def _epoch(text: str | None) -> float:
    return datetime.fromisoformat(text).timestamp() if text else 0.0


def _data(item: Mapping[str, Any]) -> Data:
    data = item["data"]
    details = data["details"]
    return Data(
        id=data["id"],
        name=details["name"],
        path=details["path"],
        is_folder=details["dataType"] == "FOLDER",
        status=details["status"],
        size_bytes=details.get("fileSizeInBytes") or 0,
        etag=details.get("objectETag"),
        created=_epoch(details.get("timeCreated")),
    )


def _job(item: Mapping[str, Any]) -> Job:
    return Job(
        id=item["id"],
        status=item["status"],
        subject_id=item.get("subjectId"),
        created=_epoch(item.get("timeCreated")),
        finished=_epoch(item.get("timeFinished")) or None,
        message=item.get("additionalStatusInformation") or "",
    )


def _batch(item: Mapping[str, Any]) -> CopyBatch:
    return CopyBatch(id=item["id"], folder_id=item.get("destinationFolderId"), job=_job(item["job"]))


def _item(item: Mapping[str, Any]) -> BatchItem:
    processing = item.get("processing") or {}
    created = item.get("createdProjectData") or {}
    return BatchItem(
        data_id=item["request"]["dataId"],
        status=processing.get("status") or "",
        created_id=(created.get("data") or {}).get("id"),
        message=processing.get("additionalStatusInformation") or "",
    )
