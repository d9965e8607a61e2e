"""What the journal of a plate's deletion says: what was ordered, which batches were sent, and how each key ended.

Invariant: one journal serves all deletions of a plate by one proof, in all phases; a row is written before what it is about
happens (an order, an intent), or before anything goes on after it (outcomes, the end).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple

from include.core.errors import ConflictingRequest
from include.core.journal import PartJournal
from include.core.packed import Finder, Packed
from include.plates.delete_preview import journaled_older
from include.plates.errors import ApprovalVoid
from include.plates.models import DeleteOrder, Verdict
from include.s3.bucket import KeyVersion
from include.s3.guarded_delete import DeleteGuard, KeyOutcome, Outcomes, Result

DAY = 86_400.0


class Marked(NamedTuple):
    """A key that was marked, and the version id of its delete marker."""

    key: str
    marker: str | None


class DeletionJournal:
    """The journal of one order. `load` first."""

    def __init__(self, journal: PartJournal, verdict: Verdict, order: DeleteOrder):
        self._journal = journal
        self._verdict = verdict
        self._order = order
        self._again = 0
        self._ordered: dict[str, Any] = {}
        self._bound: dict[str, Any] | None = None
        self._phase = ""
        self._marked_at: float | None = None
        self.last_at = 0.0
        self.finished: dict[str, Any] | None = None
        self._empty()

    def _empty(self) -> None:
        self.intents: dict[int, str] = {}
        self.outcomes: dict[int, Packed[KeyOutcome]] = {}
        self._failed: set[int] = set()
        self._markers = Packed(Marked)
        self.guard: DeleteGuard | None = None
        self.older: Packed[KeyVersion] | None = None

    @property
    def name(self) -> str:
        """Names the batches. A deletion of objects that were there again is another one."""
        again = f"/again-{self._again}" if self._again else ""
        return f"{self._verdict.tag}/{self._verdict.manifests_sha256[:16]}/{self._order.phase}{again}"

    @property
    def begun(self) -> bool:
        """Whether a batch of this phase was ever sent: from then on the source may differ from the manifest by our doing."""
        return bool(self.intents)

    def is_settled(self, batches: int) -> bool:
        """Whether this phase came to its end before: every key of every batch has an outcome, and none is a failure."""
        return bool(batches) and all(self.has_settled(number) for number in range(1, batches + 1))

    def has_settled(self, number: int) -> bool:
        return number in self.outcomes and number not in self._failed

    def markers(self) -> Finder[Marked]:
        """The keys that the first phase marked."""
        return Finder(self._markers, lambda one: one.key)

    @property
    def _identity(self) -> dict[str, Any]:
        identity: dict[str, Any] = {"manifests": self._verdict.manifests_sha256, "parts": sorted(self._order.parts)}
        if self._order.older_versions != "refuse":
            identity["older_versions"] = self._order.older_versions
        return identity

    # Reading

    async def load(self, now: float) -> None:
        """Raises ConflictingRequest for a journal of another order, ApprovalVoid while the time to undo is not over."""
        await asyncio.to_thread(self._read_all)
        if self._bound not in (None, self._identity):
            if self.finished is None or self._bound["manifests"] == self._identity["manifests"]:
                raise ConflictingRequest(f"{self.name}: this journal is of {self._bound}, not of {self._identity}")
            self.forget()  # of another archive of this plate, whose deletion came to its end
        elif self.finished is not None and self._phase != self._order.phase and self._order.phase != "purge":
            self.forget()
        if self._bound is None:
            self._phase = ""  # nothing was sent under the last order, so it binds nobody
        if self._phase != self._order.phase:
            self._check_phase(self._phase, now)

    def _read_all(self) -> None:
        for row in self._journal.rows():
            self._read(row)

    def _read(self, row: dict[str, Any]) -> None:
        if "order" in row:
            if self.finished is not None:
                self.forget()
            self._ordered, self._phase = row["order"], row["phase"]
        self._take_any(row)
        if self._phase == self._order.phase:
            self._take(row)

    def forget(self) -> None:
        """What follows in the journal is another deletion."""
        self._again += 1
        self._bound, self._phase = None, ""
        self.finished, self._marked_at = None, None
        self._empty()

    def _check_phase(self, last: str, now: float) -> None:
        allowed = {"delete": ("",), "marker": ("",), "purge": ("marker",)}[self._order.phase]
        if last not in allowed:
            raise ConflictingRequest(
                f"{self.name}: the journal ends in phase {last or 'nothing'}; {allowed} is expected"
            )
        if self._order.phase == "purge":
            ready = (self._marked_at or 0.0) + self._order.undo_days * DAY
            if self._marked_at is None or now < ready:
                raise ApprovalVoid(f"{self.name}: the undo time of {self._order.undo_days} days is not over")

    def _take_any(self, row: dict[str, Any]) -> None:
        """What counts for all phases."""
        if "intent" in row:
            self._bound = self._ordered
        if "outcomes" in row:
            self.last_at = row["at"]
        if self._phase == "marker" and "outcomes" in row:
            self._marked_at = row["at"]
            self._markers.extend(
                Marked(one["key"], one["marker"]) for one in row["outcomes"] if one["result"] == Result.DELETED
            )
        if "older" in row:
            self.older = journaled_older(row["older"])
        if "finished" in row:
            self.finished = row

    def _take(self, row: dict[str, Any]) -> None:
        if "guard" in row and row["guard"] in DeleteGuard.__members__:
            self.guard = DeleteGuard[row["guard"]]
        elif "intent" in row:
            self.intents[row["intent"]] = row["digest"]
        elif "outcomes" in row:
            rows = (KeyOutcome(**one | {"result": Result(one["result"])}) for one in row["outcomes"])
            self._keep(row["batch"], tuple(rows))

    def _keep(self, number: int, outcomes: Outcomes) -> None:
        self.outcomes[number] = Packed(KeyOutcome, outcomes)
        if any(one.result is Result.FAILED for one in outcomes):
            self._failed.add(number)
        else:
            self._failed.discard(number)

    # Writing

    async def open(self) -> None:
        """Before the first intent: what was ordered, and which older versions there were."""
        if self.begun:
            return
        await self._note({"order": self._identity, "phase": self._order.phase})
        if self.older:
            await self._note({"older": [[one.key, one.version_id, one.etag, one.size] for one in self.older]})

    async def note_guard(self, guard: DeleteGuard) -> None:
        self.guard = guard
        await self._note({"guard": guard.name})

    async def note_intent(self, number: int, digest: str, keys: Sequence[str]) -> None:
        await self._note({"intent": number, "digest": digest, "keys": list(keys)})
        self.intents[number] = digest

    async def note_outcomes(self, number: int, outcomes: Outcomes, now: float) -> None:
        await self._note({"batch": number, "at": now, "outcomes": [one.to_dict() for one in outcomes]})
        self._keep(number, outcomes)

    async def note_finished(self, now: float, unknown: Sequence[str]) -> None:
        await self._note({"finished": self._order.phase, "at": now, "unknown": list(unknown)})

    async def _note(self, row: dict[str, Any]) -> None:
        await asyncio.to_thread(self._journal.append, row)
