"""The chains of commands that are measured: ours, the SOP's, and the peers'. Only commands, nothing is run here.

Peers get their own defaults, with more transfers at once where the default would hold them back. The SOP's chain is its
bare minimum: one sync for all parts, one tarball, none of its small uploads and guards, and no cleaning up.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.plates.workloads import BATCH, PLATE, PROJECT

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
TAG = f"{PROJECT}_{BATCH}_{PLATE}"
KEYS = {"AWS_ACCESS_KEY_ID": "rehearsal", "AWS_SECRET_ACCESS_KEY": "rehearsal-secret"}
Step = tuple[list[str], str | None]  # a command, and the file that takes its output


@dataclass(frozen=True)
class Place:
    """Where one run reads and writes: the server, two buckets, a scratch folder, and the peers' programs."""

    url: str
    live: str
    cold: str
    scratch: Path
    programs: Path


@dataclass(frozen=True)
class Pipeline:
    """`needs` is the program without which it cannot run; `check` are steps that are measured by themselves. What is `slow`
    has fewer rounds."""

    name: str
    steps: Callable[[Place], list[Step]]
    compressed: bool
    lead: str = f"{TAG}/"
    needs: str | None = None
    check: Callable[[Place], list[Step]] | None = None
    only: tuple[str, ...] = ()  # workloads; all where it is empty
    slow: bool = False
    tars: bool = True  # the floor makes no tarball, only an object of as many bytes


def ours(command: str, place: Place, *options: str) -> Step:
    ids = ["--project", PROJECT, "--batch", BATCH, "--plate-id", PLATE]
    where = ["--bucket", place.live, "--cold-bucket", place.cold, "--endpoint-url", place.url, "--json"]
    return [sys.executable, "-m", "include.plates", command, *ids, *where, *options], None


def _archive(*options: str) -> Callable[[Place], list[Step]]:
    return lambda place: [ours("archive", place, "--journal", str(place.scratch / "journal"), *options)]


def _plan_and_verify(*options: str) -> Callable[[Place], list[Step]]:
    """The plan as it is by default, with a look at each object; the archive that stands there by now is of this plan."""
    return lambda place: [ours("plan", place, *options), ours("verify", place)]


def _sop(place: Place, *, gzip: bool) -> list[Step]:
    aws, stage = str(place.programs / "aws"), str(place.scratch / "stage")
    tarball = str(place.scratch / f"{TAG}.tar{'.gz' if gzip else ''}")
    packing, listing = ("-czf", "-tvzf") if gzip else ("-cf", "-tvf")
    return [
        ([aws, "s3", "sync", f"s3://{place.live}/projects", f"{stage}/{TAG}", "--quiet"], None),
        (["tar", "-C", stage, packing, tarball, TAG], None),
        (["tar", listing, tarball], f"{place.scratch}/listing.txt"),
        (["md5sum", tarball], f"{tarball}.md5"),
        ([aws, "s3", "cp", tarball, f"s3://{place.cold}/", "--quiet"], None),
        ([sys.executable, "-I", "-S", str(HERE / "etag_pass.py"), tarball], f"{tarball}.etag"),
    ]


def _s5cmd(place: Place) -> list[Step]:
    s5cmd = [str(place.programs / "s5cmd"), "--endpoint-url", place.url, "--log", "error"]
    stage, tarball = place.scratch / "stage", str(place.scratch / f"{TAG}.tar")
    return [
        ([*s5cmd, "cp", f"s3://{place.live}/projects/*", f"{stage}/{TAG}/"], None),
        (["tar", "-C", str(stage), "-cf", tarball, TAG], None),
        ([*s5cmd, "cp", tarball, f"s3://{place.cold}/"], None),
    ]


def _rclone(place: Place) -> list[Step]:
    rclone = [str(Path(sys.executable).with_name("rclone")), "--quiet", "--transfers", "16", "--checkers", "16"]
    stage, tarball = place.scratch / "stage", str(place.scratch / f"{TAG}.tar")
    return [
        ([*rclone, "copy", f"peer:{place.live}/projects", f"{stage}/{TAG}"], None),
        (["tar", "-C", str(stage), "-cf", tarball, TAG], None),
        ([*rclone, "copyto", tarball, f"peer:{place.cold}/{TAG}.tar"], None),
    ]


def _floor(place: Place, *packing: str) -> list[Step]:
    return [([sys.executable, str(HERE / "floor.py"), place.url, place.live, place.cold, *packing], None)]


def _s3_tar(place: Place) -> list[Step]:
    command = [str(place.programs / "s3-tar"), "--source-bucket", place.live, "--folder", "projects/"]
    command += ["--target-bucket", place.cold, "--filename", f"{TAG}.tar", "--preserve-paths"]
    return [(command, None)]


NONE, GZIP, SIX = "ours, uncompressed", "ours, gzip (default)", "ours, gzip level 6"
NONE_BARE, GZIP_BARE = "ours, uncompressed, --no-probe", "ours, gzip, --no-probe"
SOP, SOP_GZIP = "SOP chain without gzip", "SOP chain with gzip"
S5CMD, RCLONE, S3_TAR = "s5cmd + tar + s5cmd", "rclone + tar + rclone", "s3-tar (PyPI)"
FLOOR, FLOOR_GZIP = "floor: get and put alone", "floor: get, gzip and put alone"
PIPELINES = (
    Pipeline(NONE, _archive("--compression", "none"), False, check=_plan_and_verify("--compression", "none")),
    Pipeline(GZIP, _archive(), True, check=_plan_and_verify()),
    Pipeline(NONE_BARE, _archive("--compression", "none", "--no-probe"), False),
    Pipeline(GZIP_BARE, _archive("--no-probe"), True),
    Pipeline(SIX, _archive("--level", "6"), True, only=("tiff",), slow=True),
    Pipeline(FLOOR, _floor, False, tars=False),
    Pipeline(FLOOR_GZIP, lambda place: _floor(place, "gzip"), True, tars=False),
    Pipeline(SOP, lambda place: _sop(place, gzip=False), False, needs="aws", slow=True),
    Pipeline(SOP_GZIP, lambda place: _sop(place, gzip=True), True, needs="aws", slow=True),
    Pipeline(S5CMD, _s5cmd, False, needs="s5cmd"),
    Pipeline(RCLONE, _rclone, False, needs="rclone"),
    Pipeline(S3_TAR, _s3_tar, False, lead="", needs="s3-tar", slow=True),
)


def environment(place: Place, checkout: Path = REPOSITORY) -> dict[str, str]:
    """The same for all: identity, endpoint, scratch; rclone's remote by its own variables."""
    remote = {"TYPE": "s3", "PROVIDER": "Other", "ENV_AUTH": "true", "ENDPOINT": place.url}
    return {
        **KEYS,
        **{f"RCLONE_CONFIG_PEER_{name}": value for name, value in remote.items()},
        "RCLONE_CONFIG": os.devnull,
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": place.url,
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
        "PYTHONPATH": str(checkout),
        "PYTHONDONTWRITEBYTECODE": "",  # every Python among us starts from bytecode, as it does when installed
        "PYTHONPYCACHEPREFIX": str(checkout / ".bench" / "plates-bytecode"),
        "TMPDIR": str(place.scratch),
        "LC_ALL": "C.UTF-8",
    }


def present(pipeline: Pipeline, programs: Path) -> bool:
    if pipeline.needs is None:
        return True
    folder = Path(sys.executable).parent if pipeline.needs == "rclone" else programs
    return (folder / pipeline.needs).exists()
