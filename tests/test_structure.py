"""What lies where (docs/design.md): each system's folder, the length of operators, what a module says first."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EIGHT = {"models", "request", "client", "plan", "engine", "verify", "report", "__main__"}
SHARED = {"core", "s3", "cluster", "globus"}
SYSTEMS = sorted(
    path.name for path in (ROOT / "include").iterdir() if path.is_dir() and path.name not in {*SHARED, "__pycache__"}
)
OPERATOR_LINES = 120
ROW = re.compile(r"^\| `(\w+)` \|", re.MULTILINE)


def listed(system: str, design: str) -> set[str]:
    """The modules that docs/design.md names for a system besides the eight."""
    section = design.split("## Modules of each system", 1)[1].split("\n## ", 1)[0]
    of_system = section.partition(f"### {system}\n")[2].split("\n### ", 1)[0]  # none: the eight are enough for it
    return set(ROW.findall(of_system))


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_systems_folder_holds_the_eight_names_and_what_the_design_page_lists(system: str):
    there = {path.stem for path in (ROOT / "include" / system).glob("*.py")} - {"__init__"}
    assert there - EIGHT == listed(system, (ROOT / "docs" / "design.md").read_text("utf-8"))


def test_an_operator_ends_at_120_lines_or_says_why_not():
    for path in sorted((ROOT / "plugins" / "operators").rglob("*.py")):
        text = path.read_text("utf-8")
        told = "Longer than 120 lines:" in (ast.get_docstring(ast.parse(text)) or "")
        assert told == (len(text.splitlines()) > OPERATOR_LINES), path.relative_to(ROOT)


@pytest.mark.parametrize("folder", ["include", "plugins", "simulators", "rehearsal", "harness", "benchmarks"])
def test_a_module_says_what_it_is_for_and_its_invariant_in_those_words(folder: str):
    old = re.compile(r"thing to know|know before changing", re.IGNORECASE)
    for path in sorted((ROOT / folder).rglob("*.py")):
        text = path.read_text("utf-8")
        if text.strip():
            assert ast.get_docstring(ast.parse(text)), f"{path.relative_to(ROOT)} has no docstring"
            assert not old.search(text), f"{path.relative_to(ROOT)}: write `Invariant:`"
