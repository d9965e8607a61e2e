"""The conformance kit: what every remote must withstand, played to the system's own code against its simulator.

A system declares itself once, as a `Remote`; `conformance(remote)` plays all scenarios that apply to it and refuses by naming
what is not true. `play` plays one, for a test that names each. Processes are ended, stopped and overtaken where they touch
the ledger, on a clock that is moved by hand, so nothing waits.

Invariant: what is true is read from the simulator's own journal and state, never from our client. The ledger is only asked
whether it knows what the journal holds.
"""

from __future__ import annotations

import asyncio

from harness.core.scenarios import SCENARIOS, Scenario
from harness.core.trial import NotConforming, Process, Remote, Trial, Worker, trial

__all__ = ["NotConforming", "Process", "Remote", "Trial", "Worker", "conformance", "play", "scenarios", "trial"]


def scenarios(remote: Remote) -> list[str]:
    """The names of those that apply to this remote."""
    return [scenario.name for scenario in SCENARIOS if scenario.applies(remote)]


def play(remote: Remote, name: str) -> None:
    """Plays one scenario. Raises NotConforming."""
    scenario = next(scenario for scenario in SCENARIOS if scenario.name == name)
    try:
        asyncio.run(_played(scenario, remote))
    except NotConforming as error:
        raise NotConforming(f"{remote.name}, {name}: {error}") from error
    except Exception as error:  # of a watch, a cancellation, a declaration
        raise NotConforming(f"{remote.name}, {name}: it breaks with {type(error).__name__}: {error}") from error


async def _played(scenario: Scenario, remote: Remote) -> None:
    await scenario.play(remote, scenario.lie)


def conformance(remote: Remote) -> list[str]:
    """Plays all that apply, and returns their names. Raises NotConforming with everything that is not true."""
    names, lies = scenarios(remote), list[str]()
    for name in names:
        try:
            play(remote, name)
        except NotConforming as error:
            lies.append(str(error))
    if lies:
        raise NotConforming("\n".join(lies))
    return names
