"""What importing our DAG files costs a DAG processor, against a bare DAG of the same SDK. Fresh processes, in turns."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BARE = "from airflow.sdk import dag, task\n@dag(schedule=None)\ndef bare():\n    @task\n    def one(): pass\n    one()\nbare()\n"
PROGRAM = (
    "import sys, time; sys.path[:0] = [{plugins!r}, {dags!r}]\nfrom airflow.dag_processing.dagbag import DagBag\n"
    "begun = time.perf_counter(); __import__({module!r}); print(time.perf_counter() - begun)"
)


def run(quick: bool = False) -> list[dict[str, Any]]:
    rounds = 2 if quick else 7
    modules = sorted(path.stem for path in (ROOT / "dags").glob("*.py"))
    print(
        f"dag_import: {rounds} rounds of {len(modules) + 1} fresh processes, time budget {rounds * 10 * (len(modules) + 1)} s"
    )
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "bare_dag.py").write_text(BARE)
        seconds: dict[str, list[float]] = {name: [] for name in ("bare_dag", *modules)}
        for _ in range(rounds):
            for name in seconds:
                seconds[name].append(_once(name, folder if name == "bare_dag" else str(ROOT / "dags"), folder))
    bare = statistics.median(seconds["bare_dag"])
    return [
        {
            "figure": f"import of dags/{name}.py after Airflow's own modules (median of {rounds})",
            "value": round(statistics.median(seconds[name]), 3),
            "unit": "s",
            "peer": "bare airflow.sdk DAG",
            "peer_value": round(bare, 3),
            "ratio": round(statistics.median(seconds[name]) / bare, 2),
            "aim": None,
            "met": None,
        }
        for name in modules
    ]


def _once(module: str, dags: str, home: str) -> float:
    program = PROGRAM.format(plugins=str(ROOT / "plugins"), dags=dags, module=module)
    env = {**os.environ, "AIRFLOW_HOME": home, "PYTHONPATH": str(ROOT), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True, timeout=120
    )
    return float(done.stdout.strip().splitlines()[-1])
