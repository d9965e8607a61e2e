"""The archive's memory does not grow with the plate: measured in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from harness.plates import servers
from harness.plates.bench import Bench
from harness.plates.kills import command
from harness.plates.servers import ENVIRONMENT
from tests.include.plates.test_archive import IMAGES

ROOT = Path(__file__).parents[3]
LIMIT_KIB = 300 * 1000
# VmHWM, not getrusage: the latter counts what the parent held when it forked.
MEASURED = "import sys; from pathlib import Path; from include.plates.__main__ import main; s = main(sys.argv[1:]); "
MEASURED += "print(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0]); sys.exit(s)"


def test_archiving_stays_under_300_mb_whatever_the_plate_weighs(real: Bench, tmp_path: Path):
    data = servers.noise("image", 4 << 20)
    real.put({f"{IMAGES}f{n:03}": data for n in range(60)})
    arguments = command(real, "archive", "--compression", "none", "--json", "--journal", str(tmp_path))[3:]
    environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": str(ROOT)}
    program = [sys.executable, "-c", MEASURED, *arguments]
    done = subprocess.run(program, env=environment, cwd=ROOT, capture_output=True, check=True)
    assert int(done.stdout.split()[-1]) < LIMIT_KIB
