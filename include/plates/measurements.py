"""Measurements that share a plate_id: which others there are, and which parts they share."""

from __future__ import annotations

from include.plates.layout import fill
from include.plates.models import Layout, Plate
from include.s3.bucket import Bucket


async def other_measurements(plate: Plate, layout: Layout, source: Bucket) -> tuple[str, ...]:
    """Folders of the same plate_id with another full name: `PLATE` itself or `PLATE__...`, never `PLATE5`."""
    found: set[str] = set()
    for part in layout.parts:
        parent, _, last = part.prefix.rstrip("/").rpartition("/")
        if last != "{plate_id_full}":
            continue
        above = fill(parent, plate) + "/"
        for folder in await source.folders(above + plate.plate_id):
            name = folder.removeprefix(above).rstrip("/")
            if name != plate.plate_id_full and (name == plate.plate_id or name.startswith(plate.plate_id + "__")):
                found.add(name)
    return tuple(sorted(found))


async def shared_parts(plate: Plate, layout: Layout, source: Bucket) -> frozenset[str]:
    """Parts kept under a plate_id that more than one measurement uses: archived with each, deleted with none."""
    if not plate.tag_by_full and not await other_measurements(plate, layout, source):
        return frozenset()
    return frozenset(part.name for part in layout.parts if "{plate_id_full}" not in part.prefix)
