"""docs/glossary.md decides which words people read: those of its last table stand in no text that a user sees."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GLOSSARY = ROOT / "docs" / "glossary.md"
HEADING = "## Words that we do not use"
# Pages that are about the words themselves, or quote others.
EXEMPT = {"docs/glossary.md", "docs/figures.md"}


def refused_words() -> dict[str, str]:
    """Word → what to say instead, from the glossary's last table."""
    table = GLOSSARY.read_text("utf-8").split(HEADING, 1)[1]
    rows = [
        [cell.strip().strip("`") for cell in line.strip("| \n").split("|")]
        for line in table.splitlines()
        if "|" in line
    ]
    return {row[0]: row[1] for row in rows[2:]}


def spoken(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of every string that code can show: all but docstrings of functions and classes, and bare names."""
    tree = ast.parse(source)
    silent = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in silent
            and " " in node.value
        ):
            yield node.lineno, node.value


def texts() -> Iterator[tuple[str, str]]:
    """Place and text of everything that users read: strings of the code, the receipt's page, the documentation."""
    for part in ("include", "plugins", "dags", "rehearsal"):
        for path in sorted((ROOT / part).rglob("*.py")):
            for line, text in spoken(path.read_text("utf-8")):
                yield f"{path.relative_to(ROOT)}:{line}", text
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "include" / "core" / "receipt.html.j2"]
    for path in pages:
        if path.relative_to(ROOT).as_posix() not in EXEMPT:
            for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
                yield f"{path.relative_to(ROOT)}:{number}", line


def found_in(text: str, word: str) -> bool:
    """Whether a text says the word: whole, in any case, also in the plural; names in backticks are not searched."""
    prose = re.sub(r"`[^`]*`", "", text)
    return re.search(rf"(?<![\w-]){re.escape(word)}s?(?![\w-])", prose, re.IGNORECASE) is not None


@pytest.mark.parametrize("word", sorted(refused_words()))
def test_a_word_that_nobody_can_look_up_is_in_no_text_that_users_read(word: str):
    places = [f"{place}: {text.strip()[:100]}" for place, text in texts() if found_in(text, word)]
    assert places == [], f"say “{refused_words()[word]}”"


def test_the_search_finds_a_word_in_a_message_and_not_in_a_name():
    source = (
        '"""Module."""\ndef f():\n    """A twin, for developers."""\n    raise ValueError(f"a twin of {x} is there")\n'
    )
    assert [text for _, text in spoken(source) if found_in(text, "twin")] == ["a twin of "]
    assert found_in("Two Twins.", "twin")
    assert not found_in("the command `doubts`", "doubts") and not found_in("between", "twin")
