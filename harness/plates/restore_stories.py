"""Faults of restores. What is lost here: a file that is said to be back and holds other bytes or has lost its headers, or
other bytes replaced unasked.

The procedure copies the tarball, checks its MD5 and brings the folders back by `aws s3 sync`, which looks at sizes and times.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace

from harness.plates import servers
from harness.plates.bench import Bench, run
from harness.plates.fault_judge import lost, still_there, stored
from harness.plates.fault_shapes import bomb, flipped
from harness.plates.fault_stories import deletion, proved
from harness.plates.fault_table import (
    LEFT,
    REFUSED,
    VOID,
    Draw,
    Live,
    Played,
    few_files,
    how_it_ended,
    images_of,
    tarball_of,
)
from harness.plates.servers import noise, plate
from harness.plates.sop_world import SopWorld, backed_up
from harness.proxy import Answer, Call, Forward, call, proxied
from harness.store_faults import without_headers
from include.core.errors import WaybillError
from include.plates.models import MIB, ArchiveSettings, Plate
from include.plates.restore import Restored, RestoreReport, find_manifests, restore, select
from include.plates.restore_target import BucketSink, FolderSink
from include.s3.headers import SHA256_METADATA

BACK = "restored"
PLAIN = ArchiveSettings(compression="none", part_bytes=5 * MIB, volume_bytes=1 << 30)
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
    bench.settings = PLAIN
    files = few_files(one) | {f"{images}/empty": b"", f"{images}/huge": noise(draw.random(), 17 * MIB)}
    proved(bench, one, files)
    gone(bench, files)
    if draw.random() < 0.5:
        first, second = given_back(bench, one), given_back(bench, one)
    else:
        with proxied(bench.url) as front:
            front.add(*(call(_under_kms, method=method, path="/projects/") for method in ("HEAD", "GET")))
            access = servers.access(front.url)
            through = replace(bench, access=access)
            first, second = given_back(through, one), given_back(through, one)
            access.close()
    all_there = {file.result for file in second.files} == {Restored.IDENTICAL}
    world = _gone_there(one, files)
    theirs = world.misreported(world.give_back(), files) + world.misreported(world.give_back(), files)
    return Played(misreported(bench, second, files), theirs, BACK if first.complete and all_there else LEFT)


def _under_kms(request: Call, forward: Forward) -> Answer:
    """ETags look like MD5s and are none, and no checksum is kept."""
    answer = forward(without_headers(request, "if-match"))
    kept = {name: value for name, value in answer.headers.items() if "checksum" not in name.lower()}
    etags = {name: f'"{hashlib.md5(kept[name].encode()).hexdigest()}"' for name in kept if name.lower() == "etag"}
    answer.headers = {**kept, **etags, "x-amz-server-side-encryption": "aws:kms"}
    return answer


def _gone_there(one: Plate, files: Mapping[str, bytes]) -> SopWorld:
    """The procedure's archive of a plate that is gone from its bucket."""
    world = backed_up(one, files)
    world.remove(files.keys())
    return world


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
    world = _gone_there(one, files)
    world.give_back()
    world.put({key: theirs})
    said = world.give_back()
    unsafe = world.misreported(said, files) + (world.live[key].data != theirs)
    return Played(misreported(bench, report, files) + replaced, unsafe, BACK if report.complete else LEFT)


def restored_from_damage(bench: Bench, draw: Draw) -> Played:
    """One bit of an uncompressed tarball is flipped at rest: the file that holds it does not come back."""
    one = plate()
    bench.settings = PLAIN
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
    return Played(misreported(bench, report, files), _from_damage(one, files, draw), BACK if report.complete else LEFT)


def _from_damage(one: Plate, files: Mapping[str, bytes], draw: Draw) -> int:
    world = _gone_there(one, files)
    name = next(iter(world.tarballs))
    world.tarballs[name] = flipped(world.tarballs[name], draw)
    return world.misreported(world.give_back(), files)


def restored_from_a_bomb(bench: Bench, draw: Draw) -> Played:
    """In place of a tarball lies one of the same size that unpacks to a hundred times what it should."""
    one = plate()
    files = few_files(one) | {f"{images_of(one)}/large": noise(draw.random(), MIB)}
    proved(bench, one, files)
    gone(bench, files)
    there = bench.client.get_object(Bucket=bench.cold, Key=tarball_of(one))
    planted = bomb(b"", draw)
    body = planted[: there["ContentLength"]].ljust(there["ContentLength"], b"\0")
    bench.client.put_object(Bucket=bench.cold, Key=tarball_of(one), Body=body, Metadata=there["Metadata"])
    report = given_back(bench, one)
    world = _gone_there(one, files)
    world.tarballs[next(iter(world.tarballs))] = planted
    theirs = world.misreported(world.give_back(), files)
    return Played(misreported(bench, report, files), theirs, BACK if report.complete else LEFT)


KEPT = (("kept-by", "a user"), ("plate", "20586"))


def restored_with_its_headers(bench: Bench, draw: Draw) -> Played:
    """An image has metadata, a content type and tags of its own, and may be large enough to be written in parts."""
    one = plate()
    key, data = f"{images_of(one)}/dressed", noise(draw.random(), draw.choice([500, 17 * MIB]))
    bench.settings = PLAIN
    files = few_files(one)
    bench.put(files)
    more = {"Metadata": dict(KEPT), "ContentType": "image/x-plate", "Tagging": "owner=amy"}
    bench.client.put_object(Bucket=bench.live, Key=key, Body=data, **more)
    world = SopWorld()
    world.put(files)
    world.put({key: data}, metadata=KEPT)
    files[key] = data
    world.backup(one)
    world.remove(files.keys())
    run(bench.archive_it(run(bench.plan(one))))
    gone(bench, files)
    report = given_back(bench, one)
    head = bench.client.head_object(Bucket=bench.live, Key=key)
    tags = bench.client.get_object_tagging(Bucket=bench.live, Key=key)["TagSet"]
    told = any(file.key == key and file.detail for file in report.files)
    kept = dict(KEPT).items() <= head["Metadata"].items() and head["ContentType"] == "image/x-plate" and len(tags) == 1
    world.give_back()
    bare = int(world.live[key].metadata != KEPT)
    return Played(misreported(bench, report, files) + (not kept and not told), bare, BACK if report.complete else LEFT)


def restored_into_a_folder(bench: Bench, draw: Draw) -> Played:
    """Two files cannot be written: a name is too long, and a file lies where a folder must be. The others come."""
    one = plate()
    images = images_of(one)
    long, below = f"{images}/{'x' * draw.randrange(256, 400)}", f"{images}/taken/below"
    files = few_files(one) | {long: b"long", below: b"below"}
    proved(bench, one, files)
    root = bench.journals / "restored"
    (root / images).mkdir(parents=True)
    taken = root / images / "taken"
    taken.write_bytes(b"a user's")

    async def work() -> RestoreReport:
        wanted = select(await find_manifests(one, bench.layout, bench.archive))
        return await restore(wanted, FolderSink(root), archive=bench.archive)

    report = run(work())
    failed = {file.key for file in report.files if file.result is Restored.FAILED}
    said = [file.key for file in report.files if file.result in _GIVEN_BACK]
    wrong = sum((root / key).read_bytes() != files[key] for key in said)
    replaced = not taken.is_file() or taken.read_bytes() != b"a user's"
    world = _gone_there(one, files)
    for key in (long, below):  # `tar` leaves out what it cannot write, and says so
        del files[key]
    theirs = world.misreported(world.give_back() & files.keys(), files)
    whole = len(said) == len(files) and failed == {long, below}
    return Played(wrong + replaced, theirs, LEFT if whole else REFUSED)


def deleted_after_restore_over(bench: Bench, draw: Draw) -> Played:
    """Restored over a user's newer image, and then the deletion of before is asked for: it is another object by now."""
    one = plate()
    files = few_files(one)
    verdict = proved(bench, one, files)
    key = Live(files).image(draw)
    newer = noise(draw.random(), len(files[key]))
    bench.client.put_object(Bucket=bench.live, Key=key, Body=newer)
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
    world = backed_up(one, files)
    world.put({key: newer})
    world.give_back()
    world.put({key: truth[key]})
    world.delete(one)  # its check is of the listings of before
    played.theirs = world.lost(truth, one)
    return played


RESTORES = {
    restored_from_a_bomb: (LEFT,),
    restored_with_its_headers: (BACK,),
    restored_into_a_folder: (LEFT,),
    restored_twice: (BACK,),
    changed_since_restored: (LEFT,),
    restored_from_damage: (LEFT,),
    deleted_after_restore_over: (VOID,),
}
