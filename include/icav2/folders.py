"""Destination folders, made once and top down, so that sibling jobs never race to make a parent."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from include.core.concurrency import map_by_key
from include.core.errors import WaybillError
from include.icav2.client import ICAv2Client

Place = tuple[str, str]  # project id, folder path


def ancestors(path: str) -> list[str]:
    """The folder and all above it, outermost first: `/a/`, `/a/b/`. The root is nobody's to make."""
    names = path.strip("/").split("/") if path != "/" else []
    return ["/" + "/".join(names[: depth + 1]) + "/" for depth in range(len(names))]


async def missing_folders(client: ICAv2Client, places: Iterable[Place]) -> set[Place]:
    """Those of these folders that do not exist; empty where that cannot be seen. Many are asked for in one call."""
    by_project: dict[str, list[str]] = {}
    for project_id, path in places:
        by_project.setdefault(project_id, []).append(path)
    absent: set[Place] = set()
    for project_id, paths in by_project.items():
        with suppress(WaybillError):
            found = await client.find_folders(project_id, paths)
            absent.update((project_id, path) for path in paths if path not in found and path != "/")
    return absent


async def ensure_folders(client: ICAv2Client, places: Iterable[Place]) -> dict[Place, str | WaybillError]:
    """The ids of these folders and of all above them, each made if it is not there; or why one cannot be had.

    The root of a project has no id and no entry.
    """
    by_project: dict[str, set[str]] = {}
    for project_id, path in places:
        by_project.setdefault(project_id, set()).update(ancestors(path))
    ids: dict[Place, str | WaybillError] = {}
    for project_id, paths in by_project.items():
        found = await _ensure_all(client, project_id, paths)
        ids |= {(project_id, path): folder for path, folder in found.items()}
    return ids


async def _ensure_all(client: ICAv2Client, project_id: str, paths: set[str]) -> dict[str, str | WaybillError]:
    try:
        found: dict[str, str | WaybillError] = {**await client.find_folders(project_id, sorted(paths))}
    except WaybillError as error:
        return dict.fromkeys(paths, error)

    async def make(path: str) -> str | WaybillError:
        above = found.get(path[: path.rstrip("/").rfind("/") + 1])
        if isinstance(above, WaybillError):
            return above
        try:
            return await client.make_folder(project_id, path)
        except WaybillError as error:
            return error

    missing = paths - found.keys()
    for depth in sorted({path.count("/") for path in missing}):
        found |= await map_by_key(sorted(path for path in missing if path.count("/") == depth), make)
    return found
