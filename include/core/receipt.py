"""The waybill of a run: what was asked, what moved, how each item was proved, and what is still missing and why.

Invariant: it is written whatever happened before, so nothing in here may depend on a part of
the run having worked. `receipt.json` is for programs, `receipt.html` for people; both say the same, and whoever reads one
needs no log.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jinja2
import pydantic
from markupsafe import Markup

from include.core.errors import NotFound
from include.core.objects import Document, Objects
from include.core.remedies import Cause, Problem, lines_of, problems_of_steps, refusals, remedy_of
from include.core.text import few, format_bytes, sentences


class LedgerHead(pydantic.BaseModel):
    """Which ledger, and the last event at the time of writing: what makes the chain tamper-evident up to here."""

    id: str
    number: int
    sha256: str


MOST_PROBLEMS = 200  # more than that lie in a document of their own


class Receipt(pydantic.BaseModel):
    """One run's waybill. `items` hold one row per unit of work (destination, plate, modality) in the system's own words.

    State `handed_on`: nothing is wrong, and the rest is the next run's. `problems` lists everything that is not as asked.
    """

    model_config = pydantic.ConfigDict(extra="forbid", populate_by_name=True)

    waybill: Literal[1] = 1
    dag_id: str
    run_id: str
    request_sha256: str = ""  # of the request that the run serves; empty where an earlier release wrote it
    state: Literal["complete", "handed_on", "incomplete", "running"]
    outcome: str
    remedy: str = ""
    problems: list[str] = []
    asked: dict[str, Any] = {}
    totals: dict[str, int | float] = {}
    items: list[dict[str, Any]] = []
    documents: dict[str, dict[str, Any]] = {}
    superseded: list[str] = []
    held: list[str] = []
    # Receipts of before say `approvals`: there were no other questions.
    questions: list[dict[str, Any]] = pydantic.Field(
        default=[], validation_alias=pydantic.AliasChoices("questions", "approvals")
    )
    timings: dict[str, Any] = {}
    versions: dict[str, str] = {}
    ledger: LedgerHead | None = None

    @property
    def good(self) -> bool:
        """Whether nobody has to do anything: the run is green."""
        return self.state in ("complete", "handed_on")

    @property
    def sentence(self) -> str:
        return f"{self.outcome} {self.remedy}".strip()


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
        receipt = await self._bounded(receipt, place)
        await self.objects.put(f"{place}/receipt.html", page(receipt).encode())
        return await self.objects.put(f"{place}/receipt.json", receipt.model_dump_json(indent=2).encode())

    async def _bounded(self, receipt: Receipt, place: str) -> Receipt:
        """A receipt of thousands of problems is read by nobody: it lists the first, and names the document with all."""
        more = len(receipt.problems) - MOST_PROBLEMS
        if more <= 0:
            return receipt
        data = json.dumps(receipt.problems, ensure_ascii=False, indent=1).encode()
        document = await self.objects.put(f"{place}/problems.json", data)
        shown = [*receipt.problems[:MOST_PROBLEMS], f"and {more} more: document problems, {document.uri}"]
        documents = {**receipt.documents, "problems": document.to_dict()}
        return receipt.model_copy(update={"problems": shown, "documents": documents})

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


def nothing_done(steps: Mapping[str, Mapping[str, Any]], verb: str, **facts: Any) -> Receipt:
    """The receipt of a run that came to no plan, by the records of its steps: it was refused, or a step failed."""
    refused, problems = refusals(steps), problems_of_steps(steps)
    if refused:
        outcome = f"Refused, nothing was {verb}: {few(refused, 5, 'all are listed below')}."
    else:
        reasons = "".join(f" {sentences(f'Task {problem.task}: {problem.why}')}" for problem in problems)
        outcome = f"Nothing was planned and nothing {verb}.{reasons}"
        problems = problems or [Problem(Cause.LOST, "no task left a reason behind")]
    lines = refused or lines_of(problems)
    return Receipt(**facts, state="incomplete", outcome=outcome, remedy=remedy_of(problems), problems=lines)


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


def _shown(markdown: str) -> Markup:
    """A question as it was meant to be read: its tables, lists and emphasis; nothing in it leads or loads from elsewhere."""
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    return Markup(parser.disable(["link", "image", "autolink", "html_inline", "html_block"]).render(markdown))


_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
)
_ENVIRONMENT.filters["size"] = format_bytes
_ENVIRONMENT.filters["markdown"] = _shown
_ENVIRONMENT.globals["STATES"] = {
    "complete": "Complete: all that was asked for is there and proved.",
    "handed_on": "Complete for this run: nothing is wrong, and the rest is the next run's.",
    "incomplete": "Incomplete: something is missing, or a person is needed.",
    "running": "The run goes on.",
}
