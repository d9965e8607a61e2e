"""`python -m include.jgi plan`: what it reads, what it refuses, what it prints."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from harness.jgi_plans import NOW, TB, file_id
from include.core.errors import RequestError
from include.jgi.__main__ import main
from include.jgi.files_csv import read_files

HEADER = "jdp_file_id,file_name,file_size,file_status"
AT = "2026-11-26T00:00:00Z"
GROW = """apGoldId,studyId,project_name,biosample_id,file_name,file_status,file_size,jdp_file_id,md5sum
Ga0499978,Gs0149396,grow_project,Gb0305643,Ga0499978_imgap.info,RESTORED,411,61a9d6ee8277d7ede604d0f6,
Ga0499978,Gs0149396,grow_project,Gb0305643,Ga0499978_ko.tsv,PURGED,3645.0,61a9d6ee8277d7ede604d0f7,
Ga0499978,Gs0149396,grow_project,Gb0305643,Ga0499978_pfam.domtblout,RESTORED,7424934505,61a9d6ef8277d7ede604d105,
"""


def row(number: int, size: object = 5, status: str = "PURGED", name: str = "reads.bam") -> str:
    return f"{file_id(number)},{name},{size},{status}"


@pytest.fixture
def told(tmp_path, capsys):
    """Plans a CSV and returns what was printed as JSON."""

    def plan(text: str | bytes, *options: str) -> dict:
        path = tmp_path / "files.csv"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        assert main(["plan", str(path), "--now", AT, "--json", *options]) == 0
        return json.loads(capsys.readouterr().out)

    return plan


@pytest.fixture
def refused(tmp_path, capsys):
    """Plans a CSV and returns the lines of the refusal."""

    def plan(text: str | bytes, *options: str) -> list[str]:
        path = tmp_path / "files.csv"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        assert main(["plan", str(path), "--json", *options]) == 2
        printed = capsys.readouterr()
        assert not printed.out
        return printed.err.splitlines()

    return plan


def test_an_older_list_of_files_is_planned_as_it_is(told):
    found = told(GROW)
    assert [one["ids"] for one in found["requests"]] == [["61a9d6ee8277d7ede604d0f7", "61a9d6ee8277d7ede604d0f6"]]
    assert found["requests"][0]["send_at"] == "2026-11-26T00:00:00+00:00"
    assert found["not_planned"] == [
        {
            "jdp_file_id": "61a9d6ef8277d7ede604d105",
            "state": "FILTERED",
            "why": "remove_files: its name contains domtblout",
        }
    ]
    assert found["projects"] == {
        "grow_project": {"files": 2, "bytes": 4056, "last_send_at": "2026-11-26T00:00:00+00:00"}
    }
    assert found["window"] == {
        "limit_bytes": 10 * TB,
        "limit_ids": 750,
        "seconds": 90_900.0,
        "used_bytes": 0,
        "free_bytes": 10 * TB,
        "next_free_at": None,
    }
    assert (found["days"], found["lower_bound_days"]) == (1, 1)


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ("PURGED", None),
        ("RESTORED", None),
        ("expired", None),
        ("EXPIRED", None),
        ("BACKUP_COMPLETE", None),
        ("", None),
        ("new", "QUEUED"),
        ("pending", "QUEUED"),
        ("ready", "QUEUED"),
        ("READY", "QUEUED"),
        ("RESTORE_IN_PROGRESS", "QUEUED"),
        ("in transit", "QUEUED"),
        ("transferred", "DONE"),
    ],
)
def test_each_status_has_its_place(told, status, state):
    found = told(f"{HEADER}\n{row(1, status=status)}\n")
    assert [one["state"] for one in found["not_planned"]] == ([state] if state else [])
    assert len(found["requests"]) == (0 if state else 1)
    assert found["days"] == (0 if state else 1)


def test_oversize_and_held_files_are_named_with_their_reason(told):
    found = told(f"{HEADER},attempts\n{row(1, 10 * TB + 1)},0\n{row(2)},3\n{row(3)},2.0\n")
    assert [(one["state"], bool(one["why"])) for one in found["not_planned"]] == [("OVERSIZE", True), ("HELD", True)]
    assert found["requests"][0]["ids"] == [file_id(3)]


def test_optional_columns_decide_the_turn_and_others_are_ignored(told):
    header = f"{HEADER},apGoldId,project_name,priority,waiting_since,request_id,made_up"
    found = told(
        f"{header}\n{row(1, 10 * TB)},Ga1,a,1,,471.0,x\n{row(2, 10 * TB)},Ga2,a,1,2026-11-01,,\n{row(3, 10 * TB)},Ga3,b,5,,,\n"
    )
    assert [one["ids"] for one in found["requests"]] == [[file_id(3)], [file_id(2)], [file_id(1)]]
    assert found["oldest_unserved"]["jdp_file_id"] == file_id(2)


def test_a_file_of_two_analyses_is_asked_for_once_until_both_have_it(told):
    header = f"{HEADER},apGoldId"
    assert told(f"{header}\n{row(1)},Ga1\n{row(1)},Ga2\n")["requests"][0]["bytes"] == 5
    assert told(f"{header}\n{row(1, status='transferred')},Ga1\n{row(1)},Ga2\n")["requests"][0]["ids"] == [file_id(1)]
    assert told(f"{header}\n{row(1, status='transferred')},Ga1\n{row(1)},Ga1\n")["requests"] == []  # written twice
    assert told(f"{header}\n{row(1, status='pending')},Ga1\n{row(1)},Ga1\n")["not_planned"][0]["state"] == "QUEUED"


def test_accepted_bytes_and_the_window_are_told(told, tmp_path):
    accepted = json.dumps([{"at": "2026-11-25T22:00:00.25", "bytes": 9 * TB}])
    given = tmp_path / "accepted.json"
    given.write_text(accepted)
    for option in (accepted, str(given)):
        found = told(f"{HEADER}\n{row(1, 2 * TB)}\n", "--accepted", option)
        assert (found["window"]["used_bytes"], found["window"]["free_bytes"]) == (9 * TB, TB)
        free_at = datetime.fromisoformat(found["window"]["next_free_at"])
        assert datetime.fromisoformat("2026-11-25T22:00:00.25+00:00").timestamp() + 90_900 <= free_at.timestamp()
        assert found["requests"][0]["send_at"] == found["window"]["next_free_at"] == "2026-11-26T23:15:01+00:00"


def test_the_disk_is_counted_by_the_rate_and_the_room_that_are_given(told):
    rows = "\n".join(row(number, 10**12) for number in range(4))
    found = told(f"{HEADER}\n{rows}\n", "--free-bytes", str(2 * 10**12), "--drain-rate", "1e7")
    assert [datetime.fromisoformat(one["send_at"]).timestamp() - NOW for one in found["requests"]] == [0, 1e5, 2e5]
    assert found["days"] == found["lower_bound_days"] == 3


@pytest.mark.parametrize(
    ("text", "told_in_it"),
    [
        (b"", ["line 1, column jdp_file_id: it is missing", "file_name", "file_size", "file_status"]),
        ("jdp_file_id,file_name,file_status\n", ["line 1, column file_size: it is missing"]),
        (f"{HEADER},file_size\n", ["line 1, column file_size: it is there 2 times"]),
        (f"{HEADER}\n{row(1, '')}\n", ["line 2, column file_size: “” is empty: write the file's size"]),
        (f"{HEADER}\n{row(1, -5)}\n", ["line 2, column file_size: “-5”"]),
        (f"{HEADER}\n{row(1, 5.5)}\n", ["line 2, column file_size: “5.5”"]),
        (f"{HEADER}\n{row(1, '9' * 5000)}\n", ["line 2, column file_size"]),
        (f"{HEADER}\n{row(1, '1.2E+13')}\n", ["line 2, column file_size: “1.2E+13”"]),
        (f"{HEADER}\n{row(1, '٣')}\n", ["line 2, column file_size"]),
        (f"{HEADER}\n{file_id(1)[1:]},a,5,PURGED\n", ["line 2, column jdp_file_id", "24 hex digits"]),
        (f"{HEADER}\n{'g' * 24},a,5,PURGED\n", ["line 2, column jdp_file_id"]),
        (f"{HEADER}\n{row(1, name='')}\n", ["line 2, column file_name"]),
        (f"{HEADER}\n{row(1)}\n{row(1, 6)}\n", ["line 3, column file_size: “6” is not the 5 of line 2"]),
        (f"{HEADER},waiting_since\n{row(1)},yesterday\n", ["line 2, column waiting_since: “yesterday” is no date"]),
        (f"{HEADER},dt_to_purge\n{row(1)},2026-13-01\n", ["line 2, column dt_to_purge"]),
        (f"{HEADER},priority\n{row(1)},0\n", ["line 2, column priority: “0”"]),
        (f"{HEADER},attempts\n{row(1)},-1\n", ["line 2, column attempts"]),
        (f"{HEADER}\n{file_id(1)},a,b.bam,5,PURGED\n", ["line 2, column 5: “PURGED” stands beyond the header"]),
        (HEADER.encode() + b"\n\xff\xfe\n", ["UTF-8"]),
    ],
)
def test_a_fault_names_line_column_value_and_remedy(refused, text, told_in_it):
    lines = refused(text)
    assert all(any(part in line for line in lines) for part in told_in_it), lines


def test_all_faults_are_told_at_once(refused):
    lines = refused(
        f"{HEADER},waiting_since\nxyz,a,-1,PURGED,never\n{row(2)},\n{row(2, 7)},\n",
        *("--accepted", '[{"at": "soon", "bytes": 5}, {"at": "2026-11-26", "bytes": -5}]'),
        *("--now", "today", "--drain-rate", "0", "--free-bytes", "-1"),
    )
    assert len(lines) == 9
    for part in (
        "--now",
        "--drain-rate",
        "--free-bytes",
        "entry 1, at",
        "entry 2, bytes",
        "line 2, column jdp_file_id",
    ):
        assert any(part in line for line in lines), part


@pytest.mark.parametrize(
    "given", ["[", '{"at": 1}', "[1]", "no/such/file.json", '[{"at": "2026-11-26", "bytes": true}]']
)
def test_accepted_that_cannot_be_read_is_refused(refused, given):
    assert all(line.startswith("--accepted: ") for line in refused(f"{HEADER}\n{row(1)}\n", "--accepted", given))


def test_odd_but_clear_lists_are_read(told):
    semicolons = f"{HEADER}\n{row(1)}\n".replace(",", ";")
    assert told(semicolons)["requests"]
    assert told(f"{HEADER}\n{row(1)}\n".replace(",", "\t"))["requests"]
    assert told(b"\xef\xbb\xbf" + f"{HEADER}\r\n{row(1)},,\r\n\r\n,,,\r\n".encode())["requests"]
    assert told(f'{HEADER}\n{file_id(1)},"a, ""b"".bam",5,PURGED\n')["requests"]
    assert told(f"{HEADER}\n{file_id(10).upper()},a,5,PURGED\n")["requests"][0]["ids"] == [file_id(10)]
    assert told(f"{HEADER}\n")["days"] == 0


def test_of_very_many_faults_the_first_are_told_and_the_rest_counted():
    text = HEADER + "\n" + "x,a,5,PURGED\n" * 1500
    with pytest.raises(RequestError) as caught:
        read_files(text.encode())
    assert len(caught.value.problems) == 1001 and "500 more" in caught.value.problems[-1]


def test_tables_say_what_people_ask(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(GROW.encode())))
    assert main(["plan", "-", "--now", AT]) == 0
    shown = capsys.readouterr().out
    assert "2 files (4.1 kB) in 1 restore request over 1 day" in shown
    assert "FILTERED" in shown and "grow_project" in shown


def test_the_command_runs_by_itself_and_a_missing_file_is_refused(tmp_path):
    command = [sys.executable, "-m", "include.jgi", "plan", str(tmp_path / "none.csv")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[3], check=False)
    assert done.returncode == 2 and "none.csv cannot be read" in done.stderr
