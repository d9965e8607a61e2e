"""moto's S3 as a store of one simulator: its own buckets, the simulated time, draws from a seed.

moto keeps buckets, clock and random numbers in variables of its modules, one of each per process. They are exchanged for this
store's own while an operation runs, under a lock, so that several simulators, and moto's own mocks in the same process, do
not see each other.

Invariant: outside of `running`, moto's modules are as moto made them.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from types import ModuleType
from typing import Any

from simulators.common import Answer, Call
from simulators.s3 import checksums
from simulators.s3.wsgi import Application, ask, environ_key

ACCOUNT, PARTITION = "123456789012", "aws"  # moto's own
PARTITIONS = (PARTITION, "aws-cn", "aws-us-gov")
_one_at_a_time = threading.RLock()


@functools.cache
def _application() -> Application:
    """moto's S3 as a WSGI application; it holds no state but the routes, so one does for all."""
    from moto.core.request import PRESERVED_HEADER_NAMES_ENVIRON_KEY, should_preserve_original_header_name
    from moto.moto_server.werkzeug_app import create_backend_app

    inner: Application = create_backend_app("s3")

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        # WSGI cannot tell `x-amz-meta-a_b` from `x-amz-meta-a-b`; moto asks its server to say which it was.
        names = [name for name in environ.pop("waybill.header_names") if should_preserve_original_header_name(name)]
        environ[PRESERVED_HEADER_NAMES_ENVIRON_KEY] = {environ_key(name): name for name in names}
        return inner(environ, start_response)

    return application


class MotoStore:
    """Buckets and objects of one simulator. `now` gives simulated epoch seconds."""

    def __init__(self, seed: int, now: Callable[[], float]) -> None:
        from moto.moto_api._internal.moto_random import MotoRandom

        self._seed, self._now = seed, now
        self._random = MotoRandom(seed)
        self._os = _seeded_os(self._random)
        self._backends = _own_backends()
        self._keys: list[Any] = []
        self._uploads: list[Any] = []

    def ask(self, call: Call) -> Answer:
        """Carry out one request."""
        with self.running():
            known = set(self.buckets)
            answer = checksums.refusal(self.buckets, call)
            if answer is None:
                answer = checksums.completed(self.buckets, call, ask(self._with_names(call), call))
            for name in self.buckets.keys() - known:
                self.buckets[name].creation_date = datetime.fromtimestamp(self._now(), UTC)
        return answer

    def reset(self) -> None:
        """Forget all buckets and objects, and draw from the seed again."""
        with self.running():
            self._backends[ACCOUNT][PARTITION].reset()  # closes the files of objects that were spooled to disk
            self._keys.clear()
            self._uploads.clear()
            self._random.seed(self._seed)

    def flip_bit(self, bucket: str, key: str) -> bool:
        """Change one bit in the middle of an object at rest; whether there was one. Size, ETag and date stay."""
        with self.running():
            stored = self.buckets[bucket].keys.get(key) if bucket in self.buckets else None
            if stored is None or not stored.value:
                return False
            etag = stored.etag  # computed before, and kept: nobody told the store
            data = bytearray(stored.value)
            data[len(data) // 2] ^= 1
            stored.value = bytes(data)
            stored._etag = etag.strip('"')
        return True

    def spoil_copy(self, call: Call, answer: Answer, fault: str, options: Mapping[str, Any]) -> bool:
        """Let the copy that was just made be of other bytes (`simulators.s3.checksums`); whether there was one."""
        with self.running():
            return checksums.spoil_copy(self.buckets, call, answer, fault, options, self._random)

    def forget_checksum(self, bucket: str, key: str) -> None:
        """Make an object one from before S3 gave each a checksum."""
        with self.running():
            checksums.forget(self.buckets, bucket, key)

    def compute_checksum(self, bucket: str, key: str) -> dict[str, str]:
        """The CRC64NVME of the bytes at rest, as a completion report of S3 Batch Operations has it."""
        with self.running():
            stored = self.buckets[bucket].keys[key]
            return {
                "checksum_base64": checksums.crc64nvme(stored.value),
                "etag": stored.etag.strip('"'),
                "checksumAlgorithm": checksums.ALGORITHM,
                "checksumType": "FULL_OBJECT",
            }

    def versions(self, bucket: str) -> list[tuple[str, str]]:
        """Every version as (key, version id), in key order; delete markers are none."""
        with self.running():
            keys = self.buckets[bucket].keys
            found = [(name, stored) for name in sorted(keys) for stored in keys.getlist(name)]
            return [(name, str(stored.version_id)) for name, stored in found if hasattr(stored, "etag")]

    @property
    def buckets(self) -> dict[str, Any]:
        """moto's buckets by name."""
        found: dict[str, Any] = self._backends[ACCOUNT][PARTITION].buckets
        return found

    @contextmanager
    def running(self) -> Iterator[None]:
        """moto's modules with this store's buckets, time and random numbers."""
        from moto.moto_api import _internal
        from moto.s3 import models, responses

        own: list[tuple[Any, str, Any]] = [
            (models, "s3_backends", self._backends),
            (responses, "s3_backends", self._backends),
            (models.FakeKey, "instances_tracked", self._keys),
            (models.FakeMultipart, "instances_tracked", self._uploads),
            (models, "utcnow", self._utcnow),
            (models, "random", self._random),
            (models, "os", self._os),
            (_internal, "mock_random", self._random),  # of request ids
        ]
        with _one_at_a_time:
            theirs = [(module, name, getattr(module, name)) for module, name, _ in own]
            try:
                for module, name, value in own:
                    setattr(module, name, value)
                yield
            finally:
                for module, name, value in theirs:
                    setattr(module, name, value)

    def _utcnow(self) -> datetime:
        return datetime.fromtimestamp(self._now(), UTC).replace(tzinfo=None)

    @staticmethod
    def _with_names(call: Call) -> Application:
        return lambda environ, start: _application()(environ | {"waybill.header_names": tuple(call.headers)}, start)


def _seeded_os(source: Any) -> ModuleType:
    """The module `os` as moto's models see it: what they draw from the system (upload ids) comes from the seed."""
    module = ModuleType("os")
    vars(module).update(vars(os) | {"urandom": source.randbytes})
    return module


def _own_backends() -> Any:
    """A set of backends that moto's registry does not know, so that `moto-api/reset` and ending mocks leave it alone."""
    from moto.core.base_backend import AccountSpecificBackend
    from moto.s3.models import S3Backend, S3BackendDict

    class OwnBackends(S3BackendDict):
        def __getitem__(self, account_id: str) -> Any:
            if account_id not in self.keys():
                self[account_id] = AccountSpecificBackend("s3", account_id, S3Backend, False, list(PARTITIONS))
            return dict.__getitem__(self, account_id)

    return OwnBackends(S3Backend, "s3", False, list(PARTITIONS))
