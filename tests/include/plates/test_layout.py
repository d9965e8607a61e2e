"""Names, presets, plates.csv, and the SOP's listing formats against its own output."""

from __future__ import annotations

import csv
import re
import subprocess
import tarfile
from pathlib import Path

import pytest

from harness.plates.servers import BATCH, PROJECT, plate
from include.core.errors import RequestError
from include.plates import sop_files as listings
from include.plates.layout import (
    BROAD2018,
    CPG,
    disambiguate,
    fill,
    manifest_key,
    own_layout,
    plates_from_csv,
    problems_of,
    tag_of,
    tarball_key,
)
from include.plates.models import Plate, SourceObject

FIXTURES = Path(__file__).parents[2] / "fixtures" / "plates"
GENERATED = FIXTURES / "generated"
TAG = f"{PROJECT}_{BATCH}_20586"


def fixture(name: str) -> str:
    return (GENERATED / f"{TAG}_{name}").read_text()


def fixture_objects() -> list[SourceObject]:
    """The plate of the fixtures, from the script's own raw listing."""
    rows = re.findall(r"^(\S+ \S+) +(\d+) (.*)$", fixture("file_listing_untrimmed_s3.txt"), re.MULTILINE)
    return [SourceObject(key, int(size), "", 1795222832, "images") for _, size, key in rows]


def test_broad2018_prefixes_are_those_of_the_script():
    one = plate("SQ00015167", "SQ00015167__2016-04-21T03_34_00-Measurement1")
    prefixes = [fill(part.prefix, one) for part in BROAD2018.parts]
    assert prefixes == [
        f"projects/{PROJECT}/BBBC022/images/SQ00015167__2016-04-21T03_34_00-Measurement1/",
        f"projects/{PROJECT}/BBBC022/illum/SQ00015167/",
        f"projects/{PROJECT}/workspace/analysis/BBBC022/SQ00015167/",
        f"projects/{PROJECT}/workspace/backend/BBBC022/SQ00015167/",
    ]


def test_output_names_are_those_that_restore_instructions_type():
    key = tarball_key(BROAD2018, plate(), "images_illum_analysis", 1, 1, "gzip")
    assert key == f"imaging_analysis/{PROJECT}/plates/{TAG}_images_illum_analysis.tar.gz"
    assert manifest_key(key) == key.replace(".tar.gz", ".manifest.jsonl.zst")


@pytest.mark.parametrize(("compression", "extension"), [("none", ".tar"), ("gzip", ".tar.gz"), ("zstd", ".tar.zst")])
def test_the_extension_follows_the_content_and_volumes_are_numbered(compression: str, extension: str):
    key = tarball_key(BROAD2018, plate(), "backend", 2, 12, compression)  # type: ignore[arg-type]
    assert key.endswith(f"{TAG}_backend.002-of-012{extension}")


def test_the_gallery_layout_has_source_and_batch_in_their_places():
    one = Plate(
        project="cpg0016-jump", source="source_4", batch="2021_04_26_Batch1", plate_id="BR1", plate_id_full="BR1__a"
    )
    prefixes = [fill(part.prefix, one) for part in CPG.parts]
    assert prefixes[0] == "cpg0016-jump/source_4/images/2021_04_26_Batch1/images/BR1__a/"
    assert prefixes[1] == "cpg0016-jump/source_4/images/2021_04_26_Batch1/illum/BR1/"
    assert prefixes[3] == "cpg0016-jump/source_4/workspace/backend/2021_04_26_Batch1/BR1/"


def test_real_plate_names_are_accepted_as_they_are():
    with (FIXTURES / "plate_full_name_pairs.csv").open() as file:
        for row in csv.DictReader(file):
            one = Plate(project="p", batch="b", plate_id=row["plate_id"], plate_id_full=row["plate_id_full"])
            assert problems_of(one) == []


def test_the_sops_own_plate_list_is_read():
    text = (FIXTURES / "bbbc022_plates.csv").read_text()
    plates = plates_from_csv(("\ufeff" + text).encode(), project=PROJECT, batch=BATCH)
    assert len(plates) == 20 and not any(one.tag_by_full for one in plates)


def test_two_measurements_of_one_plate_get_names_of_their_own():
    one, two, other = disambiguate([plate("P1", "P1__m1"), plate("P1", "P1__m2"), plate("P10", "P10__m1")])
    assert tag_of(BROAD2018, one) != tag_of(BROAD2018, two)
    assert tag_of(BROAD2018, other) == f"{PROJECT}_{BATCH}_P10"


@pytest.mark.parametrize("row", [",", "20586,", ",20586", " ,x", "a/b,a/b", "..,..", "x\t,x"])
def test_an_empty_or_unfit_id_is_refused(row: str):
    with pytest.raises(RequestError):
        plates_from_csv(f"plate_id,plate_id_full\n{row}\n".encode(), project=PROJECT, batch=BATCH)


@pytest.mark.parametrize("text", ["", "20586,20586\n", "plate_id,plate_id_full\n", "plate_id,plate_id_full\na,b,c\n"])
def test_a_csv_without_header_or_rows_or_with_a_stray_comma_is_refused(text: str):
    with pytest.raises(RequestError):
        plates_from_csv(text.encode(), project=PROJECT, batch=BATCH)


def test_the_same_plate_twice_is_refused():
    with pytest.raises(RequestError, match="twice"):
        disambiguate([plate(), plate()])


@pytest.mark.parametrize(
    ("prefixes", "why"),
    [
        ({"images": "x/{plat}/"}, "uses"),
        ({"images": "x/{batch}/"}, "names no plate"),
        ({"images": "x/{plate_id}/", "illum": "x/{plate_id}/illum/"}, "contains another"),
    ],
)
def test_own_templates_that_would_take_in_too_much_are_refused(prefixes: dict[str, str], why: str):
    with pytest.raises(RequestError, match=why):
        own_layout(prefixes, archive_prefix="a/", backup_prefix="b/")


def test_own_templates_become_a_layout():
    layout = own_layout(
        {"images": "i/{plate_id_full}", "backend": "db/{plate_id}/"}, archive_prefix="a/", backup_prefix="b/"
    )
    assert [tarball.name for tarball in layout.tarballs] == ["images", "backend"]
    assert layout.parts[0].prefix == "i/{plate_id_full}/"


def test_the_trimmed_listing_is_byte_for_byte_the_scripts():
    assert listings.trimmed_s3(fixture("file_listing_untrimmed_s3.txt")) == fixture("file_listing_s3.txt")


def test_the_untrimmed_listing_has_the_scripts_columns():
    made = listings.untrimmed_s3(fixture_objects())
    assert [line[19:] for line in made.splitlines()] == [
        line[19:] for line in fixture("file_listing_untrimmed_s3.txt").splitlines()
    ]


def test_the_tar_listing_is_byte_for_byte_the_scripts():
    members = [(f"{TAG}/{one.key.removeprefix('projects/')}", one.size) for one in fixture_objects()]
    assert listings.trimmed_tar([(f"{TAG}/x/", 0), *members], TAG) == fixture("file_listing_tar.txt")


def test_md5_and_etag_files_have_the_scripts_format():
    value = fixture("backend.etag").strip()
    assert listings.etag_line(value).decode() == fixture("backend.etag")
    assert listings.md5_line(value, f"{TAG}_backend.tar.gz").decode() == fixture("backend.md5")


def test_a_name_with_a_space_is_cut_as_the_script_cuts_it():
    raw = "2026-11-21 01:00:32        309 projects/P/B/images/BR__x-Measurement 1/Images/a.tiff\n"
    assert listings.trimmed_s3(raw) == "P/B/images/BR__x-Measurement\t309\n"


def test_folder_markers_are_left_out_as_the_script_leaves_them():
    assert listings.trimmed_s3("2026-11-21 01:00:32          0 projects/P/B/images/X/\n") == ""


def test_the_tar_listing_quotes_as_gnu_tar_does(tmp_path: Path):
    names = ["T/plain", "T/back\\slash", "T/new\nline", "T/tab\tx", "T/é", "T/\x01"]
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name in names:
            tar.addfile(tarfile.TarInfo(name))
    printed = subprocess.run(["tar", "-tf", path], env={"LC_ALL": "C.UTF-8"}, capture_output=True, check=True).stdout
    assert [listings._tar_quoted(name) for name in names] == printed.decode().splitlines()


def test_the_delete_script_names_objects_and_conditions_never_prefixes():
    script = listings.delete_script("b", [("p/a b.tiff", None, "e1"), ("p/it's\nodd", "v2", "e2")]).decode()
    lines = script.splitlines()
    assert "--recursive" not in script and len(lines) == 3
    assert lines[1] == "aws s3api delete-object --bucket b --key 'p/a b.tiff' --if-match e1"
    run = subprocess.run(["bash", "-c", lines[2].replace("aws", "printf '<%s>'", 1)], capture_output=True, check=True)
    assert b"<p/it's\nodd><--version-id><v2>" in run.stdout
