"""Fixtures: a fresh pair of buckets on moto, or on rclone, and a plate in the first of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from harness.plates import servers
from harness.plates.bench import Bench, new_bench


@pytest.fixture(scope="session")
def moto_url() -> Iterator[str]:
    with servers.moto() as url:
        yield url


@pytest.fixture(scope="session")
def rclone_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with servers.rclone(tmp_path_factory.mktemp("rclone")) as url:
        yield url


@pytest.fixture
def bench(moto_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    made = new_bench(moto_url, tmp_path_factory.mktemp("journals"))
    yield made
    made.access.close()


@pytest.fixture
def versioned(bench: Bench) -> Bench:
    for name in (bench.live, bench.cold):
        bench.client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
    return bench


@pytest.fixture
def real(rclone_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    made = new_bench(rclone_url, tmp_path_factory.mktemp("journals"))
    yield made
    made.access.close()
