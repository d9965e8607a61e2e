"""The manifest of a restore request: quoted or not, and refused whole where a row cannot be trusted."""

from __future__ import annotations

import pytest

from include.core.errors import VerificationError
from include.jgi.manifest import ManifestRow, name_of, read_manifest
from simulators.jgi import add_random
from tests.simulators.jgi_rehearsal import PROPOSAL, Jdp

HEADER = (
    "filename,file_id,JGI Grouping ID,directory/path,Short Organism Name,Genome/Metagenome Name,md5 checksum,file size"
)
ID, MD5 = "6190d7d30de2fc3298da6f7a", "fcd87248b5922a8bd0d530bcb23bffae"


def table(*rows: str, header: str = HEADER) -> bytes:
    return "\n".join([header, *rows, ""]).encode()


def row(name: str = "a.tsv", file_id: str = ID, folder: str = "org/IMG_Data", md5: str = MD5, size: str = "5") -> str:
    return f"{name},{file_id},Ga1,{folder},org,Some genome,{md5},{size}"


@pytest.mark.parametrize("style", ["quoted", "unquoted"])
def test_what_jgi_lays_beside_its_files_is_read(jdp: Jdp, style: str) -> None:
    jdp.server.call(lambda: jdp.sim.change_settings(manifest_style=style))
    options = {"biosamples": 1, "files_each": 8, "odd_names": True}
    jdp.server.call(lambda: add_random(jdp.catalog, PROPOSAL, "grow", total_bytes=5000, **options))
    number = jdp.ready(jdp.ids)
    text, _ = jdp.manifest(number)
    assert text.startswith('"filename"') == (style == "quoted")
    found = {one.jdp_file_id: one for one in read_manifest(text.encode(), number)}
    assert found == {
        one.id: ManifestRow(one.id, f"{one.directory}/{one.name}", one.md5, one.size)
        for one in jdp.catalog.files.values()
    }
    assert {f"{one.path}" for one in found.values()} <= set(jdp.placed(number))


def test_bom_and_line_ends_of_other_systems_are_read() -> None:
    data = b"\xef\xbb\xbf" + table(row()).replace(b"\n", b"\r\n")
    assert read_manifest(data, 7) == [ManifestRow(ID, "org/IMG_Data/a.tsv", MD5, 5)]


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (row(folder="../../../org"), "line 2: file .* leaves the request's folder"),
        (row(folder="/etc"), "leaves the request's folder"),
        (row(name=".."), "leaves the request's folder"),
        (row(name="x/y"), "leaves the request's folder"),
        (row(name=""), "leaves the request's folder"),
        (row(folder="a\x1bb"), "cannot be a path"),
        (row(md5=""), "has no md5"),
        (row(md5="abc"), "has no md5"),
        (row(size="-5"), "size .* is no number of bytes"),
        (row(size="5.0"), "size .* is no number of bytes"),
        (row(file_id="19000001"), "is no id of JDP"),
        ("a.tsv", "is no id of JDP"),
        (row() + "\n" + row(size="6"), "line 3: file .* is there twice, and not the same"),
    ],
)
def test_a_row_that_cannot_be_trusted_fails_the_whole(bad: str, said: str) -> None:
    with pytest.raises(VerificationError, match=f"manifest of restore request 7: .*{said}"):
        read_manifest(table(bad), 7)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"<html><body>Please log in.</body></html>", "a page of HTML"),
        (b"\xff\xfe\x00", "not text in UTF-8"),
        (b"", "it lacks filename"),
        (table(header="filename,file_id"), "it lacks directory/path, md5 checksum, file size"),
        (table(row(name='"' + "x" * 200_000 + '"')), "cannot be read as a table"),
    ],
)
def test_what_is_no_manifest_is_refused(data: bytes, said: str) -> None:
    with pytest.raises(VerificationError, match=said):
        read_manifest(data, 7)


def test_the_same_row_twice_counts_once() -> None:
    assert len(read_manifest(table(row(), row()), 7)) == 1


def test_its_name_has_the_number_of_the_request() -> None:
    assert name_of(7) == "Globus_Download_7_File_Manifest.csv"
