"""Project data of the simulated ICA: listings, paging, folders, deletion, content."""

from __future__ import annotations

import hashlib
import re
import threading

import httpx
import pytest
from ica_rehearsal import TARGET

DATA = f"/api/projects/{TARGET}/data"


def paths(items: list[dict]) -> list[str]:
    return [item["details"]["path"] for item in items]


@pytest.fixture
def ica(rehearse):
    rehearsal = rehearse()
    for path in ("/a/x.txt", "/a/X.TXT", "/a/y.csv", "/a/sub/x.txt", "/A/z.txt"):
        rehearsal.seed(path, project=TARGET)
    return rehearsal


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"parentFolderPath": "/a/sub/"}, ["/a/sub/x.txt"]),
        ({"parentFolderPath": "/a/", "type": "FOLDER"}, ["/a/sub/"]),
        ({"parentFolderPath": "/a/", "filename": "x.txt"}, ["/a/x.txt", "/a/X.TXT"]),
        ({"parentFolderPath": "/A/", "filename": "Z.txt"}, ["/A/z.txt"]),
        ({"parentFolderPath": "/a/", "filename": ["y.csv", "z.txt"]}, ["/a/y.csv", "/A/z.txt"]),
        ({"filename": "csv", "filenameMatchMode": "FUZZY"}, ["/a/y.csv"]),
        ({"filename": "x.txt", "filenameMatchMode": "EXCLUDE", "type": "FILE"}, ["/a/y.csv", "/A/z.txt"]),
        ({"filePath": "/a/SUB/"}, ["/a/sub/", "/a/sub/x.txt"]),
        ({"filePath": "/a/X.txt", "filePathMatchMode": "FULL_CASE_INSENSITIVE"}, ["/a/x.txt", "/a/X.TXT"]),
        ({"status": "PARTIAL"}, []),
        ({"parentFolderPath": "/nowhere/"}, []),
    ],
    ids=str,
)
def test_a_listing_filters_as_the_api_says_and_ignores_case(ica, params, expected):
    assert paths(ica.listing(**params)) == expected


def test_a_listing_filters_by_id_and_by_parent_id(ica):
    sub = ica.listing(filePath="/a/sub/", type="FOLDER")[0]["id"]
    child = ica.listing(parentFolderId=sub)
    assert paths(child) == ["/a/sub/x.txt"]
    assert paths(ica.listing(id=[child[0]["id"], sub])) == ["/a/sub/", "/a/sub/x.txt"]


@pytest.mark.parametrize(
    ("params", "status"),
    [
        ({"parentFolderPath": "/a"}, 400),
        ({"type": "LINK"}, 400),
        ({"status": "GONE"}, 400),
        ({"pageSize": "0"}, 400),
        ({"pageToken": "zzz"}, 400),
        ({"sort": "colour"}, 400),
        ({"userTag": "x"}, 501),
    ],
    ids=str,
)
def test_a_listing_refuses_what_it_cannot_honour(ica, params, status):
    assert ica.call("GET", DATA, params=params).status_code == status


def test_cursor_paging_returns_everything_once_and_ends_with_an_empty_token(ica):
    seen, token, pages = [], None, 0
    while token != "":
        page = ica.get(DATA, pageSize=3, **({"pageToken": token} if token else {}))
        seen += [item["data"]["id"] for item in page["items"]]
        token, pages = page["nextPageToken"], pages + 1
    assert (len(seen), len(set(seen)), pages) == (8, 8, 3)
    assert page["remainingRecords"] == 0


def test_sorting_pages_by_offset_with_a_total(ica):
    page = ica.get(DATA, sort="name desc, path", type="FILE", pageSize=2, pageOffset=1)
    assert paths([item["data"] for item in page["items"]]) == ["/a/y.csv", "/a/sub/x.txt"]
    assert page["totalItemCount"] == 5
    assert "nextPageToken" not in page


def test_a_page_larger_than_the_maximum_is_cut_or_refused(rehearse):
    ica = rehearse(max_page_size=2)
    for number in range(3):
        ica.seed(f"/{number}", project=TARGET)
    assert len(ica.listing(pageSize=1000)) == 2
    ica.control.patch("/settings", json={"oversize_page": "reject"})
    assert ica.call("GET", DATA, params={"pageSize": 1000}).status_code == 400


def test_a_lagging_listing_shows_the_past_while_ids_show_the_present(rehearse):
    ica = rehearse(listing_lag_seconds=30, delete_seconds=1)
    ica.advance(100)
    data_id = ica.seed("/late.txt", project=TARGET)
    assert ica.get(f"{DATA}/{data_id}")["data"]["details"]["status"] == "AVAILABLE"
    assert ica.listing() == []
    ica.advance(31)
    assert paths(ica.listing()) == ["/late.txt"]
    ica.call("POST", f"{DATA}/{data_id}:delete")
    ica.advance(5)
    assert ica.call("GET", f"{DATA}/{data_id}").status_code == 404
    assert ica.listing()[0]["details"]["status"] == "AVAILABLE"
    ica.advance(31)
    assert ica.listing() == []


def test_creating_a_folder_creates_its_parents_and_a_second_one_conflicts(rehearse):
    ica = rehearse()
    body = {"name": "c d", "folderPath": "/a/b/"}
    made = ica.call("POST", f"{DATA}:createFolder", json=body)
    assert made.status_code == 201
    assert made.json()["data"]["details"]["path"] == "/a/b/c d/"
    assert re.fullmatch(r"fol\.[0-9a-f]{32}", made.json()["data"]["id"])
    assert [entry["path"] for entry in ica.journal("folder_created")] == ["/a/", "/a/b/", "/a/b/c d/"]
    assert ica.call("POST", f"{DATA}:createFolder", json=body).status_code == 409
    below = {"name": "e", "folderId": made.json()["data"]["id"]}
    assert ica.call("POST", f"{DATA}:createFolder", json=below).json()["data"]["details"]["path"] == "/a/b/c d/e/"


@pytest.mark.parametrize(
    "body",
    [{}, {"name": ""}, {"name": "a/b"}, {"name": "a", "folderPath": "/x"}, {"name": "a", "folderPath": "//"}],
    ids=str,
)
def test_a_folder_that_cannot_be_is_refused(rehearse, body):
    assert rehearse().call("POST", f"{DATA}:createFolder", json=body).status_code == 400


def test_an_idempotency_key_repeats_the_answer_refuses_another_body_and_forgets_errors(rehearse):
    ica = rehearse(idempotency_seconds=100)
    url, key = f"{DATA}:createFolder", {"Idempotency-Key": "k1"}
    first = ica.call("POST", url, json={"name": "a", "folderPath": "/p/"}, headers=key)
    again = ica.call("POST", url, json={"folderPath": "/p/", "name": "a"}, headers=key)
    assert (again.status_code, again.json()) == (201, first.json())
    assert ica.call("POST", url, json={"name": "b"}, headers=key).status_code == 422
    failed = {"Idempotency-Key": "k2"}
    assert ica.call("POST", url, json={"name": "a", "folderPath": "/p/"}, headers=failed).status_code == 409
    assert ica.call("POST", url, json={"name": "c"}, headers=failed).status_code == 201
    ica.advance(101)
    assert ica.call("POST", url, json={"name": "a", "folderPath": "/p/"}, headers=key).status_code == 409


def test_of_parallel_creations_of_one_folder_or_its_parents_one_wins(rehearse):
    ica = rehearse(speed=1.0, folder_create_seconds=0.3)
    codes: list[int] = []

    def create(path: str) -> None:
        codes.append(ica.call("POST", f"{DATA}:createFolder", json={"name": "x", "folderPath": path}).status_code)

    threads = [threading.Thread(target=create, args=(path,)) for path in ("/new/", "/new/", "/new/deep/")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(codes) == [201, 409, 409]
    created = [entry["path"] for entry in ica.journal("folder_created")]
    assert len(created) == len(set(created))


def test_a_repeat_while_the_first_creation_runs_is_a_conflict(rehearse):
    ica = rehearse(speed=1.0, folder_create_seconds=0.4)
    codes: list[int] = []
    send = lambda: codes.append(  # noqa: E731
        ica.call("POST", f"{DATA}:createFolder", json={"name": "x"}, headers={"Idempotency-Key": "k"}).status_code
    )
    threads = [threading.Thread(target=send) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(codes) == [201, 409]
    send()
    assert codes[-1] == 201


def test_a_deletion_is_recursive_and_takes_its_time(rehearse):
    ica = rehearse(delete_seconds=5)
    ica.seed("/d/one", project=TARGET)
    ica.seed("/d/e/two", project=TARGET)
    folder = ica.listing(filePath="/d/", type="FOLDER")[0]["id"]
    assert ica.call("POST", f"{DATA}/{folder}:delete").status_code == 204
    assert {item["details"]["status"] for item in ica.listing()} == {"DELETING"}
    assert ica.call("POST", f"{DATA}:createFolder", json={"name": "n", "folderPath": "/d/"}).status_code == 409
    ica.advance(4.9)
    assert len(ica.listing()) == 4
    ica.advance(0.2)
    assert ica.listing() == []
    assert sorted(entry["path"] for entry in ica.journal("file_deleted")) == ["/d/e/two", "/d/one"]


def test_small_files_have_the_md5_of_their_content_and_large_ones_a_multipart_etag(rehearse):
    ica = rehearse()
    small, large = ica.seed("/s.csv", 200_000, project=TARGET), ica.seed("/l.gz", 30 * 10**9, project=TARGET)
    url = ica.call("POST", f"{DATA}/{small}:createDownloadUrl").json()["url"]
    content = httpx.get(url).content
    details = ica.get(f"{DATA}/{small}")["data"]["details"]
    assert (len(content), hashlib.md5(content).hexdigest()) == (200_000, details["objectETag"])
    assert details["fileSizeInBytes"] == 200_000
    parts = -(-30 * 10**9 // (8 * 1024 * 1024))
    assert re.fullmatch(rf"[0-9a-f]{{32}}-{parts}", ica.get(f"{DATA}/{large}")["data"]["details"]["objectETag"])


def test_a_signed_url_is_for_one_use_for_a_while_and_without_our_credential(rehearse):
    ica = rehearse(signed_url_seconds=60.0)
    source = ica.seed("/s.csv", 1000, project=TARGET)
    url = ica.call("POST", f"{DATA}/{source}:createDownloadUrl").json()["url"]
    assert httpx.put(url, content=b"x").status_code == 403, "it is for reading"
    assert httpx.get(url, headers={"Authorization": "Bearer x"}).status_code == 400, "as a store does"
    assert httpx.get(url).status_code == 200
    ica.advance(61)
    assert httpx.get(url).status_code == 403


def test_an_upload_may_be_noticed_late_and_may_be_cut(rehearse):
    ica = rehearse(upload_seconds=30.0)
    made = ica.call("POST", f"{DATA}:createFileWithUploadUrl", json={"name": "u.txt", "folderPath": "/up/"}).json()
    ica.sim.faults.add(fault="cut_upload", path="/storage/", method="PUT")
    assert httpx.put(made["uploadUrl"], content=b"hello, world").status_code == 200
    assert ica.files()["/up/u.txt"]["status"] == "PARTIAL"
    ica.advance(31)
    assert (ica.files()["/up/u.txt"]["status"], ica.files()["/up/u.txt"]["size_bytes"]) == ("AVAILABLE", 6)


def test_an_upload_turns_a_partial_file_into_an_available_one_with_that_content(rehearse):
    ica = rehearse()
    made = ica.call("POST", f"{DATA}:createFileWithUploadUrl", json={"name": "u.txt", "folderPath": "/up/"}).json()
    assert made["data"]["details"]["status"] == "PARTIAL"
    assert ica.call("POST", f"{DATA}/{made['data']['id']}:createDownloadUrl").status_code == 409
    assert httpx.put(made["uploadUrl"].replace("signature=", "signature=0"), content=b"x").status_code == 403
    assert httpx.put(made["uploadUrl"], content=b"hello").status_code == 200
    url = ica.call("POST", f"{DATA}/{made['data']['id']}:createDownloadUrl").json()["url"]
    assert httpx.get(url).content == b"hello"
    assert ica.files()["/up/u.txt"]["etag"] == hashlib.md5(b"hello").hexdigest()
    assert ica.call("POST", f"{DATA}/{made['data']['id']}:createUploadUrl").status_code == 409
