"""The race of plates_speed once more, on a real object store: Ceph's radosgw on a store in memory, where it is installed.

Debian: `apt-get install --no-install-recommends ceph-mon ceph-osd ceph-base ceph-common radosgw`. radosgw knows an object's
ETag, where rclone's server reads the object for it each time it is asked.
Invariant: each round has a fresh cluster (benchmarks/plates/stores.py says why), so only
the plate's mix fits the time.
"""

from __future__ import annotations

import shutil
from typing import Any

from benchmarks.plates import stores
from benchmarks.plates.chains import S3_TAR
from benchmarks.plates.speed import ROUNDS, one_round, race_course, rows_of, table_of, warm
from benchmarks.plates.workloads import workloads, write

PLATES = ("mix",)
BUDGET_SECONDS = 600
Row = dict[str, Any]


def run(quick: bool = False) -> list[Row]:
    """All rows; none where radosgw is not installed. `quick`: a twentieth of the size and one round."""
    if not stores.radosgw_is_installed():
        print("plates_radosgw: not installed here, so nothing is measured", flush=True)
        return []
    rounds = 1 if quick else ROUNDS
    print(f"plates_radosgw: {rounds} rounds, time budget {BUDGET_SECONDS} s", flush=True)
    rows: list[Row] = []
    files = stores.memory_folder()
    try:
        with race_course() as course:
            for plate in (one for one in workloads(quick) if one.name in PLATES):
                write(plate, files / plate.name)
                table = table_of(plate, course)
                del table[S3_TAR]  # by far the slowest there as well
                for number in range(rounds):
                    with stores.radosgw(plate, files) as store:
                        if number == 0:
                            warm(course, table, plate, store)
                        one_round(course, table, plate, store, number)
                rows += rows_of(plate, table, rounds)
    finally:
        shutil.rmtree(files)
    return rows
