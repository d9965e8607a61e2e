"""The SOP's own documents, byte for byte, for tools and habits that still expect them (docs/protocols/s3.md 1.4, 1.6).

Invariant: the formats' weaknesses (a name is cut at its first space) are part of the format; nothing in
Waybill decides anything by these files. `sort` is that of the C locale, times are UTC.
"""

from __future__ import annotations

import datetime
import io
import itertools
import shlex
from collections.abc import Iterable

from include.core.packed import Packed, in_order
from include.plates.models import PlatePlan, SourceObject


def untrimmed_s3(objects: Iterable[SourceObject]) -> str:
    """What `aws s3 ls --recursive` prints."""
    lines = io.StringIO()
    for one in objects:
        when = datetime.datetime.fromtimestamp(one.modified, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")
        lines.write(f"{when} {one.size:>10} {one.key}\n")
    return lines.getvalue()


def trimmed_s3(untrimmed: str) -> str:
    """The script's `_file_listing_s3.txt`: fields 4 and 3 of the squeezed lines, "projects/" removed everywhere."""
    rows = []
    for line in map(str.rstrip, io.StringIO(untrimmed), itertools.repeat("\n")):
        if not line or line.rsplit("/", 1)[-1] == "":
            continue
        fields = [field for field in line.split(" ") if field]
        size, name = [*fields, "", "", "", ""][2:4]
        rows.append(f"{name}\t{size}".replace("projects/", ""))
    return _sorted(rows)


def trimmed_tar(members: Iterable[tuple[str, int]], tag: str) -> str:
    """The script's `_file_listing_tar.txt` from (member name, size): as `tar -tv` prints names, cut, "TAG/" removed."""
    rows = []
    for name, size in members:
        shown = _tar_quoted(name)
        if not shown.endswith("/"):
            rows.append(f"{shown.split(' ', 1)[0]}\t{size}".replace(f"{tag}/", ""))
    return _sorted(rows)


_TAR_QUOTES = {code: f"\\{code:03o}" for code in (*range(32), 127)} | str.maketrans(
    {"\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r", "\a": "\\a", "\b": "\\b", "\f": "\\f", "\v": "\\v"}
)


def _tar_quoted(name: str) -> str:
    """GNU tar's default quoting ("escape") in a UTF-8 locale."""
    return name.translate(_TAR_QUOTES)


def _sorted(rows: list[str]) -> str:
    rows.sort()  # code points stand in the order of their UTF-8 bytes
    return "\n".join([*rows, ""])


def plan_listing(plan: PlatePlan) -> str:
    """The untrimmed listing of a plan: its parts in the layout's order, each by key."""
    text = ""
    for part in plan.layout.parts:
        mine = Packed(SourceObject, (one for volume in plan.volumes for one in volume.objects if one.part == part.name))
        text += untrimmed_s3(in_order(mine, lambda one: one.key))
    return text


def md5_line(md5: str, name: str) -> bytes:
    """md5sum's own format."""
    return f"{md5}  {name}\n".encode()


def etag_line(etag: str) -> bytes:
    return f"{etag}\n".encode()


WITHDRAWN = b"# Withdrawn: the archive of this plate is not verified. Delete nothing.\n"


def delete_script(bucket: str, objects: Iterable[tuple[str, str | None, str]]) -> bytes:
    """`_delete_s3.sh`, for reference: one guarded command per archived (key, version, ETag), never a prefix.

    Waybill does not run it.
    """
    lines = io.BytesIO()
    lines.write(
        b"# Written from the verified manifest, for reference; deletion is done, with its proofs, by plate_backup.\n"
    )
    for key, version_id, etag in objects:
        command = f"aws s3api delete-object --bucket {shlex.quote(bucket)} --key {_quoted(key)}"
        guard = f" --version-id {shlex.quote(version_id)}" if version_id else f" --if-match {shlex.quote(etag)}"
        lines.write(f"{command}{guard}\n".encode())
    return lines.getvalue()


def _quoted(key: str) -> str:
    """One shell word on one line: `parallel -a` takes the script line by line."""
    if not any(ord(c) < 32 or ord(c) == 127 for c in key):
        return shlex.quote(key)
    escaped = "".join(f"\\x{ord(c):02x}" if ord(c) < 32 or ord(c) == 127 or c in "\\'" else c for c in key)
    return f"$'{escaped}'"
