"""SIGKILL at random instants of archive, verify and delete, through the command line, in processes of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.plates.bench import Bench
from harness.plates.kills import (
    WAYS,
    Round,
    kill_archiving,
    kill_copying,
    kill_deleting,
    kill_restoring,
    kill_verifying,
)


def test_a_killed_archive_ends_in_the_same_bytes_and_sends_no_finished_part_again(bench: Bench, tmp_path: Path):
    told = kill_archiving(bench, tmp_path, seed=1, kills=3)
    assert told.kills and told == Round(kills=told.kills)


def test_a_killed_archive_inside_the_store_ends_in_the_same_bytes_and_leaves_no_pieces(bench: Bench, tmp_path: Path):
    told = kill_copying(bench, tmp_path, seed=4, kills=3)
    assert told.kills and told == Round(kills=told.kills)


def test_a_killed_verification_changes_nothing(bench: Bench, tmp_path: Path):
    told = kill_verifying(bench, tmp_path, seed=2, kills=2)
    assert told.kills and told == Round(kills=told.kills)


@pytest.mark.parametrize("way", ["plain", "markers", "hidden", "older"])
def test_a_killed_deletion_ends_and_deletes_nothing_unproved(way: str, bench: Bench, tmp_path: Path):
    told = kill_deleting(bench, tmp_path, seed=WAYS.index(way), kills=4)
    assert told.kills and told == Round(kills=told.kills)


def test_a_killed_restore_ends_right_and_leaves_no_partial_file_and_no_upload(bench: Bench, tmp_path: Path):
    told = kill_restoring(bench, tmp_path, seed=3, kills=4)
    assert told.kills and told == Round(kills=told.kills)
