"""docs/adding_a_system.md, followed to the letter in a copy of the repository: what a newcomer is told works.

Invariant: nothing is added to what the page says. A file that it forgets is missing in the copy too.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rehearsal.settings import ROOT

PAGE = (ROOT / "docs" / "adding_a_system.md").read_text("utf-8")
FENCE = re.compile(r"^(`{3,})(\w+)\n(.*?)^\1$", re.MULTILINE | re.DOTALL)
BLOCKS = [(language, body) for _, language, body in FENCE.findall(PAGE)]
FILES = {body.split("\n")[0].removeprefix("# "): body for language, body in BLOCKS if language == "python"}
EDITS = {
    body.split("\n")[0].removeprefix("--- "): body.split("\n")[1:] for language, body in BLOCKS if language == "diff"
}
OWN_TESTS = [str(Path(name).parent) for name in FILES if name.startswith("tests/") and "/test_" in name]
CHANGED = ("dags", "include", "plugins", "simulators", "rehearsal", "tests", "harness")
UNCHANGED = ("docs", "benchmarks", "airflow.env", "pyproject.toml", "README.md", "Makefile")
LINES_LIMIT = 290


def edited(text: str, edit: list[str]) -> str:
    """The text with a block's lines taken out (-) and put in (+) after those before them, each of which it has once."""
    lines, place = text.split("\n"), 0
    for line in filter(None, edit):
        sign, content = line[0], line[1:]
        if sign == "+":
            lines.insert(place, content)
            place += 1
            continue
        assert lines.count(content) == 1, f"not there once: {content}"
        place = lines.index(content)
        if sign == "-":
            del lines[place]
        else:
            place += 1
    return "\n".join(lines)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository after the page has been followed."""
    copy = tmp_path_factory.mktemp("waybill")
    for name in CHANGED:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in UNCHANGED:
        (copy / name).symlink_to(ROOT / name)
    (ROOT / ".waybill").mkdir(exist_ok=True)  # holds the migrated database, which takes 20 s to make
    (copy / ".waybill").symlink_to(ROOT / ".waybill")
    for name, body in FILES.items():
        assert not (copy / name).exists(), f"{name} is there already"
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text(body, "utf-8")
    for name, edit in EDITS.items():
        (copy / name).write_text(edited((copy / name).read_text("utf-8"), edit), "utf-8")
    return copy


def run(root: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if "AIRFLOW" not in name and "PYTEST" not in name}
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=root, env=environment,
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip


def passes(root: Path, *command: str) -> None:
    done = run(root, *command)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-6000:]}\n{done.stderr[-2000:]}"


def test_all_of_the_code_is_short():
    added = sum(line.startswith("+") for edit in EDITS.values() for line in edit)
    code = sum(bool(line.strip()) for body in FILES.values() for line in body.split("\n")[1:])
    assert code + added < LINES_LIMIT


def test_every_block_names_its_file_and_the_tests_are_among_them():
    named = [body for language, body in BLOCKS if language in ("python", "diff")]
    assert len(named) == len(FILES) + len(EDITS)
    assert all(re.fullmatch(r"[a-z_/]+\.py", name) for name in (*FILES, *EDITS))
    assert len(OWN_TESTS) == 2


def test_the_new_files_are_in_order(root: Path):
    passes(root, "ruff", "check", *FILES, *EDITS)
    passes(root, "ruff", "format", "--check", *FILES, *EDITS)


def test_the_types_of_the_new_files_are_right(root: Path):
    checked = [name for name in FILES if not name.startswith("tests/")]
    passes(root, "mypy", "--cache-dir", str(ROOT / ".waybill" / "mypy-of-tutorial"), *checked)


def test_it_keeps_the_rules_that_every_system_keeps(root: Path):
    passes(root, "pytest", "tests/test_import_rule.py", "tests/test_structure.py", "tests/rehearsal/test_scenes.py")


def test_its_own_tests_pass_and_its_dag_is_like_all_others(root: Path):
    passes(root, "pytest", *OWN_TESTS, "tests/dags/test_dag_integrity.py", "-k", "labels")


@contextmanager
def broken(path: Path, what: str, instead: str) -> Iterator[None]:
    """The file with one piece of its text replaced."""
    text = path.read_text("utf-8")
    assert text.count(what) == 1
    path.write_text(text.replace(what, instead), "utf-8")
    try:
        yield
    finally:
        path.write_text(text, "utf-8")


@pytest.mark.parametrize(
    ("name", "what", "instead", "failing"),
    [
        ("engine", " if job.sample == row.business_key", " if False", {"test_it_withstands"}),
        ("client", "fence=fence", "fence=lambda: None", {"test_it_withstands"}),
    ],
    ids=["search", "fence"],
)
def test_without_its_search_or_its_fence_it_prints_twice(
    root: Path, name: str, what: str, instead: str, failing: set[str]
):  # fmt: skip
    with broken(root / "include" / "labels" / f"{name}.py", what, instead):
        done = run(root, "pytest", "tests/include/labels")
    failed = set(re.findall(r"^FAILED \S+::(\w+)", done.stdout, re.MULTILINE))
    assert failed == failing, done.stdout[-4000:]
