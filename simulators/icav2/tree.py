"""Projects and their data: folders, files, listings, deletion.

Invariant: paths are unique per project and exact, but listings match them ignoring case, as the service
does (docs/protocols/icav2.md 3.2); so all listing indexes are by lower-case path.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from simulators.common import Agenda, Journal, ProblemError
from simulators.icav2.model import Ids, Node, Project, generated, parent_of
from simulators.icav2.settings import Settings


@functools.lru_cache(maxsize=4096)
def _generated_md5(key: str, size_bytes: int) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    for block in generated(key, size_bytes):
        digest.update(block)
    return digest.hexdigest()


def make_etag(settings: Settings, key: str, size_bytes: int, content: bytes | None = None) -> str:
    """The object ETag: real MD5 of a small file's content, `hex-N` for a multipart one (docs/protocols/icav2.md 3.8)."""
    if size_bytes >= settings.single_part_below_bytes:
        digest = hashlib.md5(f"{key}|{size_bytes}".encode(), usedforsecurity=False).hexdigest()
        return f"{digest}-{-(-size_bytes // settings.part_size_bytes)}"
    if content is not None:
        return hashlib.md5(content, usedforsecurity=False).hexdigest()
    return _generated_md5(key, size_bytes)


@dataclass(frozen=True)
class DataFilter:
    """The filters of a data listing (docs/protocols/icav2.md 3.1); names as in the API."""

    ids: tuple[str, ...] = ()
    parent_path: str | None = None
    parent_ids: tuple[str, ...] = ()
    filenames: tuple[str, ...] = ()
    filename_mode: str = "EXACT"
    paths: tuple[str, ...] = ()
    path_mode: str = "STARTS_WITH_CASE_INSENSITIVE"
    data_type: str | None = None
    statuses: tuple[str, ...] = ()


class Tree:
    """The data of all projects."""

    def __init__(self, agenda: Agenda, journal: Journal, settings: Settings, ids: Ids) -> None:
        self._agenda = agenda
        self._journal = journal
        self._settings = settings
        self._ids = ids
        self._seq = itertools.count(1)
        self.projects: dict[str, Project] = {}
        self.nodes: dict[str, Node] = {}
        self._by_path: dict[tuple[str, str], Node] = {}
        self._listed: dict[str, dict[str, Node]] = {}
        self._children: dict[tuple[str, str], dict[str, Node]] = {}

    # Look-ups

    def at(self, project_id: str, path: str) -> Node | None:
        """The node with exactly this path, also while it is being created or deleted."""
        return self._by_path.get((project_id, path))

    def by_id(self, data_id: str) -> Node | None:
        """The node with this id, unless it is gone or still being created."""
        node = self.nodes.get(data_id)
        return node if node and node.ready_from <= self._agenda.time else None

    def below(self, folder: Node) -> list[Node]:
        """Everything under a folder, in path order."""
        found: list[Node] = []
        pending = [folder.path]
        while pending:
            for node in self._children.get((folder.project_id, pending.pop().lower()), {}).values():
                if not node.gone and node.path.startswith(folder.path):
                    found.append(node)
                    if node.is_folder:
                        pending.append(node.path)
        return sorted(found, key=lambda node: node.path)

    def all_of(self, project_id: str) -> list[Node]:
        """Every node of a project as it is now, in path order."""
        return sorted(
            (node for (owner, _), node in self._by_path.items() if owner == project_id), key=lambda node: node.path
        )

    def listing(self, project_id: str, wanted: DataFilter) -> list[Node]:
        """What a listing shows: copies of the nodes as they were `listing_lag_seconds` ago, oldest first."""
        when = self._agenda.time - self._settings.listing_lag_seconds
        shown: list[Node] = []
        for node in self._candidates(project_id, wanted):
            if node.gone and not self._settings.listing_lag_seconds:
                continue
            view = node.seen_at(when)
            if view is None or view.status is None:
                continue
            if (view.status, view.size_bytes, view.etag) != (node.status, node.size_bytes, node.etag):
                node = replace(node, status=view.status, size_bytes=view.size_bytes, etag=view.etag)
            if self._matches(node, wanted):
                shown.append(node)
        return sorted(shown, key=lambda node: node.seq)

    def _candidates(self, project_id: str, wanted: DataFilter) -> Iterable[Node]:
        if wanted.parent_path is not None:
            return list(self._children.get((project_id, wanted.parent_path.lower()), {}).values())
        if wanted.paths and wanted.path_mode == "FULL_CASE_INSENSITIVE":
            parents = {parent_of(path).lower() for path in wanted.paths}
            return [node for parent in parents for node in self._children.get((project_id, parent), {}).values()]
        return list(self._listed.get(project_id, {}).values())

    def _matches(self, node: Node, wanted: DataFilter) -> bool:
        if wanted.ids and node.id not in wanted.ids:
            return False
        if wanted.data_type and node.is_folder != (wanted.data_type == "FOLDER"):
            return False
        if wanted.statuses and node.status not in wanted.statuses:
            return False
        if wanted.parent_ids and self._parent_id(node) not in wanted.parent_ids:
            return False
        if wanted.filenames and not _name_matches(node.name.lower(), wanted):
            return False
        if not wanted.paths:
            return True
        path, paths = node.path.lower(), [path.lower() for path in wanted.paths]
        if wanted.path_mode == "FULL_CASE_INSENSITIVE":
            return path in paths
        return any(path.startswith(start) for start in paths)

    def _parent_id(self, node: Node) -> str | None:
        parent = self.at(node.project_id, node.parent)
        return parent.id if parent else None

    # Changes

    def add_file(
        self,
        project_id: str,
        path: str,
        *,
        size_bytes: int | None = None,
        etag: str | None = None,
        status: str = "AVAILABLE",
        content: bytes | None = None,
        content_key: str | None = None,
        user_tags: Iterable[str] = (),
        technical_tags: Iterable[str] = (),
    ) -> Node:
        """Put a file at an unused path, making its folders. The ETag is made from the content unless given."""
        check_path(path, folder=False)
        if self.at(project_id, path) or self.at(project_id, path + "/"):
            raise ProblemError(409, "Conflict", f"{path} exists already.")
        self.make_folders(project_id, parent_of(path))
        size = len(content) if content is not None else size_bytes
        key = content_key or f"{project_id}{path}"
        if etag is None and size is not None and status != "PARTIAL":
            etag = make_etag(self._settings, key, size, content)
        return self._insert(
            Node(
                id=f"fil.{self._ids.hex32()}",
                project_id=project_id,
                path=path,
                created=self._agenda.time,
                seq=next(self._seq),
                status=status,
                size_bytes=size,
                etag=etag,
                content_key=key,
                content=content,
                user_tags=list(user_tags),
                technical_tags=list(technical_tags),
            )
        )

    def make_folders(self, project_id: str, path: str, ready_in: float = 0.0) -> Node | None:
        """Make a folder and its missing parents, usable after `ready_in` seconds; None for the root, which is no node.

        Raises `ProblemError` 409 when one of them is being deleted, or is being created by somebody else.
        """
        if path == "/":
            return None
        node = self.at(project_id, path)
        if node is not None:
            if node.status == "DELETING":
                raise ProblemError(409, "Conflict", f"Folder {path} is being deleted.")
            if node.ready_from > self._agenda.time:
                raise ProblemError(409, "Conflict", f"Folder {path} is being created by another request.")
            return node
        if self.at(project_id, path.rstrip("/")):
            raise ProblemError(409, "Conflict", f"A file named {path.rstrip('/')} exists.")
        self.make_folders(project_id, parent_of(path), ready_in)
        folder = Node(
            id=f"fol.{self._ids.hex32()}",
            project_id=project_id,
            path=path,
            created=self._agenda.time,
            seq=next(self._seq),
            ready_from=self._agenda.time + ready_in if ready_in else 0.0,
        )
        self._journal.record("folder_created", project_id=project_id, id=folder.id, path=path)
        return self._insert(folder)

    def update(
        self, node: Node, *, status: str | None = None, size_bytes: int | None = None, etag: str | None = None
    ) -> None:
        """Set status, size and ETag; size and ETag are kept only while given."""
        node.status = status or node.status
        node.size_bytes, node.etag = size_bytes, etag
        node.remember(self._agenda.time)

    def uploaded(self, node: Node) -> None:
        """Show a file with the content that it now has."""
        if node.gone or node.status == "DELETING" or node.content is None:
            return
        size = len(node.content)
        etag = make_etag(self._settings, node.content_key, size, node.content)
        self.update(node, status="AVAILABLE", size_bytes=size, etag=etag)
        facts = {"size_bytes": size, "etag": etag}
        self._journal.record("file_uploaded", project_id=node.project_id, id=node.id, path=node.path, **facts)

    def delete(self, node: Node) -> None:
        """Start a deletion: DELETING at once, recursively, gone after `delete_seconds` (docs/protocols/icav2.md 3.5)."""
        doomed = [node, *self.below(node)] if node.is_folder else [node]
        for each in doomed:
            if each.status != "DELETING":
                each.status = "DELETING"
                each.remember(self._agenda.time)
        self._agenda.schedule(self._agenda.time + self._settings.delete_seconds, lambda: self._remove_all(doomed))

    def _remove_all(self, doomed: list[Node]) -> None:
        for node in doomed:
            if not node.gone:
                self._drop(node)
                kind = "folder_deleted" if node.is_folder else "file_deleted"
                self._journal.record(kind, project_id=node.project_id, id=node.id, path=node.path)

    def move(self, node: Node, path: str) -> None:
        """Give a file another path of the same project; the id stays."""
        self._drop(node, for_ever=False)
        node.path, node.gone = path, False
        self._insert(node)

    def _insert(self, node: Node) -> Node:
        self.nodes[node.id] = node
        self._by_path[node.project_id, node.path] = node
        self._listed.setdefault(node.project_id, {})[node.id] = node
        self._children.setdefault((node.project_id, node.parent.lower()), {})[node.id] = node
        node.remember(self._agenda.time)
        return node

    def _drop(self, node: Node, for_ever: bool = True) -> None:
        node.gone = True
        node.remember(self._agenda.time)
        self.nodes.pop(node.id, None)
        self._by_path.pop((node.project_id, node.path), None)
        siblings = self._children.get((node.project_id, node.parent.lower()), {})

        def unlist() -> None:
            siblings.pop(node.id, None)
            if for_ever:
                self._listed.get(node.project_id, {}).pop(node.id, None)

        if for_ever and self._settings.listing_lag_seconds:
            self._agenda.schedule(self._agenda.time + self._settings.listing_lag_seconds, unlist)
        else:
            unlist()


def _name_matches(name: str, wanted: DataFilter) -> bool:
    names = [each.lower() for each in wanted.filenames]
    if wanted.filename_mode == "FUZZY":
        return any(each in name for each in names)
    return (name in names) != (wanted.filename_mode == "EXCLUDE")


def check_path(path: str, *, folder: bool) -> None:
    """Refuse paths that ICA could not hold. Raises `ProblemError` 400."""
    inner = path[1:-1] if folder else path[1:]
    wrong_end = path.endswith("/") != folder
    if not path.startswith("/") or wrong_end or (path != "/" and "" in inner.split("/")):
        raise ProblemError(400, "Bad request", f"{path!r} is not the path of a {'folder' if folder else 'file'}.")


def relative_files(tree: Tree, folder: Node) -> Iterator[tuple[str, Node]]:
    """The files under a folder with their paths relative to it; empty folders do not appear."""
    for node in tree.below(folder):
        if not node.is_folder:
            yield node.path[len(folder.path) :], node
