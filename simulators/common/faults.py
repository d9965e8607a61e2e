"""The fault script: which requests go wrong, and how.

Invariant: *before commit* means that the simulated system never saw the request, *after commit* that it did
everything and only the answer suffered. Every fault keeps that line sharp, because the journal is read as the truth.

| fault | parameters | what the client sees | committed |
|---|---|---|---|
| status | code, retry_after, body, problem | that answer | no |
| drop_before_commit | | closed connection | no |
| drop_after_commit | | closed connection | yes |
| hold_after_commit | seconds | the answer, late | yes, at once |
| commit_delayed | seconds, hold | nothing; closed after `hold` seconds | yes, after `seconds` |
| error_after_commit | code (500) | an error | yes |
| slow | seconds | the answer, late | yes, late |
| slow_body | seconds, chunks (20) | headers, then a trickle | yes |
| non_json | code (200), body | an HTML page | no |
| outage | seconds, code (503), retry_after | 503 to every request for that time | no |

Of a request that suffers several of these the first rule acts. A simulator may add faults of its own, which act where
it commits, combine with one of the above, and take their parameters from `options`:

| simulator | fault | options | what happens |
|---|---|---|---|
| globus | file_error | path, code, side (source), times (1; null: always) | that error for files of the new task, at that side |
| globus | corrupt_arrival | path, times | a byte is wrong on arrival: seen, and moved again, where the task verifies |
| globus | rot_after_check, lose_file, cut_file | path, times | after the check a byte changes, or all or half is gone |
| globus | pause_task, inactivate_task | message, (`seconds`) | the task is suspended, for that time where one is given |
| globus | stall_task | (`seconds`) | nothing flows for that time, and nothing is said of it |
| globus | fail_task, cancel_by_admin | code, message, side | the task ends so |
| globus | hide_task | (`seconds`) | the new task is in no answer for that time |
| globus | forget_task | (`seconds`) | the task is 404 after that time |
| globus | change_answer | fields | these fields of a JSON answer have other values |
| icav2 | hide_job | (`seconds`) | the new job is in no answer for that time |
| icav2 | cut_upload | | half of what was uploaded to a signed URL is kept |
| jdp | stuck_pending | (`seconds`) | the new request stays pending for that time, or (0) until a control releases it |
| jdp | ready_but_empty | | it becomes ready, while its files stay on tape only and its folder is not there |
| jdp | no_manifest | | its folder has files and no manifest |
| jdp | manifest_rows_missing | files (1) | the manifest leaves out so many files that are there |
| jdp | manifest_path_leaves | files (1) | so many paths of the manifest begin with `../../../` |
| jdp | spoil_restored | files (1), how (flip) | so many copies are bad: `flip` a byte, `page` of HTML, `short`, `missing` |
| jdp | partial_purge | (`seconds`), files (1) | so many of its files are purged that long after it became ready |
| jdp | show_status | status | an answer about a request shows this word as its status |
| s3 | flip_bit | | the object that was written has one other bit at rest: same size, same ETag, no error |

Commands over SSH suffer the same faults, and one more: see `simulators.common.commands`.

A rule chooses its requests by:

| field | matches |
|---|---|
| method | this method |
| path | a substring or regular expression of the decoded path |
| query | a substring or regular expression of the query string as it was sent (S3's operations differ by nothing else) |
| contains | a substring of the body |
| after, times | the first `after` of those that match pass, the next `times` (null: all) suffer |
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

GENERIC = frozenset(
    {
        "status",
        "drop_before_commit",
        "drop_after_commit",
        "hold_after_commit",
        "commit_delayed",
        "error_after_commit",
        "slow",
        "slow_body",
        "non_json",
        "outage",
    }
)
NOT_COMMITTED = frozenset({"status", "drop_before_commit", "non_json", "outage"})


class Rule(BaseModel):
    """One line of the script. Requests that match are counted; the first `after` pass, the next `times` suffer.

    Fields and faults are in the tables above. `problem` changes fields of the error answer (for S3: `{"code": "SlowDown"}`).
    Times in the parameters are simulated seconds.
    """

    model_config = ConfigDict(extra="forbid")

    fault: str
    method: str | None = None
    path: str | None = None
    query: str | None = None
    contains: str | None = None
    after: int = Field(default=0, ge=0)
    times: int | None = Field(default=1, ge=0)
    code: int | None = None
    seconds: float = Field(default=0.0, ge=0)
    hold: float = Field(default=0.0, ge=0)
    chunks: int = Field(default=20, ge=1)
    retry_after: int | str | None = None
    body: str | None = None
    problem: dict[str, Any] | None = None
    options: dict[str, Any] = Field(default_factory=dict)

    @field_validator("path", "query")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(f"{value!r} is not a regular expression: {error}") from error
        return value

    def matches(self, method: str, path: str, query: str, body: bytes) -> bool:
        if self.method and self.method.upper() != method:
            return False
        if not (_found(self.path, path) and _found(self.query, query)):
            return False
        return not self.contains or self.contains.encode() in body


def _found(wanted: str | None, text: str) -> bool:
    return not wanted or wanted in text or re.search(wanted, text) is not None


@dataclass
class _Tally:
    rule: Rule
    id: int
    matched: int = 0
    fired: int = 0

    def takes(self, method: str, path: str, query: str, body: bytes) -> bool:
        """Counts the request if it matches; whether it would suffer this rule, were there no other."""
        if not self.rule.matches(method, path, query, body):
            return False
        self.matched += 1
        spent = self.rule.times is not None and self.fired >= self.rule.times
        return self.matched > self.rule.after and not spent


class FaultScript:
    """The rules in force. Every matching rule counts a request; a request suffers all rules that are due.

    Of the faults that all simulators know only the first due one acts, so that a script reads from top to bottom.
    """

    def __init__(self, special: frozenset[str] = frozenset()) -> None:
        self.known = GENERIC | special
        self._tallies: list[_Tally] = []
        self._last_id = 0
        self._outage: tuple[float, Rule] | None = None

    def add(self, **rule: Any) -> int:
        """Add a rule at the end and return its id. Raises ValueError for an unknown fault or parameter."""
        parsed = Rule(**rule)
        if parsed.fault not in self.known:
            raise ValueError(f"unknown fault {parsed.fault!r}; known: {', '.join(sorted(self.known))}")
        self._last_id += 1
        self._tallies.append(_Tally(parsed, self._last_id))
        return self._last_id

    def clear(self, rule_id: int | None = None) -> None:
        """Remove one rule, or all of them and a running outage."""
        self._tallies = [tally for tally in self._tallies if rule_id is not None and tally.id != rule_id]
        if rule_id is None:
            self._outage = None

    def due(self, method: str, path: str, query: str, body: bytes, now: float) -> list[Rule]:
        """Count this request and return the rules it suffers; a running outage hides it from all others."""
        if self._outage and now < self._outage[0]:
            return [self._outage[1]]
        ready = [tally for tally in self._tallies if tally.takes(method, path, query, body)]
        generic = next((tally for tally in ready if tally.rule.fault in GENERIC), None)
        if generic is not None and generic.rule.fault in NOT_COMMITTED:
            ready = [generic]  # a fault that acts where the simulator commits is kept for a request that it commits
        due = [tally for tally in ready if tally is generic or tally.rule.fault not in GENERIC]
        for tally in due:
            tally.fired += 1
        if generic is not None and generic.rule.fault == "outage":
            self._outage = (now + generic.rule.seconds, generic.rule)
        return [tally.rule for tally in due]

    def describe(self) -> list[dict[str, Any]]:
        """The rules with how often each matched and fired."""
        return [
            tally.rule.model_dump(exclude_defaults=True)
            | {"id": tally.id, "matched": tally.matched, "fired": tally.fired}
            for tally in self._tallies
        ]
