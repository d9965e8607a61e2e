"""What the documentation names exists, and what is generated is fresh."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rehearsal import docs
from rehearsal.settings import ROOT

PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
MEASURED = ROOT / "docs" / "figures.md"  # written by `make bench`; named before it exists
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
PATH = re.compile(
    r"`((?:dags|plugins|include|simulators|rehearsal|harness|tests|benchmarks|docs)/[\w./-]*)(?:::(\w+))?`"
)
DOTTED = re.compile(r"`(include(?:\.\w+)+)`")

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    text = FENCE.sub("", page.read_text("utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_generated_pages_are_fresh():
    done = subprocess.run(
        [sys.executable, "-m", "rehearsal.docs", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_stale_conf_reference_is_filled_in_anew():
    stale = "a\n<!-- conf of include.icav2.models:CopyRequest -->\nnot any more\n<!-- end of conf -->\nb"
    fresh = docs.with_conf(stale)
    assert "not any more" not in fresh
    assert "| `max_in_flight` |" in fresh
    assert fresh.startswith("a\n<!-- conf of") and fresh.endswith("<!-- end of conf -->\nb")
    assert docs.with_conf(fresh) == fresh


def test_a_cell_cannot_break_its_table():
    assert docs.table(["a"], [["x | y\nz"]]).splitlines()[-1] == "| x \\| y z |"


@pages
def test_every_link_leads_somewhere(page: Path):
    for link in LINK.findall(FENCE.sub("", page.read_text("utf-8"))):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if target == MEASURED and not target.exists():
            continue
        assert target.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link}"


@pages
def test_every_file_and_every_test_that_is_named_exists(page: Path):
    for name, member in PATH.findall(page.read_text("utf-8")):
        target = ROOT / name
        if target == MEASURED and not target.exists():
            continue
        assert target.exists(), f"{page.name} names {name}"
        if member:
            assert re.search(rf"^\s*(?:async )?def {member}\(", target.read_text("utf-8"), re.MULTILINE), (
                f"{page.name} names {name}::{member}"
            )


@pages
def test_every_module_and_name_that_is_given_with_dots_exists(page: Path):
    for dotted in DOTTED.findall(page.read_text("utf-8")):
        names = dotted.split(".")
        depth = max(n for n in range(1, len(names) + 1) if _is_module(names[:n]))
        found: Any = importlib.import_module(".".join(names[:depth]))
        for name in names[depth:]:
            fields = getattr(found, "__dataclass_fields__", {})
            assert hasattr(found, name) or name in fields, f"{page.name} names {dotted}"
            found = getattr(found, name, None)


def _is_module(names: list[str]) -> bool:
    path = ROOT.joinpath(*names)
    return path.is_dir() or path.with_suffix(".py").is_file()


def test_scenarios_named_after_their_file_exist():
    text = (ROOT / "docs" / "guarantees.md").read_text("utf-8")
    named = re.search(r"Shown by `(tests/airflow/\S+\.py)`: (.*?); and by", text, re.DOTALL)
    assert named is not None
    scenarios = re.findall(r"`(\w+)`", named[2])
    assert scenarios
    for scenario in scenarios:
        assert f"def {scenario}(" in (ROOT / named[1]).read_text("utf-8"), scenario


@pages
def test_every_command_that_is_named_exists(page: Path):
    text = page.read_text("utf-8")
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    for target in re.findall(r"(?:`|^)make ([a-z][a-z-]*)", text, re.MULTILINE):
        assert target in targets, f"{page.name}: make {target}"
    for module in re.findall(r"python -m ([a-z][\w.]*)", text):
        assert importlib.util.find_spec(module) is not None, f"{page.name}: python -m {module}"
    commands = (ROOT / "include" / "core" / "ledger" / "__main__.py").read_text("utf-8")
    for command in re.findall(r"-m include\.core\.ledger ([a-z]+(?:-[a-z]+)*)\b", text):
        assert f'command("{command}"' in commands, f"{page.name}: ledger {command}"


@pages
def test_every_json_example_parses(page: Path):
    for language, body in FENCE.findall(page.read_text("utf-8")):
        if language == "json":
            json.loads(body)


@pages
def test_connections_in_examples_parse(page: Path):
    for value in re.findall(r"AIRFLOW_CONN_\w+='(\{.*?\})'", page.read_text("utf-8"), re.DOTALL):
        assert json.loads(value)["conn_type"]
