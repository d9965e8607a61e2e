"""What happened in each step of a run, kept beside the receipt: the one way in which a receipt learns of other tasks.

Invariant: a record belongs to the present try of its step. When a step begins, the records of the steps after it are
emptied, so no receipt takes the success of an earlier try for the present one. Records are texts for people; what decides
anything is a Document, named in a record with its digest.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pydantic

from include.core.errors import NotFound, RequestError, WaybillError
from include.core.objects import Objects

RUNNING, DONE, FAILED, REFUSED = "running", "done", "failed", "refused"


class StepRecords:
    """The records of one item of a run (a plate, or the run as a whole) in the folder `place` of the receipts.

    `order` names the item's steps from first to last. A record is {"state": …, facts}; the states of a step that ends as
    every step does are `running`, `done`, `failed` (with `why` and `error`) and `refused` (with `why` and `problems`). A
    step may write a state of its own.
    """

    def __init__(self, objects: Objects, place: str, order: Sequence[str] = ()):
        self._objects = objects
        self._place = place
        self._order = tuple(order)

    async def begin(self, step: str, **facts: Any) -> None:
        await self.empty(*(self._order[self._order.index(step) + 1 :] if step in self._order else ()))
        await self.write(step, RUNNING, **facts)

    async def empty(self, *steps: str) -> None:
        """Takes away what earlier tries of these steps left."""
        for step in steps:
            if await self.read(step):
                await self.write(step, "")

    async def end(self, step: str, error: WaybillError | None = None, **facts: Any) -> None:
        """Records how a step ended, unless it has written a state of its own, which says more. An error is never lost to
        another part of the same step (a mapped task) that went well."""
        ended_before = (RUNNING,) if error is None else (RUNNING, DONE)
        if (await self.read(step)).get("state", RUNNING) not in ended_before:
            return
        if error is None:
            await self.write(step, DONE, **facts)
        elif isinstance(error, RequestError):
            await self.write(step, REFUSED, **facts, why=str(error), problems=error.problems)
        else:
            await self.write(step, FAILED, **facts, why=str(error), error=type(error).__name__)

    async def write(self, step: str, state: str, **facts: Any) -> None:
        await self._objects.put(self._name(step), json.dumps({"state": state, **facts}, ensure_ascii=False).encode())

    async def read(self, step: str) -> dict[str, Any]:
        """What a step left, empty where it was not reached."""
        try:
            record: dict[str, Any] = json.loads(await self._objects.get(self._name(step)))
        except NotFound:
            return {}
        return record if record.get("state") else {}

    async def read_all(self, steps: Sequence[str]) -> dict[str, dict[str, Any]]:
        return {step: await self.read(step) for step in steps}

    async def document(self, name: str, model: pydantic.BaseModel) -> dict[str, Any]:
        """Keeps a result whole, and gives the Document that names it."""
        return (await self._objects.put(f"{self._place}/{name}.json", model.model_dump_json().encode())).to_dict()

    def _name(self, step: str) -> str:
        return f"{self._place}/{step}.note.json"
