"""What MongoDB keeps of JGI tape staging: files, placements, restore requests, batches, projects.

Invariant: each change of state is one compare-and-set whose filter holds the state of before, so that of two workers one
wins; nothing is read first and written back later. The ledger decides what was sent; MongoDB may be behind it, and
`take_up` brings it back. Documents of older tools are read, and stay as they are.

MongoDB's stand-in (nx-27017) lacks array filters, pipeline updates and null filters; nothing here needs them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from include.core.errors import AuthError, ConflictingRequest, NotFound, RemoteError, RequestError, TransientError
from include.core.text import few
from include.jgi.documents import (
    TrackedBatch,
    TrackedRequest,
    batch_doc,
    batch_of,
    file_facts,
    file_of,
    file_start,
    instant,
    older_file_of,
    placement_doc,
    placement_of,
    project_doc,
    project_of,
    request_doc,
    request_of,
    without_none,
)
from include.jgi.models import (
    FILE_MOVES,
    PLACEMENT_MOVES,
    BatchState,
    FileState,
    Placement,
    PlacementState,
    Project,
    RequestState,
    StagedFile,
)

if TYPE_CHECKING:
    from pymongo.collection import Collection as MongoCollection
    from pymongo.database import Database

T = TypeVar("T")
Doc = dict[str, Any]
Change = tuple[Doc, Doc, Doc, Doc]  # which document, what is set, what a new one gets beside, what is added to lists
NAMES = {
    "files": "jgi_file_states",  # not `…_files`: nx-27017 takes that for GridFS
    "placements": "jgi_placements",
    "requests": "jgi_restore_requests",
    "batches": "jgi_transfer_batches",
    "projects": "jgi_projects",
    "older_files": "samples",  # of NMDC's scripts
    "older_projects": "sequencing_projects",
}
HISTORY = 20  # entries kept per document
CHUNK = 1000  # ids per call
DUPLICATE_CODE = 11000
LOGIN_CODES = {13, 18}  # Unauthorized, AuthenticationFailed
CLAIMABLE = (FileState.DISCOVERED, FileState.PLANNED, FileState.EXPIRED)


class Tracking:
    """The repository. `names` renames collections; `named_by` is what errors call the database (never its address)."""

    def __init__(
        self,
        database: Database[dict[str, Any]],
        names: Mapping[str, str] | None = None,
        *,
        named_by: str = "connection waybill_mongo",
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ):
        unknown = set(names or ()) - set(NAMES)
        if unknown:
            raise RequestError(f"{named_by}: collections {sorted(unknown)} are not known; there are {sorted(NAMES)}")
        self._database = database
        self._names = {**NAMES, **(names or {})}
        self._named_by = named_by
        self._now = now

    def _of(self, name: str) -> MongoCollection[dict[str, Any]]:
        return self._database[self._names[name]]

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Maps errors of pymongo to ours."""
        from pymongo.errors import (
            BulkWriteError,
            ConnectionFailure,
            DuplicateKeyError,
            ExecutionTimeout,
            OperationFailure,
            PyMongoError,
        )

        try:
            yield
        except DuplicateKeyError as error:
            fields = dict((error.details or {}).get("keyValue") or {})
            raise ConflictingRequest(f"{self._named_by}: {fields or 'a value'} is there already") from None
        except BulkWriteError as error:
            codes = {one.get("code") for one in (error.details or {}).get("writeErrors") or ()}
            if codes == {DUPLICATE_CODE}:
                raise ConflictingRequest(f"{self._named_by}: a value that must be unique is there already") from None
            raise RemoteError(f"{self._named_by}: MongoDB refuses writes (codes {sorted(map(str, codes))})") from None
        except (ConnectionFailure, ExecutionTimeout) as error:
            raise TransientError(f"{self._named_by}: MongoDB is out of reach ({type(error).__name__})") from None
        except OperationFailure as error:
            if error.code in LOGIN_CODES:
                raise AuthError(f"{self._named_by}: MongoDB refuses the login, or it may not do this") from None
            raise RemoteError(
                f"{self._named_by}: MongoDB refuses it ({type(error).__name__}, code {error.code})"
            ) from None
        except PyMongoError as error:
            raise RemoteError(f"{self._named_by}: {type(error).__name__}; see the connection's fields") from None

    def ensure_indexes(self) -> None:
        """Unique keys, made once; harmless to repeat. Raises ConflictingRequest where older documents break them."""
        with self._asking():
            self._of("files").create_index("jdp_file_id", unique=True)
            self._of("files").create_index([("state", 1), ("project_name", 1)])
            self._of("files").create_index("claim")
            self._of("placements").create_index([("jdp_file_id", 1), ("ap_gold_id", 1)], unique=True)
            self._of("placements").create_index("destination", unique=True)
            self._of("placements").create_index("batch")
            self._of("requests").create_index("key", unique=True)
            self._of("requests").create_index(
                "request_id", unique=True, partialFilterExpression={"request_id": {"$exists": True}}
            )
            self._of("batches").create_index("key", unique=True)
            self._of("batches").create_index(
                "task_id", unique=True, partialFilterExpression={"task_id": {"$exists": True}}
            )
            self._of("projects").create_index("project_name", unique=True)

    # -- projects ---------------------------------------------------------------------------------------------------

    def put_project(self, project: Project) -> None:
        """Writes the project, or its new fields. Raises ConflictingRequest where the name has another proposal."""
        known = next((one for one in self.projects() if one.name == project.name), None)
        if known is not None and known.proposal_id != project.proposal_id:
            raise ConflictingRequest(
                f"project {project.name!r} is of proposal {known.proposal_id}, not {project.proposal_id}: "
                "give the right proposal_id, or another project name"
            )
        self._write_again("projects", [({"project_name": project.name}, project_doc(project), {}, {})])

    def project(self, name: str) -> Project:
        found = next((one for one in self.projects() if one.name == name), None)
        if found is None:
            raise NotFound(f"project {name!r} is not known in {self._named_by}: trigger the DAG with its proposal_id")
        return found

    def projects(self) -> list[Project]:
        """By name; those of older tools too."""
        with self._asking():
            documents = [document for name in ("older_projects", "projects") for document in self._of(name).find({})]
        found = {one.name: one for one in map(project_of, documents)}
        return sorted(found.values(), key=lambda one: one.name)

    # -- files --------------------------------------------------------------------------------------------------------

    def put_files(self, files: Iterable[StagedFile]) -> int:
        """Files as a search found them; returns how many are new. A known one keeps its state, and gets what JDP says now.

        Raises ConflictingRequest where JDP gives a known id another size, once all others are written.
        """
        new, replaced = 0, []
        for chunk in _chunks(files):
            known = {file.jdp_file_id: file for file in self.files(ids=[file.jdp_file_id for file in chunk])}
            changes = []
            for file in chunk:
                before = known.get(file.jdp_file_id)
                if before is not None and before.size_bytes != file.size_bytes:
                    replaced.append(
                        f"file {file.jdp_file_id} ({file.file_name}) had {before.size_bytes} bytes and has "
                        f"{file.size_bytes} now"
                    )
                else:
                    changes.append(self._refreshed(file))
            self._write_again("files", changes)
            new += len({file.jdp_file_id for file in chunk} - known.keys())
        if replaced:
            raise ConflictingRequest(
                f"{self._named_by}: JDP has replaced files: {few(replaced, 5)}; look there, then remove their documents"
            )
        return new

    def _refreshed(self, file: StagedFile) -> Change:
        facts = file_facts(file)
        analyses = facts.pop("ap_gold_ids", [])
        start = {**file_start(file), "waiting_since": file.waiting_since or self._now()}
        sets = {"ap_gold_ids": {"$each": analyses}} if analyses else {}
        return {"jdp_file_id": file.jdp_file_id}, facts, start, sets

    def read_older_files(self) -> list[str]:
        """Files that only older tools know get documents of ours; returns what cannot be read. What those tools did with them was
        never checked, so they begin anew: what lies at its destination with the right md5 is not moved again."""
        found: dict[str, StagedFile] = {}
        unread = []
        with self._asking():
            documents = list(self._of("older_files").find({}))
        for document in documents:
            try:
                file = older_file_of(document)
            except RequestError as error:
                unread.append(str(error))
                continue
            one = found.setdefault(file.jdp_file_id, file)
            found[file.jdp_file_id] = replace(one, analyses=tuple(dict.fromkeys(one.analyses + file.analyses)))
        known = {file.jdp_file_id for file in self.files(ids=list(found))}
        self.put_files(file for name, file in found.items() if name not in known)
        return unread

    def files(
        self,
        *,
        project: str | None = None,
        states: Collection[FileState] = (),
        claim: str | None = None,
        ids: Sequence[str] | None = None,
    ) -> Iterator[StagedFile]:
        """Files by what is given, all of it together, by id. `ids` may be many."""
        query = without_none({"project_name": project, "claim": claim})
        if states:
            query["state"] = {"$in": [str(state) for state in states]}
        yield from map(file_of, self._found("files", query, "jdp_file_id", ids))

    def claim(self, ids: Sequence[str], claim: str) -> list[StagedFile]:
        """Claims files for a restore request; returns those that it has now, also from an earlier call. Others are others'."""
        self._move("files", {"jdp_file_id": ids}, CLAIMABLE, FileState.REQUESTING, f"for {claim}", {"claim": claim})
        states = (FileState.REQUESTING, FileState.QUEUED, FileState.ON_DISK)
        return list(self.files(claim=claim, states=states))

    def move_files(
        self,
        ids: Sequence[str],
        before: FileState | Collection[FileState],
        after: FileState,
        why: str,
        *,
        claim: str | None = None,
        attempt: bool = False,
        **facts: Any,
    ) -> int:
        """Moves those of `ids` that are in a state of `before` (and in this claim, where one is given); returns how many.

        `attempt`: counts one more attempt. `facts` are stored beside. A claim ends where nothing is asked for any more.
        """
        wanted = {"jdp_file_id": ids, **({"claim": claim} if claim is not None else {})}
        ends = after not in (FileState.REQUESTING, FileState.QUEUED, FileState.ON_DISK)
        return self._move("files", wanted, _some(before), after, why, facts, ("claim",) if ends else (), attempt)

    def release(self, claim: str, after: FileState, why: str, *, attempt: bool = False) -> int:
        """Ends a claim whose request was never accepted: its files are planned anew, or `after`."""
        ids = [file.jdp_file_id for file in self.files(claim=claim, states=(FileState.REQUESTING,))]
        return self.move_files(ids, FileState.REQUESTING, after, why, claim=claim, attempt=attempt) if ids else 0

    # -- placements ---------------------------------------------------------------------------------------------------

    def put_placements(self, placements: Iterable[Placement]) -> int:
        """New placements; known ones stay as they are. Returns how many are new.

        Raises ConflictingRequest where a destination belongs to another file.
        """
        new = 0
        for chunk in _chunks(placements):
            taken = self._taken(chunk)
            if taken:
                raise ConflictingRequest(f"{self._named_by}: {few(taken, 5)}")
            ids = [placement.jdp_file_id for placement in chunk]
            known = {(placement.jdp_file_id, placement.analysis) for placement in self.placements(ids=ids)}
            fresh = [one for one in chunk if (one.jdp_file_id, one.analysis) not in known]
            self._write_again("placements", [(_key(one), {}, placement_doc(one), {}) for one in fresh])
            new += len(fresh)
        return new

    def _taken(self, placements: Sequence[Placement]) -> list[str]:
        owners = {placement.destination: placement for placement in placements}
        found = map(placement_of, self._found("placements", {}, "destination", list(owners)))
        names = [(other, owners[other.destination]) for other in found]
        return [
            f"{one.destination} is the place of file {one.jdp_file_id} already, and not of {other.jdp_file_id}"
            for one, other in names
            if (one.jdp_file_id, one.analysis) != (other.jdp_file_id, other.analysis)
        ]

    def placements(
        self,
        *,
        project: str | None = None,
        states: Collection[PlacementState] = (),
        batch: str | None = None,
        ids: Sequence[str] | None = None,
    ) -> Iterator[Placement]:
        """Placements by what is given, all of it together. `ids` are those of files."""
        query = without_none({"project_name": project, "batch": batch})
        if states:
            query["state"] = {"$in": [str(state) for state in states]}
        yield from map(placement_of, self._found("placements", query, "jdp_file_id", ids))

    def move_placements(
        self,
        destinations: Sequence[str],
        before: PlacementState | Collection[PlacementState],
        after: PlacementState,
        why: str,
        *,
        batch: str | None = None,
        claim: str | None = None,
    ) -> int:
        """Moves those at `destinations` that are in a state of `before`; returns how many. `batch`: only those that it has.
        `claim`: the batch that has them from now on."""
        wanted = {"destination": destinations, **({"batch": batch} if batch is not None else {})}
        facts = {"batch": claim} if claim is not None else {}
        ends = ("batch",) if after == PlacementState.WAITING else ()
        return self._move("placements", wanted, _some(before), after, why, facts, ends)

    # -- restore requests and batches -----------------------------------------------------------------------------------

    def put_request(self, request: TrackedRequest) -> None:
        """Writes a request, unless it is known."""
        self._put_once("requests", request.key, request_doc(request))

    def move_request(
        self,
        key: str,
        before: RequestState | Collection[RequestState],
        after: RequestState,
        why: str = "",
        **facts: Any,
    ) -> bool:
        return self._move("requests", {"key": [key]}, _some(before), after, why, facts) == 1

    def begin_request_again(self, key: str, before: Collection[RequestState]) -> bool:
        """A request that has ended is to be sent once more: what JDP said of the last one is forgotten."""
        forgotten = ("request_id", "expires_at", "sent_at", "jdp_status")
        return self._move("requests", {"key": [key]}, before, RequestState.INTENT, "again", {}, forgotten) == 1

    def note_request(self, key: str, **facts: Any) -> None:
        """What JDP says of a request, without a change of state."""
        with self._asking():
            self._of("requests").update_one({"key": key}, {"$set": without_none(facts)})

    def requests(self, states: Collection[RequestState] = (), key: str | None = None) -> list[TrackedRequest]:
        query: dict[str, Any] = {"key": key} if key else {}
        if states:
            query["state"] = {"$in": [str(state) for state in states]}
        return [request_of(document) for document in self._found("requests", query)]

    def put_batch(self, batch: TrackedBatch) -> None:
        """Writes a batch, unless it is known."""
        self._put_once("batches", batch.key, batch_doc(batch))

    def move_batch(
        self, key: str, before: BatchState | Collection[BatchState], after: BatchState, why: str = "", **facts: Any
    ) -> bool:
        return self._move("batches", {"key": [key]}, _some(before), after, why, facts) == 1

    def batches(self, states: Collection[BatchState] = (), request_key: str | None = None) -> list[TrackedBatch]:
        query: dict[str, Any] = {"request_key": request_key} if request_key else {}
        if states:
            query["state"] = {"$in": [str(state) for state in states]}
        return [batch_of(document) for document in self._found("batches", query)]

    # -- the report ---------------------------------------------------------------------------------------------------

    def counts(self, project: str) -> dict[str, tuple[int, int]]:
        """Files and bytes of a project per state: file states, and VERIFIED, MISMATCH … of its placements as `placed …`."""
        found: dict[str, tuple[int, int]] = {}
        for name, prefix in (("files", ""), ("placements", "placed ")):
            fields = {"state": 1, "file_size": 1, "_id": 0}
            with self._asking():
                for document in self._of(name).find({"project_name": project}, fields):
                    count, size = found.get(prefix + document["state"], (0, 0))
                    found[prefix + document["state"]] = (count + 1, size + int(document["file_size"]))
        return found

    # -- what all of them share -----------------------------------------------------------------------------------------

    def _put_once(self, name: str, key: str, document: Mapping[str, Any]) -> None:
        self._write_again(name, [({"key": key}, {}, dict(document), {})])

    def _write_again(self, name: str, changes: Sequence[Change]) -> None:
        """Writes each document, or what changes of a known one; may be repeated. Of two workers that both write a new one, the
        second finds it there, and looks again once."""
        from pymongo import UpdateOne

        writes = []
        for where, facts, start, sets in changes:
            begin = {**start, "created_at": self._now()}
            change = {
                "$set": {field: value for field, value in facts.items() if field not in where},
                "$setOnInsert": {field: value for field, value in begin.items() if field not in where},
                "$addToSet": sets,
            }
            writes.append(UpdateOne(where, {verb: what for verb, what in change.items() if what}, upsert=True))
        if not writes:
            return
        try:
            with self._asking():
                self._of(name).bulk_write(writes, ordered=False)
        except ConflictingRequest:
            with self._asking():
                self._of(name).bulk_write(writes, ordered=False)

    def _found(
        self, name: str, query: Mapping[str, Any], field: str = "key", values: Sequence[str] | None = None
    ) -> Iterator[dict[str, Any]]:
        for chunk in [None] if values is None else _chunks(values):
            asked = dict(query) if chunk is None else {**query, field: {"$in": chunk}}
            with self._asking():
                yield from self._of(name).find(asked, batch_size=CHUNK).sort(field, 1)

    def _move(
        self,
        name: str,
        wanted: Mapping[str, Any],
        before: Collection[Any],
        after: Any,
        why: str,
        facts: Mapping[str, Any],
        ends: Sequence[str] = (),
        attempt: bool = False,
    ) -> int:
        """One compare-and-set over many documents: those of `wanted` (lists are any-of) whose state is in `before`."""
        _check_move(name, before, after)
        entry = f"{self._now().isoformat(timespec='seconds')} {after}: {why}"[:300]
        changes: dict[str, Any] = {
            "$set": without_none({**facts, "state": str(after)}) | {"why": why, "changed_at": self._now()},
            "$push": {"history": {"$each": [entry], "$slice": -HISTORY}},
        }
        if ends:
            changes["$unset"] = dict.fromkeys(ends, "")
        if attempt:
            changes["$inc"] = {"attempts": 1}
        query = {field: value for field, value in wanted.items() if not isinstance(value, list | tuple)}
        many = next((field for field, value in wanted.items() if isinstance(value, list | tuple)), None)
        moved = 0
        for chunk in _chunks(wanted[many]) if many else [[]]:
            asked = {**query, "state": {"$in": [str(state) for state in before]}}
            if many:
                asked[many] = {"$in": chunk}
            with self._asking():
                moved += self._of(name).update_many(asked, changes).modified_count
        return moved


def _check_move(name: str, before: Collection[Any], after: Any) -> None:
    """Raises RequestError for a move that the tables do not have: a mistake of ours, found before anything is written."""
    tables: dict[str, Mapping[Any, frozenset[Any]]] = {"files": FILE_MOVES, "placements": PLACEMENT_MOVES}
    wrong = [state for state in before if name in tables and after not in tables[name][state]]
    if wrong:
        raise RequestError(f"{name}: no move from {', '.join(wrong)} to {after}")


def _key(placement: Placement) -> dict[str, str]:
    return {"jdp_file_id": placement.jdp_file_id, "ap_gold_id": placement.analysis}


def _some(states: Any) -> Collection[Any]:
    return [states] if isinstance(states, str) else list(states)


def _chunks(items: Iterable[T]) -> Iterator[list[T]]:
    chunk: list[T] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


__all__ = ["NAMES", "TrackedBatch", "TrackedRequest", "Tracking", "instant"]
