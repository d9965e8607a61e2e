"""`S3World`: a store with the simulated clock, the seed, the fault script and the journal of every simulator.

Invariant: the journal has an entry `request` for everything that was asked, with its status; whoever wants to know what
changed reads those of PUT, POST and DELETE.
"""

from __future__ import annotations

from typing import Any

from simulators.common import Answer, Call, Clock, Rule, Simulator, SimulatorSettings
from simulators.s3 import checksums
from simulators.s3.errors import error_answer
from simulators.s3.store import MotoStore


class S3World(Simulator):
    """S3 without a way in: `simulators.s3.S3Simulator` has its API too.

    Args:
        clock: simulated time, which dates objects, delete markers, restores and answers; the signatures of requests, which
            real clients date by their own clocks, are not checked.
        settings: the seed gives version ids and upload ids.
    """

    def __init__(self, clock: Clock | None = None, settings: SimulatorSettings | None = None) -> None:
        special = checksums.FAULTS | {"flip_bit"}
        super().__init__("s3", settings or SimulatorSettings(), clock, special_faults=special, gzip=False)
        self._store = MotoStore(self.settings.seed, lambda: self.agenda.time)

    def store(self, call: Call) -> Answer:
        """The one operation: whatever the request asks for."""
        return self._store.ask(call)

    def reset(self) -> None:
        """Forget all buckets and objects. The journal stays; draws begin again from the seed."""
        self._store.reset()
        self.journal.record("reset")

    def forget_checksum(self, bucket: str, key: str) -> None:
        """Make an object one from before 2025: it has no checksum."""
        self._store.forget_checksum(bucket, key)

    def compute_checksum(self, bucket: str, key: str) -> dict[str, str]:
        """What S3 Batch Operations, operation "Compute checksum", reports of an object: read at rest, in any storage class."""
        return self._store.compute_checksum(bucket, key)

    def flip_bit(self, bucket: str, key: str) -> bool:
        """Rot: one bit of an object at rest; whether there was such an object."""
        return self._store.flip_bit(bucket, key)

    def dump(self, bucket: str) -> list[tuple[str, str]]:
        """Every version in a bucket as (key, version id), in key order; delete markers are none."""
        self.run_due()
        return self._store.versions(bucket)

    # What the shell asks

    def problem(self, status: int, title: str, detail: str, fields: dict[str, Any] | None = None) -> Answer:
        return error_answer(status, (fields or {}).get("code"), (fields or {}).get("message", detail))

    def apply_special_fault(self, rule: Rule, call: Call, answer: Answer) -> None:
        bucket, _, key = call.path.lstrip("/").partition("/")
        if rule.fault == "flip_bit" and answer.status == 200 and self._store.flip_bit(bucket, key):
            self.journal.record("bit_flipped", bucket=bucket, key=key)
        if rule.fault in checksums.FAULTS and self._store.spoil_copy(call, answer, rule.fault, rule.options):
            self.journal.record("copy_spoilt", fault=rule.fault, source=call.headers["x-amz-copy-source"])
