"""Who may import whom (docs/design.md, layers). One table, checked over the whole tree without importing anything.

`dags → operators, sensors → hooks, triggers → include`; `include` knows no Airflow; a simulator that shared code with
`include` would share its mistakes; nothing but tests imports tests; and nothing imports in a circle.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# What each part may import of ours (itself included). What is not a part is a library, see AIRFLOW_IN.
MAY_IMPORT = {
    "dags": {"operators", "sensors", "include"},
    "operators": {"operators", "hooks", "triggers", "include"},
    "sensors": {"sensors", "hooks", "triggers", "include"},
    "triggers": {"triggers", "hooks", "include"},
    "hooks": {"hooks", "include"},
    "portal": {"portal", "hooks", "include"},
    "waybill_plugin": {"operators", "portal"},
    "include": {"include"},
    "simulators": {"simulators"},
    "rehearsal": {"rehearsal", "include", "simulators", "dags"},
    "harness": {"harness", "include", "simulators", "rehearsal"},
    "benchmarks": {"benchmarks", "harness", "rehearsal", "include", "simulators"},
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
# Inside of `include`: what several systems share may import none of them, and no system another.
SHARED = {"core": {"core"}, "s3": {"core", "s3"}, "cluster": {"core", "cluster"}, "globus": {"core", "globus"}}


def files_of(part: str) -> list[Path]:
    if part == "waybill_plugin":
        return [ROOT / "plugins" / "waybill_plugin.py"]
    return sorted((ROOT / ("plugins" if part in PLUGINS else ".") / part).rglob("*.py"))


def imported(source: str) -> Iterator[tuple[int, str]]:
    """Line and full name of every import, also those inside of functions and those by name; a relative one as its dots."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = "." * node.level + (node.module or "")
            yield from ((node.lineno, f"{start}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == "import_module":
            for argument in node.args[:1]:
                if isinstance(argument, ast.Constant):
                    yield node.lineno, str(argument.value)


def offences(part: str, source: str) -> list[str]:
    found = []
    for line, full in imported(source):
        name = full.split(".")[0]
        if name in OURS and name not in MAY_IMPORT[part]:
            found.append(f"line {line}: {part} may not import {name}")
        elif name == "airflow" and part not in AIRFLOW_IN:
            found.append(f"line {line}: {part} knows no Airflow")
        elif not name and part in PLUGINS:
            found.append(f"line {line}: a relative import has no parent where Airflow loads plugins")
    return sorted(set(found))


def system_offences(system: str, source: str) -> list[str]:
    """What a folder of `include` may not import of its neighbours."""
    allowed = SHARED.get(system, {system, *SHARED})
    found = []
    for line, full in imported(source):
        names = full.split(".")
        if names[0] == "include" and len(names) > 2 and names[1] not in allowed:
            found.append(f"line {line}: include/{system} may not import include/{names[1]}")
    return sorted(set(found))


def module_of(path: Path) -> str:
    """A file's dotted name as it is imported: plugins/ is itself on the path."""
    name = path.relative_to(ROOT).with_suffix("").as_posix().removesuffix("/__init__")
    return name.removeprefix("plugins/").replace("/", ".")


def graph_of(sources: Mapping[str, str]) -> dict[str, set[str]]:
    """Module → the modules of ours that it imports, anywhere in its text."""

    def resolved(full: str) -> str | None:
        parent = full.rpartition(".")[0]
        return full if full in sources else parent if parent in sources else None

    return {
        name: {target for _, full in imported(text) if (target := resolved(full)) not in (None, name)}
        for name, text in sources.items()
    }  # type: ignore[return-value]


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Every way back to where an import began: modules that can neither be read nor moved one at a time."""
    found, done = [], set[str]()

    def visit(name: str, path: list[str]) -> None:
        if name in path:
            found.append(path[path.index(name) :])
        elif name not in done:
            for target in sorted(graph[name]):
                visit(target, [*path, name])
            done.add(name)

    for name in sorted(graph):
        visit(name, [])
    return found


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_each_part_imports_only_what_lies_below_it(part: str):
    found = [f"{path.relative_to(ROOT)} {text}" for path in files_of(part) for text in offences(part, path.read_text())]
    assert found == []


def test_no_system_imports_another_and_what_they_share_imports_none():
    found = [
        f"{path.relative_to(ROOT)} {text}"
        for path in files_of("include")
        if len(path.relative_to(ROOT).parts) > 2
        for text in system_offences(path.relative_to(ROOT).parts[1], path.read_text())
    ]
    assert found == []


def test_nothing_imports_in_a_circle():
    files = [path for part in MAY_IMPORT for path in files_of(part)]
    assert circles(graph_of({module_of(path): path.read_text() for path in files})) == []


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
        ("triggers", "from operators.common.base import WaybillOperator"),
        ("sensors", "from operators.common.base import DEFAULT_ARGS"),
        ("operators", "from sensors.icav2_jobs import ICAv2JobsSensor"),
        ("dags", "from hooks.icav2 import ICAv2Hook"),
        ("rehearsal", "from harness import proxy"),
        ("benchmarks", "from tests.dags import conftest"),
        ("operators", "from .base import run_async"),
        ("include", "import importlib\nimportlib.import_module('airflow.sdk')"),
    ],
)
def test_an_import_that_breaks_the_rule_is_found(part: str, source: str):
    assert len(offences(part, source)) == 1


@pytest.mark.parametrize(
    ("system", "source"),
    [
        ("core", "from include.s3.bucket import Bucket"),
        ("s3", "from include.plates.models import Plate"),
        ("plates", "def late():\n    from include.icav2 import client"),
        ("jgi", "import include.plates.models"),
    ],
)
def test_an_import_between_systems_is_found(system: str, source: str):
    assert len(system_offences(system, source)) == 1


def test_a_circle_is_found_also_through_a_function_and_through_three_modules():
    two = {"a.x": "from a import y", "a.y": "def late():\n    from a.x import thing"}
    three = {"a": "import b", "b": "from c import thing", "c": "import a"}
    assert circles(graph_of(two)) == [["a.x", "a.y"]]
    assert circles(graph_of(three)) == [["a", "b", "c"]]
    assert circles(graph_of({"a": "import b", "b": "import c", "c": ""})) == []
