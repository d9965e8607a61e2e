"""The waybill of a run: what was asked, what moved, how each item was proved, and what is still missing and why.

Invariant: it is written whatever happened before, so nothing in here may depend on a part of
the run having worked. `receipt.json` is for programs, `receipt.html` for people; both say the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jinja2
import pydantic

from include.core.errors import NotFound
from include.core.objects import Document, Objects
from include.core.text import format_bytes


class LedgerHead(pydantic.BaseModel):
    """Which ledger, and the last event at the time of writing: what makes the chain tamper-evident up to here."""

    id: str
    number: int
    sha256: str


class Receipt(pydantic.BaseModel):
    """One run's waybill. `items` hold one row per unit of work (destination, plate, modality) in the system's own words."""

    model_config = pydantic.ConfigDict(extra="forbid")

    waybill: Literal[1] = 1
    dag_id: str
    run_id: str
    state: Literal["complete", "incomplete", "running"]
    outcome: str
    remedy: str = ""
    asked: dict[str, Any] = {}
    totals: dict[str, int | float] = {}
    items: list[dict[str, Any]] = []
    documents: dict[str, dict[str, Any]] = {}
    superseded: list[str] = []
    held: list[str] = []
    approvals: list[dict[str, Any]] = []
    timings: dict[str, Any] = {}
    versions: dict[str, str] = {}
    ledger: LedgerHead | None = None


class ReceiptStore:
    """The place of all receipts: `<prefix>/<dag_id>/<run>/receipt.json`."""

    def __init__(self, objects: Objects):
        self.objects = objects

    @classmethod
    def at(cls, prefix: str, options: Mapping[str, Any] | None = None) -> ReceiptStore:
        return cls(Objects(prefix, options))

    async def write(self, receipt: Receipt) -> Document:
        """Writes page and document; the document last, since its digest is what a run reports."""
        place = folder(receipt.dag_id, receipt.run_id)
        await self.objects.put(f"{place}/receipt.html", page(receipt).encode())
        return await self.objects.put(f"{place}/receipt.json", receipt.model_dump_json(indent=2).encode())

    async def read(self, dag_id: str, run_id: str) -> Receipt | None:
        """The receipt of a run, None while there is none."""
        try:
            data = await self.objects.get(f"{folder(dag_id, run_id)}/receipt.json")
        except NotFound:
            return None
        return Receipt.model_validate_json(data)

    async def all(self) -> list[dict[str, Any]]:
        """All receipts, as plain documents."""
        return [json.loads(await self.objects.get(name)) for name in await self.objects.names("/receipt.json")]


def folder(dag_id: str, run_id: str) -> str:
    """The folder of a run's documents. Run ids may hold `:` and `+`, which stay; anything else odd becomes `_`."""
    name = re.sub(r"[^A-Za-z0-9_.~:+-]", "_", run_id)
    return f"{dag_id}/{'_' if not name.strip('.') else ''}{name}"  # `..` would lead out of the folder


def page(receipt: Receipt) -> str:
    """The receipt as a page that needs nothing else to be read."""
    nested = [(item, {k: v for k, v in item.items() if isinstance(v, dict)}) for item in receipt.items]
    template = _ENVIRONMENT.get_template("receipt.html.j2")
    return template.render(r=receipt, columns=_columns(receipt.items), nested=nested)


def _columns(items: list[dict[str, Any]]) -> list[str]:
    seen: dict[str, None] = {}
    for item in items:
        seen |= {name: None for name, value in item.items() if not isinstance(value, list | dict)}
    return list(seen)


_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
)
_ENVIRONMENT.filters["size"] = format_bytes
