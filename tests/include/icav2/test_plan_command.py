"""`python -m include.icav2 plan`: what a person sees without any network, and the exit codes a script relies on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from include.core.errors import RequestError
from include.core.request import load
from include.icav2.__main__ import main
from include.icav2.models import CopyRequest

ROOT = Path(__file__).resolve().parents[3]
FIXTURES = ROOT / "tests" / "fixtures" / "icav2"
S = "icav2://b23fb516-d852-4985-adcc-831c12e8cd22"
D = "icav2://7595e8f2-32d3-4c76-a324-c6a85dae87b5"


def command(*args: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "include.icav2", *args], cwd=ROOT, input=given, capture_output=True, check=False
    )


def test_the_sops_conf_from_a_file_prints_the_sops_output_and_exits_0():
    done = command("plan", str(FIXTURES / "gen1_input_manifest.json"))
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout) == json.loads((FIXTURES / "gen1_flip_output.json").read_text())


def test_standard_input_is_read_and_refusals_go_to_standard_error_with_exit_2():
    done = command("plan", "-", given=json.dumps({f"{S}/é": [], "x": [f"{D}/y/"]}).encode())
    assert (done.returncode, done.stdout) == (2, b"")
    lines = done.stderr.decode().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(f"manifest[“{S}/é”] names no destination")


@pytest.mark.parametrize("name", ["gen1_input_manifest.json", "gen1_input_manifest_b64gz.json"])
def test_either_form_is_read(name, capsys):
    assert main(["plan", str(FIXTURES / name)]) == 0
    assert json.loads(capsys.readouterr().out)


def test_a_bare_manifest_is_read_as_one(tmp_path, capsys):
    file = tmp_path / "m.json"
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps({f"{S}/a": [f"{D}/x/"]}).encode())
    assert main(["plan", str(file)]) == 0
    assert json.loads(capsys.readouterr().out) == [{"dest_uri": f"{D}/x/", "source_uris": [f"{S}/a"]}]


def test_options_of_the_conf_are_checked_too(tmp_path, capsys):
    file = tmp_path / "conf.json"
    file.write_text(json.dumps({"manifest": {f"{S}/a": [f"{S}/x/"]}, "same_project": "allow"}))
    assert main(["plan", str(file)]) == 0
    file.write_text(json.dumps({"manifest": {f"{S}/a": [f"{S}/x/"]}, "max_in_flight": "many", "colour": 1}))
    assert main(["plan", str(file)]) == 2
    said = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in said[:2]] == ["max_in_flight", "colour"]
    assert "in one project" in said[2]  # the manifest is checked all the same


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "does not hold JSON"),
        (b"\xff\x00", "does not hold JSON"),
        (b"[]", "not a JSON object"),
        (b"{}", "give exactly one"),
        (b'{"manifest_uri": "s3://b/m.json"}', "give the file itself"),
        (f'{{"{S}/a": ["{D}/x/"], "{S}/a": ["{D}/y/"]}}'.encode(), "stands there twice"),
    ],
)
def test_what_cannot_be_planned_exits_2_with_the_reason(tmp_path, capsys, content, said):
    file = tmp_path / "conf.json"
    file.write_bytes(content)
    assert main(["plan", str(file)]) == 2
    shown = capsys.readouterr()
    assert said in shown.err
    assert shown.out == ""


def test_a_file_that_is_not_there_exits_2(tmp_path, capsys):
    assert main(["plan", str(tmp_path / "none.json")]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_the_manifest_is_checked_also_where_another_field_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "conf.json"
    file.write_text(json.dumps({"max_in_fligth": 3, "manifest": {"s3://bucket/key": []}}))
    assert main(["plan", str(file)]) == 2
    said = capsys.readouterr().err
    assert "max_in_fligth" in said
    assert "does not start with icav2://" in said


def test_a_manifest_posted_as_the_conf_itself_is_told_how_it_is_given():
    with pytest.raises(RequestError, match=r'give it as \{"manifest"'):
        load(CopyRequest, {"icav2://project/file": ["icav2://project/folder/"]})
