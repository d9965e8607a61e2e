"""The command line: what it prints, and an exit status of 0 only when that is proved."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from harness.plates import servers
from harness.plates.bench import Bench
from harness.plates.servers import BATCH, ENVIRONMENT, PROJECT, plate, plate_files
from harness.proxy import proxied, refuse
from include.plates import cli
from include.plates.__main__ import main
from include.plates.journal_place import journal_folder
from include.plates.layout import BROAD2018
from tests.include.plates.test_archive import IMAGES, MAIN


@pytest.fixture(autouse=True)
def _usual_aws_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)


def call(bench: Bench, command: str, *more: str, plates: bool = False) -> int:
    ids = ["--project_name", PROJECT, "--batch_id", BATCH] + ([] if plates else ["--plate_id", "20586"])
    place = ["--bucket", bench.live, "--cold_bucket", bench.cold, "--endpoint-url", bench.url, "--store-patience", "0"]
    return main([command, *ids, *place, *more])


def printed(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_from_plan_to_restored_file(bench: Bench, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    bench.put(plate_files(plate()))
    assert call(bench, "plan", "--json") == 0
    assert printed(capsys)[0]["problems"] == []
    assert bench.keys(bench.cold) == set()
    assert call(bench, "verify") == 3
    assert call(bench, "archive") == 0
    capsys.readouterr()
    assert call(bench, "verify", "--json") == 0
    digest = str(printed(capsys)[0]["manifests_sha256"])
    assert call(bench, "ls", "--part", "illum") == 0
    assert "20586_IllumDNA.npy" in capsys.readouterr().out
    assert call(bench, "restore", "--file", "*IllumDNA.npy", "--to", str(tmp_path / "out")) == 0
    assert len([p for p in (tmp_path / "out").rglob("*") if p.is_file()]) == 1
    assert call(bench, "restore", "--status") == 0
    assert call(bench, "delete", "--approve", "0" * 64, "--part", "images", "--retention", "none") == 1
    assert set(bench.files) <= bench.keys(bench.live)
    assert call(bench, "delete", "--approve", digest, "--part", "images", "--retention", "none") == 0
    assert call(bench, "restore", "--part", "images", "--to", f"s3://{bench.live}/") == 0
    assert set(bench.files) <= bench.keys(bench.live)
    assert call(bench, "verify") in (0, 1)


def test_the_digest_to_approve_can_be_copied_from_a_narrow_terminal(
    bench: Bench, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "60")
    bench.put(plate_files(plate()))
    assert call(bench, "archive") == 0
    capsys.readouterr()
    assert call(bench, "verify") == 0
    told = capsys.readouterr().out.splitlines()[-1]
    assert call(bench, "delete", "--part", "illum", "--retention", "none", "--approve", told.split()[-1]) == 0


def test_a_mismatch_is_1_and_says_why(bench: Bench, capsys: pytest.CaptureFixture[str]):
    bench.put(plate_files(plate()))
    assert call(bench, "archive") == 0
    data = bench.get(MAIN + ".tar.gz")
    bench.client.put_object(Bucket=bench.cold, Key=MAIN + ".tar.gz", Body=data[:-1] + bytes([data[-1] ^ 1]))
    assert call(bench, "verify") == 1
    assert "mismatch" in capsys.readouterr().out


def test_one_bad_plate_stops_nobody_else_and_the_status_tells(bench: Bench, tmp_path: Path):
    (tmp_path / "plates.csv").write_text("plate_id,plate_id_full\n20585,20585\n20586,20586\n")
    bench.put(plate_files(plate("20586")))
    assert call(bench, "archive", "--plates", "plates.csv", plates=True) == 1
    assert MAIN + ".tar.gz" in bench.keys(bench.cold)
    assert call(bench, "verify", "--plates", "plates.csv", plates=True) == 3
    assert call(bench, "verify") == 0


def test_a_foreign_tarball_makes_archive_fail_with_1(bench: Bench, capsys: pytest.CaptureFixture[str]):
    bench.put(plate_files(plate()))
    bench.client.put_object(Bucket=bench.cold, Key=MAIN + ".tar.gz", Body=b"theirs")
    assert call(bench, "archive") == 1
    assert "nothing says that Waybill made it" in capsys.readouterr().out
    assert bench.get(MAIN + ".tar.gz") == b"theirs"


def test_bad_input_is_2_and_an_unreachable_store_4(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    assert call(bench, "plan", plates=True) == 2
    bench.url = "http://127.0.0.1:1"
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    assert call(bench, "ls") == 4


def test_every_fault_of_the_options_is_told_at_once(capsys: pytest.CaptureFixture[str]):
    ids = ["--project", PROJECT, "--batch", BATCH]
    wrong = ["--source", "s", "--level", "12", "--copy-by", "server", "--part-mib", "1"]
    assert main(["archive", *ids, *wrong]) == 2
    told = capsys.readouterr().err.splitlines()
    for word in (
        "give --plate-id",
        "source: layout broad2018 does not use it",
        "--level",
        "--copy-by",
        "--part-mib",
    ):
        assert any(line.startswith(f"refused: {word}") for line in told), word
    assert main(["restore", *ids, "--layout", "cpg", "--part", "image", "--to", "x"]) == 2
    told = capsys.readouterr().err.splitlines()
    for word in ("give --plate-id", "source: layout cpg needs it", "--part: image not known"):
        assert any(line.startswith(f"refused: {word}") for line in told), word


def test_no_message_shows_a_secret(bench: Bench, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "do-not-show-me")
    call(bench, "plan")
    bench.url = "http://127.0.0.1:1"
    call(bench, "ls")
    shown = capsys.readouterr()
    assert "do-not-show-me" not in shown.out + shown.err and "rehearsal" not in shown.err


def test_a_layout_of_ones_own_is_a_json_file(bench: Bench, tmp_path: Path):
    layout = BROAD2018.model_copy(update={"name": "own", "compression": "zstd"})
    (tmp_path / "layout.json").write_text(layout.model_dump_json())
    bench.put(plate_files(plate()))
    assert call(bench, "archive", "--layout", "layout.json") == 0
    assert MAIN + ".tar.zst" in bench.keys(bench.cold)
    (tmp_path / "bad.json").write_text('{"name": "x"}')
    assert call(bench, "plan", "--layout", "bad.json") == 2


def test_archiving_again_from_the_command_line_changes_nothing(bench: Bench):
    bench.put(plate_files(plate()) | {IMAGES + "big": servers.noise("b", 6 << 20)})
    assert call(bench, "archive", "--part-mib", "5", "--volume-gib", "1") == 0
    before = {key: bench.get(key) for key in bench.keys(bench.cold)}
    assert call(bench, "archive", "--part-mib", "5", "--volume-gib", "1") == 0
    assert {key: bench.get(key) for key in bench.keys(bench.cold)} == before


@pytest.mark.parametrize("options", [[], ["--no-probe"]])
def test_archive_tries_every_object_of_a_small_plate_only_once_one_may_not_be_read(
    bench: Bench, capsys: pytest.CaptureFixture[str], options: list[str]
):
    bench.put(plate_files(plate()))
    with proxied(bench.url) as front:
        assert call(replace(bench, url=front.url), "archive", *options) == 0
        reads = [r for r in front.requests if r.method == "GET" and r.path.startswith(f"/{bench.live}/projects/")]
        assert len(reads) == len(bench.files)  # each once, for its bytes
    for key in bench.keys(bench.cold):
        bench.client.delete_object(Bucket=bench.cold, Key=key)
    with proxied(bench.url) as front:
        for name in ("IllumDNA", "Index.idx.xml"):
            front.add(refuse(None, name, 403, "AccessDenied"))
        capsys.readouterr()
        assert call(replace(bench, url=front.url), "archive", "--journal", "other", "--json", *options) != 0
    said = capsys.readouterr()
    both = all(name in said.out for name in ("IllumDNA", "Index.idx.xml"))
    assert both is not bool(options) and "manifest_key" not in said.out


def test_archive_tries_every_object_of_a_large_plate_before_it_writes_anything(
    bench: Bench, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """Hours may pass until its reading comes to the one that may not be read."""
    monkeypatch.setattr(cli, "_PROBE_FROM_BYTES", 9)
    bench.put({f"{IMAGES}{n}": b"1" for n in range(9)})
    with proxied(bench.url) as front:
        front.add(refuse(None, f"{IMAGES}5", 403, "AccessDenied"))
        assert call(replace(bench, url=front.url), "archive") == 1
        assert "may not be read" in capsys.readouterr().out
        assert all(r.method in ("GET", "HEAD") for r in front.requests)


def test_a_batch_of_58_plates_of_which_one_is_empty_and_one_damaged(
    bench: Bench, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    ids = [str(20_600 + number) for number in range(58)]
    empty, damaged = ids[7], ids[31]
    for one in ids:
        if one != empty:
            bench.put(dict(list(plate_files(plate(one), sites=1).items())[:2]))
    batch = tmp_path / "plates.csv"
    batch.write_text("plate_id,plate_id_full\n" + "".join(f"{one},{one}\n" for one in ids))
    assert call(bench, "archive", "--plates", str(batch), "--no-probe", "--json", plates=True) == 1
    told = capsys.readouterr().out
    assert told.count('"manifest_key"') >= 57 and empty in told
    key = MAIN.replace("20586", damaged) + ".tar.gz"
    body = bytearray(bench.get(key))
    body[len(body) // 2] ^= 1
    bench.client.put_object(Bucket=bench.cold, Key=key, Body=bytes(body))
    assert call(bench, "verify", "--plates", str(batch), "--json", plates=True) == 1
    outcomes = {row["plate"]["plate_id"]: row["outcome"] for row in printed(capsys)}  # type: ignore[index]
    assert outcomes.pop(empty) == "unverifiable" and outcomes.pop(damaged) == "mismatch"
    assert len(outcomes) == 56 and set(outcomes.values()) == {"verified"}


def test_restore_to_a_prefix_without_a_slash(bench: Bench):
    bench.put(plate_files(plate()))
    assert call(bench, "archive") == 0
    for to in ("back", "again/"):
        assert call(bench, "restore", "--part", "illum", "--to", f"s3://{bench.live}/{to}") == 0
    back = {key.split("/")[0] for key in bench.keys(bench.live)}
    assert back == {"projects", "back", "again"}


def test_a_restore_into_a_bucket_needs_no_place_for_its_journal(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    bench.put(plate_files(plate()))
    assert call(bench, "archive") == 0
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    assert call(bench, "restore", "--part", "illum", "--to", f"s3://{bench.live}/back") == 0
    assert "its uploads stay in the bucket" in "".join(capsys.readouterr())


def test_one_plate_without_an_archive_stops_no_other(bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "plates.csv").write_text("plate_id,plate_id_full\n20585,20585\n20586,20586\n")
    bench.put(plate_files(plate()))
    assert call(bench, "archive") == 0
    capsys.readouterr()
    assert call(bench, "ls", "--plates", "plates.csv", plates=True) == 1
    shown = capsys.readouterr()
    assert "20586_IllumDNA.npy" in shown.out and "20585" in shown.err
    assert call(bench, "restore", "--to", "back", "--plates", "plates.csv", plates=True) == 1
    assert len([path for path in (tmp_path / "back").rglob("*") if path.is_file()]) == len(bench.files)
    assert "20585: no manifest lies under" in capsys.readouterr().err


def test_a_plates_file_of_a_spreadsheet_is_read_and_the_reading_told(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "plates.csv").write_bytes("plate_id;plate_id_full\r\n20586;20586\r\n".encode("utf-16"))
    bench.put(plate_files(plate()))
    assert call(bench, "archive", "--plates", "plates.csv", plates=True) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "was read as UTF-16 with semicolons" in line]
    assert len(told) == 1


def test_the_journal_does_not_depend_on_the_working_directory(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """An archiving that was killed is continued from wherever it is started again."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    bench.put(plate_files(plate(), image_bytes=3_000_000))
    bytes_of_parts = ("--compression", "none", "--part-mib", "5", "--no-probe")
    with proxied(bench.url) as front:
        url, bench.url = bench.url, front.url
        front.add(refuse("POST", "images_illum_analysis", 403, "AccessDenied", query="uploadId"))
        assert call(bench, "archive", *bytes_of_parts) == 11
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        front.clear()
        capsys.readouterr()
        assert call(bench, "archive", *bytes_of_parts, "--json") == 0
        bench.url = url
    volumes = printed(capsys)[0]["volumes"]
    assert [volume["sent_parts"] for volume in volumes][:1] == [0]  # type: ignore[index,attr-defined]
    assert not (tmp_path / ".waybill").exists() and not (tmp_path / "elsewhere" / ".waybill").exists()


def test_a_journal_in_the_working_directory_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    old = tmp_path / ".waybill" / "plates" / "TAG" / "a.journal.jsonl"
    old.parent.mkdir(parents=True)
    old.write_text('{"part": 1}\n')
    said: list[str] = []
    folder = journal_folder("cold", "http://127.0.0.1:9000", said.append)
    assert folder == tmp_path / "state" / "waybill" / "plates" / "127.0.0.1_9000_cold"
    taken = folder / "TAG" / "a.journal.jsonl"
    assert taken.read_text() == old.read_text() and len(said) == 1
    taken.write_text("newer\n")
    journal_folder("cold", "http://127.0.0.1:9000", said.append)
    assert taken.read_text() == "newer\n" and len(said) == 1
    assert journal_folder("cold", None, said.append) != folder, "two stores never share a journal"


@pytest.mark.parametrize(
    ("status", "code", "ends"),
    [
        (400, "ExpiredToken", 5),
        (403, "RequestTimeTooSkewed", 6),
        (404, "NoSuchBucket", 8),
        (301, "PermanentRedirect", 10),
        (403, "AccessDenied", 11),
        (403, "SignatureDoesNotMatch", 12),
        (500, "InternalError", 4),
    ],
)
def test_each_refusal_of_a_store_has_its_exit_status(
    bench: Bench, capsys: pytest.CaptureFixture[str], status: int, code: str, ends: int
):
    bench.put(plate_files(plate()))
    assert call(bench, "archive") == 0
    with proxied(bench.url) as front:
        bench.url = front.url
        front.add(refuse(None, None, status, code))
        for command in ("plan", "archive", "verify", "ls") if status < 500 else ("verify",):
            assert call(bench, command) == ends, command
        if status < 500:  # each of these is asked for again and again
            assert call(bench, "restore", "--to", "back") == ends


def test_a_vanished_source_has_its_exit_status(bench: Bench, capsys: pytest.CaptureFixture[str]):
    bench.put(plate_files(plate()))
    with proxied(bench.url) as front:
        bench.url = front.url
        front.add(refuse("GET", "_IllumDNA.npy", 404, "NoSuchKey"))
        assert call(bench, "archive", "--no-probe") == 9
    assert "was listed and is gone" in capsys.readouterr().err


# Restore


def three_plates(bench: Bench, tmp_path: Path) -> dict[str, bytes]:
    """Archived plates 20585, 20586 and 20587, and the files of the last two."""
    (tmp_path / "plates.csv").write_text("plate_id,plate_id_full\n20585,20585\n20586,20586\n20587,20587\n")
    for one in ("20585", "20586", "20587"):
        bench.put(plate_files(plate(one)))
    assert call(bench, "archive", "--plates", "plates.csv", plates=True) == 0
    return {key: data for key, data in bench.files.items() if "/20585/" not in key}


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def longer(bench: Bench, key: str) -> None:
    bench.client.put_object(Bucket=bench.cold, Key=key, Body=bench.get(key) + b"1")


def missing(bench: Bench, key: str) -> None:
    bench.client.delete_object(Bucket=bench.cold, Key=key)


def cut_and_without_manifest(bench: Bench, key: str) -> None:
    bench.client.delete_object(Bucket=bench.cold, Key=key.removesuffix(".tar.gz") + ".manifest.jsonl.zst")
    bench.client.put_object(Bucket=bench.cold, Key=key, Body=bench.get(key)[:-30])


def cold_and_without_manifest(bench: Bench, key: str) -> None:
    bench.client.delete_object(Bucket=bench.cold, Key=key.removesuffix(".tar.gz") + ".manifest.jsonl.zst")
    bench.client.put_object(Bucket=bench.cold, Key=key, Body=bench.get(key), StorageClass="DEEP_ARCHIVE")


@pytest.mark.parametrize(
    ("damage", "status"), [(longer, 1), (missing, 1), (cut_and_without_manifest, 1), (cold_and_without_manifest, 3)]
)
def test_one_damaged_plate_keeps_no_other_from_coming_back_and_is_named(
    bench: Bench, capsys: pytest.CaptureFixture[str], tmp_path: Path, damage: Callable[[Bench, str], None], status: int
):
    others = three_plates(bench, tmp_path)
    damage(bench, MAIN.replace("20586", "20585") + ".tar.gz")
    capsys.readouterr()
    assert call(bench, "restore", "--plates", "plates.csv", "--to", "back", plates=True) == status
    assert {k: v for k, v in files_in(tmp_path / "back").items() if "/20585/" not in k} == others
    assert "20585: " in capsys.readouterr().err


def test_a_name_that_one_of_several_plates_lacks_is_none_that_is_not_found(
    bench: Bench, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    three_plates(bench, tmp_path)
    several = ("restore", "--plates", "plates.csv", "--to", "back", "--file", "20587.sqlite")
    assert call(bench, *several, plates=True) == 0
    capsys.readouterr()
    assert call(bench, *several, "--file", "no such file", plates=True) == 1
    assert "not in this archive: 'no such file'" in capsys.readouterr().err
    assert [key.rsplit("/", 1)[-1] for key in files_in(tmp_path / "back")] == ["20587.sqlite"]


@pytest.mark.parametrize(
    "to",
    [
        "gs://bucket/back",
        "file:///tmp/back",
        "s3:/bucket/back",
        "https://host/bucket",
        "s3://",
        "s3:///back",
        "a file",
        "a file/x",
    ],
)
def test_a_target_that_is_neither_bucket_nor_folder_is_refused_before_the_store_is_asked(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, to: str
):
    (tmp_path / "a file").write_bytes(b"")
    ids = ["--project", PROJECT, "--batch", BATCH, "--plate-id", "20586", "--endpoint-url", "http://127.0.0.1:1"]
    assert main(["restore", *ids, "--to", to]) == 2
    assert f"refused: --to {to}" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a file"]


def test_a_target_bucket_that_is_missing_is_8_before_a_tarball_is_read(
    bench: Bench, capsys: pytest.CaptureFixture[str]
):
    bench.put(plate_files(plate()))
    assert call(bench, "archive") == 0
    with proxied(bench.url) as front:
        bench.url = front.url
        assert call(bench, "restore", "--to", "s3://no-such-bucket/back") == 8
        assert not any(".tar.gz" in request.path for request in front.requests)
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        ["--plates", "none.csv"],
        ["--plates", "."],
        ["--plates", "s3://bucket/plates.csv"],
        ["--plate-id", "1", "--layout", "none.json"],
        ["--plate-id", "1", "--journal", "s3://bucket/journals"],
        ["--plate-id", "1", "--journal", "a file"],
    ],
)
def test_files_and_folders_that_cannot_be_meant_are_bad_input(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, wrong: list[str]
):
    (tmp_path / "a file").write_bytes(b"")
    assert main(["archive", "--project", PROJECT, "--batch", BATCH, *wrong]) == 2
    assert f"refused: {wrong[-2]} " in capsys.readouterr().err


def test_a_plate_that_was_never_archived_is_told_in_one_sentence(bench: Bench, capsys: pytest.CaptureFixture[str]):
    bench.put(plate_files(plate()))
    assert call(bench, "verify") == 3
    told = capsys.readouterr().out
    assert "the plate is not archived there" in told and "was not looked at" not in told and told.count("manifest") == 1


def test_the_tag_is_the_first_tag_in_the_json(bench: Bench, capsys: pytest.CaptureFixture[str]):
    bench.put(plate_files(plate()))
    for command in ("plan", "archive", "verify"):
        call(bench, command, "--json")
        told = capsys.readouterr().out
        assert told.partition('"tag":"')[2].startswith(f"{PROJECT}_{BATCH}_20586"), command
