"""How far a step is, in lines: for logs, and for command lines without a terminal."""

from __future__ import annotations

import pytest

from include.core import terminal
from include.core.patience import Patience
from include.core.progress import Progress, in_lines


@pytest.mark.parametrize(
    ("progress", "line"),
    [
        (Progress("archive", 1_000_000, 2_000_000, 3, 0, "a.tar"), "archive: 3 items, 1.0 MB of 2.0 MB a.tar"),
        (Progress("plan", 0, 0, 3, 9, "looking"), "plan: 3 of 9 items looking"),
        (Progress("read", 0, 0), "read: 0 items"),
    ],
)
def test_a_total_that_is_not_known_is_left_out(progress: Progress, line: str):
    assert progress.line == line


def test_a_log_gets_a_line_every_so_often_and_none_at_the_beginning():
    said: list[str] = []
    in_lines(said.append, 3600)(Progress("plan", 0, 0))
    assert said == []
    in_lines(said.append, 0)(Progress("plan", 0, 0))
    assert said == ["plan: 0 items"]


def test_without_a_terminal_progress_is_lines_on_stderr(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(terminal, "_LINE_EVERY_SECONDS", 0)
    with terminal.bars() as report:
        report(Progress("archive", 1, 2, note="a.tar"))
    shown = capsys.readouterr()
    assert shown.err == "archive: 0 items, 1 B of 2 B a.tar\n" and shown.out == ""


@pytest.mark.parametrize(
    ("seconds", "waited", "told"),
    [
        (60, 30.1, "1 of 1 minute"),
        (60, 200, "1 of 1 minute"),
        (600, 120, "2 of 10 minutes"),
        (90, 0, "0 of 1.5 minutes"),
    ],
)
def test_what_is_told_of_a_wait_never_exceeds_the_patience(seconds: float, waited: float, told: str):
    assert Patience(seconds)._minutes(waited) == told
