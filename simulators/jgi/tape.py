"""The tape robot: drives that mount a cartridge, wind to each file and stream it.

Invariant: a mount serves one request, and its files are read in the order in which they lie on the cartridge. So one
request for many files of a cartridge costs one mount and one run along it, and as many requests for one file each cost as
many mounts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from simulators.common import Agenda, Journal
from simulators.jgi.catalog import ArchiveFile
from simulators.jgi.settings import JdpSettings

OnRead = Callable[[list[ArchiveFile]], object]


@dataclass
class _Order:
    """What one request wants from tape: how many mounts are left, and who is told."""

    request_id: int
    on_read: OnRead
    on_end: Callable[[], object]
    mounts_left: int


@dataclass
class _Mount:
    order: _Order
    tape: int
    files: list[ArchiveFile] = field(default_factory=list)


class TapeRobot:
    """Reads files for requests, first come, first served, with as many mounts at a time as there are drives."""

    def __init__(self, agenda: Agenda, settings: JdpSettings, journal: Journal) -> None:
        self._agenda = agenda
        self._settings = settings
        self._journal = journal
        self._waiting: deque[_Mount] = deque()
        self.busy = 0
        self.mounts = 0

    def read(
        self, request_id: int, files: Sequence[ArchiveFile], on_read: OnRead, on_end: Callable[[], object]
    ) -> None:
        """Read these files: `on_read` is told those of each cartridge when they are on disk, `on_end` when all are."""
        by_tape: dict[int, list[ArchiveFile]] = {}
        for file in files:
            by_tape.setdefault(file.tape, []).append(file)
        order = _Order(request_id, on_read, on_end, len(by_tape))
        for tape, its in sorted(by_tape.items()):
            self._waiting.append(_Mount(order, tape, sorted(its, key=lambda file: file.position)))
        if not by_tape:
            on_end()
        self._start()

    def seconds_for(self, files: Sequence[ArchiveFile]) -> float:
        """How long one mount takes that reads these files of a cartridge, which begin at its start."""
        chosen = self._settings
        farthest = max((file.position for file in files), default=0.0)
        size = sum(file.size for file in files)
        return chosen.mount_seconds + farthest * chosen.seek_seconds + size / chosen.stream_bytes_per_second

    def _start(self) -> None:
        while self._waiting and self.busy < self._settings.drives:
            mount = self._waiting.popleft()
            self.busy += 1
            self.mounts += 1
            seconds = self.seconds_for(mount.files)
            self._agenda.schedule(self._agenda.time + seconds, partial(self._end, mount, seconds))

    def _end(self, mount: _Mount, seconds: float) -> None:
        self.busy -= 1
        size = sum(file.size for file in mount.files)
        self._journal.record(
            "tape_read", request_id=mount.order.request_id, tape=mount.tape, files=len(mount.files), bytes=size,
            seconds=round(seconds, 3),
        )  # fmt: skip
        mount.order.on_read(mount.files)
        mount.order.mounts_left -= 1
        if mount.order.mounts_left == 0:
            mount.order.on_end()
        self._start()
