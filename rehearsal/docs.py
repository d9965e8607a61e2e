"""`python -m rehearsal.docs [--check]`: writes those parts of the documentation that the code itself can tell.

`docs/DAGS.md` comes from the DAGs, each conf reference from its pydantic model, between two markers:

    <!-- conf of include.icav2.models:CopyRequest -->
    <!-- end of conf -->

`docs/figures.md` is written by the benchmarks, from measurements, and is none of these pages.

Invariant: nothing here depends on the machine or the time, or `--check` would call a fresh page stale.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from include.core.request import Request, described
from include.core.terminal import end_with
from rehearsal.settings import ROOT

DOCS = ROOT / "docs"
CONF = re.compile(r"(<!-- conf of (?P<module>[\w.]+):(?P<model>\w+) -->\n).*?(<!-- end of conf -->)", re.DOTALL)
WRITTEN = "<!-- Written by `make docs`. Change the code instead, and run it again. -->"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m rehearsal.docs", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a page is stale")
    check = parser.parse_args(argv).check
    stale = {path: text for path, text in pages().items() if not path.exists() or path.read_text("utf-8") != text}
    for path, text in stale.items():
        if not check:
            path.write_text(text, "utf-8")
        print(f"{path.relative_to(ROOT)} {'is stale: run `make docs`' if check else 'written'}")
    if not stale:
        print("the documentation is fresh")
    return 1 if check and stale else 0


def pages() -> dict[Path, str]:
    """The whole text of every page with a generated part."""
    by_hand = [path for path in (ROOT / "README.md", *sorted(DOCS.glob("*.md"))) if path.exists()]
    texts = {path: path.read_text("utf-8") for path in by_hand}
    filled = {path: with_conf(text) for path, text in texts.items() if CONF.search(text)}
    return {**filled, DOCS / "DAGS.md": dags_page(load_dags())}


def with_conf(text: str) -> str:
    """A page with its conf references filled in anew."""

    def reference(found: re.Match[str]) -> str:
        model = getattr(importlib.import_module(found["module"]), found["model"])
        return f"{found[1]}\n{_fields(model)}\n\n{found[4]}"

    return CONF.sub(reference, text)


def _fields(model: type[Request]) -> str:
    """The fields of a request as a table."""
    rows = [[f"`{r['field']}`", r["title"], r["type"], r["default"], r["description"]] for r in described(model)]
    return table(("field", "in the form", "type", "default", "meaning"), rows)


def load_dags() -> list[Any]:
    """All DAGs, sorted by id. Raises RuntimeError where a file cannot be loaded."""
    with tempfile.TemporaryDirectory() as home:
        for name in [name for name in os.environ if name.startswith("AIRFLOW")]:
            del os.environ[name]
        os.environ |= {
            "AIRFLOW_HOME": home,
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__PLUGINS_FOLDER": str(ROOT / "plugins"),
            "AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR",
        }
        sys.path[:0] = [str(ROOT), str(ROOT / "plugins")]
        # Airflow reads its settings when it is imported, so not before they are there.
        from airflow.dag_processing.dagbag import DagBag

        bag = DagBag(str(ROOT / "dags"))
        if bag.import_errors:
            raise RuntimeError("\n".join(f"{name}: {error}" for name, error in bag.import_errors.items()))
        return [bag.dags[dag_id] for dag_id in sorted(bag.dags)]


def dags_page(dags: Iterable[Any]) -> str:
    """`docs/DAGS.md`."""
    parts = ["# DAGs", WRITTEN, "Every DAG of `dags/`: when it runs, its tasks, its parameters, and its own manual."]
    return "\n\n".join(parts + [part for dag in dags for part in _dag(dag)]) + "\n"


def _dag(dag: Any) -> list[str]:
    tasks = [
        [
            f"`{task.task_id}`",
            f"`{task.task_type}`",
            str(task.trigger_rule).rsplit(".", 1)[-1].lower().replace("_", " "),
            str(task.retries),
            ", ".join(f"`{name}`" for name in sorted(task.downstream_task_ids)) or "-",
        ]
        for task in dag.topological_sort()
    ]
    facts = [
        f"- File: [`{_file(dag)}`](../{_file(dag)})",
        f"- Schedule: {'only on request' if dag.schedule is None else dag.schedule}",
        f"- Tags: {', '.join(sorted(dag.tags))}",
    ]
    return [
        f"## {dag.dag_id}",
        "\n".join(facts),
        "### Tasks",
        table(("task", "operator", "runs after", "retries", "followed by"), tasks),
        "### Parameters",
        _parameters(dag),
        "### Manual, as Airflow's UI shows it",
        _lower((dag.doc_md or "").strip()),
    ]


def _file(dag: Any) -> str:
    return Path(dag.fileloc).resolve().relative_to(ROOT).as_posix()


def _parameters(dag: Any) -> str:
    models = [task.model for task in dag.tasks if hasattr(task, "model")]
    return _fields(models[0]) if models else "None."


def _lower(markdown: str) -> str:
    """A manual below our own headings: its title goes, its headings sink by two levels; code stays as it is."""
    lines, in_code = [], False
    for line in markdown.splitlines():
        in_code ^= line.startswith("```")
        if not in_code and line.startswith("# "):
            continue
        lines.append(f"##{line}" if not in_code and re.match(r"#+ ", line) else line)
    return "\n".join(lines).strip()


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    cells = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(" ".join(c.split()).replace("|", "\\|") for c in row) + " |" for row in cells)


if __name__ == "__main__":
    end_with(main)
