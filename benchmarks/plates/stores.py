"""The S3 servers that are measured against, each with a plate on it: rclone's, and radosgw where it is installed.

Invariant: radosgw keeps what is deleted for a long time, and hangs without an error once its
memory is full. So each round has a cluster of its own (about 17 s to start), and what lies on it fits twice.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.plates.workloads import PROJECT, Workload, write

ROOT = Path(__file__).resolve().parent.parent.parent
RADOSGW = ("ceph-mon", "ceph-osd", "radosgw", "radosgw-admin", "ceph", "monmaptool")
_MEMORY_BYTES = 12 * 1024**3
_PATIENCE_SECONDS = 90


@dataclass(frozen=True)
class Store:
    """`plates` holds the plates as files, to compare with; `served` is the server's own folder, where it has one."""

    url: str
    client: Any
    plates: Path
    served: Path | None

    def tarballs(self, cold: str, scratch: Path) -> list[Path]:
        """All tarballs of a bucket as files."""
        if self.served is not None:
            return [path for path in (self.served / cold).rglob("*") if _is_tarball(path.name)]
        found = []
        for row in self._listed(cold):
            if _is_tarball(row["Key"]):
                found.append(scratch / row["Key"].rsplit("/", 1)[-1])
                self.client.download_file(cold, row["Key"], str(found[-1]))
        return found

    def drop(self, cold: str) -> None:
        if self.served is not None:
            shutil.rmtree(self.served / cold, ignore_errors=True)
            return
        for row in self._listed(cold):
            self.client.delete_object(Bucket=cold, Key=row["Key"])

    def forget_listings(self, plate: Workload) -> None:
        """What ours writes beside the plate must not be in the next one's way."""
        for row in self._listed(plate.name, f"projects/{PROJECT}/workspace/backup/"):
            self.client.delete_object(Bucket=plate.name, Key=row["Key"])

    def _listed(self, bucket: str, prefix: str = "") -> Sequence[dict[str, Any]]:
        return self.client.list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", [])  # type: ignore[no-any-return]


def _is_tarball(name: str) -> bool:
    return name.endswith((".tar", ".tar.gz"))


def client_of(url: str) -> Any:
    import boto3
    from botocore.config import Config

    from harness.plates import servers

    config = Config(read_timeout=60, s3={"addressing_style": "path"}, request_checksum_calculation="when_required")
    return boto3.client("s3", endpoint_url=url, region_name="us-east-1", config=config, **servers.KEYS)


def memory_folder() -> Path:
    """What a server stores lies in memory where there is enough of it: its disk is not what is measured."""
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > 4_000_000_000
    return Path(tempfile.mkdtemp(prefix="waybill-bench-", dir=memory if roomy else ROOT / ".bench"))


@contextlib.contextmanager
def rclone(plates: Sequence[Workload]) -> Iterator[Store]:
    from harness.plates import servers

    served = memory_folder()
    try:
        for plate in plates:
            write(plate, served / plate.name)
        with servers.rclone(served) as url:
            yield Store(url, client_of(url), served, served)
    finally:
        shutil.rmtree(served)


def radosgw_is_installed() -> bool:
    return all(map(shutil.which, RADOSGW))


@contextlib.contextmanager
def radosgw(plate: Workload, files: Path) -> Iterator[Store]:
    """A fresh cluster of one monitor, one store in memory and one gateway, with the plate whose files lie in `files`."""
    with _cluster() as url:
        store = Store(url, client_of(url), files, None)
        store.client.create_bucket(Bucket=plate.name)
        with ThreadPoolExecutor(8) as pool:
            sent = [
                pool.submit(store.client.upload_file, str(files / plate.name / key), plate.name, key)
                for key, _, _ in plate.files
            ]
            for one in sent:
                one.result()
        yield store


@contextlib.contextmanager
def _cluster() -> Iterator[str]:
    for left in reversed(range(3)):
        folder = memory_folder()
        running: list[subprocess.Popen[bytes]] = []
        with contextlib.ExitStack() as ending:
            ending.callback(shutil.rmtree, folder)
            ending.callback(_kill, running)  # nothing of it is kept
            try:
                url = _start_cluster(folder, running)
            except RuntimeError as error:
                print(f"  radosgw: {error}", flush=True)
                if not left:
                    raise
                continue
            yield url
            return


def _kill(running: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in reversed(running):
        process.kill()
        process.wait()


def _start_cluster(folder: Path, running: list[subprocess.Popen[bytes]]) -> str:
    from harness.plates import servers

    mon, gate, fsid, osd = servers.free_port(), servers.free_port(), str(uuid.uuid4()), str(uuid.uuid4())
    conf = folder / "ceph.conf"
    settings = {
        "fsid": fsid,
        "mon_host": f"[v1:127.0.0.1:{mon}]",
        "public_addr": "127.0.0.1",
        "cluster_addr": "127.0.0.1",
        **dict.fromkeys(("auth_cluster_required", "auth_service_required", "auth_client_required"), "none"),
        **dict.fromkeys(("osd_pool_default_size", "osd_pool_default_min_size"), 1),
        **dict.fromkeys(("osd_pool_default_pg_num", "osd_pool_default_pgp_num"), 8),
        "osd_pool_default_pg_autoscale_mode": "off",
        "mon_allow_pool_size_one": "true",
        "mon_max_pg_per_osd": 2000,
        "osd_crush_chooseleaf_type": 0,
        "osd_objectstore": "memstore",
        "memstore_device_bytes": _MEMORY_BYTES,
        "rgw_frontends": f"beast endpoint=127.0.0.1:{gate}",
        **dict.fromkeys(("rgw_gc_obj_min_wait", "rgw_gc_processor_period"), 1),
        "run_dir": folder,
        "admin_socket": f"{folder}/$name.asok",
        "log_file": f"{folder}/$name.log",
        "mon_cluster_log_file": f"{folder}/cluster.log",
        "mon_data": f"{folder}/mon",
        "osd_data": f"{folder}/osd",
    }
    conf.write_text("[global]\n" + "".join(f"{name} = {value}\n" for name, value in settings.items()))
    (folder / "osd").mkdir()

    def call(*command: str) -> None:
        done = subprocess.run(
            [command[0], "-c", str(conf), *command[1:]], capture_output=True, timeout=120, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{command[0]} failed: {done.stderr.decode(errors='replace')[-800:]}")

    def start(*command: str) -> None:
        argv = [command[0], "-c", str(conf), "-f", *command[1:]]
        running.append(subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))

    map_ = str(folder / "monmap")
    create = ["monmaptool", "--create", "--fsid", fsid, "--addv", "a", f"[v1:127.0.0.1:{mon}]", map_]
    subprocess.run(create, capture_output=True, check=True)
    call("ceph-mon", "--mkfs", "-i", "a", "--monmap", map_)
    start("ceph-mon", "-i", "a")
    call("ceph", "osd", "new", osd)
    call("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
    start("ceph-osd", "-i", "0")
    start("radosgw", "-n", "client.rgw.a")
    _wait_for(gate, running, folder)
    keys = servers.KEYS
    who = ["--uid", "bench", "--display-name", "bench"]
    pair = ["--access-key", keys["aws_access_key_id"], "--secret-key", keys["aws_secret_access_key"]]
    call("radosgw-admin", "user", "create", *who, *pair)
    return f"http://127.0.0.1:{gate}"


def _wait_for(port: int, running: Sequence[subprocess.Popen[bytes]], logs: Path) -> None:
    until = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < until:
        for process in running:
            if process.poll() is not None:
                said = "".join(log.read_text(errors="replace")[-600:] for log in sorted(logs.glob("*.log")))
                raise RuntimeError(f"{process.args!r} ended with {process.returncode}: {said}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.2)
    raise RuntimeError(f"radosgw did not answer within {_PATIENCE_SECONDS} s")
