"""Tarballs that aws_backup.sh wrote: they have no manifest, so what they hold is found by reading them.

A tarball is read once from start to end, which gives a manifest in memory with the SHA-256 of every file; a second reading
restores, and each file must come out as it was read the first time.

Invariant: such a tarball is never *verified*, since nothing says what it should hold; it is unverifiable, with what was
compared, or a mismatch. A member whose name leads out of the plate's folder, or that is no file, is reported and never restored.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from include.core.errors import AuthError, NotFound, VerificationError
from include.core.progress import OnProgress, Progress, silent
from include.core.text import pluralize
from include.plates import sop_files as listings
from include.plates.layout import base_of, fill, tag_of
from include.plates.models import Layout, Manifest, ManifestHead, ManifestMember, Outcome, Plate
from include.plates.plan import list_part
from include.plates.restore import find_manifests
from include.plates.tar_stream import DamagedTarball, TarMember, TarStream, tar_members
from include.s3.bucket import Bucket, Head
from include.s3.checksums import Digester, plain_md5
from include.s3.errors import ColdObject

NO_MANIFEST = "has no manifest: aws_backup.sh wrote it, or its manifest is lost"
_SHOWN = 5


@dataclass(frozen=True)
class ScriptTarball:
    """A tarball without a manifest, named as the procedure names it."""

    plate: Plate
    layout: Layout
    tarball: str
    bucket: str
    head: Head

    @property
    def key(self) -> str:
        return self.head.key

    def manifest(self, members: Sequence[ManifestMember] = ()) -> Manifest:
        """A manifest in memory; without members, it stands for the tarball alone (to ask cold storage for it)."""
        plate = self.plate
        head = ManifestHead(
            tag=tag_of(self.layout, plate),
            project=plate.project,
            source=plate.source,
            batch=plate.batch,
            plate_id=plate.plate_id,
            plate_id_full=plate.plate_id_full,
            bucket="",
            archive_bucket=self.bucket,
            key=self.key,
            tarball=self.tarball,
            number=1,
            of=1,
            compression="gzip" if self.key.endswith(".gz") else "none",
            level=0,
            part_bytes=0,
            group_bytes=0,
            plan_digest="",
            raw_bytes=0,
            stored_bytes=self.head.size,
            stored_crc64nvme=None,
            members=len(members),
            upload_parts=0,
        )
        return Manifest(head=head, frames=(), members=tuple(members))


@dataclass
class Inspection:
    """What reading a tarball whole has found. `left_out` are members that are never restored, each with its reason."""

    tarball: ScriptTarball
    manifest: Manifest
    md5: str
    names: list[tuple[str, int]]
    left_out: list[str] = field(default_factory=list)
    md5_of: dict[str, str] = field(default_factory=dict)


async def find_script_tarballs(plate: Plate, layout: Layout, archive: Bucket) -> list[ScriptTarball]:
    """The tarballs of a plate that no manifest lies beside."""
    base = fill(layout.archive_prefix, plate) + tag_of(layout, plate)
    keys = {one.key async for one in archive.objects_under(base + "_", versions=False)}
    found = []
    for tarball in layout.tarballs:
        pattern = re.compile(re.escape(f"{base}_{tarball.name}") + r"(\.\d+-of-\d+)?\.tar(\.gz)?")
        for key in sorted(keys):
            if pattern.fullmatch(key) and base_of(key) + ".manifest.jsonl.zst" not in keys:
                head = await archive.head(key)
                if head is not None:
                    found.append(ScriptTarball(plate, layout, tarball.name, archive.name, head))
    return found


async def find_archive(plate: Plate, layout: Layout, archive: Bucket) -> tuple[list[Manifest], list[ScriptTarball]]:
    """All that is archived of a plate: what has a manifest, and what has none. Raises NotFound where there is neither."""
    without = await find_script_tarballs(plate, layout, archive)
    try:
        return await find_manifests(plate, layout, archive), without
    except NotFound:
        if not without:
            raise
        return [], without


async def inspect(
    tarball: ScriptTarball, archive: Bucket, *, md5: bool = False, on_progress: OnProgress = silent
) -> Inspection:
    """Reads a tarball whole. `md5`: of each file, too, to be compared with a source's ETag.

    Raises ColdObject, DamagedTarball (a gzip that fails its checksum, a tar without an end), and the core's errors.
    """
    head = tarball.head
    if head.cold:
        raise ColdObject(
            f"s3://{archive.name}/{head.key} lies in cold storage: request its restoration and wait for it"
        )
    tag, stream = tag_of(tarball.layout, tarball.plate), TarStream(head, archive)
    rows: dict[str, ManifestMember] = {}
    seen = Inspection(tarball, tarball.manifest(), "", [])
    try:
        async for member in tar_members(stream):
            shown = member.name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
            seen.names.append((shown, member.size))
            reason = _unfit(member, tag)
            if reason:
                seen.left_out.append(f"{shown!r} {reason}")
            elif member.kind == "file":
                row = await _row(tarball, stream, member, seen if md5 else None)
                if row.name in rows:
                    seen.left_out.append(f"{member.name!r} is there twice: the last one counts")
                rows[row.name] = row
            on_progress(Progress("read", stream.read_bytes, head.size, len(rows), 0, head.key))
        if not seen.names:
            raise stream.damaged("there is nothing in it")
    finally:
        await stream.close()
    seen.manifest, seen.md5 = tarball.manifest(list(rows.values())), stream.md5
    return seen


async def inspect_to_restore(
    tarballs: Sequence[ScriptTarball], *, source: Bucket, archive: Bucket, on_progress: OnProgress = silent
) -> tuple[list[Inspection], list[str]]:
    """Reads a plate's tarballs whole before anything of them is restored. Gives also what is not as it should be: members that
    are left out, and what the script's own documents say otherwise.

    Raises DamagedTarball where the MD5 is not that of the `.md5`, and as `inspect`.
    """
    seen, told = [], list[str]()
    for tarball in tarballs:
        one, (etag, md5) = await inspect(tarball, archive, on_progress=on_progress), await _sidecars(tarball, archive)
        if md5 not in (None, one.md5):
            raise DamagedTarball(
                f"s3://{archive.name}/{tarball.key} has another MD5 than the .md5 beside it says, so nothing of it is restored. "
                "If you know that the .md5 is wrong, take it away."
            )
        if md5 is None and etag not in (None, tarball.head.etag):
            told.append(f"{tarball.key} has another ETag than the .etag beside it says: it was replaced, or copied")
        told += [f"{tarball.key}: {reason}" for reason in one.left_out]
        seen.append(one)
    return seen, told + await _not_held(seen, source)


async def _not_held(seen: Sequence[Inspection], source: Bucket) -> list[str]:
    """What the script's listing of its tarballs names, and these do not hold. Who restores need not be allowed to read it."""
    plate, layout = seen[0].tarball.plate, seen[0].tarball.layout
    try:
        text = await _text(source, _listing_of(layout, plate))
    except AuthError:
        return []
    held = set(_lines(listings.trimmed_tar([name for one in seen for name in one.names], tag_of(layout, plate))))
    names = {one.tarball.tarball for one in seen}
    rows = ((line, layout.strip + line.rpartition("\t")[0]) for line in _lines(text or ""))
    missing = [key for line, key in rows if line not in held and _tarball_of(layout, plate, key) in names]
    if not missing:
        return []
    return [
        f"by the script's listing, {pluralize(len(missing), 'file')} missing in the tarballs, the first {missing[0]!r}"
    ]


async def _sidecars(tarball: ScriptTarball, archive: Bucket) -> tuple[str | None, str | None]:
    """The ETag and the MD5 that lie beside a tarball."""
    etag, md5 = [await _text(archive, base_of(tarball.key) + end) for end in (".etag", ".md5")]
    return (
        None if etag is None else etag.strip().strip('"'),
        None if md5 is None else md5.split(" ")[0].strip().lower(),
    )


async def _row(tarball: ScriptTarball, stream: TarStream, member: TarMember, seen: Inspection | None) -> ManifestMember:
    digester, left = Digester(md5=seen is not None), member.size
    while left:
        piece = await stream.some(left)
        if not len(piece):
            raise stream.damaged("it is cut short")
        await digester.update(piece)
        left -= len(piece)
    digests = digester.result()
    key = _key(tarball.layout, tag_of(tarball.layout, tarball.plate), member.name)
    if seen is not None and digests.md5 is not None:
        seen.md5_of[key] = digests.md5
    return ManifestMember(
        name=member.name,
        size=member.size,
        header_offset=member.header_offset,
        data_offset=member.data_offset,
        modified=member.modified,
        key=key,
        part=_part_of(tarball, key),
        sha256=digests.sha256,
        crc64nvme=digests.crc64nvme,
    )


def _key(layout: Layout, tag: str, name: str) -> str:
    return layout.strip + name.removeprefix(f"{tag}/")


def _part_of(tarball: ScriptTarball, key: str) -> str | None:
    return _part(tarball.layout, tarball.plate, key)


def _part(layout: Layout, plate: Plate, key: str) -> str | None:
    return next((part.name for part in layout.parts if key.startswith(fill(part.prefix, plate))), None)


def _tarball_of(layout: Layout, plate: Plate, key: str) -> str:
    """In which tarball a file of the plate lies. One in no part's folder, as when plate_id_full is another, lies in the first."""
    part = _part(layout, plate, key)
    return next((one.name for one in layout.tarballs if part in one.parts), layout.tarballs[0].name)


def _listing_of(layout: Layout, plate: Plate) -> str:
    return f"{fill(layout.backup_prefix, plate)}{tag_of(layout, plate)}_file_listing_tar.txt"


def _unfit(member: TarMember, tag: str) -> str | None:
    """Why a member is never restored."""
    if member.kind == "other":
        return "is no file (a link or a device)"
    name = member.name.rstrip("/")
    if any(step in ("", ".", "..") for step in name.split("/")) or any(ord(char) < 32 for char in name):
        return "does not name a file below the plate's folder"
    if name != tag and not name.startswith(f"{tag}/"):
        return f"does not lie in {tag}/"
    try:
        name.encode()
    except UnicodeEncodeError:
        return "has a name that is no UTF-8"
    return None


@dataclass
class Compared:
    """What could be compared of a plate's tarballs without manifests: what agrees, and what does not."""

    agree: list[str] = field(default_factory=list)
    differ: list[str] = field(default_factory=list)

    @property
    def outcome(self) -> Outcome:
        return Outcome.MISMATCH if self.differ else Outcome.UNVERIFIABLE

    def sentence(self) -> str:
        if self.differ:
            return "; ".join(self.differ[:_SHOWN]) + (f"; but {', '.join(self.agree)}" if self.agree else "")
        return f"compared all the same: {', '.join(self.agree)}" if self.agree else "there was nothing to compare with"

    def add(self, what: str, one: object, other: object) -> None:
        if one == other:
            self.agree.append(f"{what} agree")
        else:
            self.differ.append(f"{what} differ")


async def compare_script_archive(
    tarballs: Sequence[ScriptTarball],
    *,
    source: Bucket,
    archive: Bucket,
    whole: bool,
    on_progress: OnProgress = silent,
) -> Compared:
    """Compares whatever the script has left with what the tarballs hold. Raises ColdObject and the core's errors.

    `whole`: these are all tarballs of the plate, so that the script's listings must name just what is in them.
    """
    found, seen = Compared(), []
    for tarball in tarballs:
        try:
            one = await inspect(tarball, archive, md5=True, on_progress=on_progress)
        except VerificationError as error:
            found.differ.append(str(error))
            continue
        seen.append(one)
        name = tarball.key.rsplit("/", 1)[-1]
        etag, md5 = await _sidecars(tarball, archive)
        if etag is not None:
            found.add(f"the ETag of {name} and its .etag", etag, tarball.head.etag)
        if md5 is not None:
            found.add(f"the MD5 of {name} and its .md5", md5, one.md5)
        found.differ += [f"{name}: {reason}" for reason in one.left_out]
    if seen:
        await _compare_listings(found, seen, source, whole=whole and len(seen) == len(tarballs))
        await _compare_source(found, seen, source)
    return found


async def _compare_listings(found: Compared, seen: Sequence[Inspection], source: Bucket, *, whole: bool) -> None:
    plate, layout = seen[0].tarball.plate, seen[0].tarball.layout
    tag = tag_of(layout, plate)
    of_tar = await _text(source, _listing_of(layout, plate))
    of_source = await _text(source, f"{fill(layout.backup_prefix, plate)}{tag}_file_listing_s3.txt")
    if of_source is not None and of_tar is not None:
        found.add("the script's two listings", _lines(of_source), _lines(of_tar))
    held = _lines(listings.trimmed_tar([name for one in seen for name in one.names], tag))
    if of_tar is None:
        return
    if whole:
        found.add(f"names and sizes of {len(held)} files and the script's listing", held, _lines(of_tar))
    else:
        missing = sorted(set(held) - set(_lines(of_tar)))
        found.add("names and sizes in the tarballs and the script's listing", missing, [])


def _lines(text: str) -> list[str]:
    """The script sorts in its operator's locale."""
    return sorted(line for line in text.split("\n") if line)


async def _compare_source(found: Compared, seen: Sequence[Inspection], source: Bucket) -> None:
    """The plate as it lies there now: nothing, where the script's user has deleted it."""
    members = {row.key: row for one in seen for row in one.manifest.members}
    md5_of = {key: md5 for one in seen for key, md5 in one.md5_of.items()}
    plate, layout = seen[0].tarball.plate, seen[0].tarball.layout
    kinds = {one.tarball.tarball for one in seen}
    parts = [part for tarball in layout.tarballs if tarball.name in kinds for part in tarball.parts]
    there = [
        one
        for part in layout.parts
        if part.name in parts
        for one in await list_part(plate, part, source, versions=False)
        if not one.is_marker
    ]
    missing = [one.key for one in there if one.key not in members]
    other = [one.key for one in there if one.key in members and one.size != members[one.key].size]
    hashed = [one for one in there if one.key in md5_of and plain_md5(one.etag)]
    changed = [one.key for one in hashed if one.key not in other and md5_of[one.key] != one.etag]
    for keys, what in (
        (missing, "lie on the live bucket and not in the tarballs"),
        (other, "have another size on the live bucket"),
        (changed, "have another MD5 than their ETag on the live bucket"),
    ):
        if keys:
            found.differ.append(f"{len(keys)} files {what}, the first {keys[0]!r}")
    if there and not missing and not other and not changed:
        found.agree.append(f"all {len(there)} files on the live bucket are in them, {len(hashed)} with MD5 = ETag")
    elif not there:
        found.agree.append("nothing of the plate lies on the live bucket any more")


async def rows_without_manifest(
    tarballs: Sequence[ScriptTarball], source: Bucket, archive: Bucket
) -> tuple[list[tuple[str, ManifestMember]], str]:
    """(tarball, member) of tarballs without manifests, and how they were found: by the listing that the script made of its
    tarballs, which costs nothing, or else by reading them whole."""
    plate, layout = tarballs[0].plate, tarballs[0].layout
    text = await _text(source, _listing_of(layout, plate))
    if text is None:
        seen = [await inspect(one, archive) for one in tarballs]
        rows = [(one.tarball.key, member) for one in seen for member in one.manifest.members]
        return rows, "without a manifest, so the tarballs were read: " + ", ".join(one.key for one in tarballs)
    found, elsewhere = [], 0
    for line in _lines(text):
        name, _, size = line.rpartition("\t")
        key = layout.strip + name
        part, held = _part(layout, plate, key), _tarball_of(layout, plate, key)
        tarball = next((one.key for one in tarballs if one.tarball == held), None)
        if tarball is not None and size.isdigit() and len(size) < 20:
            found.append((tarball, ManifestMember(name, int(size), 0, 0, 0, key=key, part=part)))
            elsewhere += part is None
    told = "without a manifest, so this is the script's own listing of the tarballs; it cuts names at a blank"
    strange = f"; {pluralize(elsewhere, 'file')} in no part's folder: is plate_id_full {plate.plate_id_full!r} right?"
    return found, told + (strange if elsewhere else "")


async def _text(bucket: Bucket, key: str) -> str | None:
    try:
        return (await bucket.read_all(key)).decode("utf-8", "replace")
    except NotFound:
        return None
