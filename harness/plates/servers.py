"""Two S3 servers on free loopback ports: moto for semantics, rclone for real traffic; and plates to put on them."""

from __future__ import annotations

import contextlib
import functools
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from include.plates.models import Plate
from include.s3.bucket import S3Access

KEYS: dict[str, Any] = {"aws_access_key_id": "rehearsal", "aws_secret_access_key": "rehearsal-secret"}
ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "rehearsal", "AWS_SECRET_ACCESS_KEY": "rehearsal-secret", "AWS_REGION": "us-east-1"}
PROJECT, BATCH = "2013_Gustafsdottir_PLOSONE", "BBBC022"


@functools.cache
def session() -> Any:
    """One for all: a new one reads botocore's models again, a tenth of a second each time."""
    import boto3

    return boto3.session.Session(region_name="us-east-1", **KEYS)


def access(url: str, **options: Any) -> S3Access:
    return S3Access(session=session(), endpoint_url=url, **options)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def serving(command: list[str], port: int, environment: Mapping[str, str] | None = None) -> Iterator[str]:
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **(environment or {})},
        start_new_session=True,
    )
    try:
        wait_for(port, process)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=10)


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    """Until a server takes connections. Raises RuntimeError where it ends first."""
    for _ in range(300):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=0.2):
            return
        if process.poll() is not None:
            raise RuntimeError(f"{process.args!r} ended with {process.returncode}")
        time.sleep(0.05)


@contextlib.contextmanager
def moto() -> Iterator[str]:
    port = free_port()
    script = Path(sys.executable).with_name("moto_server")
    with serving([sys.executable, str(script), "-H", "127.0.0.1", "-p", str(port)], port) as url:
        yield url


def reset_moto(url: str) -> None:
    urllib.request.urlopen(urllib.request.Request(f"{url}/moto-api/reset", method="POST"), timeout=10).read()


@contextlib.contextmanager
def rclone(root: Path) -> Iterator[str]:
    port = free_port()
    command = [str(Path(sys.executable).with_name("rclone")), "serve", "s3", "--config", os.devnull]
    command += [
        "--addr",
        f"127.0.0.1:{port}",
        "--auth-key",
        f"{KEYS['aws_access_key_id']},{KEYS['aws_secret_access_key']}",
    ]
    command += ["--vfs-cache-mode", "off", "--no-cleanup", str(root)]
    with serving(command, port) as url:
        yield url


def plate(plate_id: str = "20586", full: str | None = None, **more: Any) -> Plate:
    return Plate(project=PROJECT, batch=BATCH, plate_id=plate_id, plate_id_full=full or plate_id, **more)


def noise(seed: object, size: int) -> bytes:
    return random.Random(str(seed)).randbytes(size)


def plate_files(one: Plate, *, sites: int = 4, image_bytes: int = 3000) -> dict[str, bytes]:
    """Keys and bytes of a small plate in the SOP's layout (docs/protocols/s3.md 1.1, 1.3)."""
    root = f"projects/{one.project}"
    files = {}
    for site in range(sites):
        name = f"r{site // 3 + 1:02}c{site % 3 + 1:02}f01p01-ch1sk1fk1fl1.tiff"
        files[f"{root}/{one.batch}/images/{one.plate_id_full}/Images/{name}"] = noise((one, site), image_bytes + site)
        csv = f"{root}/workspace/analysis/{one.batch}/{one.plate_id}/analysis/A{site + 1:02}-1/Cells.csv"
        files[csv] = b"ImageNumber,ObjectNumber\n" + b"1,2\n" * (site + 1)
    files[f"{root}/{one.batch}/images/{one.plate_id_full}/Images/Index.idx.xml"] = b"<xml/>"
    files[f"{root}/{one.batch}/illum/{one.plate_id}/{one.plate_id}_IllumDNA.npy"] = noise((one, "illum"), 77)
    files[f"{root}/workspace/backend/{one.batch}/{one.plate_id}/{one.plate_id}.sqlite"] = noise((one, "db"), 9_000)
    return files
