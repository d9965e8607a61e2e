"""Commands (over SSH) under the fault script of all simulators: what each fault does to a command.

A command is to the script a request whose method is `EXEC` and whose path is its text. *Before commit* means that it never
ran, *after commit* that it did everything and only its end did not arrive.

| fault | parameters | what the client sees | ran |
|---|---|---|---|
| status | code (1), body | that exit status, `body` as error output | no |
| drop_before_commit | | closed connection | no |
| drop_after_commit | | closed connection, no output | yes |
| hold_after_commit | seconds | its output and end, late | yes, at once |
| commit_delayed | seconds, hold | nothing; the connection is closed after `hold` seconds | yes, after `seconds` |
| error_after_commit | code (1), body | its output, `body` as error output, that exit status | yes |
| slow | seconds | its output and end, late | yes, late |
| slow_body | seconds, chunks (20) | its output as a trickle | yes |
| non_json | code (0), body | `body`, or the banner of a host in maintenance, in place of its output | no |
| outage | seconds | closed connection at every command for that time | no |
| cut_output | options `keep` (bytes), `drop` | the first bytes of its output, then its end or a closed connection | yes |

Invariant: a plan is a value. Whoever runs commands (the real sshd's harness, a simulated cluster) carries it out.
"""

from __future__ import annotations

from dataclasses import dataclass

from simulators.common.faults import FaultScript, Rule

METHOD = "EXEC"
COMMAND_FAULTS = frozenset({"cut_output"})
BANNER = "The system goes down for maintenance at 18:00.\n"


@dataclass(frozen=True)
class CommandPlan:
    """What shall happen to one command, in this order. Seconds are simulated.

    `drop_after_seconds`: when the connection is closed, counted from the command's arrival, before the command where it
    runs later than that; None where it is not, or not before the end (`drops`). `stdout`, `stderr`, `exit_status`: in
    place of the command's own.
    """

    faults: tuple[str, ...] = ()
    delay_seconds: float = 0.0
    drop_after_seconds: float | None = None
    runs: bool = True
    hold_seconds: float = 0.0
    drops: bool = False
    keep_bytes: int | None = None
    trickle_seconds: float = 0.0
    chunks: int = 1
    stdout: str | None = None
    stderr: str | None = None
    exit_status: int | None = None

    @property
    def plain(self) -> bool:
        """Whether the command runs as if there were no script."""
        return not self.faults


def plan_command(script: FaultScript, command: str, now: float) -> CommandPlan:
    """Counts this command in the script and says what shall happen to it."""
    rules = script.due(METHOD, command, "", b"", now)
    plan = CommandPlan()
    for rule in rules:
        plan = _with(plan, rule)
    return plan


def _with(plan: CommandPlan, rule: Rule) -> CommandPlan:
    changes: dict[str, object] = {
        "status": {"runs": False, "exit_status": rule.code or 1, "stdout": "", "stderr": rule.body or "refused\n"},
        "non_json": {"runs": False, "exit_status": rule.code or 0, "stdout": rule.body or BANNER, "stderr": ""},
        "outage": {"runs": False, "drop_after_seconds": 0.0},
        "drop_before_commit": {"runs": False, "drop_after_seconds": 0.0},
        "drop_after_commit": {"drops": True, "keep_bytes": 0},
        "hold_after_commit": {"hold_seconds": rule.seconds},
        "commit_delayed": {"delay_seconds": rule.seconds, "drop_after_seconds": min(rule.hold, rule.seconds)},
        "error_after_commit": {"exit_status": rule.code or 1, "stderr": rule.body},
        "slow": {"delay_seconds": rule.seconds},
        "slow_body": {"trickle_seconds": rule.seconds, "chunks": rule.chunks},
        "cut_output": {
            "keep_bytes": int(rule.options.get("keep", 0)),
            "drops": bool(rule.options.get("drop", False)) or plan.drops,
        },
    }[rule.fault]  # type: ignore[assignment]
    return CommandPlan(**{**plan.__dict__, **changes, "faults": (*plan.faults, rule.fault)})
