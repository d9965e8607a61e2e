"""Where the command line keeps its journals, and that one command at a time writes those of a plate."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.plates.bench import Bench
from harness.plates.servers import ENVIRONMENT, plate, plate_files
from include.core.errors import ConflictingRequest
from include.plates.journal_place import alone_with, journal_folder, restores_folder
from tests.include.plates.test_archive import TAG
from tests.include.plates.test_cli import call, printed
from tests.include.plates.test_delete import plate_keys


@pytest.fixture(autouse=True)
def _state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)


def test_one_command_at_a_time_has_the_journals_of_a_plate(tmp_path: Path):
    with alone_with("TAG", tmp_path):
        with pytest.raises(ConflictingRequest, match="another command"), alone_with("TAG", tmp_path):
            pass
        with alone_with("OTHER", tmp_path):
            pass
    with alone_with("TAG", tmp_path):
        pass


@pytest.mark.parametrize("command", ["archive", "delete"])
def test_a_plate_that_another_command_is_at_is_refused(command: str, bench: Bench, capsys: pytest.CaptureFixture[str]):
    bench.put(plate_files(plate()))
    assert call(bench, "archive") == 0
    capsys.readouterr()
    assert call(bench, "verify", "--json") == 0
    digest = str(printed(capsys)[0]["manifests_sha256"])
    more = ["--approve", digest, "--part", "images", "--retention", "none"] if command == "delete" else []
    with alone_with(TAG, journal_folder(bench.cold, bench.url, print)):
        assert call(bench, command, *more) == 1
    assert f"{TAG}: another command archives or deletes this plate" in capsys.readouterr().err
    assert plate_keys(bench) == set(bench.files)
    assert call(bench, command, *more) == 0


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_two_stores_never_share_journals_wherever_their_endpoint_is_set(name: str, monkeypatch: pytest.MonkeyPatch):
    here = "http://127.0.0.1:9000"
    of_aws = journal_folder("cold", None, print)
    given = journal_folder("cold", here, print)
    assert of_aws.name == "aws_cold" and journal_folder("cold", "https://s3.eu-west-1.amazonaws.com", print) == of_aws
    into = restores_folder("live", here)
    monkeypatch.setenv(name, here)
    assert journal_folder("cold", None, print) == given != of_aws
    assert restores_folder("live", None) == into
    monkeypatch.setenv("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true")
    assert journal_folder("cold", None, print) == of_aws


def test_two_stores_never_share_an_index(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from include.plates.__main__ import main

    bench.put(plate_files(plate()))
    assert call(bench, "archive") == 0
    where = ["where", "--json", "20586.sqlite"]
    monkeypatch.setenv("AWS_ENDPOINT_URL", bench.url)
    capsys.readouterr()
    assert main([*where, "--prefix", f"s3://{bench.cold}/imaging_analysis/"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[0])["name"] == "20586.sqlite"
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert main([*where, "--prefix", f"s3://{bench.cold}/imaging_analysis/", "--no-refresh"]) != 0
