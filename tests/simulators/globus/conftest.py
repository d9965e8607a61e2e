"""Fixtures of the tests of the simulated Globus: one server for all, a world for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from globus_rehearsal import Globus, Switch

from simulators.common import RunningServer, serve


@pytest.fixture(scope="session")
def globus_server() -> Iterator[tuple[Switch, RunningServer]]:
    switch = Switch()
    with serve(switch) as server:
        yield switch, server


@pytest.fixture
def start(
    globus_server: tuple[Switch, RunningServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Globus]:
    """Start a simulator with the given settings, to which the SDK is led by its environment variables."""
    switch, server = globus_server
    for name in ("AUTH", "TRANSFER"):
        monkeypatch.setenv(f"GLOBUS_SDK_SERVICE_URL_{name}", f"{server.url}/")

    def begin(**settings: Any) -> Globus:
        globus = Globus(server, tmp_path / "collections", **settings)
        switch.app = globus.sim.app
        return globus

    return begin


@pytest.fixture
def globus(start: Callable[..., Globus]) -> Globus:
    return start()
