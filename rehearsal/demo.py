"""`make demo`: the whole of Waybill on this machine. Simulators, Airflow, real-shaped runs over REST, receipts, and a verdict.

Exit status 0 only if every run succeeded, every file is where it should be, and the simulators' journals agree with the
ledger. The one thing to know before changing it: each demo starts with a new simulated world, so it starts with a new
ledger too; passwords and keys are kept.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from include.core.ledger import Ledger, init, ledger_url
from include.core.receipts import ReceiptStore, size
from rehearsal.__main__ import DEFAULT_HOME
from rehearsal.api import Run, new_run_id
from rehearsal.errors import StackError
from rehearsal.scenes import plates
from rehearsal.scenes.icav2 import ICAv2Scene, Progress
from rehearsal.stack import Stack

# Which jobs fail is drawn from the seed: with this one, some of the few jobs of the published inputs do.
SIMULATORS = ("--seed", "5", "--scenario", "sop")
TIMEOUT_SECONDS = 900
console = Console()


def own_connections(world: Path) -> dict[str, str]:
    """Waybill's own connections: ledger, receipts, inputs."""
    (world / "inputs").mkdir(parents=True, exist_ok=True)
    return {
        "AIRFLOW_CONN_WAYBILL_LEDGER": f"sqlite:///{world / 'ledger.db'}",
        "AIRFLOW_CONN_WAYBILL_RECEIPTS": f'{{"conn_type": "generic", "extra": {{"prefix": "{(world / "receipts").as_uri()}"}}}}',
        "AIRFLOW_CONN_WAYBILL_INPUTS": f'{{"conn_type": "generic", "extra": {{"prefix": "{(world / "inputs").as_uri()}"}}}}',
    }


def new_world(home: Path) -> Path:
    """An empty folder for this demo's ledger and receipts; Airflow's history goes with the world it speaks of."""
    world = home / "world"
    shutil.rmtree(world, ignore_errors=True)
    shutil.rmtree(home / "airflow", ignore_errors=True)
    world.mkdir(parents=True)
    return world


def play(stack: Stack, scene: ICAv2Scene) -> list[Run]:
    """Triggers every conf of a scene and shows how far they are until all have ended."""
    api = stack.api
    api.unpause(scene.dag_id)
    run_ids = {name: new_run_id(name) for name in scene.confs()}
    for name, conf in scene.confs().items():
        api.trigger(scene.dag_id, conf, run_ids[name])
    deadline = time.monotonic() + TIMEOUT_SECONDS
    with Live(console=console, refresh_per_second=4, transient=not console.is_terminal) as live:
        while True:
            runs = [api.run(scene.dag_id, run_id) for run_id in run_ids.values()]
            live.update(progress_table(scene.progress(), runs))
            if all(run.state in ("success", "failed") for run in runs) or time.monotonic() > deadline:
                return runs
            time.sleep(1)


def progress_table(progress: Progress, runs: list[Run]) -> Table:
    table = Table(title="icav2_copy_batch", title_justify="left")
    for column in ("runs", "files", "bytes", "jobs passed", "running", "failed", "attempts"):
        table.add_column(column)
    states = ", ".join(run.state for run in runs)
    table.add_row(
        states,
        f"{progress.files_done} of {progress.files}",
        f"{size(progress.bytes_done)} of {size(progress.bytes)}",
        *map(str, (progress.passed, progress.running, progress.failed, progress.attempts)),
    )
    return table


def receipts_table(receipts: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title="Receipts", title_justify="left")
    for column in ("run", "outcome", "files proved", "bytes", "failed jobs", "ledger event"):
        table.add_column(column)
    for receipt in receipts:
        totals = receipt["totals"]
        table.add_row(
            receipt["run_id"].split("__")[0],
            receipt["outcome"],
            f"{totals.get('files proved', 0)} of {totals.get('files', 0)}",
            size(totals.get("proved bytes", 0)),
            str(totals.get("failed jobs sent again or given up", 0)),
            str((receipt.get("ledger") or {}).get("number", "-")),
        )
    return table


def verdict(runs: list[Run], scene: ICAv2Scene, receipts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Everything that is wrong."""
    problems = [f"run {run.run_id} is {run.state}" for run in runs if run.state != "success"]
    if len(receipts) != len(runs):
        problems.append(f"{len(receipts)} receipts for {len(runs)} runs")
    return problems + scene.check(receipts)


def wished(name: str) -> bool:
    """Whether an environment variable asks for something, as `KEEP=1`."""
    return os.environ.get(name) not in (None, "", "0")


def main() -> int:
    keep = wished("KEEP")
    world = new_world(DEFAULT_HOME)
    connections = own_connections(world)
    url = ledger_url(connections["AIRFLOW_CONN_WAYBILL_LEDGER"])
    init(url)
    stack = Stack(
        DEFAULT_HOME,
        simulators=SIMULATORS,
        extra_env=lambda addresses: {
            **connections,
            **ICAv2Scene.connections(addresses["icav2"]),
            **plates.connections(addresses["s3"]),
        },
    )
    try:
        with console.status("starting the simulators and Airflow (about a minute)"):
            stack.start_all()
        backups = plates.PlatesScene(stack.addresses["s3"])
        backups.start(stack)
        scene = ICAv2Scene(stack.addresses["icav2"], Ledger(url))
        runs = play(stack, scene)
        console.print(progress_table(scene.progress(), runs))
        with console.status("archiving and verifying plates, then deleting what is approved (about a minute)"):
            plate_runs = backups.finish(stack, lambda line: console.print(line, highlight=False, markup=False))
        receipts = asyncio.run(ReceiptStore.at((world / "receipts").as_uri()).all())
        console.print(receipts_table(receipts))
        problems = verdict(runs, scene, [r for r in receipts if r["dag_id"] == scene.dag_id])
        problems += backups.check(plate_runs, receipts)
    except StackError as error:
        problems = [str(error)]
    except BaseException:
        stack.stop()
        raise
    for problem in problems:
        console.print(f"[red]wrong:[/red] {problem}", highlight=False)
    if not problems:
        console.print(
            "[green]All runs succeeded, every file is right, and the simulators' journals agree with the ledger.[/green]"
        )
    if keep and stack.passwords:
        console.print(f"Airflow: {stack.address}", soft_wrap=True)
        for user, password in stack.passwords.items():
            console.print(f"  login {user} / {password}", soft_wrap=True, highlight=False)
        console.print(f"Receipts: {(world / 'receipts').as_uri()}   `make stop` ends all of it.")
    else:
        stack.stop()
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
