"""Small files, copied by the worker itself where the request asks for that: ICA's batch copy refuses some of them each time
(docs/protocols/icav2.md 4.7). The file is made at its destination, fetched from its source, uploaded, and proved as any other.

Invariant: everything goes through the ledger, one submission per destination file, whose remote id is that of the file made.
A signed URL is a secret: no message, row or log holds one.
"""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
from collections.abc import Awaitable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from include.core import effects
from include.core.concurrency import map_by_key
from include.core.effects import FINAL, Phase, Progress, Standing
from include.core.errors import Forbidden, Held, NotFound, RemoteError, WaybillError
from include.core.http import Busy
from include.core.ledger import (
    ClientKey,
    DuplicateSafe,
    Intent,
    Ledger,
    Probe,
    RemoteSearch,
    SendFence,
    Sent,
    State,
    Submission,
    submit_once,
)
from include.core.ledger.submit import held_message
from include.core.text import pluralize
from include.icav2 import rules
from include.icav2.cleanup import partial_file_cleanup
from include.icav2.context import CopyContext
from include.icav2.folders import Place, ensure_folders
from include.icav2.manifest import parse_uri
from include.icav2.models import Content, CopyPlan, Data, Destination, Item, Verdict
from include.icav2.plan import look_at
from include.icav2.rules import KIND, SYSTEM, CopyStanding, names_we_created
from include.icav2.verify import judge, partial_files, prove, single_part

STREAM_KIND = "copy_stream"
SMALL_BELOW_BYTES = 8 << 20  # below this, and where the ETag is of a single part, ICA's batch copy was seen to refuse
STREAM_LIMIT_BYTES = 100 << 20  # larger ones stay with the batch copy
AT_ONCE = 4  # so many files are on the worker's disk at a time
PASS_SECONDS = 120.0  # after so long no other file is begun in this pass: jobs that failed are waiting to be sent again
UNDER_WAY = frozenset({State.SENDING, State.SENT, State.IN_DOUBT, State.HELD})
KEY_SECONDS = 6 * 86_400.0  # ICA keeps its answer to an Idempotency-Key for seven days (docs/protocols/icav2.md 4.8)
TAKEN_OVER_SECONDS = 600.0  # until ICA must have noticed an upload, and until another run's worker must have made it


@dataclass(frozen=True)
class SmallFile:
    """One file of an item, at its destination."""

    destination: Destination
    item: Item
    content: Content

    @property
    def key(self) -> str:
        """The business key: the destination file."""
        return f"{self.destination.key}{self.content.path}"

    @property
    def path(self) -> str:
        return self.destination.path + self.content.path

    @property
    def place(self) -> tuple[str, str]:
        """Destination and source, as the request spells them."""
        return self.destination.dest_uri, self.item.source_uri

    @property
    def unit(self) -> Item:
        """The file as an item of its own: what a submission has, and what attempts are counted for."""
        file = {"data_id": str(self.content.data_id), "is_folder": False, "files": [self.content]}
        return self.item.model_copy(update=file)


FileStanding = Standing[SmallFile]


def is_small(content: Content) -> bool:
    """Whether the worker copies this file."""
    refused = content.size_bytes < SMALL_BELOW_BYTES or single_part(content.etag) is not None
    return refused and content.size_bytes <= STREAM_LIMIT_BYTES and content.data_id is not None


def batch_part(plan: CopyPlan) -> CopyPlan:
    """What is left to ICA's batch copy: all destinations, each with the items that have other files than small ones."""
    return CopyPlan(destinations=[d.model_copy(update={"items": _large(d)}) for d in plan.destinations])


def _large(destination: Destination) -> list[Item]:
    kept = []
    for item in destination.items:
        files = [content for content in item.files if not is_small(content)]
        if files:
            kept.append(item.model_copy(update={"files": files}))
    return kept


def small_files(destination: Destination) -> list[SmallFile]:
    return [
        SmallFile(destination, item, content)
        for item in destination.items
        for content in item.files
        if is_small(content)
    ]


@dataclass(frozen=True)
class SmallFileCopier:
    """Copies the small files of a plan, as far as one pass comes. `now`: the ledger's time at its start."""

    context: CopyContext
    now: float

    async def act(self, plan: CopyPlan, batches: Progress[Destination]) -> Progress[Destination]:
        """Copies what is missing, and gives the standings of the whole destinations: those of their batches, and of these
        files."""
        by_key = {destination.key: destination for destination in plan.destinations}
        rows = self._rows(STREAM_KIND, [file.key for d in plan.destinations for file in small_files(d)])
        jobs = self._rows(KIND, list(by_key))

        def look(key: str) -> Awaitable[_Found | Standing[Destination]]:
            return effects.guarded(by_key[key], self._look(by_key[key], rows, jobs[key]), self.context.ledger.now)

        found = await map_by_key(by_key, look)
        work = {one.file.key: one for part in found.values() if isinstance(part, _Found) for one in part.work}
        copied = await self._copy_all(work)
        standings = []
        for batch, (key, part) in zip(batches.standings, found.items(), strict=True):
            known = part.standings + [copied[one.file.key] for one in part.work] if isinstance(part, _Found) else [part]
            standings.append(_together(replace(batch, target=by_key[key]), known))
        return Progress(standings, self.context.ledger.now())

    def reasons(self, plan: CopyPlan) -> Iterator[tuple[SmallFile, list[str]]]:
        """Why files could not be copied in this run, for those that could not."""
        files = [file for destination in plan.destinations for file in small_files(destination)]
        rows = self._rows(STREAM_KIND, [file.key for file in files])
        for file in files:
            found = rules.reasons_of(rows[file.key], self.context.owner, file.unit)
            if found:
                yield file, found

    def _rows(self, kind: str, keys: Sequence[str]) -> dict[str, list[Submission]]:
        found = self.context.ledger.latest(SYSTEM, kind, keys)
        return {key: found.get(key, []) for key in keys}

    # -- what is missing --------------------------------------------------------------------------------------------

    async def _look(
        self, destination: Destination, rows: Mapping[str, list[Submission]], batches: list[Submission]
    ) -> _Found:
        """One look at a destination, unless this run has seen all its small files proved."""
        files = small_files(destination)
        proved = {file.key for file in files if self._was_proved(rows[file.key])}
        there = await self.context.look(destination, batches) if len(proved) < len(files) else {}
        found = _Found([Standing(file, Phase.PASSED) for file in files if file.key in proved], [])
        for file in [file for file in files if file.key not in proved]:
            one = _Missing(file, rows[file.key], batches, there)
            standing = self._nothing_to_do(one)
            if standing is None:
                found.work.append(one)
            else:
                found.standings.append(standing)
        return found

    def _was_proved(self, rows: Sequence[Submission]) -> bool:
        return bool(rows) and rows[-1].state == State.DONE and rows[-1].belongs_to(self.context.owner)

    def _nothing_to_do(self, one: _Missing) -> FileStanding | None:
        """Where a file stands that nothing can be done for now."""
        if one.last is not None and one.last.state in UNDER_WAY:
            return None
        if one.verdict(self.context.settings.use_etag) == Verdict.OK:
            self.context.withdraw_unsent(one.rows, self.now, why="the file is there")
            return Standing(one.file, Phase.PASSED)
        limit = effects.rate_limited_until(one.rows, self.now)
        if limit is not None:
            return Standing(one.file, Phase.WAITING, rules.rate_limited(limit), look_again_at=limit)
        return self._waits_for_batch(one) or self._given_up(one) or self._in_the_way(one)

    def _waits_for_batch(self, one: _Missing) -> FileStanding | None:
        batch = one.batches[-1] if one.batches else None
        if batch is None or batch.state not in UNDER_WAY or not rules.covers(one.file.item)(batch):
            return None
        return Standing(one.file, Phase.WAITING, f"job {batch.external_id or 'of another run'}, which copies it too")

    def _given_up(self, one: _Missing) -> FileStanding | None:
        file, settings, owner = one.file, self.context.settings, self.context.owner
        refusal = effects.refused(one.rows, owner)
        if refusal:
            return Standing(file, Phase.FAILED, refusal)
        if rules.may_send(one.rows, owner, [file.unit], settings):
            return None
        return Standing(file, Phase.FAILED, rules.given_up(one.rows, owner, [file.unit], settings))

    def _in_the_way(self, one: _Missing) -> FileStanding | None:
        file, data = one.file, one.data
        if data is not None and data.status == "DELETING":
            again = self.now + self.context.come_back_seconds
            return Standing(file, Phase.WAITING, f"{file.path} is still being deleted", look_again_at=again)
        if data is not None and not self._may_remove(one) and not self._asked_before(one):
            why = f"another {file.content.path} lies there ({data.status}), which Waybill did not make: move it away"
            return Standing(file, Phase.FAILED, why)
        return None

    def _asked_before(self, one: _Missing) -> bool:
        """Whether a request without an answer is going to be repeated: what lies there may be the file that it made."""
        first = one.last.detail.get("first_sending_at") if one.last and one.last.state == State.RESERVED else None
        return first is not None and self.now < float(first) + TAKEN_OVER_SECONDS

    def _may_remove(self, one: _Missing) -> bool:
        """Whether what lies in the way of a file is what we left there: a failed submission of it, or a batch of ours. What
        was proved once and has changed since is somebody else's."""
        data = one.data
        if data is None or data.id in {row.external_id for row in one.rows if row.state in effects.ENDED_BADLY}:
            return data is not None
        if rules.still_writing(one.batches, self.now, self.context.settings):
            return False
        alone = one.file.destination.model_copy(update={"items": [one.file.item]})
        proofs = prove(alone, one.there, use_etag=self.context.settings.use_etag)
        return data in partial_files(alone, proofs, rules.made_by_us(one.batches), one.there)

    # -- copying ----------------------------------------------------------------------------------------------------

    async def _copy_all(self, work: Mapping[str, _Missing]) -> dict[str, FileStanding]:
        places = [(one.file.destination.project_id, _folder(one.file.path)) for one in work.values()]
        folders = await ensure_folders(self.context.client, places)
        clock = asyncio.get_running_loop().time
        until = clock() + PASS_SECONDS

        async def copy(key: str) -> FileStanding:
            file = work[key].file
            if clock() > until:
                return Standing(file, Phase.WAITING, "other small files come first", look_again_at=self.now)
            return await effects.guarded(file, self._copy(work[key], folders), self.context.ledger.now)

        return await map_by_key(work, copy, AT_ONCE)

    async def _copy(self, one: _Missing, folders: Mapping[Place, str | WaybillError]) -> FileStanding:
        under_way = one.last is not None and one.last.state in UNDER_WAY
        row = await (self._settled(one) if under_way else self._make(one, folders))
        if isinstance(row, Standing):
            return row
        if row.state != State.SENT:
            return Standing(one.file, Phase.WAITING, "another worker's copy", look_again_at=self.now)
        if not row.belongs_to(self.context.owner):
            row = self.context.ledger.attach(row, self.context.owner)
        return await self._fill(one.file, row)

    async def _settled(self, one: _Missing) -> Submission | FileStanding:
        """What has become of a submission that was not closed when it was read."""
        file, row = one.file, one.last
        if row is None or row.state == State.HELD:
            raise Held(held_message(row) if row else file.key)
        until = self._left_to_another(row)
        if until is not None:
            who = f"run {row.owner.run_id} is copying {file.content.path}, or was lost while it did"
            return Standing(file, Phase.WAITING, f"{who}; until {rules.clock(until)}", look_again_at=until)
        row = await self.context.find_out(row, self._probe(file))
        if row.state == State.SENT and row.payload_sha256 != self._intent(file).payload_sha256:
            why = "left unfinished, and another content is to be there now"
            row = self.context.ledger.move(row, State.FAILED, why=why)
        if row.state == State.SENT:
            return row
        return Standing(file, Phase.WAITING, "it is looked at again", look_again_at=self.now)

    async def _make(self, one: _Missing, folders: Mapping[Place, str | WaybillError]) -> Submission:
        """Makes the file at its destination, PARTIAL and empty, once."""
        file, context, intent = one.file, self.context, self._intent(one.file)
        place = (file.destination.project_id, _folder(file.path))
        folder = None if place[1] == "/" else folders[place]
        if isinstance(folder, WaybillError):
            raise folder
        removed = [one.data] if one.data is not None and self._may_remove(one) else []
        try:
            return await submit_once(
                context.ledger,
                intent,
                probe=self._probe(file),
                prepare=partial_file_cleanup(context, file.destination, removed) if removed else None,
                send=lambda row, fence: self._send(file, folder, row, fence),
                seen_absent=context.withdraw_unsent(one.rows, self.now, instead=intent),
            )
        except Busy as error:
            row = context.ledger.generations(SYSTEM, STREAM_KIND, file.key)[-1]
            effects.note_rate_limit(context.ledger, row, error.retry_after)
            raise

    def _intent(self, file: SmallFile) -> Intent:
        content = file.content
        return Intent(
            system=SYSTEM,
            kind=STREAM_KIND,
            business_key=file.key,
            payload={"source": content.data_id, "size_bytes": content.size_bytes, "etag": content.etag},
            owner=self.context.owner,
            size_bytes=content.size_bytes,
            detail={
                "dest_uri": file.destination.dest_uri,
                "names": [file.path],
                "data_ids": [content.data_id],
                "files": 1,
            },
        )

    async def _send(self, file: SmallFile, folder: str | None, row: Submission, fence: SendFence) -> Sent:
        name, project_id = file.path.rsplit("/", 1)[-1], file.destination.project_id
        make = self.context.client.make_file(project_id, folder, name, key=str(row.client_key), fence=fence)
        return Sent(await self.context.into_folder(make, project_id, folder))

    def _probe(self, file: SmallFile) -> Probe:
        """A lost answer is asked for again under its key: ICA then gives the file that it made, or makes it."""
        client, ledger, settings = self.context.client, self.context.ledger, self.context.settings

        async def search(_row: Submission) -> RemoteSearch:
            return RemoteSearch((), complete=True, remote_now=client.http.remote_now or ledger.now())

        async def key(row: Submission) -> str:
            return f"waybill-{ledger.ledger_id}-{row.id}"

        async def verified(_row: Submission) -> bool:
            there = await look_at(client, file.destination)
            return judge(file.content, there.get(file.path), use_etag=settings.use_etag)[0] == Verdict.OK

        return Probe(
            search=search,
            visibility_window_seconds=settings.visibility_window_seconds,
            request_timeout_seconds=settings.request_timeout_seconds,
            proves_absence=False,
            harmless=DuplicateSafe("ICA makes no second file of one name", verified),
            client_key=ClientKey(key, KEY_SECONDS),
        )

    # -- the content ------------------------------------------------------------------------------------------------

    async def _fill(self, file: SmallFile, row: Submission) -> FileStanding:
        """Uploads the content of a file that was made, as far as that was not done yet, and proves it."""
        data = await self._data(file, row)
        if data is not None and data.status == "PARTIAL":
            if "uploaded_at" not in row.detail:
                reason = await self._upload(file, row)
                if reason:
                    return self._failed(file, row, reason)
            data = await self._noticed(file, row)
            if data is not None and data.status == "PARTIAL":
                return self._not_noticed(file, row)
        if data is None:
            return self._failed(file, row, "the file that was made for it is gone")
        verdict, _ = judge(file.content, data, use_etag=self.context.settings.use_etag)
        if verdict != Verdict.OK:
            return self._failed(file, row, f"uploaded, but then {str(verdict).replace('_', ' ')}")
        self.context.ledger.move(row, State.DONE, why="uploaded and proved")
        return Standing(file, Phase.PASSED)

    def _not_noticed(self, file: SmallFile, row: Submission) -> FileStanding:
        now = self.context.ledger.now()
        if "uploaded_at" not in row.detail:
            self.context.ledger.annotate(row, {"uploaded_at": now}, why="uploaded; ICA has not noticed it yet")
        elif now > float(row.detail["uploaded_at"]) + TAKEN_OVER_SECONDS:
            return self._failed(file, row, f"ICA has not noticed its upload in {TAKEN_OVER_SECONDS / 60:.0f} min")
        again = now + self.context.come_back_seconds
        return Standing(file, Phase.WAITING, "uploaded; ICA has not noticed it yet", look_again_at=again)

    def _left_to_another(self, row: Submission) -> float | None:
        """Until when another task's worker may be making or uploading it; our own's can only be one that died."""
        if row.state == State.SENDING:
            return row.accept_deadline if self.context.may_live(row, self.now) else None
        until = (row.sending_at or row.reserved_at) + TAKEN_OVER_SECONDS
        over = row.owner.is_same(self.context.owner) or "uploaded_at" in row.detail or self.now > until
        return None if over or row.state != State.SENT else until

    async def _data(self, file: SmallFile, row: Submission) -> Data | None:
        try:
            return await self.context.client.data(file.destination.project_id, str(row.external_id))
        except NotFound:
            return None

    async def _noticed(self, file: SmallFile, row: Submission) -> Data | None:
        """The file after its upload. ICA learns of it from its storage, so it gets a moment."""
        for pause in (0.0, 1.0, 2.0):
            await self.context.sleep(pause)
            data = await self._data(file, row)
            if data is None or data.status != "PARTIAL":
                break
        return data

    async def _upload(self, file: SmallFile, row: Submission) -> str | None:
        """Carries the content over, through a file of this worker; or says why it cannot be. Twice is as good as once."""
        client, content = self.context.client, file.content
        source = parse_uri(file.item.source_uri).project_id
        with tempfile.TemporaryDirectory(prefix="waybill-") as folder:
            local = Path(folder) / "content"
            try:
                await client.download(source, str(content.data_id), local, size_bytes=content.size_bytes)
                md5 = single_part(content.etag)
                if md5 is not None and await asyncio.to_thread(_md5_of, local) != md5:
                    return "its source is not what it was when this run was planned: its MD5 differs"
                await client.upload(file.destination.project_id, str(row.external_id), local)
            except (Forbidden, NotFound, RemoteError) as error:
                return str(error)
        return None

    def _failed(self, file: SmallFile, row: Submission, reason: str) -> FileStanding:
        """One try is used up. The next pass cleans up what it left, and tries again where there is a try left."""
        said = rules.item_reasons([str(file.content.data_id)], {str(file.content.data_id): reason}, "")
        self.context.ledger.move(row, State.FAILED, why=reason, detail={"item_reasons": said})
        return Standing(file, Phase.WAITING, reason, look_again_at=self.now)


@dataclass(frozen=True)
class _Found:
    """What a look at a destination found: the standings of files where there is nothing to do now, and what there is."""

    standings: list[FileStanding]
    work: list[_Missing]


@dataclass(frozen=True)
class _Missing:
    """A file that is not proved yet: its submissions, those of its folder, and what lay there when it was looked at."""

    file: SmallFile
    rows: list[Submission]
    batches: list[Submission]
    there: Mapping[str, Data]

    @property
    def last(self) -> Submission | None:
        return self.rows[-1] if self.rows else None

    @property
    def data(self) -> Data | None:
        return self.there.get(self.file.path)

    def verdict(self, use_etag: bool) -> Verdict:
        return judge(self.file.content, self.data, use_etag=use_etag)[0]


def names_created(ledger: Ledger, plan: CopyPlan, listed: Mapping[str, Collection[str]]) -> dict[str, set[str]]:
    """Names that this ledger may have placed at the destinations of a plan, by destination key: there they are not unmanaged.
    `listed`: the files that lie directly there."""
    keys = [destination.key for destination in plan.destinations]
    names = {key: names_we_created(rows) for key, rows in ledger.latest(SYSTEM, KIND, keys).items()}
    files = {file.key: destination.key for destination in plan.destinations for file in small_files(destination)}
    files |= {key + name: key for key, found in listed.items() for name in found}
    for file, rows in ledger.latest(SYSTEM, STREAM_KIND, list(files)).items():
        if any(effects.was_sent(row) for row in rows):
            key = files[file]
            names.setdefault(key, set()).add(file[len(key) :].split("/")[0])
    return names


def _folder(path: str) -> str:
    return path.rsplit("/", 1)[0] + "/"


def _md5_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _together(batch: CopyStanding, files: Sequence[Standing[Any]]) -> CopyStanding:
    """The standing of a destination by those of its batch and of its small files: whatever goes on comes first."""
    going = [standing for standing in files if standing.phase not in FINAL]
    bad = [standing for standing in files if standing.phase in (Phase.FAILED, Phase.HELD)]
    times = [s.look_again_at for s in (batch, *going) if s.look_again_at is not None]
    again = min(times, default=None)
    if batch.phase not in FINAL:
        return replace(batch, look_again_at=again)
    if going:
        why = f"{pluralize(len(going), 'small file')} still to be copied: {going[0].why}"
        return replace(batch, phase=Phase.WAITING, why=why, look_again_at=again)
    if not bad:
        return batch
    held = [standing for standing in bad if standing.phase == Phase.HELD]
    first = (held or bad)[0]
    why = "; ".join(part for part in (batch.why if batch.phase != Phase.PASSED else "", first.why) if part)
    return replace(batch, phase=first.phase if batch.phase != Phase.HELD else Phase.HELD, why=why)
