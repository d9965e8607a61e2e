"""Faults of restores. What is lost here: a file that is said to be back and holds other bytes, or other bytes replaced unasked.

The procedure copies the tarball, checks its MD5 and brings the folders back by `aws s3 sync`, which looks at sizes and times.
"""

from __future__ import annotations

from collections.abc import Mapping

from harness.plates.bench import Bench, run
from harness.plates.fault_judge import lost, still_there, stored
from harness.plates.fault_stories import deletion, proved
from harness.plates.fault_table import LEFT, REFUSED, VOID, Draw, Live, Played, few_files, how_it_ended, images_of
from harness.plates.servers import noise, plate
from include.core.errors import WaybillError
from include.plates.models import MIB, ArchiveSettings, Plate
from include.plates.restore import Restored, RestoreReport, find_manifests, restore, select
from include.plates.restore_target import BucketSink
from include.s3.headers import SHA256_METADATA

BACK = "restored"
_GIVEN_BACK = (Restored.RESTORED, Restored.IDENTICAL)


def given_back(bench: Bench, one: Plate, *, overwrite: bool = False) -> RestoreReport:
    async def work() -> RestoreReport:
        wanted = select(await find_manifests(one, bench.layout, bench.archive))
        return await restore(wanted, BucketSink(bench.source), archive=bench.archive, overwrite=overwrite)

    return run(work())


def misreported(bench: Bench, report: RestoreReport, files: Mapping[str, bytes]) -> int:
    said = {one.key for one in report.files if one.result in _GIVEN_BACK}
    return sum(bench.get(key, bench.live) != files[key] for key in said)


def gone(bench: Bench, files: Mapping[str, bytes]) -> None:
    for key in files:
        bench.client.delete_object(Bucket=bench.live, Key=key)


def restored_twice(bench: Bench, draw: Draw) -> Played:
    """An empty object, and one that restore writes in parts: the second restore finds all and writes nothing."""
    one = plate()
    images = images_of(one)
    files = few_files(one) | {f"{images}/empty": b"", f"{images}/huge": noise(draw.random(), 17 * MIB)}
    proved(bench, one, files)
    gone(bench, files)
    first, second = given_back(bench, one), given_back(bench, one)
    all_there = {file.result for file in second.files} == {Restored.IDENTICAL}
    return Played(misreported(bench, second, files), 0, BACK if first.complete and all_there else LEFT)


def changed_since_restored(bench: Bench, draw: Draw) -> Played:
    """After a restore a user's program rewrites an image, same size, and keeps its metadata; then it is restored again."""
    one = plate()
    files = few_files(one)
    proved(bench, one, files)
    gone(bench, files)
    given_back(bench, one)
    key = Live(files).image(draw)
    theirs = noise(draw.random(), len(files[key]))
    metadata = bench.client.head_object(Bucket=bench.live, Key=key)["Metadata"]
    bench.client.put_object(Bucket=bench.live, Key=key, Body=theirs, Metadata=metadata)
    assert SHA256_METADATA in metadata
    report = given_back(bench, one)
    replaced = bench.get(key, bench.live) != theirs
    # sync: same size, and newer than the file of the tarball, so it is taken for the same.
    return Played(misreported(bench, report, files) + replaced, 1, BACK if report.complete else LEFT)


def restored_from_damage(bench: Bench, draw: Draw) -> Played:
    """One bit of an uncompressed tarball is flipped at rest: the file that holds it does not come back."""
    one = plate()
    bench.settings = ArchiveSettings(compression="none", part_bytes=5 * MIB, volume_bytes=1 << 30)
    files = few_files(one)
    proved(bench, one, files)
    gone(bench, files)
    manifests = run(find_manifests(one, bench.layout, bench.archive))
    manifest, member = draw.choice([pair for pair in select(manifests) if pair[1].size])
    there = bench.client.get_object(Bucket=bench.cold, Key=manifest.head.key)
    data, at = bytearray(there["Body"].read()), member.data_offset + draw.randrange(member.size)
    data[at] ^= 1 << draw.randrange(8)
    bench.client.put_object(Bucket=bench.cold, Key=manifest.head.key, Body=bytes(data), Metadata=there["Metadata"])
    report = given_back(bench, one)
    return Played(misreported(bench, report, files), 0, BACK if report.complete else LEFT)  # its MD5 check finds it too


def deleted_after_restore_over(bench: Bench, draw: Draw) -> Played:
    """Restored over a user's newer image, and then the deletion of before is asked for: it is another object by now."""
    one = plate()
    files = few_files(one)
    verdict = proved(bench, one, files)
    key = Live(files).image(draw)
    bench.client.put_object(Bucket=bench.live, Key=key, Body=noise(draw.random(), len(files[key])))
    given_back(bench, one, overwrite=True)
    metadata = {"rewritten": "by a user"}
    bench.client.put_object(Bucket=bench.live, Key=key, Body=files[key] + b"more", Metadata=metadata)
    truth = files | {key: files[key] + b"more"}
    played = Played(0, 0, REFUSED)
    try:
        played.ended = LEFT if not deletion(bench, verdict).complete else "deleted"
    except WaybillError as error:
        played.said, played.ended = str(error), how_it_ended(error, verdict)
    played.ours = lost(truth, still_there(bench, truth), stored(bench), one)
    return played


RESTORES = {
    restored_twice: (BACK,),
    changed_since_restored: (LEFT,),
    restored_from_damage: (LEFT,),
    deleted_after_restore_over: (VOID,),
}
