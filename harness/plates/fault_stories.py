"""Faults that need more than one plate or more than one archive: each plays itself to the engine and to the SOP."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from harness.plates import servers
from harness.plates.bench import Bench, run
from harness.plates.fault_judge import Files, lost, pack, still_there, stored
from harness.plates.fault_shapes import flipped
from harness.plates.fault_table import (
    ALL,
    BATCH,
    DELETED,
    LEFT,
    MISMATCH,
    REFUSED,
    UNVERIFIABLE,
    Draw,
    Live,
    Played,
    few_files,
    harm,
    images_of,
    tarball_of,
)
from harness.plates.servers import PROJECT, noise, plate, plate_files
from harness.plates.sop_world import SopWorld, backed_up
from harness.proxy import Answer, Call, Forward, call, proxied
from include.core.errors import WaybillError
from include.core.journal import FileJournal
from include.plates.delete import delete_plate
from include.plates.delete_report import DeleteReport
from include.plates.layout import BROAD2018, disambiguate, tag_of
from include.plates.models import MIB, ArchiveSettings, DeleteOrder, Outcome, Plate, Verdict


def proved(bench: Bench, one: Plate, files: Mapping[str, bytes]) -> Verdict:
    bench.put(files)
    run(bench.archive_it(run(bench.plan(one))))
    return run(bench.verify(one))


def deletion(bench: Bench, verdict: Verdict, *, around: Any = None, **changes: Any) -> DeleteReport:
    values: dict[str, Any] = {"parts": ALL, "retention": "none", "batch_size": BATCH} | changes
    order = DeleteOrder(verdict.manifests_sha256, **values)
    journal = FileJournal(bench.journals / verdict.plate.plate_id_full)
    more = {"around_batch": around} if around else {}
    return run(delete_plate(verdict, order, source=bench.source, archive=bench.archive, journal=journal, **more))


def ended(report: DeleteReport) -> str:
    return DELETED if report.complete else LEFT


# More than one archive


def two_measurements(bench: Bench, draw: Draw) -> Played:
    """Two measurements of one plate id, one after the other: the SOP gives both archives one name."""
    names = [f"20586__m-Measurement{n}" for n in (1, 2)]
    plates = disambiguate(plate(full=name) for name in names)
    images: list[Files] = [
        {
            f"projects/{PROJECT}/BBBC022/images/{name}/Images/r{n}.tiff": noise((name, n, draw.random()), 400)
            for n in range(3)
        }
        for name in names
    ]
    truth = images[0] | images[1]
    bench.put(truth)
    reports = [deletion(bench, proved(bench, one, {}), parts=("images",)) for one in plates]
    tarballs = stored(bench)
    ours = sum(lost(files, still_there(bench, files), tarballs, one) for files, one in zip(images, plates, strict=True))
    world = SopWorld()
    world.put(truth)
    for one in plates:  # both archives have one name
        world.backup(one)
        world.delete(one)
    whole = all(report.complete and report.deleted == 3 for report in reports)
    return Played(ours, world.lost(truth, plate()), DELETED if whole else LEFT)


def existing_archive(bench: Bench, draw: Draw) -> Played:
    """An archive of that name lies there already, of images whose sources are gone."""
    one = plate()
    old = {f"projects/{PROJECT}/BBBC022/images/20586/Images/old{n}.tiff": noise(draw.random(), 400) for n in range(3)}
    bench.client.put_object(Bucket=bench.cold, Key=tarball_of(one), Body=pack(old, tag_of(BROAD2018, one)))
    files = few_files(one)
    world = backed_up(one, old)
    world.delete(one)
    world.put(files)
    world.backup(one)
    world.delete(one)
    played = Played(0, world.lost(files | old, one), DELETED)
    try:
        deletion(bench, proved(bench, one, files))
    except WaybillError as error:
        played.said, played.ended = str(error), REFUSED
    played.ours = lost(files | old, still_there(bench, files), stored(bench), one)
    return played


def script_tarball(bench: Bench, draw: Draw) -> Played:
    """The procedure's own tarball lies there, damaged, and its source is to be deleted now."""
    return _script_tarball(bench, draw, damaged=True)


def whole_script_tarball(bench: Bench, draw: Draw) -> Played:
    """The same, undamaged: nothing says what it should hold, so nothing is deleted for it."""
    return _script_tarball(bench, draw, damaged=False)


def _script_tarball(bench: Bench, draw: Draw, *, damaged: bool) -> Played:
    one = plate()
    files = few_files(one)
    tag = tag_of(BROAD2018, one)
    main = {key: data for key, data in files.items() if "/backend/" not in key}
    tarballs = [pack(main, tag), pack({key: data for key, data in files.items() if key not in main}, tag)]
    md5 = hashlib.md5(tarballs[0]).hexdigest()
    if damaged:
        tarballs[0] = flipped(tarballs[0], draw)
    bench.put(files)
    for key, data in zip((tarball_of(one), tarball_of(one, "backend")), tarballs, strict=True):
        bench.client.put_object(Bucket=bench.cold, Key=key, Body=data)
    beside = tarball_of(one).removesuffix(".tar.gz") + ".md5"
    bench.client.put_object(Bucket=bench.cold, Key=beside, Body=f"{md5}  {tag}\n".encode())
    world = backed_up(one, files)
    world.tarballs = dict(zip(world.tarballs, tarballs, strict=True))
    world.delete(one)  # both its listings were made before the upload
    played = Played(0, world.lost(files, one), DELETED)
    verdict = run(bench.verify(one))
    try:
        deletion(bench, verdict)
    except WaybillError as error:
        played.said, played.ended = str(error), str(verdict.outcome.value)
    played.ours = lost(files, still_there(bench, files), stored(bench), one)
    return played


def cold_source(bench: Bench, draw: Draw) -> Played:
    """One image lies in an archived storage class: `aws s3 sync` skips it with a warning."""
    one = plate()
    files = few_files(one)
    bench.put(files)
    frozen = Live(files).image(draw)
    bench.client.put_object(Bucket=bench.live, Key=frozen, Body=files[frozen], StorageClass="DEEP_ARCHIVE")
    world = SopWorld()
    world.put(files)
    world.backup(one, skipped=[frozen])
    world.delete(one)
    played = Played(0, world.lost(files, one), DELETED)
    try:
        deletion(bench, proved(bench, one, {}))
    except WaybillError as error:
        played.said, played.ended = str(error), REFUSED
    played.ours = lost(files, still_there(bench, files), stored(bench), one)
    return played


def one_of_a_batch(bench: Bench, draw: Draw) -> Played:
    """Five plates, the tarball of one is damaged: it is kept, and stops none of the others."""
    ids = [f"2058{n}" for n in range(5)]
    bad = draw.choice(ids)
    played = Played(0, 0, DELETED)
    for name in ids:
        one = plate(name)
        files = {key: data for key, data in plate_files(one, sites=1).items() if "/workspace/" not in key}
        verdict = proved(bench, one, files)
        world = backed_up(one, files)
        if name == bad:
            harm(bench, one, flipped, draw)
            verdict = run(bench.verify(one))
            tarball = next(iter(world.tarballs))
            world.tarballs[tarball] = flipped(world.tarballs[tarball], draw)
        world.delete(one)
        played.theirs += world.lost(files, one)
        try:
            complete = deletion(bench, verdict).complete and name != bad
        except WaybillError:
            complete = name == bad and verdict.outcome is Outcome.MISMATCH
        played.ended = played.ended if complete else LEFT
        played.ours += lost(files, still_there(bench, files), stored(bench), one)
    return played


def archived_again(bench: Bench, draw: Draw) -> Played:
    """The store names another ETag when an upload is completed than at HEAD. The archive is run again over its own."""
    one = plate()
    bench.settings = ArchiveSettings(compression="none", part_bytes=5 * MIB, volume_bytes=1 << 30)
    files = few_files(one) | {f"{images_of(one)}/large{n}.tiff": noise((n, draw.random()), 3 * MIB) for n in range(3)}
    bench.put(files)
    played = Played(0, 0, DELETED)
    try:
        with proxied(bench.url) as front:
            front.add(call(_another_etag, method="POST", query="^uploadId="))
            access = servers.access(front.url)
            for _ in range(2):
                run(replace(bench, access=access).archive_it(run(bench.plan(one))))
            access.close()
        played.ended = ended(deletion(bench, run(bench.verify(one))))
    except (WaybillError, OSError) as error:
        played.said, played.ended = str(error), REFUSED
    world = backed_up(one, files)
    world.backup(one)
    world.delete(one)
    played.ours, played.theirs = lost(files, still_there(bench, files), stored(bench), one), world.lost(files, one)
    return played


def _another_etag(request: Call, forward: Forward) -> Answer:
    answer = forward(request)
    answer.body = re.sub(rb"<ETag>.*?</ETag>", b"<ETag>&quot;another-2&quot;</ETag>", answer.content())
    return answer


ENDS = {
    two_measurements: (DELETED,),
    existing_archive: (REFUSED,),
    archived_again: (DELETED,),
    cold_source: (REFUSED,),
    script_tarball: (MISMATCH,),
    whole_script_tarball: (UNVERIFIABLE,),
    one_of_a_batch: (DELETED,),
}
