"""Whether a tarball holds every file of a workload, byte for byte: no run counts whose result is not right."""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, cast

from isal import igzip

from benchmarks.plates.workloads import Workload


class WrongArchive(Exception):
    """A pipeline's result is not what was asked of it."""


def prove(tarballs: Sequence[Path], workload: Workload, bucket: Path, lead: str) -> None:
    """Members are `lead` + the key without "projects/". Raises WrongArchive."""
    missing = {key: size for key, size, _ in workload.files}
    for tarball in tarballs:
        with _opened(tarball) as stream, tarfile.open(fileobj=stream, mode="r|", bufsize=1 << 20) as tar:
            for member in tar:
                if not member.isfile():
                    continue
                key = "projects/" + member.name.removeprefix(lead)
                file = tar.extractfile(member)
                if missing.pop(key, None) is None or file is None:
                    raise WrongArchive(f"{tarball.name} holds {member.name}, twice or unasked")
                if file.read() != (bucket / key).read_bytes():
                    raise WrongArchive(f"{tarball.name} holds other bytes of {member.name}")
    if missing:
        raise WrongArchive(f"{len(missing)} files are in no tarball, for example {next(iter(missing))}")


def _opened(tarball: Path) -> IO[bytes]:
    """Not by tarfile's own gzip stream, which ends after the first gzip member."""
    return cast(IO[bytes], igzip.open(tarball)) if tarball.suffix == ".gz" else tarball.open("rb")
