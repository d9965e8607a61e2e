"""What the command line shows: complaints and bars on stderr, tables on stdout.

Invariant: rich is imported where it is used, since a command that runs by schedule, without a terminal, needs
none of it and starts a tenth of a second sooner.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

from include.core.progress import OnProgress, Progress, in_lines

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID


def end_with(main: Callable[[], int]) -> NoReturn:
    """Runs a command and ends the process with its exit status. That whoever reads its output has read enough (`| head`) is no
    error: it ends as other programs do, with 141."""
    try:
        status = main()
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing is to be said about it at exit either
        status = 128 + signal.SIGPIPE
    sys.exit(status)


def say(text: str, style: str = "red") -> None:
    from rich.console import Console

    Console(stderr=True).print(shown(text), markup=False, style=style, soft_wrap=True)


def shown(text: str) -> str:
    """As it may go to a terminal: names of objects hold what their owners like, also what moves the cursor or sets colours."""
    return "".join(char if char.isprintable() or char in "\n\t" else ascii(char)[1:-1] for char in text)


_PIPE_COLUMNS = 160
_LINE_EVERY_SECONDS = 60.0


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table as wide as the terminal, or as a wide page. Cells are folded, and never cut."""
    from rich.markup import escape
    from rich.table import Column, Table

    drawn = Table(*(Column(name, overflow="fold") for name in columns), show_lines=False)
    for row in rows:
        drawn.add_row(*(escape(shown(str(cell))) for cell in row))
    whole_width().print(drawn)


def whole_width() -> Console:
    """A console on standard output; without a terminal (and without COLUMNS) it is as wide as a wide page."""
    from rich.console import Console

    wide = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return Console(soft_wrap=True, width=_PIPE_COLUMNS if wide else None)


@contextmanager
def bars() -> Iterator[OnProgress]:
    """One bar per stage and volume, on a terminal; a line a minute elsewhere, as in the log of a scheduled command."""
    if not sys.stderr.isatty():
        yield in_lines(lambda line: print(line, file=sys.stderr, flush=True), _LINE_EVERY_SECONDS)
        return
    from rich import progress as rich
    from rich.console import Console

    columns = (
        rich.TextColumn("{task.description}"),
        rich.BarColumn(),
        rich.DownloadColumn(),
        rich.TransferSpeedColumn(),
        rich.TimeRemainingColumn(),
    )
    with rich.Progress(*columns, console=Console(stderr=True)) as shown:
        tasks: dict[str, TaskID] = {}

        def report(now: Progress) -> None:
            name = f"{now.stage} {now.note.rsplit('/', 1)[-1]}" if now.stage != "restore" else "restore"
            if name not in tasks:
                tasks[name] = shown.add_task(name)
            done, total = (
                (now.done_bytes, now.total_bytes) if now.total_bytes > 0 else (now.done_items, now.total_items)
            )
            shown.update(tasks[name], completed=done, total=total)

        yield report
