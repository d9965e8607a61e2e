"""Damage that lies at rest after the deletion, as the restore drill meets it. What is lost here: damage that is not reported.

The procedure never looks at an archive again before it is wanted back.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

from harness.plates.bench import Bench, run
from harness.plates.damage import PLANTED
from harness.plates.fault_shapes import flipped
from harness.plates.fault_stories import deletion, proved
from harness.plates.fault_table import Draw, Played
from harness.plates.servers import plate, plate_files
from harness.plates.sop_world import backed_up
from include.plates.drill import look_at_plate
from include.plates.drill_plan import DrillPlan, plan_drill
from include.plates.file_index import FileIndex
from include.plates.layout import BROAD2018, fill, tag_of

TOLD, NOT_TOLD = "told", "not told"
PREFIX = "imaging_analysis/"
GOOD, BAD = "20585", "20586"
Story = Callable[[Bench, Draw], Played]


def drawn(bench: Bench, folder: Path, seed: str = "s", plates: int = 100) -> DrillPlan:
    """What a drill of the archive bucket looks at."""
    with FileIndex(folder / "index.sqlite", "store") as index:
        listing = run(index.refresh(bench.archive, PREFIX))
        rows = index.archived(bench.cold, PREFIX)
        return run(plan_drill([(bench.archive, listing, rows)], seed=seed, plates=plates, max_gib=1))


def drilled(bench: Bench, folder: Path) -> tuple[dict[str, str], tuple[str, ...]]:
    """What a drill of all plates finds: the state of each by its id, and faults of the archive."""
    plan = drawn(bench, folder)
    looks = [run(look_at_plate(one, bench.access, by="drill"))[0] for one in plan.drawn]
    return {look.name.split()[-1]: look.state for look in looks}, plan.faults


def planted(kinds: Sequence[str]) -> Story:
    return functools.partial(_planted, kinds)


def _planted(kinds: Sequence[str], bench: Bench, draw: Draw) -> Played:
    """Two plates are archived and deleted, and one of them is damaged since, in one of these ways."""
    kind = draw.choice(kinds)
    for name in (GOOD, BAD):
        deletion(bench, proved(bench, plate(name), plate_files(plate(name), sites=1)))
    base = {name: fill(BROAD2018.archive_prefix, plate(name)) + tag_of(BROAD2018, plate(name)) for name in (GOOD, BAD)}
    PLANTED[kind](bench, f"{base[BAD]}_images_illum_analysis", f"{base[GOOD]}_images_illum_analysis", draw)
    states, faults = drilled(bench, bench.journals / "drill")
    found = states.get(BAD) == "damaged" or any(BAD in line for line in faults)
    right = found and states.get(GOOD) == "sound"
    return Played(int(not found), _unseen_there(kind, draw), TOLD if right else NOT_TOLD)


def _unseen_there(kind: str, draw: Draw) -> int:
    """The procedure's check of its own archive after such damage, unless that is to a manifest, which it has not."""
    one = plate(BAD)
    world = backed_up(one, plate_files(one, sites=1))
    world.delete(one)
    name = next(iter(world.tarballs))
    if "manifest" in kind:
        return 0
    if ".md5" in kind:
        world.md5[name] = "0" * 32
    else:
        world.tarballs[name] = flipped(world.tarballs[name], draw)
    return int(world.checks(one))


def _about(word: str) -> list[str]:
    return [kind for kind in PLANTED if word in kind]


BESIDE = [*_about("manifest"), *_about(".md5")]
DRILLS = (
    ("after the deletion, the tarball is damaged or gone", planted([k for k in PLANTED if k not in BESIDE]), (TOLD,)),
    ("after the deletion, the manifest is damaged or gone", planted(_about("manifest")), (TOLD,)),
    ("after the deletion, the .md5 beside the tarball is wrong", planted(_about(".md5")), (TOLD,)),
)
