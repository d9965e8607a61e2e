"""Runs a chain of commands and says what it cost: `python -I -S launch.py CHAIN.json RESULT.json`.

A process of its own, and a small one: getrusage's peak of a child counts what its parent held when it forked. The peak is
that of the largest single process; children of the commands count too.
"""

import json
import os
import resource
import subprocess
import sys
import time


def main(chain_path: str, result_path: str) -> int:
    with open(chain_path) as file:  # noqa: PTH123 - pathlib would be half of this process
        chain = json.load(file)
    environment = {**os.environ, **chain["environment"]}
    laps = []
    status = 0
    begun = time.perf_counter()
    for argv, output in chain["steps"]:
        started = time.perf_counter()
        with open(output or os.devnull, "wb") as out, open(chain["errors"], "ab") as errors:  # noqa: PTH123
            status = subprocess.call(argv, stdout=out, stderr=errors, stdin=-3, cwd=chain["folder"], env=environment)
        laps.append(time.perf_counter() - started)
        if status:
            break
    wall = time.perf_counter() - begun
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = {"status": status, "wall": wall, "laps": laps}
    result |= {"cpu": used.ru_utime + used.ru_stime, "peak_bytes": used.ru_maxrss * 1024}
    result |= {"written_bytes": used.ru_oublock * 512}
    with open(result_path, "w") as file:  # noqa: PTH123
        json.dump(result, file)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
