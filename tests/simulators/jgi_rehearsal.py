"""GOLD and JDP on real sockets, on one catalog, with clocks that stand still, and plain HTTP clients."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import httpx

from simulators.common import Clock, serve
from simulators.globus.collections import JGI_COLLECTION, JGI_ROOT, Collections, Entry
from simulators.jgi import (
    DEFAULT_OFFLINE_TOKEN,
    DEFAULT_SESSION,
    ArchiveFile,
    Catalog,
    GoldSettings,
    GoldSimulator,
    JdpSettings,
    JdpSimulator,
    add_published,
)

START = 1_800_003_600.0  # 2027-01-15T09:00:00Z
HOUR, DAY = 3600.0, 86400.0
PROPOSAL = 503568
# A wait of nothing and drives that need none: a request is ready as soon as it has been begun.
INSTANT = {"new_seconds": 0.0, "wait_median_seconds": 0.0, "mount_seconds": 0.0, "seek_seconds": 0.0}


def plain_client(url: str, **headers: str) -> httpx.Client:
    return httpx.Client(base_url=url, headers=headers, timeout=20, verify=False, trust_env=False)


class Gold:
    """GOLD, and a client that has exchanged its offline token."""

    def __init__(self, catalog: Catalog, **settings: Any) -> None:
        self.sim = GoldSimulator(catalog, Clock(epoch=START, speed=0), GoldSettings(**settings))
        self.server = serve(self.sim.app)
        self.http = plain_client(self.server.url)
        self.http.headers["Authorization"] = f"Bearer {self.exchange().text}"

    def exchange(self, token: str = DEFAULT_OFFLINE_TOKEN) -> httpx.Response:
        return self.http.get("/exchange", params={"offlineToken": token})

    def list(self, what: str, **params: Any) -> Any:
        response = self.http.get(f"/api/v1/{what}", params=params)
        assert response.status_code == 200, response.text
        return response.json()

    def close(self) -> None:
        self.http.close()
        self.server.stop()


class Jdp:
    """JDP over a collection in `folder`, a client with a session token, and one without."""

    def __init__(self, folder: Path, catalog: Catalog | None = None, **settings: Any) -> None:
        if catalog is None:
            catalog = Catalog()
            add_published(catalog, PROPOSAL, "grow", scale=1e-6, trap_rate=0.0)
        self.catalog = catalog
        self.collections = Collections(folder)
        chosen = JdpSettings(**(INSTANT | settings))
        self.sim = JdpSimulator(catalog, self.collections, Clock(epoch=START, speed=0), settings=chosen)
        self.server = serve(self.sim.app)
        self.http = plain_client(self.server.url, Authorization=DEFAULT_SESSION)
        self.anonymous = plain_client(self.server.url)

    def close(self) -> None:
        self.http.close()
        self.anonymous.close()
        self.server.stop()

    # What a client does

    def search(self, **params: Any) -> dict[str, Any]:
        response = self.anonymous.get("/search/", params={"a": "false", "h": "false", "api_version": "2"} | params)
        assert response.status_code == 200, response.text
        return response.json()

    def by_ids(self, ids: list[str], **more: Any) -> dict[str, dict[str, Any]]:
        response = self.http.post("/search/by_file_ids/", json={"ids": ids, "aggregations": True} | more)
        assert response.status_code == 200, response.text
        return {row["_id"]: row for group in response.json()["organisms"] for row in group["files"]}

    def ask(self, ids: Any, path: str = "/download_files/", **more: Any) -> httpx.Response:
        body = {
            "ids": ids,
            "api_version": "2",
            "send_mail": "true",
            "restore_related_ap_data": "false",
            "globus_user_name": "person@example.org",
            "href": "mailto: person@example.org",
        }
        return self.http.post(path, json=body | more)

    def restore(self, ids: Any) -> int:
        response = self.ask(ids)
        assert response.status_code == 200, response.text
        return response.json()["request_id"]

    def status(self, request_id: int) -> dict[str, Any]:
        response = self.anonymous.get(f"/request_archived_files/requests/{request_id}", params={"api_version": 1})
        assert response.status_code == 200, response.text
        return response.json()

    def ready(self, ids: Any) -> int:
        """Ask for these and let the tapes run."""
        request_id = self.restore(ids)
        self.run_until_idle()
        assert self.status(request_id)["status"] == "ready"
        return request_id

    # What is so

    @property
    def files(self) -> list[ArchiveFile]:
        return list(self.catalog.files.values())

    @property
    def ids(self) -> list[str]:
        return list(self.catalog.files)

    def placed(self, request_id: int) -> dict[str, Entry]:
        """What lies in a request's folder, by path in it."""
        folder = f"/{JGI_ROOT}/R{request_id}"
        found = self.server.call(lambda: list(self.collections.files(JGI_COLLECTION, folder)))
        return {path.removeprefix(folder + "/"): entry for path, entry in found}

    def manifest(self, request_id: int) -> tuple[str, list[dict[str, str]]]:
        name = f"Globus_Download_{request_id}_File_Manifest.csv"
        data = self.placed(request_id)[name].data
        assert data is not None
        text = data.read_text("utf-8")
        return text, list(csv.DictReader(io.StringIO(text)))

    def journal(self, kind: str) -> list[dict[str, Any]]:
        entries = self.control("GET", "/journal", params={"kind": kind})["entries"]
        return [entry["details"] for entry in entries]

    # What a test does to it

    def control(self, method: str, path: str, **more: Any) -> Any:
        response = self.anonymous.request(method, f"/_sim{path}", **more)
        assert response.status_code == 200, response.text
        return response.json()

    def fault(self, **rule: Any) -> None:
        self.control("POST", "/faults", json=rule)

    def advance(self, seconds: float) -> None:
        self.control("POST", "/clock", json={"advance": seconds})

    def run_until_idle(self) -> None:
        self.server.call(self.sim.run_until_idle)
