"""`JdpWorld`: JDP with its archive, tapes, disk and restore requests, and the operations that tests use on it.

Invariant: every public method first brings the world up to the present, as a request does.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any, get_args

from simulators.common import Answer, Call, Clock, ProblemError, Rule, Simulator
from simulators.globus.collections import Collections
from simulators.jgi.catalog import ArchiveFile, Catalog, Proposal
from simulators.jgi.generate import add_published, add_random
from simulators.jgi.restores import Restore, RestoreEngine, Spoil
from simulators.jgi.sessions import Sessions
from simulators.jgi.settings import JdpSettings

FAULTS = frozenset(
    {
        "stuck_pending",
        "ready_but_empty",
        "no_manifest",
        "manifest_rows_missing",
        "manifest_path_leaves",
        "spoil_restored",
        "partial_purge",
        "show_status",
    }
)


class JdpWorld(Simulator):
    """JDP without a way in: `simulators.jgi.JdpSimulator` has its API too.

    Args:
        catalog: what is archived, shared with GOLD.
        collections: where restored files are laid out for Globus, shared with the Globus simulator.
    """

    settings: JdpSettings

    def __init__(
        self,
        catalog: Catalog,
        collections: Collections,
        clock: Clock | None = None,
        settings: JdpSettings | None = None,
    ) -> None:
        chosen = settings or JdpSettings()
        super().__init__("jdp", chosen, clock, special_faults=FAULTS)
        self.catalog = catalog
        self.collections = collections
        draws = random.Random(f"jdp|{chosen.seed}")
        self.sessions = Sessions(self.agenda, chosen, lambda: draws.randbytes(16).hex())
        first_id = 400_000 + draws.randrange(100_000)
        self.engine = RestoreEngine(catalog, collections, self.agenda, self.journal, chosen, first_id)
        self._draws = draws
        self._lay_on_disk(catalog.files.values())

    # What the shell asks

    def problem(self, status: int, title: str, detail: str, fields: dict[str, Any] | None = None) -> Answer:
        return Answer(status, {"detail": detail} | (fields or {}))

    def apply_special_fault(self, rule: Rule, call: Call, answer: Answer) -> None:
        if rule.fault == "show_status":
            if isinstance(answer.body, dict) and "status" in answer.body:
                answer.body["status"] = str(rule.options["status"])
            return
        request = self.engine.requests.get(int(answer.ref or 0))
        if request is None:
            return
        if rule.fault == "stuck_pending":
            self.engine.hold(request, rule.seconds or None)
        else:
            _spoil(request, rule)
        self.journal.record("restore_fault", request_id=request.id, fault=rule.fault)

    def counters(self) -> dict[str, Any]:
        engine = self.engine
        return super().counters() | {
            "requests": len(engine.requests),
            "open_requests": sum(each.is_open for each in engine.requests.values()),
            "ids_asked_twice": engine.ids_asked_twice,
            "tape_mounts": engine.robot.mounts,
            "files": len(self.catalog.files),
            "files_on_disk": sum(file.on_disk for file in self.catalog.files.values()),
            "window": self.engine.peak()._asdict(),
        }

    # Operations of the side channel

    def request(self, request_id: int) -> Restore:
        """A request by its number. Raises KeyError."""
        self.run_due()
        return self.engine.requests[request_id]

    def purge(self, ids: list[str] | None = None, everything: bool = False) -> int:
        """Purge now: these files, all that are on disk, or (by default) those whose date has come."""
        self.run_due()
        if everything:
            return self.engine.purge(list(self.catalog.files.values()))
        return self.engine.purge(None if ids is None else [self.catalog.files[each] for each in ids])

    def add_project(self, proposal_id: int, name: str, **more: Any) -> Proposal:
        """A further project: a random one where `total_bytes` is given, else one of published shape (`jgi.generate`)."""
        self.run_due()
        make = add_random if "total_bytes" in more else add_published
        proposal: Proposal = make(self.catalog, proposal_id, name, **more)
        self._lay_on_disk(self.catalog.files_of_proposal(proposal_id))
        return proposal

    def _lay_on_disk(self, files: Iterable[ArchiveFile]) -> None:
        """What was restored before has some of its days left."""
        for file in files:
            if file.on_disk:
                self.engine.lay_on_disk(file, self._draws.uniform(1, self.settings.life_days))

    def withdraw(self, file_id: str) -> ArchiveFile:
        """JGI takes a file out of its archive: no answer has it any more, and no restore brings it back."""
        self.run_due()
        file = self.catalog.files[file_id]
        self.engine.purge([file])
        file.withdrawn = True
        return file

    def run_until_idle(self, limit_seconds: float = 30 * 86400.0) -> None:
        """Advance the clock until no request is open any more, held ones aside. Raises ProblemError after the limit."""
        self.run_due()
        begin = self.agenda.time
        while any(each.is_open and each.held_until != float("inf") for each in self.engine.requests.values()):
            due = self.agenda.next_due()
            if due is None or due - begin > limit_seconds:
                raise ProblemError(500, "Not idle", "A request stays open.")
            self.clock.advance(max(0.0, due - self.clock.now()) + 1e-3)
            self.run_due()


def _spoil(request: Restore, rule: Rule) -> None:
    """Write a rule's fault into the request that it made. Raises ValueError for an option that is not known."""
    faults, options = request.faults, rule.options
    count = int(options.get("files", 1))
    if rule.fault == "ready_but_empty":
        faults.empty = True
    elif rule.fault == "no_manifest":
        faults.manifest.absent = True
    elif rule.fault == "manifest_rows_missing":
        faults.manifest.rows_missing = count
    elif rule.fault == "manifest_path_leaves":
        faults.manifest.rows_leaving = count
    elif rule.fault == "partial_purge":
        faults.purge_files, faults.purge_after_seconds = count, rule.seconds
    else:
        how = options.get("how", "flip")
        if how not in get_args(Spoil):
            raise ValueError(f"how={how!r}: give one of {', '.join(get_args(Spoil))}")
        faults.spoil, faults.spoil_files = how, count
