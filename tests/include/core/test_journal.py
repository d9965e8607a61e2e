"""The journal in a file: what `append` returned from is there, and nothing else ever is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from include.core.journal import FileJournal


def test_a_torn_last_line_is_cut_off(tmp_path: Path):
    journal = FileJournal(tmp_path / "j")
    journal.append({"part": 1})
    with journal.path.open("ab") as file:
        file.write(b'{"part": 2')
    assert FileJournal(journal.path).load() == [{"part": 1}]
    journal.append({"part": 3})
    assert FileJournal(journal.path).load() == [{"part": 1}, {"part": 3}]


def test_a_disk_that_takes_half_a_line_is_an_error_and_the_next_line_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    journal = FileJournal(tmp_path / "j")
    journal.append({"part": 1})
    write = os.write
    with monkeypatch.context() as full:
        full.setattr(os, "write", lambda descriptor, data: write(descriptor, data[: len(data) // 2]))
        with pytest.raises(OSError, match="No space left"):
            journal.append({"part": 2})
    journal.append({"part": 3})
    assert FileJournal(journal.path).load() == [{"part": 1}, {"part": 3}]
