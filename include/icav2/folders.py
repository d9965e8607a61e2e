"""Destination folders, made once and top down, so that sibling jobs never race to make a parent."""

from __future__ import annotations

from collections.abc import Iterable

from include.icav2.client import ICAv2Client
from include.icav2.resolve import gather_by

Place = tuple[str, str]  # project id, folder path


def ancestors(path: str) -> list[str]:
    """The folder and all above it, outermost first: `/a/`, `/a/b/`. The root is nobody's to make."""
    names = path.strip("/").split("/") if path != "/" else []
    return ["/" + "/".join(names[: depth + 1]) + "/" for depth in range(len(names))]


async def ensure_folders(client: ICAv2Client, places: Iterable[Place]) -> dict[Place, str]:
    """The ids of these folders, each made if it is not there. The root of a project has no entry."""
    by_project: dict[str, set[str]] = {}
    for project_id, path in places:
        by_project.setdefault(project_id, set()).update(ancestors(path))
    ids: dict[Place, str] = {}
    for project_id, paths in by_project.items():
        found = await client.find_folders(project_id, sorted(paths))
        missing = sorted(paths - found.keys(), key=lambda p: (p.count("/"), p))
        for depth in sorted({path.count("/") for path in missing}):
            level = [path for path in missing if path.count("/") == depth]
            found |= await gather_by(level, lambda path, project=project_id: client.make_folder(project, path))  # type: ignore[misc]
        ids |= {(project_id, path): folder_id for path, folder_id in found.items()}
    return ids
