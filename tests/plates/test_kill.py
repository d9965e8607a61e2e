"""SIGKILL at random moments of archive, verify and delete, through the command line, in processes of their own."""

from __future__ import annotations

from pathlib import Path

from tests.plates.conftest import Bench
from tests.plates.kill_harness import kill_archiving, kill_verifying_and_deleting


def test_a_killed_archive_ends_in_the_same_bytes_and_sends_no_finished_part_again(bench: Bench, tmp_path: Path):
    told = kill_archiving(bench, tmp_path, seed=1, kills=4)
    assert (told.wrong_bytes, told.resent) == (0, 0)


def test_a_killed_verification_leaves_nothing_and_a_killed_deletion_ends(bench: Bench, tmp_path: Path):
    told = kill_verifying_and_deleting(bench, tmp_path, seed=2, kills=6)
    assert (told.wrong_bytes, told.unproved, told.lines_missing) == (0, 0, 0)
