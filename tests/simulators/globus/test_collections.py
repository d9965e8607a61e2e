"""Collections: real files on the disk and virtual ones beside them."""

from __future__ import annotations

import hashlib

import pytest

from simulators.common import Clock, Setup, Shared
from simulators.globus.collections import Collections, collections_of

JGI = "jgi"


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


def names(collections: Collections, folder: str) -> list[tuple[str, bool]]:
    return [(name, is_folder) for name, is_folder, _ in collections.children(JGI, folder)]


def test_a_real_file_lies_in_the_folder_of_its_collection(tmp_path):
    collections = Collections(tmp_path)
    entry = collections.put(JGI, "/7/R1/a.csv", data=b"abc", modified=1000.0)
    assert entry.data == tmp_path / JGI / "7" / "R1" / "a.csv" == collections.folder_of(JGI) / "7/R1/a.csv"
    assert entry.data.read_bytes() == b"abc"
    assert (entry.size, entry.md5, entry.modified) == (3, md5(b"abc"), 1000.0)
    assert collections.entry(JGI, "7/R1/a.csv") == entry


def test_what_others_do_to_a_mounted_collection_is_seen(tmp_path):
    collections = Collections(tmp_path)
    first = collections.put(JGI, "/a", data=b"abc")
    first.data.write_bytes(b"defg")
    assert collections.entry(JGI, "/a").md5 == md5(b"defg")
    (tmp_path / JGI / "b").write_bytes(b"new")
    assert names(collections, "/") == [("a", False), ("b", False)]
    first.data.unlink()
    assert collections.entry(JGI, "/a") is None


def test_virtual_files_have_no_bytes_and_stand_beside_real_ones(tmp_path):
    collections = Collections(tmp_path)
    collections.put(JGI, "/7/R1/big", size=5 * 10**12, md5="0" * 32)
    collections.put(JGI, "/7/R1/sub/small", data=b"x")
    assert names(collections, "/7/R1") == [("big", False), ("sub", True)]
    assert collections.entry(JGI, "/7/R1/big").data is None
    assert collections.used_bytes(JGI) == 5 * 10**12 + 1
    assert [path for path, _ in collections.files(JGI)] == ["/7/R1/big", "/7/R1/sub/small"]


def test_removing_a_folder_removes_both_kinds_and_the_empty_virtual_parents(tmp_path):
    collections = Collections(tmp_path)
    collections.put(JGI, "/7/R1/big", size=9, md5="0" * 32, private=True)
    collections.put(JGI, "/7/R1/small", data=b"x")
    assert collections.remove(JGI, "/7/R1")
    assert not collections.remove(JGI, "/7/R1")
    assert names(collections, "/7") == []
    collections.put(JGI, "/8/only", size=9, md5="0" * 32)
    collections.remove(JGI, "/8/only")
    assert not collections.is_folder(JGI, "/8")
    assert collections.is_folder(JGI, "/")


@pytest.mark.parametrize("file", [{"data": b"abcd"}, {"size": 4, "md5": md5(b"abcd")}])
def test_a_flipped_byte_changes_the_md5_alone(tmp_path, file):
    collections = Collections(tmp_path)
    before = collections.put(JGI, "/a", modified=5.0, **file)
    after = collections.flip(JGI, "/a")
    assert after.md5 != before.md5
    assert (after.size, after.modified) == (before.size, before.modified)
    assert collections.entry(JGI, "/a") == after


def test_bytes_and_what_is_said_of_them_must_agree(tmp_path):
    collections = Collections(tmp_path)
    with pytest.raises(ValueError, match="MD5"):
        collections.put(JGI, "/a", data=b"abc", md5="0" * 32)
    with pytest.raises(ValueError, match="size and md5"):
        collections.put(JGI, "/a", size=3)


@pytest.mark.parametrize("path", ["/../x", "a/../../x", "/a/.."])
def test_a_path_that_leaves_the_collection_is_refused(tmp_path, path):
    with pytest.raises(ValueError, match="stay in its collection"):
        Collections(tmp_path).put(JGI, path, data=b"x")


def test_a_copy_may_be_cut_short(tmp_path):
    collections = Collections(tmp_path)
    collections.put(JGI, "/a", data=b"abcdef")
    collections.put(JGI, "/v", size=100, md5="0" * 32)
    assert collections.copy((JGI, "/a"), ("there", "/x/a"), modified=1.0).md5 == md5(b"abcdef")
    assert collections.copy((JGI, "/a"), ("there", "/x/a"), modified=1.0, keep_bytes=2).md5 == md5(b"ab")
    half = collections.copy((JGI, "/v"), ("there", "/v"), modified=1.0, keep_bytes=50)
    assert (half.size, half.data) == (50, None)
    assert half.md5 != "0" * 32


def test_services_of_one_run_share_their_collections(tmp_path):
    shared = Shared(tmp_path)
    first, second = (collections_of(Setup(Clock(), shared=shared)) for _ in range(2))
    assert first is second
    first.put(JGI, "/a", data=b"x")
    assert (tmp_path / JGI / "a").exists()
