"""MongoDB for rehearsals: a server of its wire protocol over SQLite (nx-27017), in a process of its own.

Invariant: it is a stand-in, not a MongoDB (what differs: docs/protocols/jgi.md). It has no clock, faults or journal of ours;
its data lie in the folder of the run and outlive the process.
"""

from __future__ import annotations

from simulators.common import Service, Setup
from simulators.mongo.server import MongoServer

__all__ = ["MongoServer", "service"]


def service(setup: Setup) -> Service:
    """The server for `python -m simulators`; it has no scenarios."""
    return MongoServer(setup.folder / "mongo")
