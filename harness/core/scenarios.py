"""The scenarios of the conformance kit, and what a remote's code that does not withstand one gets wrong.

Invariant: each plays one thing that goes wrong, judges by its trial's journal, and names the lie.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from harness.core import looking_scenarios as looking
from harness.core import sending_scenarios as sending
from harness.core.trial import (
    STEPS,
    Remote,
)


@dataclass(frozen=True)
class Scenario:
    """`lie`: what is not true of a remote that does not withstand it. `faults`: the rows of docs/faults.md that it plays."""

    name: str
    lie: str
    faults: str
    play: Callable[[Remote, str], Awaitable[None]]
    applies: Callable[[Remote], bool] = lambda _remote: True


SCENARIOS = (
    Scenario("undisturbed", "not one effect", "", sending.undisturbed),
    *(
        Scenario(f"killed at the step {step}", "sent twice after a death", "F1 to F4", sending.dies_at(step))
        for step in STEPS
    ),
    Scenario("killed anywhere", "sent twice after a death", "F1 to F4", sending.dies_anywhere),
    Scenario("two workers", "two workers have both sent", "F7", sending.two_at_once),
    Scenario(
        "a paused sender",
        "a paused sender has sent after another had taken over",
        "F7",
        sending.stopped_before_its_write,
    ),
    Scenario("a stale look", "a stale look: it sent what was there already", "F7, F8", sending.overtaken_anywhere),
    Scenario("wrong clocks", "absence claimed too early: by the host's clock", "F12, F27", sending.clocks_are_wrong),
    Scenario(
        "a clock that changes",
        "absence claimed too early: by the host's clock",
        "F12, F27",
        sending.clock_changes,
        lambda remote: remote.late_seconds > 0 or remote.hidden_seconds > 0,
    ),
    Scenario("a lost answer", "a lost answer was not looked for", "F9", sending.answer_is_lost),
    Scenario(
        "refused for now", "what was not done counts as done, or never comes", "F11, F12, F30", sending.refused_for_now
    ),
    Scenario(
        "a late commit",
        "absence claimed too early",
        "F9, F30",
        sending.request_is_late,
        lambda remote: remote.late_seconds > 0,
    ),
    Scenario(
        "a hidden job",
        "absence claimed too early",
        "F9, F22",
        sending.job_is_hidden,
        lambda remote: remote.hidden_seconds > 0,
    ),
    Scenario(
        "jobs of others",
        "its probe matches loosely",
        "",
        looking.others_have_jobs_alike,
        lambda remote: type(remote).add_alike is not Remote.add_alike,
    ),
    Scenario(
        "two that match",
        "it takes one of two that match, and hides the other",
        "",
        looking.two_match,
        lambda remote: type(remote).add_twin is not Remote.add_twin,
    ),
    Scenario(
        "a long list",
        "it looked at a part of the list, or relied on what a dead process remembered",
        "F1 to F4",
        looking.list_is_long,
        lambda remote: remote.later_page is not None,
    ),
    Scenario(
        "a page that fails",
        "a walk that swallows a page error: it took the part for the whole",
        "F11",
        looking.page_fails,
        lambda remote: remote.later_page is not None,
    ),
    Scenario(
        "a bad end",
        "green that is not there",
        "F10",
        looking.ends_badly,
        lambda remote: type(remote).bad_ends is not Remote.bad_ends,
    ),
    Scenario("a watch", "a watch that writes", "F10", looking.watch_writes, lambda remote: remote.can_watch),
    Scenario(
        "a cancellation",
        "a cancel by name instead of id",
        "F8",
        looking.cancel_is_exact,
        lambda remote: remote.can_cancel,
    ),
    Scenario(
        "secrets",
        "a secret in an error",
        "F12",
        looking.secrets_are_told,
        lambda remote: type(remote).secrets is not Remote.secrets,
    ),
)
