"""`GlobusWorld`: Globus Auth and Transfer, and the operations that tests use on them; the side channel offers them over HTTP.

Invariant: every public method first brings the world up to the present, as a request does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from simulators.common import Answer, Call, Clock, Operation, ProblemError, Rule, Simulator, iso_millis
from simulators.globus.collections import DESTINATION_COLLECTION, JGI_COLLECTION, Collections
from simulators.globus.engine import Engine
from simulators.globus.files import FileMover
from simulators.globus.model import Endpoint, Ids, Task, Trouble
from simulators.globus.settings import Settings
from simulators.globus.tokens import Token, Tokens

FILE_TROUBLES = frozenset({"file_error", "corrupt_arrival", "rot_after_check", "lose_file", "cut_file"})
TASK_TROUBLES = frozenset(
    {"pause_task", "inactivate_task", "stall_task", "fail_task", "cancel_by_admin", "hide_task", "forget_task"}
)
_MENDING = frozenset({"resume_task", "renew_task"})


class GlobusWorld(Simulator):
    """Globus without a way in: `simulators.globus.GlobusSimulator` has its API too.

    Args:
        collections: where the files are; JDP puts them there, this moves them.
        clock: simulated time, which dates tasks and answers.
        settings: they can be changed at run time by `change_settings`.
    """

    settings: Settings

    def __init__(
        self,
        collections: Collections,
        clock: Clock | None = None,
        settings: Settings | None = None,
        *,
        gzip: bool = True,
    ) -> None:
        chosen = settings or Settings()
        special = FILE_TROUBLES | TASK_TROUBLES | {"change_answer"}
        super().__init__("globus", chosen, clock, special_faults=special, gzip=gzip)
        self.collections = collections
        self.ids = Ids(chosen.seed, self.agenda.time)
        self.endpoints: dict[str, Endpoint] = {}
        self.tokens = Tokens(self.agenda, chosen, self.ids, self.endpoints)
        self.engine = Engine(
            FileMover(collections, self.agenda, self.journal, chosen), self.agenda, self.journal, chosen
        )
        self.submission_ids: set[str] = set()
        self.add_endpoint(JGI_COLLECTION, "JGI Genome Portal shared endpoint 3")
        self.add_endpoint(DESTINATION_COLLECTION, "NERSC destination")

    # What the shell asks

    def problem(self, status: int, title: str, detail: str, fields: dict[str, Any] | None = None) -> Answer:
        body = {
            "code": title.replace(" ", ""),
            "message": detail,
            "request_id": self.ids.hex32()[:9],
            "resource": "/v0.10",
        }
        return Answer(status, body | (fields or {}))

    def perform(self, operation: Operation, call: Call, special: list[Rule]) -> Answer:
        try:
            return super().perform(operation, call, special)
        except ForbiddenError as refusal:
            return self.problem(refusal.status, refusal.title, refusal.detail, refusal.fields)

    def apply_special_fault(self, rule: Rule, call: Call, answer: Answer) -> None:
        if rule.fault == "change_answer" and isinstance(answer.body, dict):
            answer.body = answer.body | rule.options.get("fields", {})
        elif answer.ref in self.engine.tasks:
            self._afflict(self.engine.tasks[answer.ref], rule.fault, rule.seconds, rule.options)

    def change_settings(self, **changes: Any) -> dict[str, Any]:
        shown = super().change_settings(**changes)
        self.engine.pace_anew()
        return shown

    def counters(self) -> dict[str, Any]:
        engine = self.engine
        return super().counters() | {
            "tasks": len(engine.tasks),
            "tasks_open": len(engine.open),
            "peak_working": engine.peak_working,
            "endings": dict(engine.endings),
            "duplicate_tasks": engine.duplicates,
            "moves": engine.files.moves,
            "needless_moves": engine.files.needless,
        }

    # Rights

    def access(self, token: Token, endpoint_id: Any) -> Endpoint:
        """The collection, if the caller may use it. Raises `ProblemError` 404, `ForbiddenError` 403."""
        endpoint = self.endpoints.get(str(endpoint_id))
        if endpoint is None:
            raise ProblemError(404, "EndpointNotFound", f"No such endpoint '{endpoint_id}'")
        if endpoint.forbidden:
            raise ProblemError(403, "PermissionDenied", f"You have no permission on endpoint '{endpoint_id}'")
        if endpoint.authorization_parameters is not None:
            raise ForbiddenError("PermissionDenied", {"authorization_parameters": endpoint.authorization_parameters})
        if endpoint.needs_data_access and endpoint.id not in token.consents:
            scope = f"urn:globus:auth:scope:transfer.api.globus.org:all[*{endpoint.scope}]"
            raise ForbiddenError("ConsentRequired", {"required_scopes": [scope]})
        return endpoint

    def task(self, token: Token, task_id: str) -> Task:
        """The caller's task. Raises `ProblemError` 404, also for one that is very old."""
        task = self.engine.tasks.get(task_id)
        now = self.agenda.time
        if task is None or task.owner != token.client.id or not self.is_known(task) or task.hidden_until > now:
            raise ProblemError(404, "TaskNotFound", f"No task found with id '{task_id}'")
        return task

    def is_known(self, task: Task) -> bool:
        """Whether Globus still has the task."""
        age = self.agenda.time - (task.completed if task.completed is not None else self.agenda.time)
        return age < self.settings.task_seconds and self.agenda.time < task.forgotten_from

    def history_deleted(self, task: Task) -> bool:
        """Whether what the task did to each file is gone."""
        return task.completed is not None and self.agenda.time - task.completed >= self.settings.history_seconds

    # Operations of the side channel

    def add_endpoint(self, endpoint_id: str, display_name: str = "", **facts: Any) -> Endpoint:
        """Add a collection; `facts` are fields of `Endpoint`."""
        self.run_due()
        self.endpoints[endpoint_id] = Endpoint(endpoint_id, display_name or f"collection {endpoint_id[:8]}", **facts)
        self.collections.folder_of(endpoint_id)
        return self.endpoints[endpoint_id]

    def change_endpoint(self, endpoint_id: str, **facts: Any) -> Endpoint:
        """Change fields of a collection. `paused`: a message pauses its tasks, None lets them go on."""
        self.run_due()
        endpoint = self.endpoints[endpoint_id]
        unknown = facts.keys() - vars(endpoint).keys()
        if unknown:
            raise ValueError(f"a collection has no {', '.join(sorted(unknown))}")
        for name, value in facts.items():
            setattr(endpoint, name, value)
        if "paused" in facts:
            for task in [task for task in self.engine.open.values() if endpoint in (task.source, task.destination)]:
                if endpoint.paused is None:
                    self.engine.resume(task)
                else:
                    self.engine.pause(task, endpoint.paused)
        self.run_due()
        return endpoint

    def afflict(self, task_id: str, fault: str, seconds: float = 0.0, **options: Any) -> Task:
        """Do one of the system's own faults to a task, or mend it (`resume_task`, `renew_task`).

        Raises KeyError for an unknown task, ValueError for an unknown fault.
        """
        self.run_due()
        task = self.engine.tasks[task_id]
        self._afflict(task, fault, seconds, options)
        self.run_due()
        return task

    def run_until_idle(self, limit_seconds: float = 86400.0) -> float:
        """Advance the clock until nothing is planned any more (or by the limit); returns the simulated seconds passed."""
        self.run_due()
        begin = self.agenda.time
        while self.engine.open and (due := self.agenda.next_due()) is not None and due - begin <= limit_seconds:
            self.clock.advance(max(0.0, due - self.clock.now()) + 1e-3)
            self.run_due()
        return self.agenda.time - begin

    def task_truth(self) -> list[dict[str, Any]]:
        """Every task ever accepted as it really is, oldest first."""
        self.run_due()
        return [
            {
                "task_id": task.id,
                "submission_id": task.submission_id,
                "label": task.options.label,
                "status": task.status,
                "state": task.state,
                "fatal_error": task.fatal,
                "accepted": iso_millis(task.requested),
                "pairs": sorted(task.pairs),
            }
            for task in self.engine.tasks.values()
        ]

    def _afflict(self, task: Task, fault: str, seconds: float, options: dict[str, Any]) -> None:
        if fault in FILE_TROUBLES:
            times, side = options.get("times", 1), options.get("side", "source")
            trouble = Trouble(fault, options.get("path", ""), options.get("code", "ENDPOINT_ERROR"), side)
            task.troubles[trouble] = math.inf if times is None else times
        elif fault in TASK_TROUBLES | _MENDING:
            self._trouble_task(task, fault, seconds, options)
        else:
            raise ValueError(f"unknown fault {fault!r} of a task")

    def _trouble_task(self, task: Task, fault: str, seconds: float, options: dict[str, Any]) -> None:
        engine, now = self.engine, self.agenda.time
        message = options.get("message", "a fault of the script")
        actions: dict[str, Callable[[], object]] = {
            "pause_task": lambda: engine.pause(task, message),
            "resume_task": lambda: engine.resume(task),
            "inactivate_task": lambda: engine.inactivate(task),
            "renew_task": lambda: engine.renew(task),
            "stall_task": lambda: engine.stall(task, seconds),
            "fail_task": lambda: engine.fail(task, options.get("code", "FATAL"), message),
            "cancel_by_admin": lambda: self._cancel_by_admin(task, options.get("side", "DESTINATION"), message),
            "hide_task": lambda: setattr(task, "hidden_until", now + seconds),
            "forget_task": lambda: setattr(task, "forgotten_from", now + seconds),
        }
        actions[fault]()
        mending = {"pause_task": engine.resume, "inactivate_task": engine.renew}.get(fault)
        if mending is not None and seconds:
            self.agenda.schedule(now + seconds, lambda: mending(task))

    def _cancel_by_admin(self, task: Task, side: str, message: str) -> None:
        if not task.is_over:
            task.canceled_by_admin, task.canceled_by_admin_message = side, message
            self.engine.fail(task, "CANCELED", message)


class ForbiddenError(ProblemError):
    """A 403 that says what is missing, in fields of its document."""

    def __init__(self, code: str, fields: dict[str, Any]) -> None:
        super().__init__(403, code, f"{code}: more is needed, see the fields of this answer")
        self.fields = fields
