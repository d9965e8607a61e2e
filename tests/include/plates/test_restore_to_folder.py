"""Restores into folders: one file that cannot be written fails alone, and a killed restore leaves nothing behind."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.plates.bench import Bench, run
from harness.plates.servers import noise, plate, plate_files
from include.core.errors import ConflictingRequest
from include.plates import partial_files
from include.plates.models import Plate
from include.plates.partial_files import finish_naming, give_name, partial_file, partial_of, remove_dead_in
from include.plates.restore import Restored
from include.plates.restore_target import FolderSink
from tests.include.plates.test_archive import IMAGES, MAIN
from tests.include.plates.test_restore import back

LEFT = ".waybill-*"


def archived(bench: Bench, **more: bytes) -> Plate:
    one = plate()
    bench.put(plate_files(one) | {IMAGES + name: data for name, data in more.items()})
    run(bench.archive_it(run(bench.plan(one))))
    return one


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_name_that_no_file_system_takes_fails_alone(bench: Bench, tmp_path: Path):
    long = "x" * 256
    one = archived(bench, **{long: b"long"})
    assert any("any file system" in warning for warning in run(bench.plan(one)).warnings)
    report = back(bench, one, FolderSink(tmp_path))
    failed = [(f.key, f.detail) for f in report.files if f.result is Restored.FAILED]
    assert [key for key, _ in failed] == [IMAGES + long] and "File name too long" in failed[0][1]
    assert files_in(tmp_path) == {key: data for key, data in bench.files.items() if not key.endswith(long)}


def test_a_file_where_a_folder_must_be_fails_what_lies_below_alone(bench: Bench, tmp_path: Path):
    one = archived(bench)
    blocked = tmp_path / IMAGES / "Images"
    blocked.parent.mkdir(parents=True)
    blocked.write_bytes(b"a file")
    report = back(bench, one, FolderSink(tmp_path))
    below = {key for key in bench.files if key.startswith(f"{IMAGES}Images/")}
    assert {f.key for f in report.files if f.result is Restored.FAILED} == below and blocked.read_bytes() == b"a file"
    assert files_in(tmp_path).keys() >= bench.files.keys() - below


def test_a_full_disk_ends_the_rest_and_says_so(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    one = archived(bench)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "big.tiff")

    monkeypatch.setattr("include.plates.restore_target._publish", full)
    report = back(bench, one, FolderSink(tmp_path))
    assert {f.result for f in report.files} == {Restored.FAILED}
    told = [f.detail for f in report.files]
    assert any(detail.startswith("not tried, since No space left on device") for detail in told)
    assert not list(tmp_path.rglob(LEFT))


@pytest.mark.parametrize("rename", [True, False], ids=["renameat2", "neither"])
def test_a_target_without_hard_links_takes_files_and_never_replaces_one(
    rename: bool, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def no_links(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(partial_files.os, "link", no_links)
    if not rename:
        monkeypatch.setattr(partial_files, "_rename_noreplace", lambda *_: False)
    one = archived(bench)
    assert back(bench, one, FolderSink(tmp_path)).complete and files_in(tmp_path) == bench.files
    (tmp_path / "new").write_bytes(b"ours")
    (tmp_path / "old").write_bytes(b"theirs")
    with pytest.raises(FileExistsError):
        give_name(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old").read_bytes() == b"theirs"


def test_a_target_without_modes_and_times_takes_files(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "utime", refused)
    monkeypatch.setattr(Path, "chmod", refused)
    one = archived(bench)
    assert back(bench, one, FolderSink(tmp_path)).complete and files_in(tmp_path) == bench.files


def test_a_folder_restore_can_be_repeated(bench: Bench, tmp_path: Path):
    one = archived(bench, empty=b"")
    assert back(bench, one, FolderSink(tmp_path)).complete
    again = back(bench, one, FolderSink(tmp_path))
    assert {f.result for f in again.files} == {Restored.IDENTICAL}


# What a killed restore leaves

KILLED = """
import errno, os, signal, sys
from pathlib import Path
from include.plates import partial_files
from include.plates.partial_files import give_name, partial_file
target = Path(sys.argv[1])
def no_links(*_, **__):
    raise OSError(errno.EPERM, "no links")
if sys.argv[2] == "name taken":
    os.link, partial_files._rename_noreplace = no_links, lambda *_: False
    Path.replace = lambda *_: (print("writing", flush=True), os.kill(os.getpid(), signal.SIGKILL))
with partial_file(target) as (file, partial):
    file.write(b"half of it")
    file.flush()
    if sys.argv[2] in ("named", "name taken"):
        give_name(partial, target)
    print("writing", flush=True)
    if sys.argv[2] == "living":
        sys.stdin.read()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def other_restore(target: Path, how: str) -> subprocess.Popen[str]:
    """Another process that has begun to write a file; all but "living" are dead when this returns."""
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(target), how], **pipes)
    assert process.stdout is not None and process.stdout.readline() == "writing\n"
    if how != "living":
        assert process.wait(60) == -signal.SIGKILL
    return process


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("how", ["killed", "named", "name taken"])
def test_what_a_killed_restore_left_is_removed_by_the_next(how: str, overwrite: bool, bench: Bench, tmp_path: Path):
    """Named: killed between giving the file its name and removing the other one, of the same inode. Name taken: killed
    with an empty file in the place of the name, where there are neither links nor a rename that replaces nothing."""
    name = "big.tiff"
    one = archived(bench, **{name: noise("big", 50_000) if how == "killed" else b"half of it"})
    target = tmp_path / IMAGES / name
    target.parent.mkdir(parents=True)
    other_restore(target, how).communicate()
    assert partial_of(target).exists() and target.exists() == (how != "killed")
    assert how != "name taken" or target.read_bytes() == b""
    assert back(bench, one, FolderSink(tmp_path), overwrite=overwrite).complete
    assert files_in(tmp_path) == bench.files and not list(tmp_path.rglob(LEFT))


@pytest.mark.parametrize("left", ["nothing", "a half", "all, and older than the empty file's own"])
def test_an_empty_file_that_no_restore_has_put_there_is_not_replaced(left: str, bench: Bench, tmp_path: Path):
    data = noise("big", 50_000)
    one = archived(bench, **{"big.tiff": data})
    target = tmp_path / IMAGES / "big.tiff"
    target.parent.mkdir(parents=True)
    if left != "a half":
        target.touch()
    if left != "nothing":
        with partial_of(target).open("wb") as file:
            file.write(data if left.startswith("all") else data[:1000])
    if left == "a half":
        target.touch()
    if left.startswith("all"):  # the clock of a file system may be coarse
        while partial_of(target).stat().st_ctime_ns <= target.stat().st_ctime_ns:
            partial_of(target).chmod(0o600)
    report = back(bench, one, FolderSink(tmp_path))
    assert [f.key for f in report.files if f.result is Restored.REFUSED] == [f"{IMAGES}big.tiff"]
    assert target.read_bytes() == b"" and not list(tmp_path.rglob(LEFT))


def test_a_dead_partial_file_is_never_written_into(tmp_path: Path):
    """It may be the target's own inode."""
    target = tmp_path / "f"
    other_restore(target, "named").communicate()
    with partial_file(target) as (file, _):
        file.write(b"other")
    assert target.read_bytes() == b"half of it"


def test_what_a_living_restore_writes_is_left_alone(tmp_path: Path):
    target = tmp_path / "f"
    living = other_restore(target, "living")
    try:
        remove_dead_in(tmp_path)
        assert partial_of(target).read_bytes() == b"half of it"
        with pytest.raises(ConflictingRequest, match="another restore"), partial_file(target):
            pass
        assert partial_of(target).read_bytes() == b"half of it"
    finally:
        living.communicate("")
    remove_dead_in(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_name_that_a_living_restore_has_taken_is_left_to_it(tmp_path: Path):
    target = tmp_path / "f"
    living = other_restore(target, "living")
    try:
        target.touch()
        finish_naming(target, lambda _: True)
        assert target.read_bytes() == b"" and partial_of(target).read_bytes() == b"half of it"
    finally:
        living.communicate("")
    finish_naming(target, lambda _: True)
    assert target.read_bytes() == b"half of it"


def test_other_hidden_files_are_left_alone(tmp_path: Path):
    for name in (".waybill-notes", ".waybill-0123456789abcdef0", ".other"):
        (tmp_path / name).write_bytes(b"theirs")
    remove_dead_in(tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_without_locks_names_are_not_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(partial_files.fcntl, "flock", no_locks)
    with partial_file(tmp_path / "f") as (_, first), partial_file(tmp_path / "f") as (_, second):
        assert first != second
    assert not list(tmp_path.iterdir())


# What lies in the target already


def test_a_pipe_under_the_name_of_a_partial_file_is_not_waited_for(bench: Bench, tmp_path: Path):
    one = archived(bench)
    key = next(key for key in bench.files if key.endswith(".sqlite"))
    partial = partial_of(tmp_path / key)
    partial.parent.mkdir(parents=True)
    os.mkfifo(partial)
    report = back(bench, one, FolderSink(tmp_path))
    (failed,) = [f for f in report.files if f.result is Restored.FAILED]
    assert failed.key == key and "this is no file" in failed.detail and str(partial) in failed.detail
    assert files_in(tmp_path) == {name: data for name, data in bench.files.items() if name != key}
    assert partial.is_fifo()


def test_what_is_no_file_under_the_name_of_a_target_is_something_else(bench: Bench, tmp_path: Path):
    one = archived(bench, empty=b"")
    pipe, link = tmp_path / IMAGES / "empty", tmp_path / next(k for k in bench.files if k.endswith(".sqlite"))
    for path in (pipe, link):
        path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(pipe)
    link.symlink_to("nowhere")
    report = back(bench, one, FolderSink(tmp_path))
    refused = {f.key for f in report.files if f.result is Restored.REFUSED}
    assert refused == {str(path.relative_to(tmp_path)) for path in (pipe, link)}
    assert back(bench, one, FolderSink(tmp_path), overwrite=True).complete
    assert files_in(tmp_path) == bench.files


def test_a_link_that_leads_out_of_the_target_is_not_followed(bench: Bench, tmp_path: Path):
    one, target, outside = archived(bench), tmp_path / "target", tmp_path / "outside"
    outside.mkdir()
    (target / IMAGES).mkdir(parents=True)
    (target / IMAGES / "Images").symlink_to(outside)
    for overwrite in (False, True):
        report = back(bench, one, FolderSink(target), overwrite=overwrite)
        failed = {f.key: f.detail for f in report.files if f.result is Restored.FAILED}
        assert failed.keys() == {key for key in bench.files if key.startswith(f"{IMAGES}Images/")}
        assert all(f"outside of {target}" in detail for detail in failed.values())
    assert list(outside.iterdir()) == []


def test_a_link_within_the_target_and_a_target_that_is_a_link_are_fine(bench: Bench, tmp_path: Path):
    one, target = archived(bench), tmp_path / "target"
    (target / "elsewhere").mkdir(parents=True)
    (target / IMAGES).mkdir(parents=True)
    (target / IMAGES / "Images").symlink_to(target / "elsewhere")
    (tmp_path / "link").symlink_to(target)
    assert back(bench, one, FolderSink(tmp_path / "link")).complete
    assert len(list((target / "elsewhere").iterdir())) == len(
        [k for k in bench.files if k.startswith(f"{IMAGES}Images/")]
    )


def test_a_damaged_group_is_read_once_for_all_its_files(bench: Bench, tmp_path: Path):
    one = archived(bench, **{f"small{number}": noise(f"{number}", 500) for number in range(40)})
    key = f"{MAIN}.tar.gz"
    data = bytearray(bench.get(key))
    data[len(data) // 2] ^= 1
    bench.client.put_object(Bucket=bench.cold, Key=key, Body=bytes(data))
    report = back(bench, one, FolderSink(tmp_path), parts=["images"])
    failed = [f for f in report.files if f.result is Restored.FAILED]
    assert len(failed) > 40 and all("is damaged at byte" in f.detail for f in failed)
    assert report.read_bytes <= len(data)
