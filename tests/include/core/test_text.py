"""Sentences with one full stop each, and commands whose reader goes away."""

from __future__ import annotations

import subprocess
import sys

import pytest

from include.core.errors import SshTrouble, error_for_ssh, error_for_status
from include.core.text import sentences

PRINTS = """
from include.core.terminal import end_with
def main():
    for n in range(100_000):
        print(n, "a line that is long enough to fill the pipe")
    return 0
end_with(main)
"""


def test_texts_that_end_with_a_full_stop_get_no_second_one():
    assert sentences("It is not valid.", "Look", " ", "Really?") == "It is not valid. Look. Really?"


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 407, 429, 500, 999, 200])
def test_a_remotes_own_full_stop_is_not_doubled(status: int):
    said = str(error_for_status(status, "GET x", detail="The token is not valid.", location="y"))
    assert (".." in said, "., " in said, ". to " in said) == (False, False, False)


@pytest.mark.parametrize("trouble", list(SshTrouble))
def test_nor_a_hosts(trouble: SshTrouble):
    assert ".." not in str(error_for_ssh(trouble, "sbatch", where="host", detail="no."))


@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_reader_that_has_read_enough_ends_a_command_without_a_word(lines: int):
    command = subprocess.Popen(
        [sys.executable, "-c", PRINTS], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert command.stdout is not None
    assert command.stderr is not None
    for _ in range(lines):
        command.stdout.readline()
    command.stdout.close()
    said = command.stderr.read()
    command.stderr.close()
    assert (command.wait(), said) == (141 if lines == 1 else 0, "")
