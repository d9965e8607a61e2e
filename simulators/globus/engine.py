"""The transfer engine: which tasks work, what flows how fast, and how a task ends.

Invariant: at any instant a task either works (at most three of a user do), waits for its turn, waits to try again (without a
place), is suspended, or is over. Every change between these goes through `_enqueue`, `_release` and `_end`.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter, defaultdict, deque
from functools import partial
from typing import Any, Literal

from simulators.common import Agenda, Journal
from simulators.globus.files import Arrival, FileMover, Problem
from simulators.globus.model import Event, Item, Moved, Skipped, Task
from simulators.globus.settings import SKIPPABLE, Settings

_DAY = 86400.0
Ending = Literal["failed", "canceled", "expired"]


class Engine:
    """Carries out tasks. `tasks` is in order of acceptance; `duplicates`: tasks that nobody needed when they were accepted."""

    def __init__(self, files: FileMover, agenda: Agenda, journal: Journal, settings: Settings) -> None:
        self.files = files
        self._agenda = agenda
        self._journal = journal
        self._settings = settings
        self._order = itertools.count()
        self._queues: dict[str, deque[Task]] = defaultdict(deque)
        self._working: dict[str, list[Task]] = defaultdict(list)
        self._flowing: dict[str, Task] = {}
        self._open_pairs: dict[tuple[str, str, str, str], list[Task]] = {}
        self.tasks: dict[str, Task] = {}
        self.open: dict[str, Task] = {}
        self.by_submission: dict[tuple[str, str], Task] = {}
        self.duplicates: list[dict[str, Any]] = []
        self.endings: Counter[str] = Counter()
        self.peak_working = 0

    # Acceptance

    def conflicting(self, source: str, destination: str, pairs: frozenset[tuple[str, str]]) -> Task | None:
        """A task that is not over and moves the same pairs of paths, as the settings take it."""
        kind = self._settings.identical_paths
        if kind == "any_pair":
            return next((tasks[0] for pair in pairs if (tasks := self._open_at(source, destination, pair))), None)
        if kind == "same_set":
            rivals = self._open_at(source, destination, next(iter(pairs)))
            return next((task for task in rivals if task.pairs == pairs), None)
        return None

    def accept(self, task: Task) -> None:
        """Take a new task into work."""
        self._note_acceptance(task)
        self.tasks[task.id] = self.open[task.id] = task
        self.by_submission[task.owner, task.submission_id] = task
        for pair in task.pairs:
            self._open_pairs.setdefault((task.source.id, task.destination.id, *pair), []).append(task)
        task.counts.subtasks_total = len(task.ready)
        task.paused = task.source.paused or task.destination.paused
        self._agenda.schedule(self._agenda.time + self._settings.accept_seconds, partial(self._enqueue, task))
        self._agenda.schedule(task.deadline, partial(self._look_at_deadline, task))

    def _open_at(self, source: str, destination: str, pair: tuple[str, str]) -> list[Task]:
        return self._open_pairs.get((source, destination, *pair), [])

    def _note_acceptance(self, task: Task) -> None:
        rivals: Counter[str] = Counter()
        for pair in task.pairs:
            rivals.update(rival.id for rival in self._open_at(task.source.id, task.destination.id, pair))
        self._journal.record(
            "task_accepted",
            task_id=task.id,
            submission_id=task.submission_id,
            owner=task.owner,
            label=task.options.label,
            source_endpoint=task.source.id,
            destination_endpoint=task.destination.id,
            files=len(task.ready),
            pairs_digest=task.pairs_digest,
            deadline=task.deadline,
        )
        for rival, shared in sorted(rivals.items()):
            self._note_duplicate("at work for the same files", [rival, task.id], shared)
        if all(self.files.is_there(task.source, task.destination, pair) for pair in task.pairs):
            self._note_duplicate("all files are there", [task.id], len(task.pairs))

    def _note_duplicate(self, why: str, tasks: list[str], files: int) -> None:
        facts = {"why": why, "tasks": tasks, "files": files}
        self.duplicates.append(facts)
        self._journal.record("duplicate_task", **facts)

    # Turns

    def _enqueue(self, task: Task) -> None:
        """Let the task wait for its turn, behind the user's others."""
        if not task.may_work or task.state == "running" or task in self._queues[task.owner]:
            return
        task.state = "queued"
        self._queues[task.owner].append(task)
        self._fill(task.owner)

    def _fill(self, owner: str) -> None:
        queue, working = self._queues[owner], self._working[owner]
        while queue and len(working) < self._settings.active_per_user:
            task = queue.popleft()
            task.state = "running"
            working.append(task)
            self.peak_working = max(self.peak_working, len(working))
            if not task.begun:
                self._begin_task(task)
            self._next(task)

    def _release(self, task: Task, state: Literal["waiting", "queued", "over"]) -> None:
        """Take the task out of work or out of the queue; what flowed is put back."""
        task.state = state
        if task in self._queues[task.owner]:
            self._queues[task.owner].remove(task)
        if task.current is not None:
            task.ready.appendleft(task.current)
            task.current = None
        task.plan += 1
        if self._flowing.pop(task.id, None):
            self.pace_anew()
        if task in self._working[task.owner]:
            self._working[task.owner].remove(task)
            self._agenda.schedule(self._agenda.time, partial(self._fill, task.owner))

    # The files of a task in turn

    def _begin_task(self, task: Task) -> None:
        task.begun = True
        self._event(task, "STARTED", "started", "")
        items = list(task.ready)
        task.ready.clear()
        task.ready.extend(item for item in items if self._find(task, item))

    def _next(self, task: Task) -> None:
        """Go on to the next file whose turn it is; without one, wait or succeed."""
        now = self._agenda.time
        while task.retrying and task.retrying[0][0] <= now:
            task.ready.append(heapq.heappop(task.retrying)[2])
        while task.ready:
            item = task.ready.popleft()
            if (item.found or self._find(task, item)) and self._begin(task, item):
                return
            if task.is_over:
                return
        if task.retrying:
            self._release(task, "waiting")
            self._agenda.schedule(task.retrying[0][0], partial(self._try_again, task))
        else:
            self._end(task, None, "SUCCEEDED", "succeeded")

    def _try_again(self, task: Task) -> None:
        if task.state == "waiting":
            self._enqueue(task)

    def _find(self, task: Task, item: Item) -> bool:
        """The first step with each item: look at its source. A folder's files take its place."""
        problem = self.files.source_problem(task, item)
        if problem is not None:
            self._meet(task, item, problem)
            return False
        task.counts.subtasks_succeeded += 1
        inside = self.files.folder_files(task, item)
        count = 1 if inside is None else len(inside)
        task.counts.files += count
        task.counts.subtasks_total += count
        if inside is None:
            item.found = True
            return True
        task.counts.directories += 1
        task.ready.extend(inside)
        return False

    def _begin(self, task: Task, item: Item) -> bool:
        """Let the file flow; False where it does not."""
        problem = self.files.source_problem(task, item) or self.files.destination_problem(task, item)
        if problem is not None:
            self._meet(task, item, problem)
            return False
        if self.files.is_synced(task, item):
            task.counts.files_skipped += 1
            task.counts.subtasks_succeeded += 1
            return False
        item.size, item.done, item.overhead = self.files.size(task, item), 0.0, self._settings.file_seconds
        task.current = item
        if task.id in self._flowing:
            self._plan(task)
        else:
            self._flowing[task.id] = task
            task.settled_at = self._agenda.time
            self.pace_anew()
        return True

    def _arrive(self, task: Task, plan: int) -> None:
        """The time for the current file has passed."""
        item = task.current
        if plan != task.plan or item is None:
            return
        task.current = None
        problem = self.files.source_problem(task, item) or self.files.destination_problem(task, item)
        outcome = problem or self.files.move(task, item)
        if isinstance(outcome, Problem):
            self._meet(task, item, outcome)
        else:
            self._count(task, item, outcome)
        if not task.is_over:
            self._next(task)

    def _count(self, task: Task, item: Item, arrival: Arrival) -> None:
        checked = task.options.verify_checksum or item.external_checksum
        task.moved.append(Moved(item.source, item.destination, arrival.size, arrival.md5 if checked else None))
        task.counts.files_transferred += 1
        task.counts.subtasks_succeeded += 1
        if not task.deadline_given:
            task.deadline = self._agenda.time + 3 * _DAY

    def _meet(self, task: Task, item: Item, problem: Problem) -> None:
        """An error: skip the file, try again later, or end the task."""
        task.counts.faults += 1
        task.error = self._event(task, problem.code, problem.text, problem.text, is_error=True)
        if problem.fatal:
            task.ready.appendleft(item)
            self._end(task, "failed", problem.code, problem.text)
        elif task.options.skip_source_errors and problem.side == "source" and problem.code in SKIPPABLE:
            task.counts.files_skipped += 1
            task.counts.subtasks_skipped_errors += 1
            row = Skipped(item.source, item.destination, problem.code, self._agenda.time, item.external_checksum)
            task.skipped.append(row)
        else:
            item.tries += 1
            wait = min(self._settings.retry_seconds * 2 ** min(item.tries - 1, 30), self._settings.retry_max_seconds)
            heapq.heappush(task.retrying, (self._agenda.time + wait, next(self._order), item))

    # What flows how fast

    def pace_anew(self) -> None:
        """Share the rate out among the tasks whose bytes flow, from now on."""
        for task in list(self._flowing.values()):
            self.settle(task)
            self._plan(task)

    def settle(self, task: Task) -> None:
        """Bring the bytes of the current file up to the present."""
        item, elapsed = task.current, self._agenda.time - task.settled_at
        if item is None or elapsed <= 0:
            return
        used = min(item.overhead, elapsed)
        item.overhead -= used
        item.done = min(float(item.size), item.done + (elapsed - used) * task.rate)
        task.settled_at = self._agenda.time

    def _plan(self, task: Task) -> None:
        item = task.current
        if item is None:
            return
        shared = self._settings.shared_bytes_per_second or math.inf
        task.rate = min(self._settings.task_bytes_per_second, shared / len(self._flowing))
        task.plan += 1
        task.settled_at = max(self._agenda.time, task.stalled_until)
        end = task.settled_at + item.overhead + (item.size - item.done) / task.rate
        self._agenda.schedule(end, partial(self._arrive, task, task.plan))

    # What befalls a task

    def pause(self, task: Task, message: str) -> None:
        """An administrator of a collection suspends the task."""
        if task.is_over or task.paused is not None:
            return
        self._release(task, "queued")
        task.paused = message
        if not task.deadline_given:
            task.deadline = self._agenda.time + 90 * _DAY
        self._event(task, "PAUSED", "paused", message)

    def resume(self, task: Task) -> None:
        """End the pause."""
        if task.is_over or task.paused is None:
            return
        task.paused = None
        if not task.deadline_given:
            task.deadline = self._agenda.time + _DAY
            self._agenda.schedule(task.deadline, partial(self._look_at_deadline, task))
        self._event(task, "UNPAUSED", "unpaused", "")
        self._enqueue(task)

    def inactivate(self, task: Task) -> None:
        """The user's credentials for a collection have run out: nothing happens until they are renewed."""
        if task.is_over or task.status == "INACTIVE":
            return
        self._release(task, "queued")
        task.status = "INACTIVE"
        text = "the credentials for a collection have expired"
        task.error = self._event(task, "CREDENTIALS_EXPIRED", text, text, is_error=True)

    def renew(self, task: Task) -> None:
        """The user has renewed the credentials."""
        if task.status != "INACTIVE":
            return
        task.status = "ACTIVE"
        self._event(task, "ACTIVATED", "credentials renewed", "")
        self._look_at_deadline(task)
        self._enqueue(task)

    def stall(self, task: Task, seconds: float) -> None:
        """Nothing of the task flows for so long."""
        self.settle(task)
        task.stalled_until = self._agenda.time + seconds
        self._plan(task)

    def fail(self, task: Task, code: str, text: str) -> None:
        """A fatal error from outside."""
        if not task.is_over:
            self._event(task, code, text, text, is_error=True)
            self._end(task, "failed", code, text)

    def cancel(self, task: Task) -> bool:
        """Cancel the task; False: that takes a while."""
        if task.state == "running" and self._settings.cancel_seconds:
            if not task.cancelling:
                task.cancelling = True
                self._agenda.schedule(self._agenda.time + self._settings.cancel_seconds, partial(self._cancel, task))
            return False
        self._cancel(task)
        return True

    def _cancel(self, task: Task) -> None:
        if not task.is_over:
            self._end(task, "canceled", "CANCELED", "The task was canceled")

    def _look_at_deadline(self, task: Task) -> None:
        """At a deadline: it may have moved, and one that nobody set moves while the task is queued."""
        if task.is_over or task.status == "INACTIVE":
            return
        if not task.deadline_given and task.state == "queued" and task.paused is None:
            task.deadline = self._agenda.time + _DAY
        if task.deadline <= self._agenda.time:
            self._end(task, "expired", "EXPIRED", "The task did not complete before its deadline")
        else:
            self._agenda.schedule(task.deadline, partial(self._look_at_deadline, task))

    # The end

    def _end(self, task: Task, ending: Ending | None, code: str, text: str) -> None:
        self.settle(task)
        if task.current is not None:
            self.files.leave_partial(task, task.current)
        self._release(task, "over")
        counts = task.counts
        if ending is not None:
            left = counts.subtasks_pending
            setattr(counts, f"subtasks_{ending}", getattr(counts, f"subtasks_{ending}") + left)
            task.fatal = (code, text)
        task.status = "SUCCEEDED" if ending is None else "FAILED"
        task.completed, task.cancelling, task.paused = self._agenda.time, False, None
        task.ready.clear()
        task.retrying.clear()
        self.open.pop(task.id)
        for pair in task.pairs:
            key = (task.source.id, task.destination.id, *pair)
            self._open_pairs[key].remove(task)
            if not self._open_pairs[key]:
                del self._open_pairs[key]
        self.endings[task.status if ending is None else ending] += 1
        self._event(task, code, text, text, is_error=ending is not None)
        self._journal.record(
            "task_finished",
            task_id=task.id,
            status=task.status,
            fatal_error=code if ending else None,
            files_transferred=counts.files_transferred,
            files_skipped=counts.files_skipped,
            bytes_transferred=counts.bytes_transferred,
        )

    def _event(self, task: Task, code: str, description: str, details: str, is_error: bool = False) -> Event:
        event = Event(self._agenda.time, code, is_error, description, details)
        task.events.append(event)
        return event
