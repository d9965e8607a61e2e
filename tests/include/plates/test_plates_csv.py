"""plates.csv as spreadsheets save it: read, with the reading told, or refused with line, column and remedy."""

from __future__ import annotations

import codecs

import pytest

from include.core.errors import RequestError
from include.plates.layout import plates_from_csv
from include.plates.plates_csv import read_plates_csv

ROWS = (("20585", "20585"), ("BR00092655", "BR00092655__2017-12-10T12_48_16-Measurement 1"), ("Größe", "Größe"))
PLAIN = "plate_id,plate_id_full\n" + "".join(f"{short},{full}\n" for short, full in ROWS)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(
    ("mark", "codec"),
    [
        (b"", "utf-8"),
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (b"", "utf-16-le"),
        (b"", "utf-16-be"),
    ],
)
def test_every_way_of_saving_gives_the_same_plates(separator: str, ending: str, mark: bytes, codec: str):
    text = PLAIN.replace(",", separator).replace("\n", ending)
    found = read_plates_csv(mark + text.encode(codec))
    assert found.rows == ROWS
    assert bool(found.told) == (separator != "," or bool(mark) or codec != "utf-8")


def test_the_reading_is_told():
    document = codecs.BOM_UTF16_LE + ("sep=;\n" + PLAIN.replace(",", ";")).encode("utf-16-le")
    assert (
        read_plates_csv(document).told == "plates.csv was read as UTF-16 with semicolons between the columns: 3 plates"
    )


@pytest.mark.parametrize(
    ("document", "said"),
    [
        (PLAIN.encode("latin-1"), "line 4, column 3: what stands here is not UTF-8; save it as CSV in UTF-8"),
        ((PLAIN + "a\0b,c\n").encode(), "line 5, column 2: a control character (U+0000)"),
        (codecs.BOM_UTF32_LE + PLAIN.encode("utf-32-le"), "line 1, column 1: it is in UTF-32"),
        (codecs.BOM_UTF16_LE + PLAIN.encode("utf-16-le")[:-1], "is not UTF-16"),
        ((PLAIN + "1,2,3\n4\n").encode(), "line 5, column 3: two columns are expected and 3 found"),
        (b"20585,20585\n", "line 1, column 1: it begins with '20585,20585' and not with the header"),
        (b"", "line 1, column 1"),
        (b"20585,20585\n", "write this line above the plates"),
        (b"Plate_ID, plate_id_full\na,b\n", "write it in place of this line, for the one that is there"),
        (b"plate_id,plate_id_full,well\na,b,c\n", "in place of this line, and leave these two columns only"),
        (b"plate_id,plate_id_full\n\n", "mine.csv holds no plate: write a line for each below the header"),
    ],
)
def test_what_cannot_be_read_is_refused_with_line_column_and_remedy(document: bytes, said: str):
    with pytest.raises(RequestError) as refused:
        read_plates_csv(document, "mine.csv")
    assert said in str(refused.value) and str(refused.value).startswith("mine.csv ")


def test_a_plate_that_is_given_twice_is_named_with_its_lines():
    document = (PLAIN + "\n20585,20585\n").encode()
    with pytest.raises(RequestError, match=r"plate 20585 \(20585\) is given twice: p.csv line 2, p.csv line 6"):
        plates_from_csv(document, project="P", batch="B", name="p.csv")


def test_every_bad_row_is_named():
    with pytest.raises(RequestError) as refused:
        read_plates_csv((PLAIN + "1,2,3\n4\n").encode())
    assert len(refused.value.problems) == 2 and "line 6, column 2" in refused.value.problems[1]
