"""Copy and move jobs: how a batch becomes files.

Invariant: a job is planned when it is accepted (the draw, the files, what happens to each) and carried out
by entries of the agenda: waiting, running, the begin and end of each file in turn, the end of the job.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from simulators.common import Agenda, Journal, ProblemError
from simulators.icav2.model import Fate, Ids, Item, Job, Node, User, Work, parent_of
from simulators.icav2.settings import Draw, Outcome, Settings, destination_key, draw, find_override
from simulators.icav2.tree import Tree, make_etag, relative_files

_PARTIAL_END = frozenset({Outcome.FAILED_PARTIAL, Outcome.STOPPED})
_SUBSET = frozenset({Outcome.PARTIALLY_SUCCEEDED, Outcome.WRONG_ITEMS})


class JobEngine:
    """Accepts batches and carries out their jobs. `jobs` is in order of acceptance.

    `duplicates`: jobs that nobody needed when they were accepted, since one was at work for some of the same items at the
    same destination, or since all of their items were whole there.
    """

    def __init__(self, tree: Tree, agenda: Agenda, journal: Journal, settings: Settings, ids: Ids) -> None:
        self._tree = tree
        self._agenda = agenda
        self._journal = journal
        self._settings = settings
        self._ids = ids
        self._seq = itertools.count(1)
        self.jobs: dict[str, Job] = {}
        self.by_batch: dict[str, Job] = {}
        self.open: dict[str, Job] = {}
        self._open_at: dict[str, list[Job]] = {}
        self.submissions: Counter[str] = Counter()
        self.duplicates: list[dict[str, Any]] = []
        self.peak_in_flight = 0
        self._outage_until = 0.0
        self.on_status: Callable[[Job, str], None] = lambda job, before: None

    def accept(
        self,
        kind: Literal["copy", "move"],
        owner: User,
        project_id: str,
        folder: Node | None,
        sources: list[Node],
        options: dict[str, object],
    ) -> Job:
        """Accept a batch: `folder` None is the project's root. Returns the new job, INITIALIZED."""
        path = folder.path if folder else "/"
        destination = destination_key(project_id, path)
        self.submissions[destination] += 1
        attempt = self.submissions[destination]
        override = find_override(self._settings, destination, attempt)
        job = Job(
            id=self._ids.uuid(),
            batch_id=self._ids.uuid(),
            kind=kind,
            project_id=project_id,
            folder_id=folder.id if folder else None,
            path=path,
            items=[self._item(node, path) for node in sources],
            options=options,
            owner=owner,
            attempt=attempt,
            draw=draw(self._settings.seed, destination, attempt, self._settings),
            seq=next(self._seq),
            created=self._agenda.time,
            show_status=override.show_status if override else None,
            final_status=override.final_status if override else None,
        )
        self._note_acceptance(job, destination)
        self._plan(job)
        self._schedule(job)
        return job

    def start_outage(self, seconds: float) -> None:
        """Everything running fails now, and whatever starts within `seconds` fails at its start."""
        self._outage_until = self._agenda.time + seconds
        for job in list(self.open.values()):
            if job.started is not None:
                self._break_off(job)

    def _item(self, node: Node, path: str) -> Item:
        if not node.is_folder:
            return Item(self._ids.uuid(), node.id, node.name, works=[Work(node, path + node.name)])
        works = [Work(file, f"{path}{node.name}/{rest}") for rest, file in relative_files(self._tree, node)]
        return Item(self._ids.uuid(), node.id, node.name, folder=node, works=works)

    def _note_acceptance(self, job: Job, destination: str) -> None:
        asked = {item.data_id for item in job.items}
        rivals = self._open_at.setdefault(destination, [])
        for other in rivals:
            shared = sorted(asked & {item.data_id for item in other.items})
            if shared:
                self._note_duplicate("at work for the same items", [other.id, job.id], destination, shared)
        if job.kind == "copy" and job.works and all(self._is_whole(job.project_id, work) for work in job.works):
            self._note_duplicate("all items are whole there", [job.id], destination, sorted(asked))
        rivals.append(job)
        self.jobs[job.id] = self.by_batch[job.batch_id] = self.open[job.id] = job
        self.peak_in_flight = max(self.peak_in_flight, len(self.open))
        self._journal.record(
            "job_accepted",
            job_id=job.id,
            batch_id=job.batch_id,
            job_kind=job.kind,
            project_id=job.project_id,
            folder_id=job.folder_id,
            path=job.path,
            items=[{"data_id": item.data_id, "name": item.name} for item in job.items],
            attempt=job.attempt,
            owner=job.owner.name,
            options=job.options,
        )

    def _note_duplicate(self, why: str, jobs: list[str], destination: str, data_ids: list[str]) -> None:
        facts = {"why": why, "jobs": jobs, "destination": destination, "data_ids": data_ids}
        self.duplicates.append(facts)
        self._journal.record("duplicate_job", **facts)

    def _is_whole(self, project_id: str, work: Work) -> bool:
        """Whether what a work would make is there already, as good as its source."""
        there = self._tree.at(project_id, work.path)
        return there is not None and (there.status, there.size_bytes) == ("AVAILABLE", work.source.size_bytes)

    # The plan

    def _plan(self, job: Job) -> None:
        for work in job.works:
            reason = self._always_fails(work.source)
            if reason:
                work.fate, work.reason = Fate.FAIL, reason
        if self._settings.same_project == "job_failed" and any(
            w.source.project_id == job.project_id for w in job.works
        ):
            job.draw = Draw(job.draw.duration_seconds, Outcome.FAILED_CLEAN, job.draw.fraction)
            job.info = "Source and destination are in the same project."
        outcome = job.draw.outcome
        self._apply(job, self._settings.stuck_then if outcome is Outcome.STUCK else outcome)

    def _always_fails(self, source: Node) -> str | None:
        settings = self._settings
        if any(re.search(pattern, source.path) for pattern in settings.failing_files):
            return "Copy of this file failed."
        if (source.size_bytes or 0) < settings.small_file_fails_below_bytes:
            return "Access denied when tagging the object."
        if settings.single_part_fails and source.etag and "-" not in source.etag:
            return "Access denied when tagging the object."
        return None

    def _passing_reason(self, job: Job) -> str:
        """What ICA says of a failure that may not come again."""
        which = "" if self._settings.repeated_messages else f" (job {job.id[:8]})"
        return f"The copy of this file was interrupted{which}."

    def _apply(self, job: Job, outcome: Outcome) -> None:
        """Write the outcome into the fates of the files that would be copied."""
        works = [work for work in job.works if work.fate is Fate.COPY]
        count, fraction = len(works), job.draw.fraction
        hit = int(fraction * count)
        if outcome in _SUBSET and count < 2:
            outcome = Outcome.FAILED_PARTIAL
        if outcome is Outcome.FAILED_CLEAN:
            for work in job.works:
                work.fate = Fate.UNTOUCHED
        elif outcome in _PARTIAL_END:
            for index, work in enumerate(works):
                work.fate = (Fate.COPY, Fate.LEAVE_PARTIAL, Fate.UNTOUCHED)[(index >= hit) + (index > hit)]
        elif outcome in _SUBSET:
            copied = 1 + int(fraction * (count - 1))
            for index in range(copied, count):
                work = works[(hit + index) % count]
                work.fate, work.reason = Fate.FAIL, self._passing_reason(job)
            works[(hit + copied) % count].reported_copied = outcome is Outcome.WRONG_ITEMS
        elif outcome in (Outcome.TRUNCATED, Outcome.MISSING):
            sizeable = [work for work in works if work.source.size_bytes]
            if sizeable:
                fate = Fate.TRUNCATE if outcome is Outcome.TRUNCATED else Fate.OMIT
                sizeable[int(fraction * len(sizeable))].fate = fate

    def _schedule(self, job: Job) -> None:
        settings, begin = self._settings, job.created
        seconds = job.draw.duration_seconds
        if settings.bandwidth_bytes_per_second:
            seconds += sum(work.source.size_bytes or 0 for work in job.works) / settings.bandwidth_bytes_per_second
        waiting = begin + seconds * settings.initialized_fraction
        running = waiting + seconds * settings.waiting_fraction
        job.ends = begin + seconds
        if job.draw.outcome is Outcome.STUCK:
            job.ends += settings.stuck_seconds
            if settings.stuck_status == "WAITING_FOR_RESOURCES":
                running += settings.stuck_seconds
        self._agenda.schedule(waiting, lambda: self._wait(job))
        self._agenda.schedule(running, lambda: self._start(job))

    # The agenda's entries

    def _wait(self, job: Job) -> None:
        if not job.is_over:
            self._show(job, "WAITING_FOR_RESOURCES")

    def _show(self, job: Job, status: str) -> None:
        before, job.status = job.status, status
        if status != before:
            self.on_status(job, before)

    def _start(self, job: Job) -> None:
        job.started = now = self._agenda.time
        self._show(job, job.show_status or "RUNNING")
        if now < self._outage_until:
            self._break_off(job)
            return
        busy = [(item, work) for item in job.items for work in item.works if work.fate is not Fate.UNTOUCHED]
        step = (job.ends - now) / len(busy) if busy else 0.0
        for index, (item, work) in enumerate(busy):
            begin, end = now + index * step, min(now + (index + 1) * step, job.ends)
            self._agenda.schedule(begin, partial(self._begin, job, item, work))
            self._agenda.schedule(end, partial(self._end, job, work))
        self._agenda.schedule(job.ends, lambda: self._finish(job))

    def _begin(self, job: Job, item: Item, work: Work) -> None:
        if job.is_over:
            return
        item.status = "COPYING" if job.kind == "copy" else "MOVING"
        source = work.source
        if source.gone or source.status != "AVAILABLE":
            work.fate, work.reason = Fate.FAIL, f"Source data is {'gone' if source.gone else source.status}."
        if work.fate is Fate.FAIL:
            work.state = "failed"
            return
        work.state = "writing"
        if work.fate is not Fate.OMIT and job.kind == "copy":
            self._open_target(job, work, item)

    def _open_target(self, job: Job, work: Work, item: Item) -> None:
        there = self._tree.at(job.project_id, work.path)
        if there is not None:
            verdict = self._on_existing(str(job.options.get("actionOnExist")), there)
            if there is work.source and verdict == "overwrite":
                verdict = "fail"
            if verdict == "skip":
                work.state = "skipped"
                return
            if verdict == "fail":
                work.state, work.reason = "failed", f"A file in status {there.status} is in the way."
                return
            if verdict == "rename":
                work.path = self._free_name(job.project_id, work.path)
                there = None
        if job.folder_id and (self._tree.by_id(job.folder_id) is None):
            work.state, work.reason = "failed", "The destination folder is gone."
            return
        work.node = there or self._new_node(job, work)
        if work.node is None:
            work.state, work.reason = "failed", "The destination cannot be written."
        else:
            self._tree.update(work.node, status="PARTIAL")
            if item.folder is not None:
                item.created = self._tree.at(job.project_id, f"{job.path}{item.folder.name}/")

    def _on_existing(self, action: str, there: Node) -> Literal["skip", "fail", "rename", "overwrite"]:
        if action == "RENAME":
            return "rename"
        if action == "OVERWRITE":
            return "fail" if there.status == "DELETING" else "overwrite"
        if there.status == "PARTIAL":
            return self._settings.skip_partial
        return self._settings.skip_deleting if there.status == "DELETING" else "skip"

    def _free_name(self, project_id: str, path: str) -> str:
        """`name (1).ext`: what RENAME renames to is not written down; a number before the suffix is the guess here."""
        folder = parent_of(path)
        stem, dot, suffix = path[len(folder) :].partition(".")
        names = (f"{folder}{stem} ({number}){dot}{suffix}" for number in itertools.count(1))
        return next(name for name in names if self._tree.at(project_id, name) is None)

    def _new_node(self, job: Job, work: Work) -> Node | None:
        try:
            return self._tree.add_file(
                job.project_id,
                work.path,
                status="PARTIAL",
                content_key=work.source.content_key,
                user_tags=work.source.user_tags if job.options.get("copyUserTags") else (),
                technical_tags=work.source.technical_tags if job.options.get("copyTechnicalTags") else (),
            )
        except ProblemError:
            return None

    def _end(self, job: Job, work: Work) -> None:
        if work.state != "writing":  # also when the job broke off
            return
        if work.fate is Fate.LEAVE_PARTIAL:
            work.state = "partial"
        elif job.kind == "move":
            self._move(job, work)
        elif work.fate is Fate.OMIT:
            work.state = "copied"
        elif work.node is None or work.node.gone or work.node.status == "DELETING":
            work.state, work.reason = "failed", "The destination file was deleted while it was written."
        else:
            self._write(work, work.node)

    def _write(self, work: Work, node: Node) -> None:
        source, size = work.source, work.source.size_bytes or 0
        if work.fate is Fate.TRUNCATE:
            size = size // 2
        node.content_key = source.content_key
        node.content = None if source.content is None else source.content[:size]
        etag = source.etag
        if size != source.size_bytes:
            etag = make_etag(self._settings, node.content_key, size, node.content)
        elif self._settings.multipart_etag_changes and etag and "-" in etag:
            # The same bytes in parts of another size: another digest and another count.
            etag = make_etag(self._settings, f"copy of {node.content_key}", size).partition("-")[0] + "-1"
        self._tree.update(node, status="AVAILABLE", size_bytes=size, etag=etag)
        work.state = "copied"
        self._journal.record(
            "file_written", project_id=node.project_id, id=node.id, path=node.path, size_bytes=size, etag=etag
        )

    def _move(self, job: Job, work: Work) -> None:
        if self._tree.at(job.project_id, work.path) or work.source.project_id != job.project_id:
            work.state, work.reason = "failed", "The destination exists, or is in another project."
            return
        self._tree.move(work.source, work.path)
        work.state, work.node = "copied", work.source

    # The end of a job

    def _break_off(self, job: Job) -> None:
        """Fail in the middle: the file being written stays PARTIAL."""
        for work in job.works:
            if work.state == "writing":
                work.state = "partial" if work.node else "failed"
        job.draw = Draw(job.draw.duration_seconds, Outcome.FAILED_PARTIAL, job.draw.fraction)
        job.info = "The storage service is unavailable."
        self._finish(job)

    def _finish(self, job: Job) -> None:
        if job.is_over:
            return
        job.finished = self._agenda.time
        status = job.final_status or self._final_status(job)
        if status != "SUCCEEDED" and job.info is None:
            job.info = "The job did not complete."
        for item in job.items:
            self._close_item(job, item)
        self._show(job, status)
        self.open.pop(job.id, None)
        self._open_at[destination_key(job.project_id, job.path)].remove(job)
        self._journal.record("job_finished", job_id=job.id, status=job.status, **self.outcome_of(job))

    def _close_item(self, job: Job, item: Item) -> None:
        done = "COPIED" if job.kind == "copy" else "MOVED"
        good = [work for work in item.works if work.state in ("copied", "skipped") or work.reported_copied]
        waiting = any(work.state == "waiting" for work in item.works)
        if len(good) == len(item.works) and (item.works or job.draw.outcome is not Outcome.FAILED_CLEAN):
            item.status = done
        elif item.folder is not None and good:
            item.status = f"PARTIALLY_{done}"
        elif waiting and job.draw.outcome is Outcome.STOPPED:
            item.status = "QUEUED"
        else:
            item.status = "FAILED"
            item.info = next((work.reason for work in item.works if work.reason), job.info or "The item failed.")
        if item.folder is None and good:
            item.created = item.works[0].node
            if item.works[0].state == "skipped":
                item.info = "Skipped: the destination has a file of this name."

    def _final_status(self, job: Job) -> str:
        outcome = job.draw.outcome
        if outcome is Outcome.STUCK:
            outcome = self._settings.stuck_then
        if outcome is Outcome.STOPPED:
            return "STOPPED"
        if outcome in (Outcome.FAILED_CLEAN, Outcome.FAILED_PARTIAL):
            return "FAILED"
        good = [work for work in job.works if work.state in ("copied", "skipped")]
        if len(good) == len(job.works):
            return "SUCCEEDED"
        return "PARTIALLY_SUCCEEDED" if good else "FAILED"

    def outcome_of(self, job: Job) -> dict[str, Any]:
        """What a job did to the files, by final path; `omitted` are reported as copied and are not there."""
        paths: dict[str, list[str]] = {key: [] for key in ("written", "skipped", "partial", "failed", "untouched")}
        names = {"copied": "written", "waiting": "untouched", "writing": "partial"}
        omitted = []
        for work in job.works:
            if work.fate is Fate.OMIT and work.state == "copied":
                omitted.append(work.path)
            else:
                paths[names.get(work.state, work.state)].append(work.path)
        return paths | {"omitted": omitted}
