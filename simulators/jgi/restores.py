"""Restore requests from acceptance to expiry: the window, the wait, the tapes, the folder for Globus, the purges.

Invariant: the status of a request is one word for all of its files (new, pending, ready, expired), while each file is on disk or
not for itself. What is in the folder of a request is what was on disk when it became ready and has not been purged since.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from simulators.common import Agenda, Journal, ProblemError
from simulators.globus.collections import Collections
from simulators.jgi.catalog import ArchiveFile, Catalog, md5_of
from simulators.jgi.manifest import ManifestFaults, manifest_csv, manifest_name
from simulators.jgi.settings import DAY, JdpSettings, RestoreDraw, draw_purge, draw_restore
from simulators.jgi.tape import TapeRobot
from simulators.jgi.window import Peak, fits_at, sliding_peak, used_bytes

Status = Literal["new", "pending", "ready", "expired"]
Spoil = Literal["page", "flip", "short", "missing"]
OPEN: tuple[Status, ...] = ("new", "pending")
HTML_PAGE = b"<html><head><title>JGI Data Portal</title></head><body>Please log in.</body></html>\n"
_CLOCK_STEP = 1e-3  # more than what adding and subtracting seconds of our time can lose


@dataclass
class Faults:
    """What goes wrong with one request. `spoil`: how the restored copies of the first `spoil_files` are bad."""

    empty: bool = False
    """It becomes ready although nothing was read from tape."""
    purge_files: int = 0
    purge_after_seconds: float = 0.0
    spoil: Spoil | None = None
    spoil_files: int = 1
    manifest: ManifestFaults = field(default_factory=ManifestFaults)


@dataclass
class Restore:
    """A restore request. `held_until`: it stays pending until then (infinite: until it is released)."""

    id: int
    user: str
    globus_user: str
    files: list[ArchiveFile]
    bytes: int
    created: float
    modified: float
    draw: RestoreDraw
    restored_count: int
    updated_count: int
    status: Status = "new"
    begun: bool = False
    read: bool = False
    expires: float = 0.0
    ready_at: float | None = None
    held_until: float = 0.0
    faults: Faults = field(default_factory=Faults)
    paths: dict[str, str] = field(default_factory=dict)
    """The path in the collection of each file of its folder, by id."""

    @property
    def is_open(self) -> bool:
        return self.status in OPEN


class RestoreEngine:
    """Takes requests and carries them through their life on the agenda."""

    def __init__(
        self,
        catalog: Catalog,
        collections: Collections,
        agenda: Agenda,
        journal: Journal,
        settings: JdpSettings,
        first_id: int,
    ) -> None:
        self._catalog = catalog
        self._collections = collections
        self._agenda = agenda
        self._journal = journal
        self._settings = settings
        self._next_id = first_id
        self._asked: Counter[str] = Counter()
        self._held_back: list[Restore] = []
        self._begun: dict[str, list[tuple[float, int]]] = {}
        self._purges_planned: set[int] = set()
        self.robot = TapeRobot(agenda, settings, journal)
        self.requests: dict[int, Restore] = {}
        self.ids_asked_twice = 0

    # Acceptance

    def accept(self, user: str, globus_user: str, files: Sequence[ArchiveFile]) -> Restore:
        """Take a request for these files, each named once. Raises `ProblemError` where the window refuses it."""
        size, now = sum(file.size for file in files), self._agenda.time
        if self._settings.window == "refuse" and self.used(user) + size > self._settings.window_bytes:
            self._journal.record("restore_refused", user=user, ids=len(files), bytes=size, used_bytes=self.used(user))
            told = f"{size} bytes exceed what is left of {self._settings.window_bytes} bytes a day."
            raise ProblemError(self._settings.window_status, "Restore limit exceeded", told)
        ids = [file.id for file in files]
        digest = hashlib.sha256(",".join(sorted(ids)).encode()).hexdigest()
        self._asked[digest] += 1
        waited_for = {file.id for each in self.requests.values() if each.is_open for file in each.files}
        twice = [each for each in ids if each in waited_for]
        self.ids_asked_twice += len(twice)
        on_disk = [file for file in files if file.on_disk]
        draw = draw_restore(self._settings.seed, ids, self._asked[digest], self._settings)
        request = Restore(
            id=self._next_id,
            user=user,
            globus_user=globus_user,
            files=list(files),
            bytes=size,
            created=now,
            modified=now,
            draw=draw,
            restored_count=len(files) - len(on_disk),
            updated_count=len(on_disk),
            expires=now + self._settings.life_days * DAY,
        )
        self._next_id += 1 + digest.encode()[0] % 5  # the numbers between are other people's
        self.requests[request.id] = request
        for file in on_disk:
            self._extend(file)
        self._journal.record(
            "restore_accepted", request_id=request.id, user=user, bytes=size, ids=ids, sha256=digest,
            asked_before=self._asked[digest] - 1, in_open_requests=twice,
        )  # fmt: skip
        self._held_back.append(request)
        self._begin_what_fits()
        return request

    def used(self, user: str) -> int:
        """The bytes of a user's requests that were begun in the window that ends now."""
        return used_bytes(self._begun.get(user, ()), self._agenda.time, self._settings.window_seconds)

    def peak(self, seconds: float | None = None, limit: int | None = None, user: str | None = None) -> Peak:
        """The fullest window of accepted requests, by the journal."""
        points = [
            (entry.time, entry.details["bytes"])
            for entry in self._journal.entries("restore_accepted")
            if user is None or entry.details["user"] == user
        ]
        chosen = self._settings
        return sliding_peak(
            points,
            chosen.window_seconds if seconds is None else seconds,
            chosen.window_bytes if limit is None else limit,
        )

    def _begin_what_fits(self) -> None:
        """Begin requests in the order they came; a user's later ones wait behind one that the window holds back."""
        stopped: set[str] = set()
        for request in list(self._held_back):
            at = self._fits_at(request) if request.user not in stopped else None
            if at is None or at > self._agenda.time:
                stopped.add(request.user)
                if at is not None:
                    self._agenda.schedule(at + _CLOCK_STEP, self._begin_what_fits)
                continue
            self._held_back.remove(request)
            self._begin(request)

    def _fits_at(self, request: Restore) -> float | None:
        now, chosen = self._agenda.time, self._settings
        if chosen.window != "hold":
            return now
        points = self._begun.get(request.user, ())
        return fits_at(points, request.bytes, now, chosen.window_seconds, chosen.window_bytes)

    # From new to ready

    def _begin(self, request: Restore) -> None:
        now = self._agenda.time
        request.begun = True
        self._begun.setdefault(request.user, []).append((now, request.bytes))
        self._agenda.schedule(now + self._settings.new_seconds, partial(self._pending, request))

    def _pending(self, request: Restore) -> None:
        self._set_status(request, "pending")
        self._agenda.schedule(self._agenda.time + request.draw.wait_seconds, partial(self._to_tape, request))

    def _to_tape(self, request: Restore) -> None:
        wanted = [] if request.faults.empty else [file for file in request.files if not file.on_disk]
        self.robot.read(request.id, wanted, self._on_disk, partial(self._all_read, request))

    def _on_disk(self, files: Iterable[ArchiveFile]) -> None:
        for file in files:
            file.on_disk = not file.withdrawn
            file.modified = self._agenda.time
            self._extend(file)

    def _all_read(self, request: Restore) -> None:
        request.read = True
        self._ready_unless_held(request)

    def _ready_unless_held(self, request: Restore) -> None:
        now = self._agenda.time
        if not request.read or not request.is_open:
            return
        if request.held_until <= now:
            self._ready(request)
        elif math.isfinite(request.held_until):
            self._agenda.schedule(request.held_until, partial(self._ready_unless_held, request))

    def _ready(self, request: Restore) -> None:
        now = self._agenda.time
        request.ready_at, request.expires = now, now + self._settings.life_days * DAY
        there = [] if request.faults.empty else [file for file in request.files if file.on_disk]
        for file in there:
            self._extend(file)
            self._lay_out(request, file)
        self._spoil(request, there)
        if there and not request.faults.manifest.absent:
            self._write_manifest(request, there)
        self._set_status(request, "ready")
        self._agenda.schedule(request.expires, partial(self._expire, request))
        if request.faults.purge_files:
            some = request.files[: request.faults.purge_files]
            self._agenda.schedule(now + request.faults.purge_after_seconds, partial(self.purge, some))

    def folder(self, request: Restore) -> str:
        """Where a request's files lie on the collection."""
        return f"/{self._settings.globus_root}/R{request.id}"

    def _lay_out(self, request: Restore, file: ArchiveFile) -> None:
        path = f"{self.folder(request)}/{file.directory}/{file.name}"
        request.paths[file.id] = path
        self._collections.put(
            self._settings.collection, path, size=file.size, md5=file.md5, data=file.content, private=file.private,
            modified=self._agenda.time,
        )  # fmt: skip

    def _spoil(self, request: Restore, files: Sequence[ArchiveFile]) -> None:
        where, faults = self._settings.collection, request.faults
        if faults.spoil is None:
            return
        for file in files[: faults.spoil_files]:
            path = request.paths[file.id]
            if faults.spoil == "flip":
                self._collections.flip(where, path)
            elif faults.spoil == "page":
                self._collections.put(where, path, data=HTML_PAGE)
            elif faults.spoil == "missing":
                self._collections.remove(where, path)
            elif file.content is not None:
                self._collections.put(where, path, data=file.content[: file.size // 2])
            else:
                self._collections.put(where, path, size=file.size // 2, md5=md5_of(b"short"))
            self._journal.record("restored_file_spoilt", request_id=request.id, id=file.id, path=path, how=faults.spoil)

    def _write_manifest(self, request: Restore, files: Sequence[ArchiveFile]) -> None:
        style = self._settings.manifest_style
        quoted = request.id % 2 == 0 if style == "either" else style == "quoted"
        rows = ((file, self._catalog.groups_of(file)[0]) for file in files)
        text = manifest_csv(rows, quoted=quoted, faults=request.faults.manifest)
        self._collections.put(
            self._settings.collection, f"{self.folder(request)}/{manifest_name(request.id)}", data=text
        )

    # The end of files and requests

    def lay_on_disk(self, file: ArchiveFile, days: float) -> None:
        """A file that was restored before this world began, with so many days left."""
        file.on_disk, file.modified = True, self._agenda.time
        self._purge_on(file, self._agenda.time + days * DAY)

    def _extend(self, file: ArchiveFile) -> None:
        """Its purge is as far ahead as that of a file restored now: a midnight, in UTC."""
        self._purge_on(file, self._agenda.time + self._settings.life_days * DAY)

    def _purge_on(self, file: ArchiveFile, at: float) -> None:
        """Never sooner than it was."""
        day = int(at // DAY)
        file.dt_to_purge = max(day * DAY, file.dt_to_purge or 0.0)
        if day not in self._purges_planned:
            self._purges_planned.add(day)
            after = draw_purge(self._settings.seed, day, self._settings)
            self._agenda.schedule(day * DAY + after, self._daily_purge)

    def _daily_purge(self) -> None:
        self.purge(self._due())

    def _due(self) -> list[ArchiveFile]:
        now = self._agenda.time
        return [file for file in self._catalog.files.values() if file.on_disk and (file.dt_to_purge or 0.0) <= now]

    def purge(self, files: Iterable[ArchiveFile] | None = None) -> int:
        """Remove these files from disk and from every folder, or (None) those whose date has come; how many there were."""
        gone = [file for file in (self._due() if files is None else files) if file.on_disk]
        for file in gone:
            file.on_disk, file.modified = False, self._agenda.time
        ids = {file.id for file in gone}
        if gone:
            self._journal.record("purged", ids=sorted(ids))
        for request in [each for each in self.requests.values() if each.status == "ready" and each.paths]:
            for file_id in ids & set(request.paths):
                self._collections.remove(self._settings.collection, request.paths.pop(file_id))
            if not request.paths:
                self._expire(request)
        return len(gone)

    def _expire(self, request: Restore) -> None:
        if request.status != "ready":
            return
        request.paths.clear()
        self._collections.remove(self._settings.collection, self.folder(request))
        self._set_status(request, "expired")

    # What tests do to a request

    def hold(self, request: Restore, seconds: float | None = None) -> None:
        """Keep it pending for so long from now, or (None) until it is released."""
        request.held_until = math.inf if seconds is None else self._agenda.time + seconds

    def release(self, request: Restore) -> None:
        """Let a held request go on."""
        request.held_until = 0.0
        self._ready_unless_held(request)

    def _set_status(self, request: Restore, status: Status) -> None:
        request.status, request.modified = status, self._agenda.time
        self._journal.record("restore_status", request_id=request.id, status=status)
