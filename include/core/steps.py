"""What happened in each step of a run, kept beside the receipt."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pydantic

from include.core.errors import NotFound
from include.core.objects import Objects


class StepRecords:
    """The records of one item of a run (a plate, a destination, the run itself) in the folder `place` of the receipts.

    `order` names the item's steps from first to last: when one begins, the records of those after it are emptied, so that
    a receipt never takes an earlier try's success for this one's.
    """

    def __init__(self, objects: Objects, place: str, order: Sequence[str] = ()):
        self._objects = objects
        self._place = place
        self._order = tuple(order)

    async def begin(self, step: str) -> None:
        for later in self._order[self._order.index(step) + 1 :] if step in self._order else ():
            if await self.read(later):
                await self.write(later, "")
        await self.write(step, "running")

    async def write(self, step: str, state: str, **facts: Any) -> None:
        await self._objects.put(self._name(step), json.dumps({"state": state, **facts}, ensure_ascii=False).encode())

    async def read(self, step: str) -> dict[str, Any]:
        """What a step left, empty where it was not reached."""
        try:
            note: dict[str, Any] = json.loads(await self._objects.get(self._name(step)))
        except NotFound:
            return {}
        return note if note.get("state") else {}

    async def document(self, name: str, model: pydantic.BaseModel) -> dict[str, Any]:
        """Keeps a result whole, and gives what XCom carries instead."""
        return (await self._objects.put(f"{self._place}/{name}.json", model.model_dump_json().encode())).to_dict()

    def _name(self, step: str) -> str:
        return f"{self._place}/{step}.note.json"
