"""A client for the simulator tests: every answer it receives is checked against the OpenAPI subset of ICA.

Invariant: object schemas are closed here (no unknown field passes), which is stricter than the specification.
"""

from __future__ import annotations

import copy
import json
import re
import uuid
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
from jsonschema import Draft202012Validator, FormatChecker

from simulators.common import Clock, serve
from simulators.icav2 import DEFAULT_API_KEY, IcaSimulator, Settings

SPECIFICATION = Path(__file__).resolve().parents[1] / "fixtures" / "icav2" / "ica_openapi_subset_20251103.json"
MEDIA_TYPE = "application/vnd.illumina.v3+json"
START = 1_800_000_000.0
SOURCE = "11111111-1111-4111-8111-111111111111"
TARGET = "22222222-2222-4222-8222-222222222222"

_formats = FormatChecker(formats=())


@_formats.checks("uuid", raises=ValueError)
def _is_uuid(value: object) -> bool:
    return not isinstance(value, str) or str(uuid.UUID(value)) == value


@_formats.checks("date-time", raises=ValueError)
def _is_instant(value: object) -> bool:
    return not isinstance(value, str) or datetime.fromisoformat(value).tzinfo is not None


def _closed(node: Any) -> Any:
    """OpenAPI 3.0 to JSON Schema: `nullable` becomes a type, objects are closed."""
    if isinstance(node, list):
        return [_closed(each) for each in node]
    if not isinstance(node, dict):
        return node
    result = {key: _closed(value) for key, value in node.items() if key != "nullable"}
    if "properties" in node and isinstance(node.get("type"), str):
        result.setdefault("additionalProperties", False)
    if node.get("nullable") and isinstance(node.get("type"), str):
        result["type"] = [node["type"], "null"]
        if "enum" in node:
            result["enum"] = [*node["enum"], None]
    return result


class Conformance:
    """Finds the schema of an answer and validates it."""

    def __init__(self) -> None:
        self.specification = json.loads(SPECIFICATION.read_text(encoding="utf-8"))
        self.schemas = _closed(copy.deepcopy(self.specification["components"]["schemas"]))
        self.seen: set[str] = set()
        self._paths = [
            (re.compile(re.sub(r"\\{\w+\\}", "[^/]+?", re.escape(path)) + "$"), path)
            for path in sorted(self.specification["paths"], key=lambda path: ("{dataId}" in path, -len(path)))
        ]

    def check(self, response: httpx.Response) -> None:
        path = response.request.url.path.removeprefix("/ica/rest")
        template = next((each for pattern, each in self._paths if pattern.match(path)), None)
        method = response.request.method.lower()
        operation = self.specification["paths"].get(template, {}).get(method)
        declared = (operation or {}).get("responses", {})
        described = declared.get(str(response.status_code))
        if described is None:
            assert response.status_code >= 400, f"{method} {path}: {response.status_code} is not in the specification"
            described = {"content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}}
        content = described.get("content")
        if not content:
            assert response.content == b""
            return
        kind = response.headers["content-type"]
        assert kind in content, f"{method} {path}: {kind}"
        schema = {**content[kind]["schema"], "components": {"schemas": self.schemas}}
        Draft202012Validator(schema, format_checker=_formats).validate(response.json())
        self.seen.add(f"{method.upper()} {template}")


CONFORMANCE = Conformance()


class Rehearsal:
    """A simulator on a real socket with a clock that stands still, two projects, and a client with a token."""

    def __init__(self, *, speed: float = 0.0, **settings: Any) -> None:
        defaults = {"failure_rate": 0.0, "folder_create_seconds": 0.0, "token_lifetime_seconds": 10**6}
        self.sim = IcaSimulator(Clock(epoch=START, speed=speed), Settings(**(defaults | settings)))
        for project in (SOURCE, TARGET):
            self.sim.seed_project(project)
        self.server = serve(self.sim.app)
        plain: dict[str, Any] = {
            "timeout": 10,
            "verify": False,
        }  # no TLS here; loading certificates takes most of a test
        self.http = httpx.Client(base_url=f"{self.server.url}/ica/rest", headers={"Accept": MEDIA_TYPE}, **plain)
        self.control = httpx.Client(base_url=f"{self.server.url}/_sim", **plain)
        token = self.call("POST", "/api/tokens", headers={"X-API-Key": DEFAULT_API_KEY}).json()["token"]
        self.http.headers["Authorization"] = f"Bearer {token}"

    def close(self) -> None:
        self.http.close()
        self.control.close()
        self.server.stop()

    def call(self, method: str, path: str, **more: Any) -> httpx.Response:
        """Any request; the answer is checked."""
        response = self.http.request(method, path, **more)
        CONFORMANCE.check(response)
        return response

    def get(self, path: str, **params: Any) -> dict[str, Any]:
        response = self.call("GET", path, params=params)
        assert response.status_code == 200, response.text
        return response.json()

    def listing(self, project: str = TARGET, **params: Any) -> list[dict[str, Any]]:
        return [item["data"] for item in self.get(f"/api/projects/{project}/data", **params)["items"]]

    def advance(self, seconds: float) -> None:
        self.server.call(lambda: (self.sim.clock.advance(seconds), self.sim.run_due()))

    def run_until_idle(self) -> None:
        self.server.call(self.sim.run_until_idle)

    def seed(self, path: str, size_bytes: int = 1000, project: str = SOURCE, **more: Any) -> str:
        return self.server.call(lambda: self.sim.seed_file(project, path, size_bytes, **more)).id

    def folder(self, path: str, project: str = TARGET) -> str:
        node = self.server.call(lambda: self.sim.seed_folder(project, path))
        assert node is not None
        return node.id

    def submit(self, data_ids: list[str], folder_id: str | None, action: str = "SKIP", **more: Any) -> httpx.Response:
        body: dict[str, Any] = {
            "items": [{"dataId": data_id} for data_id in data_ids],
            "copyUserTags": True,
            "copyTechnicalTags": True,
            "copyInstrumentInfo": True,
            "actionOnExist": action,
        }
        if folder_id:
            body["destinationFolderId"] = folder_id
        return self.call("POST", f"/api/projects/{TARGET}/dataCopyBatch", json=body | more)

    def copy(self, data_ids: list[str], folder_id: str | None, action: str = "SKIP") -> dict[str, Any]:
        """Submit a batch and let its job end; returns the batch as it is then."""
        response = self.submit(data_ids, folder_id, action)
        assert response.status_code == 201, response.text
        self.run_until_idle()
        return self.get(f"/api/projects/{TARGET}/dataCopyBatch/{response.json()['id']}")

    def items(self, batch: dict[str, Any], **params: Any) -> list[dict[str, Any]]:
        return self.get(f"/api/projects/{TARGET}/dataCopyBatch/{batch['id']}/items", **params)["items"]

    def files(self, project: str = TARGET) -> dict[str, dict[str, Any]]:
        """The truth: files by path."""
        tree = self.server.call(lambda: self.sim.dump(project))
        return {node["path"]: node for node in tree if node["type"] == "FILE"}

    def journal(self, kind: str) -> list[dict[str, Any]]:
        return [entry["details"] for entry in self.control.get("/journal", params={"kind": kind}).json()["entries"]]
