"""Find and end the processes of one stack, and no others.

Invariant: a process belongs to a stack only if its environment carries the stack's mark (WAYBILL_STACK=<id>), or if it
descends from one that does. Process ids and groups are no proof: ids are reused, and Airflow's task processes leave their
group and outlive their parents.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable

import psutil

MARK = "WAYBILL_STACK"
TASK_TITLE = re.compile(r"airflow worker -- ([0-9a-f]{8}-[0-9a-f-]{27})\b")
GONE = (psutil.NoSuchProcess, psutil.AccessDenied)


def mark_of(process: psutil.Process) -> str | None:
    """The stack id in the environment a process was started with; None if it has none or may not be read."""
    try:
        mark: str | None = process.environ().get(MARK)
    except (*GONE, OSError):
        return None
    return mark


def descendants(process: psutil.Process) -> list[psutil.Process]:
    """Children and theirs; empty if the process has ended."""
    try:
        return list(process.children(recursive=True))
    except GONE:
        return []


def members(stack_id: str) -> list[psutil.Process]:
    """Every living process of the stack, orphans included; never the caller."""
    marked = [process for process in psutil.process_iter() if mark_of(process) == stack_id]
    found = {process.pid: process for process in marked}
    for process in marked:
        found |= {child.pid: child for child in descendants(process)}
    caller = psutil.Process()
    return [process for process in found.values() if process != caller and is_alive(process)]


def is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except GONE:
        return False


def task_instance_of(process: psutil.Process) -> str | None:
    """The id (`id` in Airflow's API) of the task instance whose code the process runs; None if it runs none.

    Airflow writes it into the process title (docs/protocols/airflow.md 7.2). Its supervisor's title has
    "LocalExecutor: " in front of the id.
    """
    try:
        found = TASK_TITLE.match(" ".join(process.cmdline()))
    except GONE:
        return None
    return found[1] if found else None


def end(
    stack_id: str, *, grace_seconds: float = 6.0, kill_seconds: float = 120.0, reap: Callable[[], object] = lambda: None
) -> int:
    """End every process of the stack: SIGTERM, then SIGKILL for what is left after `grace_seconds`.

    `reap` collects exited children of the caller. Returns how many processes there were; raises TimeoutError if one
    survives SIGKILL for `kill_seconds`: on a busy machine a killed process may take long to end.
    """
    first = members(stack_id)
    known = {process.pid: process for process in first}

    def left() -> list[psutil.Process]:
        # A child without the mark is found by its parent alone; once that has ended, only because it is known already.
        known.update({process.pid: process for process in members(stack_id)})
        return [process for process in known.values() if is_alive(process)]

    _signal_all(first, psutil.Process.terminate)
    remaining = _wait(left, grace_seconds, reap)
    deadline = time.monotonic() + kill_seconds
    while remaining:
        # Found anew each time: a process may have forked between the search and the signal.
        _signal_all(remaining, psutil.Process.kill)
        remaining = _wait(left, 1.0, reap)
        if remaining and time.monotonic() > deadline:
            raise TimeoutError(f"these processes do not end: {', '.join(str(process.pid) for process in remaining)}")
    return len(first)


def _wait(find: Callable[[], list[psutil.Process]], seconds: float, reap: Callable[[], object]) -> list[psutil.Process]:
    deadline = time.monotonic() + seconds
    while True:
        reap()
        found = find()
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.1)


def _signal_all(processes: Iterable[psutil.Process], send: Callable[[psutil.Process], None]) -> None:
    for process in processes:
        try:
            send(process)  # psutil compares the start time first, so a reused id is not hit
        except GONE:
            continue
