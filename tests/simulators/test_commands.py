"""The fault script, applied to commands: every fault has its plan, and keeps the line between before and after."""

from __future__ import annotations

from typing import Any

import pytest

from simulators.common.commands import BANNER, COMMAND_FAULTS, CommandPlan, plan_command
from simulators.common.faults import GENERIC, NOT_COMMITTED, FaultScript

PLANS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"fault": "status", "code": 3, "body": "no"}, {"runs": False, "exit_status": 3, "stdout": "", "stderr": "no"}),
    ({"fault": "non_json"}, {"runs": False, "exit_status": 0, "stdout": BANNER, "stderr": ""}),
    ({"fault": "outage", "seconds": 9}, {"runs": False, "drop_after_seconds": 0.0}),
    ({"fault": "drop_before_commit"}, {"runs": False, "drop_after_seconds": 0.0}),
    ({"fault": "drop_after_commit"}, {"drops": True, "keep_bytes": 0}),
    ({"fault": "hold_after_commit", "seconds": 2}, {"hold_seconds": 2.0}),
    ({"fault": "commit_delayed", "seconds": 5, "hold": 2}, {"delay_seconds": 5.0, "drop_after_seconds": 2.0}),
    ({"fault": "error_after_commit", "code": 7}, {"exit_status": 7}),
    ({"fault": "slow", "seconds": 2}, {"delay_seconds": 2.0}),
    ({"fault": "slow_body", "seconds": 2, "chunks": 4}, {"trickle_seconds": 2.0, "chunks": 4}),
    ({"fault": "cut_output", "options": {"keep": 10}}, {"keep_bytes": 10}),
    ({"fault": "cut_output", "options": {"keep": 10, "drop": True}}, {"keep_bytes": 10, "drops": True}),
]


@pytest.mark.parametrize(("rule", "changes"), PLANS, ids=lambda value: value.get("fault", ""))
def test_each_fault_has_its_plan(rule: dict[str, Any], changes: dict[str, Any]):
    script = FaultScript(COMMAND_FAULTS)
    script.add(**rule, path="^sbatch")
    assert plan_command(script, "squeue -u me", 0.0) == CommandPlan()
    plan = plan_command(script, "sbatch job.sh", 0.0)
    assert plan == CommandPlan(faults=(rule["fault"],), **changes)
    assert plan.runs == (rule["fault"] not in NOT_COMMITTED)
    assert plan_command(script, "sbatch job.sh", 100.0).plain


def test_every_fault_is_planned():
    assert {rule["fault"] for rule, _ in PLANS} == GENERIC | COMMAND_FAULTS


def test_an_outage_hides_the_host_from_every_command_for_its_time():
    script = FaultScript(COMMAND_FAULTS)
    script.add(fault="outage", path="^sbatch", seconds=60)
    assert plan_command(script, "squeue", 0.0).plain
    assert not plan_command(script, "sbatch a", 0.0).runs
    assert not plan_command(script, "squeue", 59.0).runs
    assert plan_command(script, "squeue", 61.0).plain


def test_a_fault_of_commands_combines_with_one_that_all_simulators_know():
    script = FaultScript(COMMAND_FAULTS)
    script.add(fault="slow", seconds=3)
    script.add(fault="cut_output", options={"keep": 5})
    plan = plan_command(script, "squeue", 0.0)
    assert (plan.delay_seconds, plan.keep_bytes, plan.faults) == (3.0, 5, ("slow", "cut_output"))
