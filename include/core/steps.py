"""What happened in each step of a run, kept beside the receipt: the one way in which a receipt learns of other tasks.

Invariant: a record belongs to the present try of its step, and to the present request. When a step begins, the records of
the steps after it are emptied, and those of another request under the same run id are not seen: so no receipt takes an
earlier success for the present one. Records are texts for people; what decides anything is a Document, named in a record
with its digest.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from typing import Any

import pydantic

from include.core.errors import NotFound, RequestError, WaybillError
from include.core.objects import Objects
from include.core.remedies import again_at, cause_of

RUNNING, DONE, FAILED, REFUSED = "running", "done", "failed", "refused"
_NAME = re.compile(r"(?P<step>.+?)(?:\.(?P<index>\d+))?\.note\.json")


class StepRecords:
    """The records of one item of a run (a plate, or the run as a whole) in the folder `place` of the receipts.

    `order` names the item's steps from first to last. A record is {"state": …, facts}; the states of a step that ends as
    every step does are `running`, `done`, `failed` (with `why`, `error`, `cause`) and `refused` (with `why` and `problems`).
    A step may write a state of its own. With a `map_index` what is written is the record of that mapped task alone.
    """

    def __init__(
        self,
        objects: Objects,
        place: str,
        order: Sequence[str] = (),
        *,
        map_index: int = -1,
        request_sha256: str = "",
    ):
        self._objects = objects
        self._place = place
        self._order = tuple(order)
        self._map_index = map_index
        self._request = request_sha256

    async def begin(self, step: str, **facts: Any) -> None:
        await self.empty(*(self._order[self._order.index(step) + 1 :] if step in self._order else ()))
        await self.write(step, RUNNING, **facts)

    async def empty(self, *steps: str) -> None:
        """Takes away what earlier tries of these steps left: of all their mapped tasks, or of those of this map index."""
        for name, step, index in await self._there() if steps else ():
            mine = self._map_index < 0 or index in (-1, self._map_index)
            if step in steps and mine and await self._read(name):
                await self._objects.put(name, b'{"state": ""}')

    async def end(self, step: str, error: WaybillError | None = None, **facts: Any) -> None:
        """Records how a step ended, unless it has written a state of its own, which says more. An error is never lost to
        another part of the same step that went well."""
        ended_before = (RUNNING,) if error is None else (RUNNING, DONE)
        if (await self.read(step)).get("state", RUNNING) not in ended_before:
            return
        if error is None:
            await self.write(step, DONE, **facts)
        elif isinstance(error, RequestError):
            await self.write(step, REFUSED, **facts, why=str(error), problems=error.problems)
        else:
            when = again_at(error, time.time())
            facts |= {"again_at": when} if when else {}
            name = type(error).__name__
            await self.write(step, FAILED, **facts, why=str(error), error=name, cause=cause_of(error).value)

    async def write(self, step: str, state: str, **facts: Any) -> None:
        index = {"map_index": self._map_index} if self._map_index >= 0 else {}
        request = {"request_sha256": self._request} if self._request else {}
        record = {"state": state, **index, **facts, **request}
        await self._objects.put(self._name(step), json.dumps(record, ensure_ascii=False).encode())

    async def read(self, step: str) -> dict[str, Any]:
        """What a step left, empty where it was not reached."""
        return await self._read(self._name(step))

    async def read_all(self, steps: Sequence[str]) -> dict[str, dict[str, Any]]:
        return {step: await self.read(step) for step in steps}

    async def read_mapped(self, step: str) -> dict[int, dict[str, Any]]:
        """What each mapped task of a step left, by map index."""
        there = [(index, name) for name, one, index in await self._there() if one == step and index >= 0]
        found = {index: await self._read(name) for index, name in sorted(there)}
        return {index: record for index, record in found.items() if record}

    async def document(self, name: str, model: pydantic.BaseModel) -> dict[str, Any]:
        """Keeps a result whole, and gives the Document that names it."""
        return (await self._objects.put(f"{self._place}/{name}.json", model.model_dump_json().encode())).to_dict()

    async def _read(self, name: str) -> dict[str, Any]:
        try:
            record: dict[str, Any] = json.loads(await self._objects.get(name))
        except NotFound:
            return {}
        of_this_request = record.pop("request_sha256", self._request) == self._request or not self._request
        return record if record.get("state") and of_this_request else {}

    async def _there(self) -> list[tuple[str, str, int]]:
        """Name, step and map index of each record that lies there."""
        names = await self._objects.names(".note.json", under=self._place)
        found = [(name, _NAME.fullmatch(name.removeprefix(f"{self._place}/"))) for name in names]
        return [(name, match["step"], int(match["index"] or -1)) for name, match in found if match]

    def _name(self, step: str) -> str:
        index = f".{self._map_index}" if self._map_index >= 0 else ""
        return f"{self._place}/{step}{index}.note.json"
