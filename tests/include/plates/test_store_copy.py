"""Archives that the store puts together itself: the same bytes, next to nothing through the client, every wrong copy found."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import proxy
from harness.plates import servers
from harness.plates.bench import run
from harness.plates.servers import ENVIRONMENT, plate, plate_files
from harness.plates.simulated import Simulated, simulated
from include.core.errors import VerificationError, WaybillError
from include.core.journal import FileJournal
from include.core.progress import Progress
from include.plates.__main__ import main
from include.plates.delete import delete_plate
from include.plates.models import MIB, ArchiveSettings, DeleteOrder, Level, Outcome, Verdict
from include.plates.restore import find_manifests, restore, select
from include.plates.restore_target import FolderSink
from include.plates.tar_format import header
from include.plates.verify_store import ustar_header
from include.s3.errors import SourceChanged
from include.s3.multipart import Upload
from include.s3.staging import MARK
from include.s3.staging_cleanup import find_staged, remove_abandoned

BY_SERVER = ArchiveSettings(compression="none", part_bytes=5 * MIB, volume_bytes=1 << 30, copy_by="server")
IMAGES = "projects/2013_Gustafsdottir_PLOSONE/BBBC022/images/20586/Images/"
MAIN = (
    "imaging_analysis/2013_Gustafsdottir_PLOSONE/plates/2013_Gustafsdottir_PLOSONE_BBBC022_20586_images_illum_analysis"
)
BIG = [f"{IMAGES}big{n}.tiff" for n in range(3)]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Simulated]:
    with simulated(tmp_path / "journals") as made:
        made.bench.settings = BY_SERVER
        yield made


@pytest.fixture
def versions(tmp_path: Path) -> Iterator[Simulated]:
    with simulated(tmp_path / "journals", versioned=True) as made:
        made.bench.settings = BY_SERVER
        yield made


def fill(store: Simulated, *, small: bool = True) -> None:
    """A plate with three images that the store can copy, of one size, and some small files."""
    files = plate_files(plate()) if small else {}
    store.bench.put(files | {key: servers.noise(key, 6 * MIB + 77) for key in BIG})


def archive(store: Simulated, **changes: Any) -> None:
    run(store.bench.archive_it(run(store.bench.plan(plate())), **changes))


def proof(store: Simulated, level: Level = Level.STORE_PROVED) -> Verdict:
    return run(store.bench.verify(plate(), level=level))


@pytest.fixture(params=["plain", "versioned"])
def either(request: pytest.FixtureRequest) -> Simulated:
    return request.getfixturevalue("store" if request.param == "plain" else "versions")


def test_the_tarball_is_the_one_that_the_worker_writes_and_nothing_else_is_left(either: Simulated):
    fill(either)
    archive(either)
    made = either.bench.get(MAIN + ".tar")
    assert either.left_in_staging() == []
    for name in list(either.bench.keys(either.bench.cold)):
        either.bench.client.delete_object(Bucket=either.bench.cold, Key=name)
    either.bench.settings = BY_SERVER.model_copy(update={"copy_by": "worker"})
    either.bench.journals /= "again"
    archive(either)
    assert either.bench.get(MAIN + ".tar") == made


def test_only_headers_and_small_files_pass_through_the_client(store: Simulated):
    fill(store, small=False)
    plan = run(store.bench.plan(plate()))
    passed: list[int] = []

    def count(request: proxy.Call, forward: proxy.Forward) -> proxy.Answer:
        answer = forward(request)
        passed.append(len(request.body) + (0 if request.method == "HEAD" else len(answer.content())))
        return answer

    with proxy.proxied(store.bench.url) as front:
        front.add(count)
        access = servers.access(front.url)
        buckets = {"source": access.bucket(store.bench.live), "archive": access.bucket(store.bench.cold)}
        run(store.bench.archive_it(plan, **buckets))
        verdict = run(store.bench.verify(plate(), level=Level.STORE_PROVED, **buckets))
        access.close()
    assert verdict.outcome is Outcome.VERIFIED and verdict.level is Level.STORE_PROVED
    assert sum(passed) < 0.01 * sum(len(store.bench.files[key]) for key in BIG)


@pytest.mark.parametrize("level", list(Level))
def test_the_verdict_says_how_far_it_goes_and_those_of_before_were_read_back(versions: Simulated, level: Level):
    fill(versions)
    archive(versions)
    verdict = proof(versions, level)
    assert (verdict.outcome, verdict.level) == (Outcome.VERIFIED, level), verdict.reasons
    assert (MAIN + ".md5" in versions.bench.keys(versions.bench.cold)) == (level is Level.READ_BACK)
    row = verdict.model_dump(mode="json")
    for volume in row["volumes"]:
        del volume["level"]
    assert Verdict.model_validate(row).level is Level.READ_BACK


def test_a_compressed_tarball_is_read_back_whatever_is_asked(store: Simulated):
    store.bench.settings = ArchiveSettings(compression="gzip", volume_bytes=1 << 30)
    store.bench.put(plate_files(plate()))
    archive(store)
    assert proof(store).level is Level.READ_BACK


def test_an_object_without_a_checksum_is_read_and_proves_as_well(store: Simulated):
    fill(store)
    store.forget_checksum(BIG[1])
    small = next(key for key in store.bench.files if key.endswith(".npy"))
    store.forget_checksum(small)
    archive(store)
    verdict = proof(store)
    assert (verdict.outcome, verdict.level) == (Outcome.VERIFIED, Level.STORE_PROVED)
    assert any("2 read" in check.detail for check in verdict.checks if check.name == "V2")


def test_names_that_ustar_cannot_hold_are_read_from_the_tarball(store: Simulated):
    fill(store, small=False)
    long = f"{IMAGES}{'x' * 120}/ü {'y' * 130}.tiff"
    store.bench.put({long: b"abc"})
    archive(store)
    verdict = proof(store)
    assert (verdict.outcome, verdict.level) == (Outcome.VERIFIED, Level.STORE_PROVED), verdict.reasons


def test_a_tarball_that_is_another_by_now_is_a_mismatch(store: Simulated):
    """Replaced by something that begins as no tar does, and by other bytes: each has a checksum of its own."""
    fill(store, small=False)
    store.bench.put({f"{IMAGES}{'x' * 120}": b"abc"})
    archive(store)
    whole = store.bench.get(MAIN + ".tar")
    metadata = store.bench.client.head_object(Bucket=store.bench.cold, Key=MAIN + ".tar")["Metadata"]
    for data in (b"?" * len(whole), whole[:-1] + b"x", whole[:-512]):
        store.bench.client.put_object(Bucket=store.bench.cold, Key=MAIN + ".tar", Body=data, Metadata=metadata)
        assert proof(store).outcome is Outcome.MISMATCH


@pytest.mark.parametrize(
    "name", ["a", "d/", "x" * 99 + "/b", "x" * 100 + "/b/", "q/" * 60 + "c", "d/" + "y" * 99 + "/"]
)
@pytest.mark.parametrize(("size", "modified"), [(0, 0), (512, 1_700_000_000), (8**11 - 1, 8**11 - 1)])
def test_the_verifiers_own_headers_are_those_of_the_format(name: str, size: int, modified: int):
    size = 0 if name.endswith("/") else size
    assert ustar_header(name, size, modified) == header(name, size, modified)


@pytest.mark.parametrize(
    ("name", "size", "modified"), [("ü", 1, 1), ("x" * 101, 1, 1), ("a", 8**11, 1), ("a", 1, -1), ("a", 1, 8**11)]
)
def test_what_ustar_cannot_hold_is_left_to_reading(name: str, size: int, modified: int):
    assert ustar_header(name, size, modified) is None
    assert len(header(name, size, modified)) > 512


# Wrong copies


def wrong_copies(store: Simulated, kind: str, number: int) -> None:
    """Each copy of one of the images is of other bytes; `number` chooses which image, and which bit."""
    key = BIG[number % 3]
    options: dict[str, Any] = {"key": BIG[(number + 1) % 3]} if kind == "copy_swapped" else {}
    if kind == "copy_flipped":
        options = {"bit": number * 7919 * 64}
    if kind == "copy_stale":
        right = store.bench.files[key]  # with an older version of the same size
        for data in (servers.noise((key, number), len(right)), right):
            store.bench.client.put_object(Bucket=store.bench.live, Key=key, Body=data)
    store.fault(kind, times=None, method="PUT", query="partNumber=", options=options | {"source": key})


KINDS = ("copy_swapped", "copy_short", "copy_stale", "copy_flipped")


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_copy_is_refused_while_it_is_made(versions: Simulated, kind: str):
    fill(versions)
    wrong_copies(versions, kind, 1)
    with pytest.raises(VerificationError, match="other bytes"):
        archive(versions)
    assert MAIN + ".tar" not in versions.bench.keys(versions.bench.cold)
    assert versions.left_in_staging() == []
    versions.heal()
    archive(versions)
    assert proof(versions).outcome is Outcome.VERIFIED


@pytest.mark.parametrize("kind", KINDS)
def test_the_verifier_finds_a_wrong_copy_that_the_archiver_let_pass(
    versions: Simulated, kind: str, monkeypatch: pytest.MonkeyPatch
):
    fill(versions)
    wrong_copies(versions, kind, 2)
    trusting(monkeypatch)
    try:
        archive(versions)
    except WaybillError as error:
        assert kind == "copy_short" and "size" not in str(error)  # the sizes give it away
        return
    verdict = proof(versions)
    assert verdict.outcome is Outcome.MISMATCH
    assert proof(versions, Level.READ_BACK).outcome is Outcome.MISMATCH


def trusting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The archiver without its guard: whatever was copied will do."""
    checked = Upload.copy
    monkeypatch.setattr(Upload, "copy", lambda self, number, source, *, expected=None: checked(self, number, source))


def test_one_wrong_copy_is_made_again(store: Simulated):
    fill(store)
    store.fault("copy_flipped", times=2, method="PUT", query="partNumber=", options={"source": BIG[1]})
    archive(store)
    assert proof(store).outcome is Outcome.VERIFIED


def test_a_bit_that_flips_at_rest_is_found_by_reading_alone(store: Simulated):
    """The limit of the weaker level, and why it is told apart: the store still names the checksum of before."""
    fill(store)
    archive(store)
    store.fault("flip_bit", method="HEAD", path=f"{MAIN}.tar$")
    store.bench.client.head_object(Bucket=store.bench.cold, Key=MAIN + ".tar")
    assert proof(store).outcome is Outcome.VERIFIED
    assert proof(store, Level.READ_BACK).outcome is Outcome.MISMATCH


def test_a_source_overwritten_after_the_plan_is_not_copied(store: Simulated):
    fill(store)
    plan = run(store.bench.plan(plate()))
    store.bench.put({BIG[1]: servers.noise("newer", 6 * MIB + 77)})
    with pytest.raises(SourceChanged):
        run(store.bench.archive_it(plan))
    assert store.left_in_staging() == []


def test_a_store_that_ignores_the_condition_is_found_out_by_the_checksum(store: Simulated):
    fill(store)
    plan = run(store.bench.plan(plate()))
    store.bench.put({BIG[1]: servers.noise("newer", 6 * MIB + 77)})
    with proxy.proxied(store.bench.url) as front:
        front.add(proxy.ignore_headers("x-amz-copy-source-if-match"))
        access = servers.access(front.url)
        buckets = {"source": access.bucket(store.bench.live), "archive": access.bucket(store.bench.cold)}
        with pytest.raises(VerificationError):
            run(store.bench.archive_it(plan, **buckets))
        access.close()


def test_a_store_that_names_no_checksum_of_a_copy_proves_nothing(store: Simulated):
    fill(store)
    plan = run(store.bench.plan(plate()))

    def silent(request: proxy.Call, forward: proxy.Forward) -> proxy.Answer:
        answer = forward(request)
        answer.body = answer.content().replace(b"ChecksumCRC64NVME>", b"Other>")
        return answer

    with proxy.proxied(store.bench.url) as front:
        front.add(proxy.call(silent, method="PUT", query="partNumber="))
        access = servers.access(front.url)
        buckets = {"source": access.bucket(store.bench.live), "archive": access.bucket(store.bench.cold)}
        with pytest.raises(VerificationError, match="names no CRC64NVME"):
            run(store.bench.archive_it(plan, **buckets))
        access.close()


# Crashes


class Killed(BaseException):
    """The worker dies here: nothing cleans up."""


@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_killed_archive_is_continued_and_leaves_nothing(versions: Simulated, after: int):
    fill(versions)
    plan = run(versions.bench.plan(plate()))

    def dies(progress: Progress) -> None:
        if progress.total_bytes > MIB and progress.done_items >= after:
            raise Killed

    with pytest.raises(Killed):
        run(versions.bench.archive_it(plan, on_progress=dies))
    assert versions.left_in_staging() or after < 3  # with three of four parts, one was joined
    result = run(versions.bench.archive_it(plan))
    assert result.volumes[0].resumed_parts >= after
    assert versions.left_in_staging() == []
    assert proof(versions, Level.READ_BACK).outcome is Outcome.VERIFIED


def test_what_a_kill_after_the_end_left_is_removed_by_the_next_run(
    versions: Simulated, monkeypatch: pytest.MonkeyPatch
):
    fill(versions)
    with monkeypatch.context() as patch:
        patch.setattr("include.plates.archive.remove_staged", _dies)
        with pytest.raises(Killed):
            archive(versions)
    assert versions.left_in_staging()
    archive(versions)
    assert versions.left_in_staging() == []


async def _dies(_bucket: object, key: str, *_: object) -> list[str]:
    """At the end of the tarball that has pieces; the other one may be ready before."""
    if key == MAIN + ".tar":
        raise Killed
    return []


def test_what_is_not_ours_in_the_staging_place_is_left_and_told(store: Simulated):
    fill(store)
    foreign = f"waybill-staging/{MAIN}.tar/notes.txt"
    store.bench.client.put_object(Bucket=store.bench.cold, Key=foreign, Body=b"mine")
    result = run(store.bench.archive_it(run(store.bench.plan(plate()))))
    assert store.left_in_staging() == [foreign]
    assert any(foreign in note for note in result.volumes[0].notes)


def test_a_store_that_fails_in_the_middle_leaves_no_pieces(store: Simulated):
    fill(store)
    store.fault("status", times=None, code=403, problem={"code": "AccessDenied"}, method="PUT", query="partNumber=3")
    with pytest.raises(WaybillError):
        archive(store)
    assert store.left_in_staging() == []


# Pieces of a run that nobody continues

DAY = 86_400.0


@pytest.fixture
def killed(versions: Simulated, monkeypatch: pytest.MonkeyPatch) -> Simulated:
    """A store with the pieces of a run that was killed at its end."""
    fill(versions)
    with monkeypatch.context() as patch:
        patch.setattr("include.plates.archive.remove_staged", _dies)
        with pytest.raises(Killed):
            archive(versions)
    versions.bench.client.create_multipart_upload(Bucket=versions.bench.cold, Key=f"{STAGED}/0-9.lead")
    assert len(versions.left_in_staging()) > 1
    return versions


STAGED = f"waybill-staging/{MAIN}.tar/{'0' * 16}"


def cleaned_up(store: Simulated, days: float = 8) -> tuple[list[str], list[str]]:
    """Why targets were kept, and what was left of the others, by a clean-up so many days from now."""
    now = time.time() + days * DAY
    listed = run(find_staged(store.bench.archive, now=now))
    return [one.kept for one in listed if one.kept], [
        run(remove_abandoned(store.bench.archive, one, now=now)) for one in listed if not one.kept
    ]


def test_pieces_that_no_run_uses_any_more_are_removed_and_nothing_else_is(killed: Simulated):
    before = killed.bench.keys(killed.bench.cold)
    (listed,) = run(find_staged(killed.bench.archive, now=time.time() + 8 * DAY))
    assert listed.target == MAIN + ".tar" and len(listed.uploads) == 1 and listed.size_bytes > 0
    assert "and 1 open upload, the last of 8.0 days ago" in listed.told(time.time() + 8 * DAY)
    assert cleaned_up(killed) == ([], [""])
    assert killed.left_in_staging() == []
    assert killed.bench.keys(killed.bench.cold) == {key for key in before if not key.startswith("waybill-staging/")}
    archive(killed)
    assert proof(killed).outcome is Outcome.VERIFIED


def test_young_pieces_are_kept(killed: Simulated):
    before = killed.left_in_staging()
    assert cleaned_up(killed, days=6) == (["it is young: a run may be at work"], [])
    assert killed.left_in_staging() == before


@pytest.mark.parametrize("which", ["begun", "part"])
def test_pieces_of_a_run_at_work_are_kept_however_old_they_are(killed: Simulated, which: str):
    """The run that owns them has sent nothing to them for a week, but to the tarball."""
    client, where = killed.bench.client, {"Bucket": killed.bench.cold, "Key": MAIN + ".tar"}
    later = (lambda: time.time() + 3 * DAY) if which == "begun" else time.time
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(killed.sim._store, "_now", later)
        upload = client.create_multipart_upload(**where)["UploadId"]
        patch.setattr(killed.sim._store, "_now", lambda: time.time() + 3 * DAY)
        client.upload_part(**where, UploadId=upload, PartNumber=1, Body=b"part")
    before = killed.left_in_staging()
    assert cleaned_up(killed) == (["an upload of its target is at work"], [])
    assert killed.left_in_staging() == before
    assert cleaned_up(killed, days=11) == ([], [""])


def test_a_run_that_begins_after_the_list_keeps_its_pieces(killed: Simulated):
    now = time.time() + 8 * DAY
    (listed,) = run(find_staged(killed.bench.archive, now=now))
    killed.bench.client.put_object(Bucket=killed.bench.cold, Key=f"{STAGED}/9-18", Body=b"x", Metadata={MARK: "1"})
    before = killed.left_in_staging()
    assert "changed since it was listed" in run(remove_abandoned(killed.bench.archive, listed, now=now))
    assert killed.left_in_staging() == before


@pytest.mark.parametrize(
    ("key", "why"),
    [
        (f"{STAGED}/9-18", "do not carry Waybill's mark"),
        (f"waybill-staging/{MAIN}.tar/notes.txt", "none that Waybill gives"),
    ],
)
def test_what_is_not_ours_is_never_cleaned_up(versions: Simulated, key: str, why: str):
    versions.bench.client.put_object(Bucket=versions.bench.cold, Key=key, Body=b"mine")
    (kept,), left = cleaned_up(versions, days=1000)
    assert why in kept and left == []
    assert versions.left_in_staging() == [key]


def test_what_the_store_does_not_remove_is_told(killed: Simulated):
    killed.fault("status", times=None, code=403, problem={"code": "AccessDenied"}, method="POST", query="^delete")
    ((told,),) = [cleaned_up(killed)[1]]
    assert "pieces may be left under" in told


def lock(store: Simulated, **rule: Any) -> None:
    """An archive bucket with Object Lock; `rule` is its default retention, if it has one."""
    store.bench.cold += "-locked"
    store.bench.client.create_bucket(Bucket=store.bench.cold, ObjectLockEnabledForBucket=True)
    if rule:
        configuration = {"ObjectLockEnabled": "Enabled", "Rule": {"DefaultRetention": rule}}
        store.bench.client.put_object_lock_configuration(Bucket=store.bench.cold, ObjectLockConfiguration=configuration)


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({"Mode": "GOVERNANCE", "Days": 30}, "GOVERNANCE, 30 days"),
        ({"Mode": "COMPLIANCE", "Years": 1}, "COMPLIANCE, 1 year"),
    ],
)
def test_a_bucket_that_retains_every_object_is_refused_since_pieces_would_stay(
    store: Simulated, rule: dict[str, Any], said: str
):
    fill(store)
    lock(store, **rule)
    (problem,) = run(store.bench.plan(plate())).problems
    assert said in problem and "say copy_by worker" in problem
    store.bench.settings = BY_SERVER.model_copy(update={"copy_by": "worker"})
    assert run(store.bench.plan(plate())).problems == ()


def test_object_lock_without_a_default_lets_pieces_be_removed(store: Simulated):
    fill(store)
    lock(store)
    archive(store)
    assert store.left_in_staging() == []


def test_a_bucket_that_may_not_be_asked_for_its_object_lock_is_told(store: Simulated):
    fill(store)
    lock(store)
    store.fault("status", times=None, code=403, problem={"code": "AccessDenied"}, method="GET", query="object-lock")
    plan = run(store.bench.plan(plate()))
    assert plan.problems == ()
    assert any("GetBucketObjectLockConfiguration" in warning for warning in plan.warnings)


# Encryption and split bodies


def test_an_encrypted_source_whose_etag_is_no_md5_is_copied_and_proved(store: Simulated):
    kms = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "one"}
    for key in BIG:
        store.bench.client.put_object(Bucket=store.bench.live, Key=key, Body=servers.noise(key, 6 * MIB), **kms)
    archive(store)
    assert proof(store).outcome is Outcome.VERIFIED


@pytest.mark.parametrize("kind", [None, "copy_flipped"])
def test_a_body_of_several_stretches_is_proved_as_a_whole(
    store: Simulated, kind: str | None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(
        "include.plates.store_copy_plan.plan_copies.__kwdefaults__", {"most": 9000, "max_copy": 18 * MIB}
    )
    store.bench.put({BIG[0]: servers.noise("long", 26 * MIB), BIG[1]: servers.noise("next", 6 * MIB)})
    if kind:
        store.fault(kind, times=1, method="PUT", query="partNumber=2", options={"source": BIG[0]})
        with pytest.raises(VerificationError):
            archive(store)
        return
    archive(store)
    assert proof(store).outcome is Outcome.VERIFIED
    assert proof(store, Level.READ_BACK).outcome is Outcome.VERIFIED


def test_more_parts_than_an_upload_takes_are_joined_and_proved(store: Simulated, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("include.plates.store_copy_plan.plan_copies.__kwdefaults__", {"most": 2, "max_copy": 18 * MIB})
    fill(store)
    store.bench.put({f"{IMAGES}a{n}.tiff": servers.noise(n, 3 * MIB) for n in range(5)})
    archive(store)
    assert store.left_in_staging() == []
    assert proof(store).outcome is Outcome.VERIFIED
    assert proof(store, Level.READ_BACK).outcome is Outcome.VERIFIED


# Deletion and restore


def test_a_deletion_needs_a_tarball_that_was_read_back_unless_the_order_says_otherwise(store: Simulated):
    fill(store)
    archive(store)
    verdict = proof(store)
    places: dict[str, Any] = {"source": store.bench.source, "archive": store.bench.archive}
    places["journal"] = FileJournal(store.bench.journals / "delete")
    order = DeleteOrder(verdict.manifests_sha256, ("images",), retention="none")
    with pytest.raises(VerificationError, match="store-proved"):
        run(delete_plate(verdict, order, **places))
    assert store.bench.keys(store.bench.live) >= set(BIG)
    enough = DeleteOrder(verdict.manifests_sha256, ("images",), retention="none", needs=Level.STORE_PROVED)
    assert run(delete_plate(verdict, enough, **places)).complete
    assert not store.bench.keys(store.bench.live) & set(BIG)


def test_a_copied_file_is_restored_and_checked_by_the_stores_checksum(store: Simulated, tmp_path: Path):
    fill(store)
    archive(store)
    manifests = run(find_manifests(plate(), store.bench.layout, store.bench.archive))
    wanted = select(manifests, files=[BIG[1]])
    done = run(restore(wanted, FolderSink(tmp_path / "back"), archive=store.bench.archive))
    assert done.complete
    assert (tmp_path / "back" / BIG[1]).read_bytes() == store.bench.files[BIG[1]]


def test_the_command_line_says_which_proof_it_made(
    store: Simulated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("COLUMNS", "400")
    fill(store)
    ids = ["--project", "2013_Gustafsdottir_PLOSONE", "--batch", "BBBC022", "--plate-id", "20586"]
    ids += ["--bucket", store.bench.live, "--cold-bucket", store.bench.cold, "--endpoint-url", store.bench.url]
    journal = ["--journal", str(tmp_path / "kept")]
    assert main(["archive", *ids, *journal, "--compression", "none", "--copy-by", "server"]) == 0
    assert main(["verify", *ids, "--proof", "store_proved"]) == 0
    assert "all proved, store-proved" in " ".join(capsys.readouterr().out.split())
    digest = proof(store).manifests_sha256
    order = ["delete", *ids, *journal, "--approve", digest, "--part", "images", "--retention", "none"]
    assert main([*order, "--proof", "store_proved"]) == 1
    assert main([*order, "--proof", "store_proved", "--needs", "store_proved"]) == 0
