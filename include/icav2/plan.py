"""From URIs to ids: one listing per parent folder, and one per destination to see what is there already.

Invariant: it reads only, and refuses everything that is wrong at once, before any job exists.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from include.core.concurrency import map_by_key
from include.core.errors import Forbidden, NotFound, RequestError
from include.core.text import printable
from include.icav2.client import ICAv2Client
from include.icav2.manifest import Uri, parse_uri
from include.icav2.models import Content, CopyPlan, Data, Destination, Flipped, Item, Verdict
from include.icav2.verify import prove

NO_PROJECT = (
    "ICA knows no such project, or hides it from the user of connection waybill_icav2 (404): correct the project's id, or give "
    "the user the right to it"
)
FORBIDDEN = "ICA forbids a look at its project (403): give the user of connection waybill_icav2 the right to it"


async def resolve(client: ICAv2Client, entries: list[Flipped]) -> CopyPlan:
    """The plan for a flipped manifest. Raises RequestError naming every source that cannot be copied as it is."""
    sources = {text: parse_uri(text) for entry in entries for text in entry.source_uris}
    parents = [Uri(u.project_id, u.parent) for u in sources.values()]
    listings = await map_by_key(parents, lambda u: _by_path(client.list_folder(u.project_id, u.path)))
    folders = [u for u in sources.values() if u.is_folder]
    trees = await map_by_key(folders, lambda u: _by_path(client.list_tree(u.project_id, u.path)))
    items: dict[str, Item] = {}
    problems: list[str] = []
    for text, uri in sources.items():
        try:
            items[text] = _item(text, uri, listings[Uri(uri.project_id, uri.parent)], trees.get(uri, {}))
        except ValueError as problem:
            problems.append(f"{printable(text)}: {problem}")
    if problems:
        raise RequestError(problems)
    plan = CopyPlan(destinations=[_destination(entry, items) for entry in entries])
    problems = _collisions(plan)
    if problems:
        raise RequestError(problems)
    return plan


async def _by_path(listing: Awaitable[list[Data]]) -> dict[str, Data] | None:
    """What is there, by full path; None where we may not look."""
    try:
        return {data.path: data for data in await listing}
    except NotFound:
        return {}
    except Forbidden:
        return None


def _collisions(plan: CopyPlan) -> list[str]:
    """Files of folders that would land on one path with another source's: which of them would win is not known before."""
    lands: dict[tuple[str, str], str] = {}
    problems = {}
    for destination in plan.destinations:
        for item in destination.items:
            for file in item.files:
                first = lands.setdefault((destination.project_id, destination.path + file.path), item.source_uri)
                if first != item.source_uri:
                    problems[first, item.source_uri] = (
                        f"{printable(first)} and {printable(item.source_uri)} would both be copied to "
                        f"{printable(f'icav2://{destination.project_id}{destination.path}{file.path}')}: "
                        "use another folder for one"
                    )
    return list(problems.values())


def _item(text: str, uri: Uri, listing: Mapping[str, Data] | None, tree: Mapping[str, Data] | None) -> Item:
    """One resolved source. Raises ValueError with the reason why it cannot be copied."""
    if listing is None or tree is None:
        raise ValueError(FORBIDDEN)
    data = listing.get(uri.path)
    if data is None:
        other = uri.path.rstrip("/") if uri.is_folder else uri.path + "/"
        if other in listing:
            kind = "a file: did you mean it without the last /" if uri.is_folder else "a folder: did you mean …/"
            raise ValueError(f"this source is {kind}? ({printable(f'icav2://{uri.project_id}{other}')})")
        raise ValueError("this source does not exist (case counts); correct the path or take it out")
    parts = list(tree.values()) if uri.is_folder else [data]
    if not parts:
        raise ValueError(
            "this folder holds no file, and ICA copies no empty folders: take it out, or put a file into it"
        )
    unready = [part for part in parts if part.status != "AVAILABLE"]
    if unready:
        more = f" (and {len(unready) - 1} more)" if len(unready) > 1 else ""
        raise ValueError(
            f"{printable(unready[0].path)}{more} is {unready[0].status}, not AVAILABLE: restore or re-upload it first"
        )
    files = [
        Content(path=part.path[len(uri.parent) :], size_bytes=part.size_bytes, etag=part.etag, data_id=part.id)
        for part in parts
    ]
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
        return await _look(client, destination)
    except NotFound:
        return {}


async def _look(client: ICAv2Client, destination: Destination) -> dict[str, Data]:
    """As `look_at`. Raises NotFound where there is no such project."""
    there = {data.path: data for data in await client.list_folder(destination.project_id, destination.path)}
    for item in destination.items:
        if item.is_folder and destination.path + item.name + "/" in there:
            tree = await client.list_tree(destination.project_id, destination.path + item.name + "/")
            there |= {data.path: data for data in tree}
    return there


async def occupied(
    client: ICAv2Client,
    plan: CopyPlan,
    created: Callable[[Mapping[str, set[str]]], Mapping[str, set[str]]],
    *,
    refuse_unmanaged: bool,
    use_etag: bool,
) -> list[str]:
    """Why destinations cannot be used as they are. `created` gives the names that this ledger created, by destination key,
    given those of the files that lie there; it is asked after the look, since another run may place files meanwhile.

    An unmanaged file with the name of ours and other content is always refused: SKIP would keep it in silence.
    """

    async def look(index: int) -> dict[str, Data] | str:
        try:
            return await _look(client, plan.destinations[index])
        except Forbidden:
            return FORBIDDEN
        except NotFound:
            return NO_PROJECT

    listings = await map_by_key(range(len(plan.destinations)), look)
    listed = {
        plan.destinations[index].key: _files_in(plan.destinations[index], found)
        for index, found in listings.items()
        if not isinstance(found, str)
    }
    names, problems = created(listed), list[str]()
    for index, destination in enumerate(plan.destinations):
        there = listings[index]
        if isinstance(there, str):
            problems.append(f"{printable(destination.dest_uri)}: {there}")
        else:
            mine = names.get(destination.key, set())
            problems += _occupants(destination, there, mine, refuse_unmanaged=refuse_unmanaged, use_etag=use_etag)
    return problems


def _files_in(destination: Destination, there: Mapping[str, Data]) -> set[str]:
    return {d.name for d in there.values() if not d.is_folder and d.path == destination.path + d.name}


def _occupants(
    destination: Destination, there: Mapping[str, Data], mine: set[str], *, refuse_unmanaged: bool, use_etag: bool
) -> list[str]:
    folders = {item.name for item in destination.items if item.is_folder}
    direct = [d for d in there.values() if d.path.rstrip("/") == destination.path + d.name and d.status != "DELETING"]
    unmanaged = sorted(d.name for d in direct if d.name not in mine and (not d.is_folder or d.name in folders))
    if refuse_unmanaged and unmanaged:
        names = ", ".join(printable(name) for name in unmanaged[:3]) + (", …" if len(unmanaged) > 3 else "")
        return [
            f"{printable(destination.dest_uri)} is not empty: it holds {len(unmanaged)} that Waybill did not create there "
            f"({names}): choose a new folder, or set require_empty_destination to false"
        ]
    return [
        f"{printable(destination.dest_uri)} holds another {printable(proof.path)} already "
        f"({str(proof.verdict).replace('_', ' ')}), which a copy would keep: move it away, or choose a new folder"
        for proof in prove(destination, there, use_etag=use_etag)
        if proof.verdict not in (Verdict.OK, Verdict.MISSING) and proof.path.split("/")[0] not in mine
    ]
