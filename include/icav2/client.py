"""The dozen ICA endpoints that a copy needs, typed (ICA v3 API: project data, copy batch, jobs).

The thing to know before changing it: the server matches paths without regard to case, so every look-up compares the full
path here, to the letter. Paging ends at an empty `nextPageToken`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import httpx

from include.core.errors import ConflictingRequest, NotFound, RemoteError, TransientError
from include.core.http import Credentials, HttpClient, HttpPolicy
from include.icav2.credentials import MEDIA_TYPE
from include.icav2.models import Data, Frozen, Job

PAGE_SIZE = 1000
PATHS_PER_CALL = 20  # file paths in one query: keeps the URL under 8 kB with long paths
SINGLE_LOOKUPS = 16  # jobs that a listing did not show are asked one by one, this many at once


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
        policy: HttpPolicy | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ):
        headers = {"Accept": MEDIA_TYPE, "Content-Type": MEDIA_TYPE}
        self.http = HttpClient(base_url, credentials, headers=headers, policy=policy, transport=transport, sleep=sleep)

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

    async def find_folders(self, project_id: str, paths: Sequence[str]) -> dict[str, str]:
        """The ids of those of these folders that exist, by path."""
        chunks = [list(paths[i : i + PATHS_PER_CALL]) for i in range(0, len(paths), PATHS_PER_CALL)]
        mode = {"filePathMatchMode": "FULL_CASE_INSENSITIVE", "type": "FOLDER"}
        pages = await asyncio.gather(
            *(self._data(project_id, {"filePath": chunk, **mode}, "looking for folders") for chunk in chunks)
        )
        wanted = set(paths)
        return {data.path: data.id for page in pages for data in page if data.path in wanted}

    async def make_folder(self, project_id: str, path: str) -> str:
        """The id of a folder, made if it is not there. A lost answer or a race is settled by looking."""
        parent, name = _parent(path), path.rstrip("/").rsplit("/", 1)[-1]
        what = f"making folder {path}"
        try:
            made = await self.http.write(
                f"/api/projects/{project_id}/data:createFolder", what=what, json={"name": name, "folderPath": parent}
            )
            return str(made["data"]["id"])
        except (TransientError, RemoteError, ConflictingRequest) as error:
            found = await self.find_folders(project_id, [path])
            if path not in found:
                raise error
            return found[path]

    async def delete_data(self, project_id: str, data_id: str, *, guard: Callable[[], None] | None = None) -> None:
        """Asks for the deletion of one exact id; it happens later. Already gone is as good."""
        try:
            path = f"/api/projects/{project_id}/data/{data_id}:delete"
            await self.http.write_again(path, what=f"deleting {data_id}", guard=guard)
        except NotFound:
            return

    async def _data(self, project_id: str, params: Mapping[str, Any], what: str) -> list[Data]:
        return [_data(item) async for item in self._pages(f"/api/projects/{project_id}/data", params, what)]

    async def _pages(self, path: str, params: Mapping[str, Any], what: str) -> Any:
        token = ""
        while True:
            query = {**params, "pageSize": PAGE_SIZE, **({"pageToken": token} if token else {})}
            page = await self.http.read(path, what=what, params=query)
            for item in page["items"]:
                yield item
            token = page.get("nextPageToken") or ""
            if not token:
                return

    # -- copy batches -------------------------------------------------------------------------------------------

    async def copy(
        self, project_id: str, folder_id: str, data_ids: Sequence[str], *, guard: Callable[[], None]
    ) -> CopyBatch:
        """Starts one copy batch. Never repeated here: the ledger decides what follows a lost answer."""
        body = {
            "items": [{"dataId": data_id} for data_id in data_ids],
            "destinationFolderId": folder_id,
            "copyUserTags": True,
            "copyTechnicalTags": True,
            "copyInstrumentInfo": True,
            "actionOnExist": "SKIP",
        }
        what = f"copying {len(data_ids)} items into {folder_id}"
        return _batch(
            await self.http.write(f"/api/projects/{project_id}/dataCopyBatch", what=what, json=body, guard=guard)
        )

    async def batch(self, project_id: str, batch_id: str) -> CopyBatch:
        return _batch(
            await self.http.read(f"/api/projects/{project_id}/dataCopyBatch/{batch_id}", what=f"batch {batch_id}")
        )

    async def batch_items(self, project_id: str, batch_id: str) -> list[BatchItem]:
        path = f"/api/projects/{project_id}/dataCopyBatch/{batch_id}/items"
        return [_item(item) async for item in self._pages(path, {}, f"items of batch {batch_id}")]

    # -- jobs ---------------------------------------------------------------------------------------------------

    async def jobs_since(self, created: float) -> list[Job]:
        """All jobs made at or after `created` (epoch seconds of ICA's clock), newest first: one call per 1,000."""
        jobs: dict[str, Job] = {}
        offset = 0
        while True:
            query = {"pageSize": PAGE_SIZE, "pageOffset": offset, "sort": "timeCreated desc"}
            page = [
                _job(item) for item in (await self.http.read("/api/jobs", what="listing jobs", params=query))["items"]
            ]
            jobs |= {job.id: job for job in page if job.created >= created}
            # A job made meanwhile pushes others to the next page: they come twice, none is missed.
            if len(page) < PAGE_SIZE or page[-1].created < created:
                return list(jobs.values())
            offset += PAGE_SIZE

    async def job(self, job_id: str) -> Job:
        return _job(await self.http.read(f"/api/jobs/{job_id}", what=f"job {job_id}"))

    async def statuses(self, wanted: Mapping[str, float]) -> dict[str, Job]:
        """Jobs by id, given each one's time of creation. What the listing does not show is asked for by id; what ICA does
        not know at the moment is absent from the answer."""
        if not wanted:
            return {}
        listed = {job.id: job for job in await self.jobs_since(min(wanted.values()) - 1.0)}
        found = {job_id: listed[job_id] for job_id in wanted if job_id in listed}
        limit = asyncio.Semaphore(SINGLE_LOOKUPS)

        async def ask(job_id: str) -> Job | None:
            async with limit:
                try:
                    return await self.job(job_id)
                except NotFound:
                    return None

        asked = await asyncio.gather(*(ask(job_id) for job_id in wanted if job_id not in found))
        return found | {job.id: job for job in asked if job is not None}


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
        id=item["id"], status=item["status"], subject_id=item.get("subjectId"), created=_epoch(item.get("timeCreated"))
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
