"""What all simulators share: clock and agenda, journal, fault script, HTTP shell, side channel, loopback server, registry."""

from simulators.common.clock import Agenda, Clock, http_date, iso_millis
from simulators.common.faults import FaultScript, Rule
from simulators.common.journal import Entry, Journal
from simulators.common.registry import SERVICES, HttpService, HttpServices, Service, Setup, Shared, build, named
from simulators.common.server import RunningServer, serve
from simulators.common.simulator import Simulator, SimulatorSettings
from simulators.common.transport import InProcessTransport
from simulators.common.wire import Answer, Call, ConnectionDropped, Operation, ProblemError

__all__ = [
    "SERVICES",
    "Agenda",
    "Answer",
    "Call",
    "Clock",
    "ConnectionDropped",
    "Entry",
    "FaultScript",
    "HttpService",
    "HttpServices",
    "InProcessTransport",
    "Journal",
    "Operation",
    "ProblemError",
    "Rule",
    "RunningServer",
    "Service",
    "Setup",
    "Shared",
    "Simulator",
    "SimulatorSettings",
    "build",
    "http_date",
    "iso_millis",
    "named",
    "serve",
]
