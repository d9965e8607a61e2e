"""The commands `where` and `index`: find archived files by name, and keep the index that finds them.

Invariant: `where` asks the store what is there before it answers; where it cannot, or shall not, it says how old its knowledge
is, and ends with another status than 0 if it could not.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from include.core import terminal as screen
from include.core.errors import RequestError, WaybillError
from include.core.text import pluralize
from include.plates.exit_status import status_of
from include.plates.file_index import FileIndex, Listing
from include.plates.journal_place import state_folder
from include.plates.where import Answer, answer, places_of
from include.s3.bucket import S3Access
from include.s3.client import store_of

Options = argparse.Namespace
Prefix = tuple[str, str]
FOUND, NOT_FOUND, NOT_KNOWN, NOT_ASKED = 0, 1, 3, 4


async def where(options: Options) -> int:
    """0: every name was found; 1: one is in none of the manifests; 3: not found, but a manifest could not be read, or a tarball
    has none; 4 and more: the store could not be asked, and why (exit_status.py)."""
    with FileIndex(index_path(options), store_of(options.endpoint_url)) as index:
        wanted = _wanted(options, index)
        asked = FOUND if options.no_refresh else await _refreshed(options, index, wanted)
        places = places_of(index, wanted)
        now = time.time()
        answers = [answer(index, name, places, now=now, most=options.most) for name in options.names]
        for place in places:
            screen.say(place.told(now), "yellow" if place.gone or place.broken or place.alone or asked else "green")
        for bucket, prefix in [one for one in wanted if one not in [(p.bucket, p.prefix) for p in places]]:
            screen.say(f"nothing is known of s3://{bucket}/{prefix}: it was never listed")
            asked = asked or NOT_ASKED
    _show(options, answers)
    if asked:
        return asked
    if all(one.hits for one in answers):
        return FOUND
    return NOT_KNOWN if any(place.broken or place.alone for place in places) else NOT_FOUND


async def index(options: Options) -> int:
    """0, or 1 where a manifest could not be read."""
    path = index_path(options)
    with FileIndex(path, store_of(options.endpoint_url)) as known:
        wanted = _wanted(options, known)
    if options.rebuild:
        path.unlink(missing_ok=True)
    with FileIndex(path, store_of(options.endpoint_url)) as fresh:
        listings = await _refresh(options, fresh, wanted)
    rows = [
        (f"s3://{bucket}/{one.prefix}", one.manifests, one.read, one.files, len(one.gone), len(one.broken))
        for (bucket, _), one in zip(wanted, listings, strict=True)
    ]
    if options.json:
        for one in listings:
            print(
                json.dumps(
                    {
                        "prefix": one.prefix,
                        "manifests": one.manifests,
                        "read": one.read,
                        "files": one.files,
                        "gone": one.gone,
                        "broken": one.broken,
                        "tarballs_alone": one.tarballs_alone,
                    }
                )
            )
    else:
        screen.table(("prefix", "manifests", "read now", "files in these", "gone", "not readable"), rows)
    for line in [line for one in listings for line in one.broken]:
        screen.say(line)
    return 1 if any(one.broken for one in listings) else 0


def index_path(options: Options) -> Path:
    """One file for all stores and buckets, in the folder of the journals, wherever the command is started."""
    found: Path = options.index or state_folder() / "index.sqlite"
    return found


def prefix_of(uri: str) -> Prefix:
    """Bucket and prefix. Raises RequestError for anything but s3://bucket/prefix."""
    parts = urlsplit(uri)
    if parts.scheme != "s3" or not parts.netloc or parts.query or parts.fragment:
        raise RequestError(f"--prefix {uri}: give s3://bucket/prefix")
    return parts.netloc, parts.path.lstrip("/")


def _wanted(options: Options, index: FileIndex) -> list[Prefix]:
    wanted = [prefix_of(uri) for uri in options.prefix] or [(bucket, prefix) for bucket, prefix, _ in index.places()]
    if not wanted:
        raise RequestError(f"{index.path} knows no prefix yet: give --prefix s3://bucket/prefix")
    return wanted


async def _refreshed(options: Options, index: FileIndex, wanted: Sequence[Prefix]) -> int:
    """0, or the status of what stood between us and the store."""
    try:
        await _refresh(options, index, wanted)
    except RequestError:
        raise
    except WaybillError as error:
        screen.say(f"the store could not be asked, so this is what was known before: {error}")
        return max(status_of(error), NOT_ASKED)
    return FOUND


async def _refresh(options: Options, index: FileIndex, wanted: Sequence[Prefix]) -> list[Listing]:
    async with S3Access(endpoint_url=options.endpoint_url) as access:
        with screen.bars() as report:
            return [await index.refresh(access.bucket(b), prefix, on_progress=report) for b, prefix in wanted]


def _show(options: Options, answers: Sequence[Answer]) -> None:
    for one in answers:
        if options.json:
            for hit in one.hits:
                print(json.dumps({"name": one.name, **hit.to_dict()}, ensure_ascii=False))
        elif one.hits:
            columns = ("key", "bytes", "tarball", "volume", "offset", "frame", "plate", "proof", "to be minded")
            screen.table(
                columns,
                [
                    (
                        h.key,
                        h.size,
                        h.tarball,
                        h.volume,
                        h.offset,
                        _frame(h.frame),
                        h.plate,
                        h.proof,
                        "; ".join(h.warnings),
                    )
                    for h in one.hits
                ],
            )
            screen.say(f"to restore the first: {one.hits[0].restore}", "green")
        if not one.hits:
            screen.say(f"{one.name!r} is in none of these manifests")
        if one.more:
            screen.say(
                f"{one.name!r} means more files than {pluralize(len(one.hits), 'hit')}: say --most, or more of the name",
                "yellow",
            )


def _frame(frame: tuple[int, int, int] | None) -> str:
    return "" if frame is None else f"{frame[0]}+{frame[1]}, raw {frame[2]}"
