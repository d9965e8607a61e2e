"""`make demo`: the whole of Waybill on this machine. Simulators, Airflow, real-shaped runs over REST, receipts, and a verdict.

Exit status 0 only if every run succeeded, every file is where it should be, and the simulators' journals agree with the
ledger. What is run is the list `rehearsal.scenes.SCENES`; no system is named here.

Invariant: each demo starts with new simulators, so it starts with a new ledger too; only passwords and keys are kept.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table

from include.core.ledger import Ledger, init, ledger_url
from include.core.ledger.audit import verify
from include.core.receipt import ReceiptStore
from include.core.terminal import end_with, whole_width
from include.core.text import format_bytes
from rehearsal.__main__ import DEFAULT_HOME
from rehearsal.api import Run
from rehearsal.errors import StackError
from rehearsal.scenes import SCENES
from rehearsal.scenes.scene import Progress, Receipt, Scene
from rehearsal.stack import Stack

# Which jobs fail is drawn from the seed: with this one, some of the few jobs of the published inputs do.
SIMULATORS = ("--seed", "5", "--scenario", "sop")
console = whole_width()


def own_connections(environment: Path) -> dict[str, str]:
    """Waybill's own connections: ledger, receipts, inputs."""
    (environment / "inputs").mkdir(parents=True, exist_ok=True)

    def folder(name: str) -> str:
        return f'{{"conn_type": "generic", "extra": {{"prefix": "{(environment / name).as_uri()}"}}}}'

    return {
        "AIRFLOW_CONN_WAYBILL_LEDGER": f"sqlite:///{environment / 'ledger.db'}",
        "AIRFLOW_CONN_WAYBILL_RECEIPTS": folder("receipts"),
        "AIRFLOW_CONN_WAYBILL_INPUTS": folder("inputs"),
    }


def new_environment(home: Path) -> Path:
    """An empty folder for this demo's ledger and receipts; Airflow's history of the one before goes with it."""
    environment = home / "environment"
    shutil.rmtree(environment, ignore_errors=True)
    shutil.rmtree(home / "airflow", ignore_errors=True)
    environment.mkdir(parents=True)
    return environment


def scene_connections(scenes: Iterable[type[Scene]], addresses: Mapping[str, str]) -> dict[str, str]:
    """The connections of all scenarios. Raises StackError where two give one connection different values."""
    merged: dict[str, str] = {}
    for scene in scenes:
        for name, value in scene.connections(addresses).items():
            if merged.setdefault(name, value) != value:
                raise StackError(f"two scenarios want different values of {name}; the second is {scene.__name__}")
    return merged


def start_scenes(scenes: Iterable[Scene], unpause: Callable[[str], None]) -> None:
    """Prepare and trigger everything, so that all runs go on side by side."""
    for scene in scenes:
        scene.prepare()
        for dag_id in scene.dag_ids:
            unpause(dag_id)
        scene.start()


def run_scene(scene: Scene) -> list[Run]:
    """Show how far a scenario is until its runs have ended; its last progress table stays."""
    waiting = Spinner("dots", scene.activity)
    with Live(waiting, console=console, refresh_per_second=4, transient=True) as live:

        def show(runs: Sequence[Run]) -> None:
            progress = scene.progress(runs)
            live.update(progress_table(progress) if progress else waiting)

        runs = scene.finish(lambda line: console.print(line, highlight=False, markup=False), show)
    progress = scene.progress(runs)
    if progress:
        console.print(progress_table(progress))
    return runs


def progress_table(progress: Progress) -> Table:
    table = Table(*progress.columns, title=progress.title, title_justify="left")
    for row in progress.rows:
        table.add_row(*row)
    return table


def receipts_of(scene: Scene, receipts: Iterable[Receipt]) -> list[Receipt]:
    return [receipt for receipt in receipts if receipt["dag_id"] in scene.dag_ids]


def receipts_table(scenes: Iterable[Scene], receipts: Sequence[Receipt]) -> Table:
    """What each run's receipt says, in columns that all systems share."""
    columns = ("run", "outcome", "files proved", "bytes", "failed jobs", "ledger event")
    table = Table(*columns, title="Receipts", title_justify="left")
    for scene in scenes:
        for receipt in receipts_of(scene, receipts):
            counts = scene.count(receipt)
            table.add_row(
                receipt["run_id"].split("__")[0],
                receipt["outcome"],
                f"{counts.files_proved} of {counts.files}",
                format_bytes(counts.size_bytes),
                str(counts.failed_jobs),
                str((receipt.get("ledger") or {}).get("number", "-")),
            )
    return table


def verdict(scene: Scene, runs: Sequence[Run], receipts: Sequence[Receipt]) -> list[str]:
    """Everything that is wrong with a scenario: a run that failed, one without its receipt, and what its check finds."""
    problems = [f"run {run.run_id} is {run.state}" for run in runs if run.state != "success"]
    expected = Counter((run.dag_id, run.run_id) for run in runs)
    found = Counter((receipt["dag_id"], receipt["run_id"]) for receipt in receipts)
    problems += [f"no receipt of {run_id}" for _, run_id in expected - found]
    problems += [
        f"a receipt of {run_id}, a run of {dag_id} that was not expected" for dag_id, run_id in found - expected
    ]
    return problems + scene.check(receipts)


def run_scenes(
    scenes: Sequence[Scene], unpause: Callable[[str], None], ledger: Ledger, store: ReceiptStore
) -> list[str]:
    """Run every scenario and show what came of it. Returns everything that is wrong."""
    start_scenes(scenes, unpause)
    runs = [run_scene(scene) for scene in scenes]
    receipts = asyncio.run(store.all())
    console.print(receipts_table(scenes, receipts))
    problems: list[str] = []
    for scene, ended in zip(scenes, runs, strict=True):
        problems += verdict(scene, ended, receipts_of(scene, receipts))
    return problems + verify(ledger, receipts).problems


def conclude(problems: Sequence[str]) -> int:
    """Say what is wrong, or that nothing is. Returns the exit status."""
    for problem in problems:
        console.print(f"[red]wrong:[/red] {problem}", highlight=False)
    if not problems:
        console.print(
            "[green]All runs succeeded, every file is right, and the simulators' journals agree with the ledger.[/green]"
        )
    return 1 if problems else 0


def write_command_environment(path: Path, scenes: Iterable[type[Scene]], stack: Stack, own: Mapping[str, str]) -> None:
    """A shell file with all that Waybill's command lines read. Its keys are those of simulators and open nothing else."""
    environment = dict(own)
    for scene in scenes:
        environment |= scene.command_environment(stack.addresses)
    path.write_text("".join(f"export {name}={shlex.quote(value)}\n" for name, value in environment.items()))


def print_access(stack: Stack, receipts: str, commands: Path) -> None:
    """Say how to use what is left running."""
    for name, address in stack.addresses.items():
        console.print(f"Simulator {name}: {address}", soft_wrap=True, highlight=False)
    console.print(f"Command lines: first `. {commands}`, which sets", soft_wrap=True, highlight=False)
    console.print(commands.read_text().rstrip(), soft_wrap=True, highlight=False, markup=False)
    console.print(f"Airflow: {stack.address}", soft_wrap=True)
    for user, password in stack.passwords.items():
        console.print(f"  login {user} / {password}", soft_wrap=True, highlight=False)
    console.print(f"Receipts: {receipts}   `make stop` ends all of it.")


def is_wanted(name: str) -> bool:
    """Whether an environment variable asks for something, as `KEEP=1`."""
    return os.environ.get(name) not in (None, "", "0")


def demo(
    home: Path, scenes: Sequence[type[Scene]] = SCENES, *, keep: bool = False, make_stack: Callable[..., Stack] = Stack
) -> int:
    """Everything below `home`, which is emptied first. Returns the exit status."""
    environment = new_environment(home)
    connections = own_connections(environment)
    receipts = (environment / "receipts").as_uri()
    url = ledger_url(connections["AIRFLOW_CONN_WAYBILL_LEDGER"])
    init(url)

    def extra_env(addresses: Mapping[str, str]) -> dict[str, str]:
        return {**connections, **scene_connections(scenes, addresses)}

    more = [argument for scene in scenes for argument in scene.simulators()]
    stack = make_stack(home, simulators=(*SIMULATORS, *more), extra_env=extra_env)
    try:
        with console.status("starting the simulators and Airflow (about a minute)"):
            stack.start_all()
        ledger = Ledger(url)
        running = [scene(stack, ledger) for scene in scenes]
        problems = run_scenes(running, stack.api.unpause, ledger, ReceiptStore.at(receipts))
    except StackError as error:
        problems = [str(error)]
    except BaseException:
        stack.stop()
        raise
    status = conclude(problems)
    if keep and stack.passwords:
        commands = environment / "commands.env"
        write_command_environment(commands, scenes, stack, connections)
        print_access(stack, receipts, commands)
    else:
        stack.stop()
    return status


def main() -> int:
    return demo(DEFAULT_HOME, keep=is_wanted("KEEP"))


if __name__ == "__main__":
    end_with(main)
