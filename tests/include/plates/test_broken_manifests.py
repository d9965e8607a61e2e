"""Manifests that are none: every reader says so, of this one alone, and none of them stops or works on for ever."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from harness.plates.bench import Bench
from harness.plates.servers import BATCH, ENVIRONMENT, PROJECT, plate, plate_files
from include.core.errors import VerificationError
from include.plates.__main__ import main
from include.plates.manifest import decode_manifest
from include.plates.verify_evidence import parse_manifest
from tests.docs import examples
from tests.include.plates.test_archive import MAIN

readers = pytest.mark.parametrize(
    "read", [decode_manifest, lambda data: parse_manifest("key", data)], ids=["archiver", "verifier"]
)


def text_of(data: bytes) -> list[str]:
    return zstandard.ZstdDecompressor().decompressobj().decompress(data).decode().splitlines()


def packed(lines: list[str]) -> bytes:
    return zstandard.ZstdCompressor().compress(("\n".join(lines) + "\n").encode("utf-8", "surrogatepass"))


def changed(field: str, value: object, *, line: int = -1) -> Callable[[list[str]], list[str]]:
    """One field of one row, the last one or the head, holds something else."""

    def change(lines: list[str]) -> list[str]:
        row = json.loads(lines[line])
        row[field] = value
        lines[line] = json.dumps(row, ensure_ascii=False)
        return lines

    return change


def without(field: str) -> Callable[[list[str]], list[str]]:
    def change(lines: list[str]) -> list[str]:
        row = json.loads(lines[-1])
        del row[field]
        return [*lines[:-1], json.dumps(row)]

    return change


def escaped_half_of_a_pair(lines: list[str]) -> list[str]:
    return [*lines[:-1], lines[-1].replace('"name":"', '"name":"\\ud800').replace('"name": "', '"name": "\\ud800')]


BROKEN: dict[str, Callable[[list[str]], list[str]]] = {
    "deep": lambda lines: [*lines[:-1], "[" * 100_000 + "]" * 100_000],
    "a head that is deep": lambda lines: ["[" * 100_000 + "]" * 100_000, *lines[1:]],
    "half of a pair, escaped": escaped_half_of_a_pair,
    "half of a pair, in bytes": changed("name", "\ud800"),
    "half of a pair in a header": changed("headers", {"content-type": "\ud800"}),
    "a huge size": changed("size", 99999999999999999999999),
    "a size below nothing": changed("size", -1),
    "a size that is a text": changed("size", "1"),
    "a size that is a fraction": changed("size", 1.5),
    "a size of thousands of digits": lambda lines: [*lines[:-1], lines[-1].replace('"size":', '"size":' + "9" * 5000)],
    "an offset that is true": changed("data_offset", True),
    "a time beyond all times": changed("modified", 10**30),
    "a key that is a list": changed("key", ["a"]),
    "a key that is a number": changed("key", 7),
    "no name": changed("name", None),
    "no place": without("data_offset"),
    "an ETag that is a row": changed("etag", {"a": 1}),
    "frames of one number": changed("frame", [1]),
    "frames of texts": changed("frame", ["1", "2", "3"]),
    "headers that are a text": changed("headers", "content-type"),
    "headers of numbers": changed("headers", {"content-type": 7}),
    "more volumes than there can be": changed("of", 10**9, line=0),
    "a group size that is a text": changed("group_bytes", "much", line=0),
    "no row at all": lambda lines: [],
}


@readers
@pytest.mark.parametrize("broken", BROKEN)
def test_what_is_no_manifest_is_said_to_be_none(broken: str, read: Callable[[bytes], object]):
    whole = examples.manifest()
    read(whole)
    data = packed(BROKEN[broken](text_of(whole)))
    with pytest.raises(VerificationError, match="whole"):
        read(data)


def test_a_member_that_does_not_lie_in_the_tarball_is_none():
    with pytest.raises(VerificationError, match="whole"):
        decode_manifest(packed(changed("size", 10**9)(text_of(examples.manifest()))))


@pytest.mark.parametrize(
    "frames",
    [
        [[0, 0, 0, 0]],
        [[0, 10, 0, 10], [10, 10, 20, 10]],
        [[0, 10, 0, 10], [20, 10, 10, 10]],
        [[0, 10, 0, 10], [10, 0, 10, 0]],
        [[0, 10, 0, 10]],
        [],
    ],
    ids=["empty", "gap in the tar", "gap in the object", "one of nothing", "too short", "none"],
)
def test_frames_hold_the_whole_tar_one_after_another(frames: list[list[int]]):
    lines = text_of(examples.manifest())
    head = json.dumps(json.loads(lines[0]) | {"compression": "gzip"})
    rows = [json.dumps({"frame": frame}) for frame in frames]
    with pytest.raises(VerificationError, match="whole"):
        decode_manifest(packed([head, *rows, *lines[1:]]))


@pytest.fixture
def two_plates(bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Bench:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    for one in ("20586", "20587"):
        bench.put(plate_files(plate(one)))
        assert command(bench, "archive", "--plate-id", one) == 0
    return bench


def command(bench: Bench, name: str, *more: str) -> int:
    place = ["--bucket", bench.live, "--cold-bucket", bench.cold, "--store-patience", "0"]
    ids = ["--project", PROJECT, "--batch", BATCH]
    return main([name, *([] if name == "where" else ids + place), "--endpoint-url", bench.url, *more])


@pytest.mark.parametrize("broken", ["deep", "half of a pair, escaped", "a huge size"])
def test_every_command_says_which_manifest_is_none_and_answers_for_the_others(
    two_plates: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str], broken: str
):
    bench, key = two_plates, f"{MAIN}.manifest.jsonl.zst"
    bench.client.put_object(Bucket=bench.cold, Key=key, Body=packed(BROKEN[broken](text_of(bench.get(key)))))
    capsys.readouterr()
    assert command(bench, "ls", "--plate-id", "20586") == 1
    assert command(bench, "verify", "--plate-id", "20586") == 3
    assert command(bench, "restore", "--plate-id", "20586", "--to", str(tmp_path / "back")) == 1
    assert capsys.readouterr().err.count("whole manifest") == 2
    prefix = f"s3://{bench.cold}/imaging_analysis/"
    assert command(bench, "where", "20587.sqlite", "--prefix", prefix) == 0
    told = capsys.readouterr()
    assert "1 could not be read" in told.err and "20587.sqlite" in told.out
    assert command(bench, "where", "20586_no_such_file", "--prefix", prefix) == 3


def test_a_key_that_is_there_twice_does_not_end_the_index(two_plates: Bench, capsys: pytest.CaptureFixture[str]):
    bench, key = two_plates, f"{MAIN}.manifest.jsonl.zst"
    head, *rows = text_of(bench.get(key))
    twice = next(row for row in rows if '"key"' in row)
    more = json.dumps(json.loads(head) | {"members": json.loads(head)["members"] + 1})
    bench.client.put_object(Bucket=bench.cold, Key=key, Body=packed([more, *rows, twice]))
    assert command(bench, "where", "20587.sqlite", "--prefix", f"s3://{bench.cold}/imaging_analysis/") == 0


def test_a_key_that_would_move_the_cursor_is_shown_and_does_not(
    two_plates: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    bench, key = two_plates, f"{MAIN}.manifest.jsonl.zst"
    lines = [line.replace("IllumDNA", "\\u001b[31mDNA") for line in text_of(bench.get(key))]
    bench.client.put_object(Bucket=bench.cold, Key=key, Body=packed(lines))
    capsys.readouterr()
    assert command(bench, "where", "*DNA.npy", "--prefix", f"s3://{bench.cold}/imaging_analysis/") == 0
    assert command(bench, "ls", "--plate-id", "20586") == 0
    assert command(bench, "restore", "--plate-id", "20586", "--file", "*DNA.npy", "--to", str(tmp_path / "back")) == 0
    assert command(bench, "verify", "--plate-id", "20586") == 1
    told = capsys.readouterr()
    assert "\x1b" not in told.out + told.err and "\\x1b[31mDNA" in told.out
