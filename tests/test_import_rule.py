"""Who may import whom (docs: layout). One table, checked over the whole tree without importing anything.

`dags → operators, sensors → hooks, triggers → include`; `include` knows no Airflow; a simulator that shared code with
`include` would share its mistakes; nothing but tests imports tests.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# What each part may import of ours (itself included). What is not a part is a library, see AIRFLOW_IN.
MAY_IMPORT = {
    "dags": {"operators", "sensors", "include"},
    "operators": {"operators", "sensors", "hooks", "triggers", "include"},
    "sensors": {"operators", "sensors", "hooks", "triggers", "include"},
    "triggers": {"triggers", "hooks", "include"},
    "hooks": {"hooks", "include"},
    "portal": {"portal", "hooks", "include"},
    "waybill_plugin": {"operators", "portal"},
    "include": {"include"},
    "simulators": {"simulators"},
    "rehearsal": {"rehearsal", "include", "simulators", "dags"},
    "benchmarks": {"benchmarks", "rehearsal", "include", "simulators", "tests"},
}
AIRFLOW_IN = {
    "dags",
    "operators",
    "sensors",
    "triggers",
    "hooks",
    "portal",
    "waybill_plugin",
    "rehearsal",
    "benchmarks",
}
PLUGINS = ("operators", "sensors", "triggers", "hooks", "portal")
OURS = {*MAY_IMPORT, "tests", "plugins"}


def files_of(part: str) -> list[Path]:
    if part == "waybill_plugin":
        return [ROOT / "plugins" / "waybill_plugin.py"]
    return sorted((ROOT / ("plugins" if part in PLUGINS else ".") / part).rglob("*.py"))


def imported(source: str) -> Iterator[tuple[int, str]]:
    """Line and top-level name of every import, also those inside of functions and those by name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, "." * node.level or (node.module or "").split(".")[0]
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == "import_module":
            for argument in node.args[:1]:
                if isinstance(argument, ast.Constant):
                    yield node.lineno, str(argument.value).split(".")[0]


def offences(part: str, source: str) -> list[str]:
    found = []
    for line, name in imported(source):
        if name in OURS and name not in MAY_IMPORT[part]:
            found.append(f"line {line}: {part} may not import {name}")
        elif name == "airflow" and part not in AIRFLOW_IN:
            found.append(f"line {line}: {part} knows no Airflow")
        elif name.startswith(".") and part in PLUGINS:
            found.append(f"line {line}: a relative import has no parent where Airflow loads plugins")
    return found


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_each_part_imports_only_what_lies_below_it(part: str):
    found = [f"{path.relative_to(ROOT)} {text}" for path in files_of(part) for text in offences(part, path.read_text())]
    assert found == []


def test_every_folder_with_code_stands_in_the_table():
    folders = {path.parent.name for path in ROOT.glob("*/*.py")} | {
        path.parent.name for path in ROOT.glob("plugins/*/*.py")
    }
    assert folders - {"plugins", "docs"} <= OURS
    assert all(files_of(part) for part in ("dags", "operators", "include", "simulators", "waybill_plugin"))


@pytest.mark.parametrize(
    ("part", "source"),
    [
        ("include", "import airflow.sdk"),
        ("include", "def late():\n    from simulators.common import Clock"),
        ("simulators", "from include.core import errors"),
        ("hooks", "from triggers.watch import WatchTrigger"),
        ("triggers", "from operators.base import run_async"),
        ("dags", "from hooks.icav2 import ICAv2Hook"),
        ("rehearsal", "from tests.support import ica_world"),
        ("operators", "from .base import run_async"),
        ("include", "import importlib\nimportlib.import_module('airflow.sdk')"),
    ],
)
def test_an_import_that_breaks_the_rule_is_found(part: str, source: str):
    assert len(offences(part, source)) == 1
