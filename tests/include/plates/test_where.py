"""Finding archived files: the index says no more than manifests and listings do, says how old it is, and stays small."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.plates.bench import Bench, run
from harness.plates.servers import ENVIRONMENT, plate, plate_files
from harness.proxy import proxied, refuse
from include.core.errors import NotFound, RequestError
from include.plates.__main__ import main
from include.plates.file_index import FileIndex, Listing
from include.plates.manifest import encode_manifest, read_manifest
from include.plates.models import ArchiveSettings, Outcome
from include.plates.name_match import is_named
from include.plates.proof import parse_proof, proof_key
from include.plates.restore import find_manifests, select
from include.plates.where import Answer, answer, places_of
from tests.include.plates.test_archive import MAIN
from tests.include.plates.test_verify import replace_object

PREFIX = "imaging_analysis/"
MANIFEST = MAIN + ".manifest.jsonl.zst"
PROOF = MAIN + ".proof.json"
NOW = 2_000_000_000.0


def archived(bench: Bench, *ids: str, verify: bool = False) -> None:
    for one in map(plate, ids or ("20586",)):
        bench.put(plate_files(one))
        run(bench.archive_it(run(bench.plan(one))))
        if verify:
            assert run(bench.verify(one)).outcome is Outcome.VERIFIED


@pytest.fixture
def index(bench: Bench, tmp_path: Path) -> Any:
    with FileIndex(tmp_path / "index.sqlite", "store") as made:
        yield made


def refresh(bench: Bench, index: FileIndex, now: float = NOW) -> Listing:
    return run(index.refresh(bench.archive, PREFIX, now=now))


def asked(index: FileIndex, name: str, now: float = NOW, **more: Any) -> Answer:
    return answer(index, name, places_of(index), now=now, **more)


NAMES = (
    "20586.sqlite",
    "*/Images/r01*",
    "*.csv",
    "backend/BBBC022/20586/20586.sqlite",
    "*[0-9].sqlite",
    "nothing.tiff",
    "*zz*",
)


@pytest.mark.parametrize("name", NAMES)
def test_where_finds_what_restore_selects_by_the_same_name(bench: Bench, index: FileIndex, name: str):
    archived(bench)
    refresh(bench, index)
    manifests = run(find_manifests(plate(), bench.layout, bench.archive))
    try:
        wanted = {(m.head.key, member.key): member for m, member in select(manifests, files=[name])}
    except NotFound:
        wanted = {}
    found = {(hit.tarball.removeprefix(f"s3://{bench.cold}/"), hit.key): hit for hit in asked(index, name).hits}
    assert found.keys() == wanted.keys()
    for place, hit in found.items():
        member = wanted[place]
        assert (hit.size, hit.offset, hit.frame) == (member.size, member.data_offset, member.frame)


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_a_file_can_be_cut_out_of_its_tarball_by_what_where_says(bench: Bench, index: FileIndex, compression: Any):
    import zlib

    bench.settings = ArchiveSettings(compression=compression, group_bytes=64 * 1024)
    archived(bench)
    refresh(bench, index)
    (hit,) = asked(index, "20586_IllumDNA.npy").hits
    assert (hit.volume, hit.plate) == ("1 of 1", "2013_Gustafsdottir_PLOSONE BBBC022 20586")
    stored = bench.get(hit.tarball.removeprefix(f"s3://{bench.cold}/"))
    at = hit.offset
    if hit.frame is not None:
        offset, length, raw = hit.frame
        stored, at = zlib.decompress(stored[offset : offset + length], 31), hit.offset - raw
    assert stored[at : at + hit.size] == bench.files[hit.key]


def test_only_manifests_that_changed_are_read_again(bench: Bench, index: FileIndex):
    archived(bench, "20585", "20586")
    first = refresh(bench, index)
    assert (first.manifests, first.read) == (4, 4)
    assert refresh(bench, index).read == 0
    manifest = run(read_manifest(bench.archive, MANIFEST))
    members = tuple(m for m in manifest.members if not (m.key or "").endswith("Index.idx.xml"))
    head = manifest.head.model_copy(update={"members": len(members)})
    replace_object(bench, MANIFEST, encode_manifest(head, manifest.frames, members))
    assert refresh(bench, index).read == 1
    assert [hit.key for hit in asked(index, "Index.idx.xml").hits] == [
        key for key in bench.files if key.endswith("20585/Images/Index.idx.xml")
    ]


def test_what_is_gone_is_told_and_comes_back_when_it_does(bench: Bench, index: FileIndex):
    archived(bench)
    refresh(bench, index)
    data = bench.get(MANIFEST)
    bench.client.delete_object(Bucket=bench.cold, Key=MANIFEST)
    assert refresh(bench, index, NOW + 60).gone == (MANIFEST,)
    assert refresh(bench, index, NOW + 999).gone == (MANIFEST,)
    (hit,) = asked(index, "20586_IllumDNA.npy").hits
    assert hit.warnings == ("its manifest is gone: missed first 2033-05-18 03:34 UTC",)
    assert "1 gone since they were read" in places_of(index)[0].told(NOW + 999)
    bench.client.put_object(Bucket=bench.cold, Key=MANIFEST, Body=data)
    assert refresh(bench, index).gone == ()
    assert asked(index, "20586_IllumDNA.npy").hits[0].warnings == ()


def test_a_manifest_that_cannot_be_read_is_told_and_hides_nothing_else(bench: Bench, index: FileIndex):
    archived(bench)
    replace_object(bench, MANIFEST, b"no manifest")
    told = refresh(bench, index)
    assert len(told.broken) == 1 and MANIFEST in told.broken[0]
    assert len(asked(index, "20586.sqlite").hits) == 1
    assert "1 could not be read" in places_of(index)[0].told(NOW)


def test_a_tarball_that_is_missing_or_of_another_size_is_told(bench: Bench, index: FileIndex):
    archived(bench)
    replace_object(bench, MAIN + ".tar.gz", b"short")
    refresh(bench, index)
    (warning,) = asked(index, "20586_IllumDNA.npy").hits[0].warnings
    assert warning.startswith("its tarball has 5 bytes, the manifest says ")
    bench.client.delete_object(Bucket=bench.cold, Key=MAIN + ".tar.gz")
    refresh(bench, index)
    assert asked(index, "20586_IllumDNA.npy").hits[0].warnings == ("its tarball is not in the listing",)


def test_a_tarball_without_a_manifest_is_listed_by_itself(bench: Bench, index: FileIndex):
    archived(bench)
    bench.client.put_object(Bucket=bench.cold, Key=PREFIX + "old/plates/old_20586_images.tar.gz", Body=b"x")
    assert refresh(bench, index).tarballs_alone == (PREFIX + "old/plates/old_20586_images.tar.gz",)


# Proofs


def test_verify_leaves_a_proof_and_where_says_its_age(bench: Bench, index: FileIndex):
    archived(bench)
    refresh(bench, index)
    assert asked(index, "20586_IllumDNA.npy").hits[0].proof == "none is kept: verify writes one"
    run(bench.verify(plate()))
    proof = parse_proof(bench.get(PROOF))
    assert proof is not None and (proof.outcome, proof.how, proof.by) == ("verified", "read_back", "verify")
    refresh(bench, index)
    hit = asked(index, "20586_IllumDNA.npy", now=proof.seconds + 12.5 * 86400).hits[0]
    assert hit.proof == f"read back and sound on {proof.at[:10]}, 12 days ago"
    assert hit.proof_days == 12


def test_a_proof_says_nothing_of_a_tarball_that_was_replaced(bench: Bench, index: FileIndex):
    archived(bench, verify=True)
    replace_object(bench, MAIN + ".tar.gz", bench.get(MAIN + ".tar.gz") + b"more")
    refresh(bench, index)
    hit = asked(index, "20586_IllumDNA.npy").hits[0]
    assert hit.proof.startswith("none of the tarball that lies there now")
    assert hit.proof_days is None


def test_damage_that_verify_finds_takes_the_place_of_the_proof_and_the_other_tarball_keeps_its_own(bench: Bench):
    archived(bench, verify=True)
    kept = bench.get(proof_key(MAIN.replace("images_illum_analysis", "backend") + ".manifest.jsonl.zst"))
    data = bytearray(bench.get(MAIN + ".tar.gz"))
    data[len(data) // 2] ^= 1
    replace_object(bench, MAIN + ".tar.gz", bytes(data))
    assert run(bench.verify(plate())).outcome is Outcome.MISMATCH
    proof = parse_proof(bench.get(PROOF))
    assert proof is not None and proof.outcome is Outcome.MISMATCH and MAIN in proof.detail
    assert "DAMAGED" in proof.told(NOW)
    assert bench.get(proof_key(MAIN.replace("images_illum_analysis", "backend") + ".manifest.jsonl.zst")) == kept


def test_a_look_that_could_not_tell_changes_no_proof(bench: Bench):
    archived(bench, verify=True)
    before = bench.get(PROOF)
    replace_object(bench, MANIFEST, b"no manifest")
    assert run(bench.verify(plate())).outcome is Outcome.UNVERIFIABLE
    assert bench.get(PROOF) == before


# The file itself


def test_a_file_that_is_no_index_is_refused_and_says_what_to_do(tmp_path: Path):
    path = tmp_path / "index.sqlite"
    path.write_bytes(b"something else" * 100)
    with pytest.raises(RequestError, match="remove it"):
        FileIndex(path, "store")
    path.unlink()
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 99")
    with pytest.raises(RequestError, match="format 99"):
        FileIndex(path, "store")


def test_a_reader_makes_no_index(tmp_path: Path):
    with pytest.raises(NotFound, match="plates index"):
        FileIndex(tmp_path / "index.sqlite", "store", read_only=True)
    assert not list(tmp_path.iterdir())


def test_a_refresh_that_was_cut_short_goes_on_where_it_stopped(bench: Bench, index: FileIndex):
    archived(bench, "20585", "20586")

    class Cut(Exception):
        pass

    def stop(_: object) -> None:
        raise Cut

    with pytest.raises(Cut):
        run(index.refresh(bench.archive, PREFIX, on_progress=stop))
    assert places_of(index) == []
    assert refresh(bench, index).read == 3


KEYS = st.text("ab/.*", min_size=1, max_size=8)


@given(st.sets(KEYS, min_size=1, max_size=8), st.text("ab/.*?[]", min_size=1, max_size=6))
def test_a_name_finds_in_the_index_what_the_rule_says(keys: set[str], name: str):
    database = Memory()
    database.add(sorted(keys))
    found = [row.key for _, row in database.index.find(name, "cold", "", limit=100)]
    database.index.close()
    assert sorted(found) == sorted(key for key in keys if is_named(key, name))


class Memory:
    """An index of one made-up manifest."""

    def __init__(self) -> None:
        import tempfile

        self.folder = tempfile.TemporaryDirectory()
        self.index = FileIndex(Path(self.folder.name) / "index.sqlite", "store")

    def add(self, keys: list[str], number: int = 1) -> None:
        from include.plates.models import ManifestMember

        insert = (
            "INSERT INTO manifests (id, store, bucket, key, head, mark) VALUES (?, 'store', 'cold', ?, '{}', 'e:1:1')"
        )
        self.index._database.execute(insert, (number, f"m{number}"))
        members = [ManifestMember(key, 1, at, at, 0, key=key) for at, key in enumerate(keys)]
        with self.index._transaction():
            self.index._add(number, members)


def test_a_million_files_take_little_space(tmp_path: Path):
    """A tenth of it here: 25 plates of 4,000 files under the names that a microscope gives."""
    database = Memory()
    for number in range(1, 26):
        keys = [
            f"projects/P/B/images/plate{number}/Images/r{n // 96:02}c{n % 96:02}f01p01-ch1sk1fk1fl1.tiff"
            for n in range(4000)
        ]
        database.add(keys, number)
    assert database.index.path.stat().st_size < 100_000 * 60
    plan = "EXPLAIN QUERY PLAN SELECT * FROM files f JOIN names n ON n.id = f.name WHERE n.name = 'x'"
    assert "SCAN" not in " ".join(str(row) for row in database.index._database.execute(plan))
    assert len(database.index.find("r01c01f01p01-ch1sk1fk1fl1.tiff", "cold", "", limit=100)) == 25
    database.index.close()


# The command line


@pytest.fixture
def _home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def where(bench: Bench, *words: str, prefix: str | None = PREFIX, command: str = "where") -> int:
    place = ["--prefix", f"s3://{bench.cold}/{prefix}"] if prefix is not None else []
    return main([command, *words, *place, "--endpoint-url", bench.url])


@pytest.mark.usefixtures("_home")
def test_the_command_answers_with_what_lies_there_now(
    bench: Bench, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    archived(bench, verify=True)
    assert where(bench, "20586.sqlite") == 0
    told = capsys.readouterr()
    assert "20586_backend.tar.gz" in told.out and "read back and sound" in told.out
    assert "2 manifests under" in told.err and "--file" in told.err
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    archived(bench, "20585")
    assert where(bench, "20585.sqlite", "20586.sqlite", "--json", prefix=None) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["name"] for row in rows] == ["20585.sqlite", "20586.sqlite"]
    assert rows[0]["proof_days"] is None and rows[1]["proof_days"] == 0
    assert where(bench, "none.tiff") == 1
    assert "is in none of these manifests" in capsys.readouterr().err
    assert where(bench, command="index") == 0
    assert where(bench, "--rebuild", command="index", prefix=None) == 0


@pytest.mark.usefixtures("_home")
def test_the_restore_command_that_it_gives_restores_that_file(
    bench: Bench, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    import shlex

    archived(bench)
    assert where(bench, "20586.sqlite", "--json") == 0
    hit = json.loads(capsys.readouterr().out)
    words = shlex.split(hit["restore"].replace("FOLDER", str(tmp_path / "out")))
    assert words[:3] == ["python", "-m", "include.plates"]
    assert main([*words[3:], "--bucket", bench.live, "--endpoint-url", bench.url]) == 0
    (file,) = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert file.read_bytes() == bench.files[hit["key"]]


@pytest.mark.usefixtures("_home")
def test_not_found_beside_a_manifest_that_cannot_be_read_is_not_known(bench: Bench, capsys: pytest.CaptureFixture[str]):
    archived(bench)
    replace_object(bench, MANIFEST, b"no manifest")
    assert where(bench, "20586_IllumDNA.npy") == 3
    assert "1 could not be read" in capsys.readouterr().err


@pytest.mark.usefixtures("_home")
def test_a_store_that_cannot_be_asked_is_told_and_the_old_answer_with_it(
    bench: Bench, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    archived(bench)
    assert where(bench, "20586.sqlite") == 0
    bench.client.delete_bucket_policy(Bucket=bench.cold)

    async def refused(*_: object, **__: object) -> None:
        from include.core.errors import TransientError

        raise TransientError("listing: the store was not reached")

    monkeypatch.setattr(FileIndex, "refresh", refused)
    assert where(bench, "20586.sqlite") == 4
    told = capsys.readouterr()
    assert "20586_backend.tar.gz" in told.out and "known before" in told.err
    assert where(bench, "20586.sqlite", "--no-refresh") == 0
    assert "as listed" in capsys.readouterr().err
    assert where(bench, "20586.sqlite", prefix="other/") == 4
    assert "never listed" in capsys.readouterr().err


@pytest.mark.usefixtures("_home")
def test_no_prefix_at_all_is_refused(bench: Bench, capsys: pytest.CaptureFixture[str]):
    assert where(bench, "x", prefix=None) == 2
    assert "--prefix" in capsys.readouterr().err
    assert main(["where", "x", "--prefix", "cold/bucket"]) == 2


def asks(bench: Bench, *more: str) -> int:
    return main(["where", "20586.sqlite", "--endpoint-url", bench.url, *more])


@pytest.fixture
def _as_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.mark.usefixtures("_as_user")
def test_tarballs_without_a_manifest_are_told_and_nothing_is_called_absent(
    bench: Bench, capsys: pytest.CaptureFixture[str]
):
    bench.client.put_object(Bucket=bench.cold, Key=f"{MAIN}.tar.gz", Body=b"by the script")
    assert asks(bench, "--prefix", f"s3://{bench.cold}/{PREFIX}") == 3
    assert f"1 tarball without a manifest, which no search looks into: {MAIN}.tar.gz" in capsys.readouterr().err
    assert asks(bench, "--no-refresh") == 3, "the index knows it, too"


@pytest.mark.usefixtures("_as_user")
@pytest.mark.parametrize(
    ("code", "http", "status"),
    [("ExpiredToken", 400, 5), ("RequestTimeTooSkewed", 403, 6), ("NoSuchBucket", 404, 8), ("AccessDenied", 403, 11)],
)
def test_why_the_store_could_not_be_asked_is_in_the_status(bench: Bench, code: str, http: int, status: int):
    with proxied(bench.url) as front:
        front.add(refuse(None, None, http, code))
        bench.url = front.url
        assert asks(bench, "--prefix", f"s3://{bench.cold}/{PREFIX}") == status


@pytest.mark.usefixtures("_as_user")
def test_an_index_that_cannot_be_is_bad_input(bench: Bench, tmp_path: Path):
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path, tmp_path / "file" / "index.sqlite"):
        assert asks(bench, "--prefix", f"s3://{bench.cold}/{PREFIX}", "--index", str(path)) == 2
