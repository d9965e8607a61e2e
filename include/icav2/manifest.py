"""The SOP's first two steps without a network: read either input form, flip it, and refuse what cannot be right.

Invariant: paths are opaque. Nothing is decoded, normalised or stripped; a URI is cut by hand at
the first `/` after the project. All refusals are collected, each with its place in the input, before anything is launched.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import zlib
from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

from include.core.errors import RequestError
from include.core.text import printable
from include.icav2.models import INPUTS, SCHEME, CopyRequest, Flipped, Manifest

PROJECT_ID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
DECODED_LIMIT_BYTES = 64 * 1024 * 1024
URI_LIMIT_BYTES = (
    2000  # the ledger's keys are no longer, and ICA fails on very long paths (docs/protocols/icav2.md 3.9)
)


JSON_NAMES: dict[type, str] = {list: "a list", str: "a text", int: "a number", float: "a number", bool: "true or false"}


@dataclass(frozen=True)
class Uri:
    """`icav2://project_id/path`: `path` starts with `/`, and ends with `/` for a folder."""

    project_id: str
    path: str

    @property
    def name(self) -> str:
        return self.path.rstrip("/").rsplit("/", 1)[-1]

    @property
    def parent(self) -> str:
        return self.path.rstrip("/").rsplit("/", 1)[0] + "/"

    @property
    def is_folder(self) -> bool:
        return self.path.endswith("/")


def parse_uri(text: str) -> Uri:
    """Cuts a URI into project and path. Raises ValueError with what is wrong and the remedy."""
    if not text.startswith(SCHEME):
        raise ValueError(f"{printable(text)} does not start with {SCHEME}: write {SCHEME}PROJECT-ID/path")
    project, slash, path = text[len(SCHEME) :].partition("/")
    if not PROJECT_ID.fullmatch(project):
        raise ValueError(
            f"{printable(text)}: {printable(project)} is not a project id: give the project's UUID, not its name"
        )
    if not slash:
        raise ValueError(f"{printable(text)} has no path: add / and the path within the project")
    if "//" in slash + path:
        raise ValueError(f"{printable(text)} has an empty folder name (//): write one / between two names")
    if any(c == "\0" or "\ud800" <= c <= "\udfff" for c in path):
        raise ValueError(f"{printable(text)} holds a character that no path can hold: correct the name")
    if len(text.encode()) > URI_LIMIT_BYTES:
        raise ValueError(f"{printable(text)} is longer than {URI_LIMIT_BYTES} bytes: choose a shorter path")
    return Uri(project.lower(), slash + path)


def manifest_of(request: CopyRequest, document: bytes | None = None) -> tuple[Manifest, str]:
    """The manifest in any of its input forms, and the field that it came in. `document` holds the bytes of `manifest_uri`.

    Raises RequestError.
    """
    if request.manifest_b64gz is not None:
        return checked(decode_b64gz(request.manifest_b64gz), "manifest_b64gz"), "manifest_b64gz"
    if request.manifest_uri is not None:
        return checked(parse_json(document or b"", "manifest_uri"), "manifest_uri"), "manifest_uri"
    return checked(request.manifest, "manifest"), "manifest"


def decode_b64gz(text: str) -> Any:
    """base64(gzip(JSON)), standard alphabet; line breaks inside are tolerated. Raises RequestError."""
    try:
        packed = base64.b64decode("".join(text.split()), validate=True)
        unpacker = zlib.decompressobj(wbits=31)
        data = unpacker.decompress(packed, DECODED_LIMIT_BYTES)
        if unpacker.unconsumed_tail:
            raise RequestError(f"manifest_b64gz unpacks to more than {DECODED_LIMIT_BYTES} bytes: use manifest_uri")
        if not unpacker.eof:
            raise EOFError
    except (binascii.Error, ValueError, zlib.error, EOFError):
        raise RequestError("manifest_b64gz cannot be decoded: give base64 of the gzipped JSON, whole") from None
    return parse_json(data, "manifest_b64gz")


def parse_json(data: bytes, field: str) -> Any:
    """JSON in which no key stands twice: of two equal sources the first would be lost in silence. Raises RequestError."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        twice = sorted(key for key, count in Counter(keys).items() if count > 1)
        if twice:
            raise RequestError(
                [
                    f"{field}: the key {printable(key)} stands there twice; write it once, with all its values"
                    for key in twice
                ]
            )
        return dict(pairs)

    try:
        return json.loads(data, object_pairs_hook=unique)
    except (ValueError, RecursionError):
        raise RequestError(f"{field} does not hold JSON: give an object of source → list of destinations") from None


def checked(value: Any, field: str) -> Manifest:
    """The manifest, if it is an object with something in it; `refusals` looks inside. Raises RequestError.

    People paste the whole conf of an example where its manifest belongs: `{"manifest": …}` is understood.
    """
    if isinstance(value, dict) and CopyRequest.model_fields.keys() & value.keys():
        if value.keys() != {"manifest"}:
            names = ", ".join(printable(name, quotes=False) for name in value)
            raise RequestError(
                f"{field} holds a whole conf ({names}): give only the manifest here, and each other value in its own field"
            )
        value = value["manifest"]
    if not isinstance(value, dict) or not value:
        was = "is empty" if value in ({}, None) else f"holds {JSON_NAMES.get(type(value), 'something else')}"
        raise RequestError(_no_manifest(field, was))
    return value


def _no_manifest(field: str, was: str) -> str:
    return f"{field} {was}: give an object of source → list of destinations, with at least one source"


def flip(manifest: Manifest) -> list[Flipped]:
    """One entry per destination, sorted by its URI; sources in the manifest's order; a repeated destination counts once."""
    sources: dict[str, list[str]] = {}
    for source, destinations in manifest.items():
        for destination in dict.fromkeys(destinations):
            sources.setdefault(destination, []).append(source)
    return [Flipped(dest_uri=dest, source_uris=sources[dest]) for dest in sorted(sources)]


def refusals(manifest: Manifest, field: str, same_project: Literal["refuse", "allow"]) -> list[str]:
    """Everything that is wrong with a manifest, each with its place in the input. Empty: it may be planned."""
    problems: list[str] = []
    folders: dict[Uri, tuple[str, str]] = {}  # the folder → its first spelling and place
    names: dict[tuple[Uri, str], str] = {}  # what lands where → the source that put it there
    for source_text, destinations in manifest.items():
        place = f"{field}[{printable(source_text)}]"
        source = _try(source_text, place, problems)
        if source is not None and not source.name:
            problems.append(f"{place}: a whole project cannot be a source; name its files or folders")
            source = None
        if not isinstance(destinations, list) or not all(isinstance(d, str) for d in destinations):
            problems.append(f'{place} is not a list of folder URIs: write ["{SCHEME}PROJECT-ID/folder/"]')
            continue
        if not destinations:
            problems.append(f"{place} names no destination: add one, or take the source out")
        for text in dict.fromkeys(destinations):
            spot = f"{place}[{destinations.index(text)}]"
            folder = _folder(text, spot, problems, folders)
            if source is not None and folder is not None:
                problems += _pair_problems(source, source_text, folder, spot, names, same_project)
    return problems


def _try(text: str, place: str, problems: list[str]) -> Uri | None:
    try:
        return parse_uri(text)
    except ValueError as error:
        problems.append(f"{place}: {error}")
        return None


def _folder(text: str, spot: str, problems: list[str], folders: dict[Uri, tuple[str, str]]) -> Uri | None:
    """The destination folder in our one spelling; a second spelling of a folder seen before is refused."""
    uri = _try(text, spot, problems)
    if uri is None:
        return None
    folder = Uri(uri.project_id, uri.path.rstrip("/") + "/")
    first, first_spot = folders.setdefault(folder, (text, spot))
    if first != text:
        problems.append(
            f"{spot}: {printable(text)} is the folder that {first_spot} spells {printable(first)}: spell it one way"
        )
    return folder


def _pair_problems(
    source: Uri,
    source_text: str,
    folder: Uri,
    spot: str,
    names: dict[tuple[Uri, str], str],
    same_project: Literal["refuse", "allow"],
) -> list[str]:
    problems = []
    other = names.setdefault((folder, source.name), source_text)
    if other != source_text:
        problems.append(
            f"{spot}: {printable(source_text)} and {printable(other)} are both named {printable(source.name)}, and "
            "only one of them could land there: use two folders"
        )
    if source.project_id == folder.project_id:
        if same_project == "refuse":
            problems.append(
                f"{spot}: source and destination are in one project: copy to another, or set same_project to allow"
            )
        elif source.is_folder and folder.path.startswith(source.path):
            problems.append(
                f"{spot}: the destination lies inside its source {printable(source_text)}: choose a folder outside"
            )
        elif folder.path == source.parent:
            problems.append(
                f"{spot}: the source {printable(source_text)} lies in this very folder already: take it out"
            )
    return problems


def flipped(request: CopyRequest, document: bytes | None = None) -> list[Flipped]:
    """The SOP's Flip Manifest output for a request. Raises RequestError with all refusals at once."""
    if all(getattr(request, name) is None for name in INPUTS):
        return []  # the request's own check refuses it; here what else is wrong with it may be asked for
    try:
        manifest, field = manifest_of(request, document)
    except RequestError as error:
        # An empty one counts as not given beside another: it is told where that other is none either.
        empty = [_no_manifest("manifest", "is empty")] if request.manifest == {} else []
        raise RequestError(list(dict.fromkeys([*error.problems, *empty]))) from None
    problems = refusals(manifest, field, request.same_project)
    if problems:
        raise RequestError(problems)
    return flip(manifest)
