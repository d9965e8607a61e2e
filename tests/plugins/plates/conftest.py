"""Fixtures: Waybill's connections in the test's folder, two buckets on a real socket, and small plates in the first."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from harness.fixtures import connections_to
from harness.plates import servers
from include.core.ledger import Ledger, State, Submission, init, ledger_url
from include.s3.bucket import S3Access
from tests.plugins.plates.doubles import Run

Connect = Callable[[str, str], None]
APPROVER = "amy"


@pytest.fixture(scope="session")
def moto_url() -> Iterator[str]:
    with servers.moto() as url:
        yield url


@pytest.fixture
def ledger(tmp_path: Path, connect: Connect) -> Iterator[Ledger]:
    connection = f"sqlite:///{tmp_path / 'ledger.db'}"
    init(ledger_url(connection))
    connect("waybill_ledger", connection)
    book = Ledger(ledger_url(connection))
    yield book
    book.close()
    assert connections_to(book) == 0, "somebody has opened the ledger and not closed it"


def generic(**extra: Any) -> str:
    return json.dumps({"conn_type": "generic", "extra": extra})


@dataclass
class Store:
    """The live and the archive bucket of a test, with the conf that names them."""

    url: str
    live: str
    cold: str
    receipts: Path
    inputs: Path
    access: S3Access
    files: dict[str, bytes] = field(default_factory=dict)

    @property
    def client(self) -> Any:
        return self.access.client

    def seed(self, *plates: str, **shape: Any) -> None:
        """Puts small plates of these ids into the live bucket."""
        for plate_id in plates:
            for key, data in servers.plate_files(servers.plate(plate_id), **shape).items():
                self.put(key, data)

    def put(self, key: str, data: bytes, bucket: str = "") -> None:
        self.client.put_object(Bucket=bucket or self.live, Key=key, Body=data)
        if not bucket:
            self.files[key] = data

    def keys(self, bucket: str = "", prefix: str = "") -> set[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket or self.live, Prefix=prefix)
        return {row["Key"] for page in pages for row in page.get("Contents", [])}

    def of_plate(self, plate_id: str) -> set[str]:
        """What is left of a plate in the live bucket, without the listings that the backup itself writes."""
        return {key for key in self.keys() if f"/{plate_id}/" in key}

    def versioned(self, *buckets: str) -> None:
        for bucket in buckets or (self.live, self.cold):
            self.client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})

    def flip(self, plate_id: str) -> None:
        """One bit of a plate's tarball, at rest and of the same size."""
        key = next(k for k in self.keys(self.cold) if f"_{plate_id}_images" in k and k.endswith(".tar.gz"))
        there = self.client.get_object(Bucket=self.cold, Key=key)
        data = bytearray(there["Body"].read())
        data[len(data) // 2] ^= 1
        self.client.put_object(Bucket=self.cold, Key=key, Body=bytes(data), Metadata=there["Metadata"])

    def conf(self, *plates: str, **options: Any) -> dict[str, Any]:
        rows = [{"plate_id": one, "plate_id_full": one} for one in plates]
        ids = {"project": servers.PROJECT, "batch": servers.BATCH, "plates": rows}
        places = {"bucket": self.live, "archive_bucket": self.cold, "store_patience": 0}
        return {**ids, **places, "retention": "none", **options}

    def run(self, *plates: str, **options: Any) -> Run:
        return Run("plate_backup", self.conf(*plates, **options))


@pytest.fixture
def store(moto_url: str, tmp_path: Path, connect: Connect, ledger: Ledger) -> Iterator[Store]:
    servers.reset_moto(moto_url)
    receipts, inputs = tmp_path / "receipts", tmp_path / "inputs"
    inputs.mkdir()
    connect("waybill_receipts", generic(prefix=receipts.as_uri()))
    connect("waybill_inputs", generic(prefix=inputs.as_uri()))
    connect("waybill_approvals", generic(approvers=[APPROVER, "uli"]))
    keys = {"login": "rehearsal", "password": "rehearsal-secret"}
    extra = {"endpoint_url": moto_url, "region_name": "us-east-1"}
    connect("waybill_aws", json.dumps({"conn_type": "aws", **keys, "extra": extra}))
    made = Store(moto_url, "live-bucket", "cold-bucket", receipts, inputs, servers.access(moto_url))
    for name in (made.live, made.cold):
        made.client.create_bucket(Bucket=name)
    yield made
    made.access.close()


def rows_of(ledger: Ledger) -> list[Submission]:
    return ledger.in_states(*State)
