"""`IcaWorld`: the whole simulated ICA, and the operations that tests use on it; the side channel offers them over HTTP.

Invariant: every public method first brings the world up to the present, as a request does.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import httpx

from simulators.common import Answer, Call, Clock, ProblemError, Rule, Simulator, iso_millis
from simulators.icav2.jobs import JobEngine
from simulators.icav2.model import Ids, Job, Node, Project, Right, User
from simulators.icav2.notifications import Notifications
from simulators.icav2.render import PROBLEM_TYPE, node_truth, problem_json
from simulators.icav2.settings import Settings, destination_key
from simulators.icav2.tokens import Tokens
from simulators.icav2.tree import Tree


class IcaWorld(Simulator):
    """ICA v2 with its data, tokens and copy jobs, and without a way in: `simulators.icav2.IcaSimulator` has its API too.

    Args:
        clock: simulated time; by default the real one. For a virtual-time loop pass `Clock(loop.time, epoch=...)`.
        settings: they can be changed at run time by `change_settings`.
        gzip: compress answers when asked to; switch off to save CPU in benchmarks.
        push_transport: carries the notifications instead of the network, for tests in virtual time.
    """

    settings: Settings

    def __init__(
        self,
        clock: Clock | None = None,
        settings: Settings | None = None,
        *,
        gzip: bool = True,
        push_transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        chosen = settings or Settings()
        super().__init__("icav2", chosen, clock, special_faults=frozenset({"hide_job", "cut_upload"}), gzip=gzip)
        ids = Ids(chosen.seed, self.agenda.time)
        self.ids = ids
        self.tokens = Tokens(self.agenda, chosen, ids)
        self.tree = Tree(self.agenda, self.journal, chosen, ids)
        self.engine = JobEngine(self.tree, self.agenda, self.journal, chosen, ids)
        self.notifications = Notifications(
            self.agenda, self.journal, chosen, ids, self.tokens.tenant_id, push_transport
        )
        self.engine.on_status = self.notifications.status_changed
        self._bucket, self._bucket_at = chosen.rate_limit_burst, self.agenda.time

    # What the shell asks

    def guard(self, call: Call) -> None:
        if not call.template.startswith("/api/"):
            return
        self._take_from_bucket()
        accept = call.headers.get("accept", "*/*")
        if not any(kind in accept for kind in ("application/vnd.illumina.v3+json", "application/json", "/*")):
            raise ProblemError(406, "Not acceptable", "This endpoint answers in application/vnd.illumina.v3+json.")
        content_type = call.headers.get("content-type", "").partition(";")[0].strip()
        if (
            call.body
            and call.method == "POST"
            and content_type
            not in (
                "application/vnd.illumina.v3+json",
                "application/json",
            )
        ):
            raise ProblemError(415, "Unsupported media type", f"Cannot read a body of type {content_type!r}.")

    def problem(self, status: int, title: str, detail: str, fields: dict[str, Any] | None = None) -> Answer:
        body = problem_json(status, title, detail, self.ids.uuid(), self.agenda.time)
        return Answer(status, body | (fields or {}), PROBLEM_TYPE)

    def apply_special_fault(self, rule: Rule, call: Call, answer: Answer) -> None:
        job, node = self.engine.jobs.get(answer.ref or ""), self.tree.nodes.get(answer.ref or "")
        if rule.fault == "hide_job" and job is not None:
            job.hidden_until = self.agenda.time + rule.seconds
        elif rule.fault == "cut_upload" and node is not None and node.content is not None:
            node.content = node.content[: len(node.content) // 2]
            if node.status == "AVAILABLE":
                self.tree.uploaded(node)

    def counters(self) -> dict[str, Any]:
        engine = self.engine
        return super().counters() | {
            "jobs": len(engine.jobs),
            "jobs_in_flight": len(engine.open),
            "peak_jobs_in_flight": engine.peak_in_flight,
            "submissions": dict(engine.submissions),
            "duplicate_jobs": engine.duplicates,
            "notifications": dict(self.notifications.counts),
        }

    def _take_from_bucket(self) -> None:
        rate = self.settings.rate_limit_per_second
        if rate is None:
            return
        now = self.agenda.time
        self._bucket = min(self.settings.rate_limit_burst, self._bucket + (now - self._bucket_at) * rate)
        self._bucket_at = now
        if self._bucket < 1:
            wait = self.settings.rate_limit_retry_after
            headers = {} if wait is None else {"Retry-After": str(wait)}
            raise ProblemError(429, "Too many requests", "The rate limit is exceeded.", headers)
        self._bucket -= 1

    # Rights

    def project_for(self, user: User, project_id: str, *, write: bool = False) -> Project:
        """The project, if `user` may see it (or change it). Raises `ProblemError` 404 or 403."""
        project = self.tree.projects.get(project_id)
        if project is None:
            raise ProblemError(404, "Not found", f"No such project: {project_id}.")
        right = project.rights.get(user.name, user.default_right)
        if right == "none" or (write and right != "contributor"):
            raise ProblemError(403, "Forbidden", "Your rights in this project do not allow that.")
        return project

    # Operations of the side channel

    def seed_project(
        self, project_id: str | None = None, name: str | None = None, rights: dict[str, Right] | None = None
    ) -> Project:
        """Make an empty project, or rename one and set its rights by user name."""
        self.run_due()
        key = project_id or self.ids.uuid()
        project = self.tree.projects.setdefault(key, Project(key, name or f"project {key[:8]}"))
        project.name, project.rights = name or project.name, rights or project.rights
        return project

    def seed_file(self, project_id: str, path: str, size_bytes: int | None = None, **more: Any) -> Node:
        """Put a file there: `size_bytes` (generated content) or `content`; optional status, etag, tags.

        An ETag that is not given is made: the MD5 of a small file's content, `hex-N` above the multipart limit.
        """
        self.run_due()
        if project_id not in self.tree.projects:
            raise KeyError(f"no such project: {project_id}")
        if size_bytes is None and more.get("content") is None:
            raise ValueError("give size_bytes or content")
        return self.tree.add_file(project_id, path, size_bytes=size_bytes, **more)

    def seed_folder(self, project_id: str, path: str) -> Node | None:
        """Make a folder with its parents."""
        self.run_due()
        return self.tree.make_folders(project_id, path)

    def set_data(self, data_id: str, **changes: Any) -> Node:
        """Change status, size_bytes or etag of a node, as by a hand outside (archiving, corruption)."""
        self.run_due()
        node = self.tree.nodes[data_id]
        self.tree.update(node, **({"size_bytes": node.size_bytes, "etag": node.etag} | changes))
        return node

    def dump(self, project_id: str) -> list[dict[str, Any]]:
        """The whole tree of a project as it is now, in path order."""
        self.run_due()
        return [node_truth(node) for node in self.tree.all_of(project_id) if node.ready_from <= self.agenda.time]

    def job_truth(self) -> list[dict[str, Any]]:
        """Every job ever accepted with its draw, oldest first."""
        self.run_due()
        return [self._truth(job) for job in self.engine.jobs.values()]

    def job_outage(self, seconds: float, starts_in: float = 0.0) -> None:
        """Correlated failure: running jobs fail when it starts, and jobs that start running in it fail at once."""
        self.run_due()
        self.agenda.schedule(self.agenda.time + starts_in, lambda: self.engine.start_outage(seconds))
        self.run_due()

    async def deliver(self) -> int:
        """Post every notification that is due by now and return how many were; a served simulator does so by itself."""
        return await self.notifications.deliver()

    def run_until_idle(self, limit_seconds: float = 86400.0) -> float:
        """Advance the clock until nothing is planned any more (or by the limit); returns the simulated seconds passed."""
        self.run_due()
        begin = self.agenda.time
        while (due := self.agenda.next_due()) is not None and due - begin <= limit_seconds:
            self.clock.advance(max(0.0, due - self.clock.now()) + 1e-3)
            self.run_due()
        return self.agenda.time - begin

    def _truth(self, job: Job) -> dict[str, Any]:
        return {
            "id": job.id,
            "batch_id": job.batch_id,
            "kind": job.kind,
            "status": job.status,
            "destination": destination_key(job.project_id, job.path),
            "attempt": job.attempt,
            "drawn_seconds": job.draw.duration_seconds,
            "drawn_outcome": job.draw.outcome.value,
            "created": iso_millis(job.created),
            "ends": iso_millis(job.ends),
            "finished": None if job.finished is None else iso_millis(job.finished),
            "items": [{"data_id": item.data_id, "name": item.name, "status": item.status} for item in job.items],
            **self.engine.outcome_of(job),
        }


def files_by_path(nodes: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """A dump's files by path."""
    return {node["path"]: node for node in nodes if node["type"] == "FILE"}
