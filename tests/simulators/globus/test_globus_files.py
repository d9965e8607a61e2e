"""Listing, looking at and making folders of the simulated collections."""

from __future__ import annotations

import globus_sdk  # noqa: TID253
import pytest
from globus_rehearsal import ROOT, START

from simulators.globus import DESTINATION_COLLECTION, JGI_COLLECTION


def refusal_of(call, *arguments, **options) -> tuple[int, str]:
    with pytest.raises(globus_sdk.TransferAPIError) as refusal:
        call(*arguments, **options)
    return refusal.value.http_status, refusal.value.code


def test_a_listing_has_files_and_folders(globus):
    globus.seed("a.txt", "sub/b.txt")
    globus.files.put(JGI_COLLECTION, f"{ROOT}/huge", size=10**13, md5="0" * 32, modified=START)
    answer = globus.client.operation_ls(JGI_COLLECTION, path=f"{ROOT}/")
    assert [(row["name"], row["type"]) for row in answer] == [("a.txt", "file"), ("huge", "file"), ("sub", "dir")]
    assert (answer["path"], answer["DATA"][1]["size"]) == (f"{ROOT}/", 10**13)
    assert answer["DATA"][1]["last_modified"] == "2027-01-15 08:00:00+00:00"
    assert [row["name"] for row in globus.client.operation_ls(JGI_COLLECTION, path="/")] == ["73709"]


def test_a_listing_can_be_filtered_ordered_and_cut(globus):
    globus.seed("b.csv", "a.csv", "c.txt", ".hidden")

    def names(**options) -> list[str]:
        return [row["name"] for row in globus.client.operation_ls(JGI_COLLECTION, path=ROOT, **options)]

    assert names(filter={"name": "~*.CSV"}) == ["a.csv", "b.csv"]
    assert names(filter="name:!c.txt", show_hidden=False, orderby="name DESC") == ["b.csv", "a.csv"]
    assert names(limit=2, offset=1) == ["a.csv", "b.csv"]


def test_what_is_missing_or_forbidden_is_told_apart(globus):
    globus.seed("a")
    globus.on(lambda: globus.sim.change_endpoint(JGI_COLLECTION, read_denied=["^/secret"]))
    ls, stat = globus.client.operation_ls, globus.client.operation_stat
    assert refusal_of(ls, JGI_COLLECTION, path="/nowhere") == (404, "ClientError.NotFound")
    assert refusal_of(ls, JGI_COLLECTION, path=f"{ROOT}/a") == (502, "ExternalError.DirListingFailed.NotDirectory")
    assert refusal_of(ls, JGI_COLLECTION, path="/secret/x") == (403, "EndpointPermissionDenied")
    assert refusal_of(stat, JGI_COLLECTION, path="/nowhere") == (404, "NotFound")
    assert refusal_of(stat, JGI_COLLECTION, path="/secret/x") == (403, "EndpointPermissionDenied")
    globus.on(lambda: globus.sim.change_endpoint(JGI_COLLECTION, connected=False))
    assert refusal_of(ls, JGI_COLLECTION, path=ROOT)[0] == 502
    globus.on(lambda: globus.sim.change_endpoint(JGI_COLLECTION, forbidden=True))
    assert refusal_of(ls, JGI_COLLECTION, path=ROOT) == (403, "PermissionDenied")


def test_stat_knows_files_and_folders(globus):
    globus.seed("a")
    file = globus.client.operation_stat(JGI_COLLECTION, path=f"{ROOT}/a")
    folder = globus.client.operation_stat(JGI_COLLECTION, path=ROOT)
    assert (file["type"], file["name"], file["size"]) == ("file", "a", 100)
    assert (folder["type"], folder["name"]) == ("dir", "R1")


def test_private_files_are_invisible_and_move_all_the_same(globus):
    pairs = [*globus.seed("open"), (f"{ROOT}/private", "/staging/private"), (f"{ROOT}/shut/x", "/staging/x")]
    globus.files.put(JGI_COLLECTION, f"{ROOT}/private", data=b"p" * 10, private=True)
    globus.files.put(JGI_COLLECTION, f"{ROOT}/shut/x", data=b"x" * 10)
    globus.on(lambda: globus.sim.change_endpoint(JGI_COLLECTION, ls_denied=[f"{ROOT}/shut"]))
    assert [row["name"] for row in globus.client.operation_ls(JGI_COLLECTION, path=ROOT)] == ["open"]
    assert refusal_of(globus.client.operation_stat, JGI_COLLECTION, path=f"{ROOT}/private") == (404, "NotFound")
    assert refusal_of(globus.client.operation_ls, JGI_COLLECTION, path=f"{ROOT}/shut")[0] == 403
    task = globus.submit(pairs)
    globus.advance(10)
    assert globus.status(task) == ("SUCCEEDED", None)
    assert sorted(globus.arrived()) == ["/staging/open", "/staging/private", "/staging/x"]


def test_a_folder_is_made_once_under_one_that_is_there(globus):
    mkdir = globus.client.operation_mkdir
    assert mkdir(DESTINATION_COLLECTION, "/new")["code"] == "DirectoryCreated"
    assert (globus.files.folder_of(DESTINATION_COLLECTION) / "new").is_dir()
    assert refusal_of(mkdir, DESTINATION_COLLECTION, "/new") == (502, "ExternalError.MkdirFailed.Exists")
    assert refusal_of(mkdir, DESTINATION_COLLECTION, "/no/parent") == (404, "ClientError.NotFound")
    globus.on(lambda: globus.sim.change_endpoint(DESTINATION_COLLECTION, write_denied=["^/ro"]))
    assert refusal_of(mkdir, DESTINATION_COLLECTION, "/ro") == (403, "EndpointPermissionDenied")
