"""Waits until JDP has put a restore request on its disk, and believes it once the manifest lists the files."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from airflow.sdk import BaseSensorOperator, Context
from airflow.sdk.exceptions import AirflowSkipException
from hooks.globus import Collections, GlobusHook
from hooks.jgi import JdpHook
from hooks.mongo import tracking
from hooks.task import run_async, run_folder, step_records
from hooks.waybill import ledger, receipts
from triggers.globus import GlobusTaskTrigger
from triggers.jgi import RestoreRequestTrigger
from triggers.leg import Leg, Legs, Wait, run_began

from include.core.errors import NotFound, TransientError, WaybillError
from include.core.ledger import Ledger, State, Submission
from include.globus import transfer
from include.globus.client import GlobusClient
from include.globus.moving import Underway, ended_task
from include.globus.transfer import Transfers
from include.jgi.jdp import READY
from include.jgi.manifest import read_manifest
from include.jgi.models import JdpStatus, Limits
from include.jgi.moving import Route, drained, manifest_batch, seconds_left
from include.jgi.restoring import KIND, SYSTEM, believe, expire, gone
from include.jgi.tracking import Tracking

POLL_SECONDS = 300.0
MANIFEST_BYTES = 64 * 1024 * 1024
LATER_STEPS = ("transfer", "verify", "receipt")


class ManifestMissing(TransientError):
    """It has not arrived, though JDP calls the request ready."""


class RestoreRequestSensor(Legs, BaseSensorOperator):
    """Waits for one restore request (`key`, its business key in the ledger), at most `wait_hours` after the run's begin.

    Returns {"key", "manifest": Document, "left_seconds", "looked_at"}. Skips where it is not ready in time, or has expired: the
    receipt says so, and the next run goes on.
    """

    step = "wait"
    trigger = RestoreRequestTrigger
    template_fields: Sequence[str] = ("key", "wait_hours")

    def __init__(
        self,
        *,
        key: Any,
        wait_hours: Any = 20.0,
        jdp_conn_id: str = JdpHook.default_conn_name,
        globus_conn_id: str = GlobusHook.default_conn_name,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.key = key
        self.wait_hours = wait_hours
        self.conn_id = jdp_conn_id
        self.globus_conn_id = globus_conn_id

    def deadline(self, context: Context, began: float) -> float:
        return run_began(context) + float(self.wait_hours) * 3600.0

    @contextmanager
    def recorded(self, context: Context) -> Iterator[dict[str, Any]]:
        """For the receipt, as operators do it."""
        records = step_records(context, order=(self.step, *LATER_STEPS))
        facts: dict[str, Any] = {"task_id": context["ti"].task_id, "request": self.key}
        run_async(records.begin(self.step, **facts))
        try:
            yield facts
        except AirflowSkipException as skipped:
            run_async(records.write(self.step, "skipped", **facts, why=str(skipped)))
            raise
        except WaybillError as error:
            run_async(records.end(self.step, error, **facts, connections=[self.conn_id, self.globus_conn_id]))
            raise
        run_async(records.end(self.step, **facts))

    async def act(self, leg: Leg) -> Any:
        """Looks for itself, then waits, tells, or hands on."""
        hook = JdpHook(self.conn_id)
        limits = hook.account().limits
        with ledger() as book, tracking() as kept:
            row = book.generations(SYSTEM, KIND, self.key)[-1]
            number = int(row.external_id or 0)
            async with hook.client() as client:
                status = await client.status(number, by_anyone=True)
                now = client.remote_now or book.now()
                current = {}
                if status is not None and status.status == READY:  # what was known before says nothing of this restore
                    current = await client.by_ids(row.detail["ids"])
            why = gone(status, row, book.now())
            if why:
                expire(kept, book, row, limits, why)
                raise AirflowSkipException(f"restore request {number}: {why}; what had not arrived is asked for again")
            word = "not shown by JDP yet"
            if status is not None:
                word = status.status
                kept.note_request(self.key, jdp_status=word, expires_at=status.expires_at)
            if status is not None and word == READY:
                purge = [one.purge_at for one in current.values() if one.purge_at and one.status == JdpStatus.RESTORED]
                left = seconds_left(status.expires_at, purge, now, limits)
                try:
                    found = await self._manifest(leg, book, kept, row, limits, left)
                    if isinstance(found, Wait) and leg.over:
                        raise AirflowSkipException(f"restore request {number}: {found.why}; the next run goes on")
                    return found
                except ManifestMissing:
                    if any(one.status == JdpStatus.RESTORED for one in current.values()):
                        raise
                believe(kept, book, row, [], limits)
                drained(kept, kept.requests(key=self.key)[0])
                raise AirflowSkipException(
                    f"restore request {number}: JDP calls it ready, and none of its files is on disk; they are asked for again"
                )
        if leg.over:
            raise AirflowSkipException(f"restore request {number} is {word}: the next run goes on waiting")
        return Wait(86_400.0, f"restore request {number} is {word}", {"requests": [number]}, POLL_SECONDS)

    async def _manifest(
        self, leg: Leg, book: Ledger, kept: Tracking, row: Submission, limits: Limits, left: float
    ) -> dict[str, Any] | Wait:
        """The manifest, moved by Globus to where it can be read, and what it says."""
        hook = GlobusHook(self.globus_conn_id)
        collections, number = hook.collections(), int(row.external_id or 0)
        client = await asyncio.to_thread(hook.client)
        try:
            await asyncio.to_thread(client.collection, collections.source)  # its clock, and whether it is there
            data = await self._moved(leg, book, client, collections, number, left)
        finally:
            await asyncio.to_thread(client.close)
        if isinstance(data, Wait):
            return data
        rows = read_manifest(data, number)
        _, missing = believe(kept, book, row, rows, limits)
        if missing:
            self.log.warning("%d files are not in the manifest, and are asked for again", len(missing))
        place = f"{run_folder(leg.context)}/manifest_{number}.csv"
        document = await receipts().objects.put(place, data)
        return {"key": self.key, "manifest": document.to_dict(), "left_seconds": left, "looked_at": book.now()}

    async def _moved(
        self, leg: Leg, book: Ledger, client: GlobusClient, collections: Collections, number: int, left: float
    ) -> bytes | Wait:
        """Read over HTTPS where workers do not see the destination; else moved there."""
        route = Route(
            collections.source, collections.source_root, collections.destination, collections.destination_root
        )
        batch = manifest_batch(route, number, left_seconds=left, globus_now=client.remote_now or book.now())
        lost = f"the manifest of restore request {number} is not there"
        if collections.mount is None:
            (item,) = batch.items
            try:
                return await asyncio.to_thread(client.read, route.source, item.source, limit_bytes=MANIFEST_BYTES)
            except NotFound:
                raise ManifestMissing(lost) from None
        path = collections.mount / route.manifest_at(number).lstrip("/")
        transfers = Transfers(client, book, leg.owner)
        before = book.generations(transfer.SYSTEM, transfer.KIND, batch.key)
        there = await asyncio.to_thread(path.exists)
        sent = await transfers.submit(batch, seen_absent=None if there or not before else before[-1].generation)
        if sent.state == State.SENT:
            task = await ended_task(transfers, sent)
            if isinstance(task, Underway):
                options = {"tasks": [task.task_id], "globus_conn_id": self.globus_conn_id, "borne": task.borne_by_id}
                why = f"the manifest of {number} is on its way: {task.why}"
                return Wait(min(task.seconds, 3600.0), why, options, 30.0, GlobusTaskTrigger)
        try:
            data = await asyncio.to_thread(path.read_bytes)
        except OSError as error:
            if sent.state == State.SENT:
                book.move(sent, State.FAILED, why=f"{lost}: {error.strerror}")
            raise ManifestMissing(f"{lost}: {error.strerror}") from None
        if sent.state == State.SENT:
            book.move(sent, State.DONE, why="it is there")
        return data
