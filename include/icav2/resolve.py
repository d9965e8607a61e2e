"""From URIs to ids: one listing per parent folder, and one per destination to see what is there already.

The thing to know before changing it: it reads only, and refuses everything that is wrong at once, before any job exists.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TypeVar

from include.core.errors import NotFound, RequestError
from include.core.requests import shown
from include.icav2.client import ICAv2Client
from include.icav2.flip import Uri, parse_uri
from include.icav2.models import Content, CopyPlan, Data, Destination, Flipped, Item, Verdict
from include.icav2.verify import prove

AT_ONCE = 32  # listings in flight
K = TypeVar("K")
V = TypeVar("V")


async def gather_by(keys: Iterable[K], ask: Callable[[K], Awaitable[V]], at_once: int = AT_ONCE) -> dict[K, V]:
    """Asks for every key, a bounded number at once, and waits for all of them also when one fails."""
    limit = asyncio.Semaphore(at_once)

    async def bounded(key: K) -> V:
        async with limit:
            return await ask(key)

    unique = list(dict.fromkeys(keys))
    answers = await asyncio.gather(*(bounded(key) for key in unique), return_exceptions=True)
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    return dict(zip(unique, answers, strict=True))  # type: ignore[arg-type]


async def resolve(client: ICAv2Client, entries: list[Flipped]) -> CopyPlan:
    """The plan for a flipped manifest. Raises RequestError naming every source that cannot be copied as it is."""
    sources = {text: parse_uri(text) for entry in entries for text in entry.source_uris}
    listings = await gather_by([Uri(u.project_id, u.parent) for u in sources.values()], lambda u: _list(client, u))
    trees = await gather_by(
        [u for u in sources.values() if u.is_folder], lambda u: client.list_tree(u.project_id, u.path)
    )
    items: dict[str, Item] = {}
    problems: list[str] = []
    for text, uri in sources.items():
        data = {d.path: d for d in listings[Uri(uri.project_id, uri.parent)]}.get(uri.path)
        try:
            items[text] = _item(text, uri, data, trees.get(uri, []))
        except ValueError as problem:
            problems.append(f"{shown(text)}: {problem}")
    if problems:
        raise RequestError(problems)
    return CopyPlan(destinations=[_destination(entry, items) for entry in entries])


async def _list(client: ICAv2Client, folder: Uri) -> list[Data]:
    try:
        return await client.list_folder(folder.project_id, folder.path)
    except NotFound:
        return []


def _item(text: str, uri: Uri, data: Data | None, tree: list[Data]) -> Item:
    """One resolved source. Raises ValueError with the reason why it cannot be copied."""
    if data is None:
        raise ValueError("this source does not exist (case counts); correct the path or take it out")
    parts = tree if uri.is_folder else [data]
    unready = [part for part in parts if part.status != "AVAILABLE"]
    if unready:
        raise ValueError(f"{unready[0].path} is {unready[0].status}, not AVAILABLE: restore or re-upload it first")
    files = [Content(path=part.path[len(uri.parent) :], size_bytes=part.size_bytes, etag=part.etag) for part in parts]
    return Item(source_uri=text, data_id=data.id, name=data.name, is_folder=uri.is_folder, files=files)


def _destination(entry: Flipped, items: Mapping[str, Item]) -> Destination:
    uri = parse_uri(entry.dest_uri)
    return Destination(
        dest_uri=entry.dest_uri,
        project_id=uri.project_id,
        path=uri.path.rstrip("/") + "/",
        items=[items[text] for text in entry.source_uris],
    )


async def look_at(client: ICAv2Client, destination: Destination) -> dict[str, Data]:
    """Everything at a destination that matters to its items, by full path. A missing folder is empty."""
    try:
        there = {data.path: data for data in await client.list_folder(destination.project_id, destination.path)}
        for item in destination.items:
            if item.is_folder and destination.path + item.name + "/" in there:
                tree = await client.list_tree(destination.project_id, destination.path + item.name + "/")
                there |= {data.path: data for data in tree}
    except NotFound:
        return {}
    return there


async def occupied(
    client: ICAv2Client, plan: CopyPlan, placed: Mapping[str, set[str]], *, refuse_strangers: bool, use_etag: bool
) -> list[str]:
    """Why destinations cannot be used as they are. `placed`: names that this ledger placed, by destination key.

    A stranger's file with the name of ours and other content is always refused: SKIP would keep it in silence.
    """
    listings = await gather_by(range(len(plan.destinations)), lambda i: look_at(client, plan.destinations[i]))
    problems = []
    for index, destination in enumerate(plan.destinations):
        there, mine = listings[index], placed.get(destination.key, set())
        folders = {item.name for item in destination.items if item.is_folder}
        direct = [d for d in there.values() if d.path.rstrip("/") == destination.path + d.name]
        strangers = sorted(d.name for d in direct if d.name not in mine and (not d.is_folder or d.name in folders))
        if refuse_strangers and strangers:
            problems.append(
                f"{shown(destination.dest_uri)} is not empty: it holds {len(strangers)} that Waybill did not place there "
                f"({', '.join(strangers[:3])}): choose a new folder, or set require_empty_destination to false"
            )
            continue
        for proof in prove(destination, there, use_etag=use_etag):
            name = proof.path.split("/")[0]
            if proof.verdict not in (Verdict.OK, Verdict.MISSING) and name not in mine:
                problems.append(
                    f"{shown(destination.dest_uri)} holds another {shown(proof.path)} already ({proof.verdict}), which a copy "
                    "would keep: move it away, or choose a new folder"
                )
    return problems
