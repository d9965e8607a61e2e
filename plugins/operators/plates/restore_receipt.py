"""The waybill of a restore: plate by plate, how many files came back, and which did not."""

from __future__ import annotations

from typing import Any

from airflow.sdk import Context
from hooks.task import owner_of, run_async, step_records
from operators.common.receipt import ReceiptOperator
from operators.plates.base import records_of
from operators.plates.one_file import one_file
from operators.plates.plan_document import plan_rows

from include.core.ledger import Ledger
from include.core.receipt import Receipt, nothing_done
from include.core.remedies import Cause, Problem, lines_of, of_record, remedy_of
from include.core.request import asked_of
from include.core.text import few, pluralize
from include.plates.request import RestoreRequest

AGAIN = "what is restored already is recognised and not written again"
_LEFT = (
    "What differs from what is there is never replaced: give to_prefix to restore beside it, or overwrite, knowingly. For "
    "what could not be read or written, deal with the reason named, then clear task restore: {again}."
)


class PlateRestoreReceiptOperator(ReceiptOperator):
    """Reads the record of every plate's restore."""

    def build_receipt(self, context: Context, ledger: Ledger | None) -> Receipt:
        owner, asked = owner_of(context), asked_of(RestoreRequest, context["dag_run"].conf)
        facts: dict[str, Any] = {"dag_id": owner.dag_id, "run_id": owner.run_id, "asked": asked}
        rows = run_async(plan_rows(context))
        if not rows:
            return nothing_done(
                run_async(step_records(context).read_all(("load_request", "plan"))), "restored", **facts
            )
        found = [self._item(context, row, asked) for row in rows]
        items, problems = [item for item, _ in found], [problem for _, problem in found if problem is not None]
        dry = bool(asked.get("dry_run"))
        good = [item for item in items if item["state"] == ("planned" if dry else "restored")]
        restored = [item for item in items if item["state"] == "restored"]
        proved = [item for item in restored if not item["without_manifest"]]
        return Receipt(
            **facts,
            state="incomplete" if problems else "complete",
            outcome=_outcome(items, good, problems, dry=dry),
            remedy=remedy_of(problems, AGAIN),
            problems=lines_of(problems),
            items=items,
            totals={
                "files": sum(row["files"] for row in rows),
                "files proved": sum(item["files"] for item in proved),
                "bytes": sum(row["bytes"] for row in rows),
                "proved bytes": sum(item["bytes"] for item in proved),
                "bytes read": sum(item["read_bytes"] for item in items),
            },
        )

    def _item(
        self, context: Context, row: dict[str, Any], asked: dict[str, Any]
    ) -> tuple[dict[str, Any], Problem | None]:
        steps = run_async(records_of(context, row["plate"]).read_all(("thaw", "restore")))
        record = steps["restore"]
        state, why, problem = _standing(row, steps, asked)
        if row.get("without_manifest"):  # what is in them was not known to the plan
            row = {**row, "files": record.get("files", 0), "bytes": record.get("bytes", 0)}
        facts = {"files": row["files"], "bytes": row["bytes"], "read_bytes": record.get("read_bytes", 0)}
        documents = {"document": record["document"]} if "document" in record else {}
        item = {"plate": row["name"], "state": state, "why": why, **facts, "tarballs": row["tarballs"], **documents}
        item["without_manifest"] = row.get("without_manifest", [])
        item |= one_file(owner_of(context).dag_id, asked, row["tarballs"])
        return item, problem


def _outcome(items: list[dict[str, Any]], good: list[dict[str, Any]], problems: list[Problem], *, dry: bool) -> str:
    """One sentence of what came back, and the first thing that did not."""
    more = f" ({pluralize(len(problems) - 1, 'more plate')}: see the receipt)" if len(problems) > 1 else ""
    first = f"plate {problems[0].item}: {problems[0].why.rstrip('.')}{more}" if problems else ""
    if problems and not good:
        return f"{'Dry run: nothing can be' if dry else 'Nothing was'} restored: {first}."
    files = pluralize(sum(item["files"] for item in good), "file")
    bare = [item for item in good if item["without_manifest"] and not dry]
    word = "Dry run, nothing was restored:" if dry else "Restored:" if bare else "Restored with their right checksums:"
    sentence = f"{word} {files} of {len(items) - len(problems)} of {pluralize(len(items), 'plate')}"
    if bare:
        whose = f"those of {pluralize(len(bare), 'plate')} " if len(bare) < len(good) else ""
        sentence += f", {whose}as they lie in tarballs without a manifest; nothing says what these should be"
    return f"{sentence}. Not restored: {first}." if problems else f"{sentence}."


def _standing(
    row: dict[str, Any], steps: dict[str, dict[str, Any]], asked: dict[str, Any]
) -> tuple[str, str, Problem | None]:
    """How a plate ended, in a word, why, and what of it is not as asked."""
    name, record = row["name"], steps["restore"]
    if row["problem"]:
        return "not restored", row["problem"], Problem(Cause.NOT_FOUND, row["problem"], name, "plan")
    if asked.get("dry_run"):
        return "planned", "a dry run", None
    if record.get("state") == "done":
        counts = [f"{count} {result}" for result, count in record["counts"].items() if count]
        bare = record.get("without_manifest")
        counts += [f"as they lie in {pluralize(len(bare), 'tarball')} without a manifest"] if bare else []
        if "noted" in record:
            counts.append(few(record["noted"], 3, "all are in the document of this plate", record["noted_count"]))
        return "restored", ", ".join(counts), None
    if record.get("state") == "left":
        count, rest = record["left_count"], "all are in the document of this plate"
        why = f"{pluralize(count, 'file')}: {few(record['left'], 3, rest, count)}"
        return "not restored", why, Problem(Cause.MISMATCH, why, name, "restore", advice=_LEFT.format(again=AGAIN))
    step = "restore" if record else "thaw"
    problem = of_record(steps[step], step, item=name)
    return "not restored", problem.why, problem
