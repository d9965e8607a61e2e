"""What a caller may ask of jgi_staging, and the file of biosamples."""

from __future__ import annotations

from typing import Any

import pytest

from include.core.errors import RequestError
from include.core.request import load
from include.jgi.models import REMOVE_FILES
from include.jgi.request import StagingRequest, read_biosamples


@pytest.mark.parametrize("conf", [None, {}, {"project": "", "proposal_id": None, "biosamples_uri": ""}])
def test_a_run_of_the_schedule_asks_for_nothing(conf: Any) -> None:
    asked = load(StagingRequest, conf)
    assert (asked.project, asked.proposal_id, asked.wait_hours, asked.dry_run) == ("", None, 20.0, False)
    assert tuple(asked.remove_files) == REMOVE_FILES


GOOD = {"project": "grow_project", "proposal_id": 503568, "biosamples_uri": "s3://inputs/grow.csv"}


@pytest.mark.parametrize(
    ("conf", "said"),
    [
        ({"projekt": "x"}, "projekt: this field is not known"),
        ({"project": "../x"}, "project: "),
        ({"project": "a b"}, "project: "),
        ({**GOOD, "proposal_id": 0}, "proposal_id: "),
        ({**GOOD, "proposal_id": -3}, "proposal_id: "),
        ({**GOOD, "proposal_id": 1.5}, "proposal_id: "),
        ({**GOOD, "proposal_id": "503568"}, "proposal_id: "),
        ({**GOOD, "proposal_id": True}, "proposal_id: "),
        ({"proposal_id": 1}, "project: it is empty, and proposal_id belong"),
        ({"project": "x", "biosamples_uri": "s3://inputs/a.csv"}, "proposal_id: it is missing"),
        ({**GOOD, "biosamples_uri": "https://me:pw@host/a.csv"}, "biosamples_uri: it holds a user"),
        ({**GOOD, "biosamples_uri": "s3://inputs/a.csv?token=1"}, "biosamples_uri: it holds a user"),
        ({**GOOD, "nmdc_study_id": "sty-1"}, "nmdc_study_id: "),
        ({**GOOD, "priority": 0}, "priority: "),
        ({**GOOD, "priority": float("inf")}, "priority: "),
        ({**GOOD, "wait_hours": 0}, "wait_hours: "),
        ({**GOOD, "remove_files": "x"}, "remove_files: "),
        ({**GOOD, "remove_files": ["domtblout", 5]}, "remove_files.1: "),
        ({**GOOD, "dry_run": "yes"}, "dry_run: "),
    ],
)
def test_a_wrong_conf_is_refused_by_field_and_value(conf: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError) as caught:
        load(StagingRequest, conf)
    assert any(problem.startswith(said) for problem in caught.value.problems), caught.value.problems


def test_all_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(RequestError) as caught:
        load(StagingRequest, {"projekt": "x", "proposal_id": 0, "wait_hours": -1})
    assert len(caught.value.problems) >= 3


@pytest.mark.parametrize(
    "text",
    [
        "biosample_id\nGb1\nGb2\n",
        "\ufeffbiosample_id\r\nGb1\r\nGb2\r\n",
        "name;Biosample_ID\nx;Gb1\ny; Gb2 \n\nz;Gb1\n",
        'name\tbiosampleGoldId\n"a\tb"\tGb1\nc\tGb2\n',
        "gold_biosample_id,other\nGb1\nGb2,x\n",
    ],
)
def test_biosamples_are_read_as_people_save_them(text: str) -> None:
    assert read_biosamples(text.encode()) == ["Gb1", "Gb2"]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "line 1 names nothing, and no column biosample_id"),
        (b"sample\nGb1\n", "line 1 names .*sample.*, and no column biosample_id"),
        (b"biosample_id\n", "names no biosample"),
        (b"biosample_id\nGb1\nGb\n", "line 3, column biosample_id: .*Gb.* is no biosample"),
        (b"biosample_id\nGb12x\n", "line 2, column biosample_id"),
        (b"x,biosample_id\n1\n", "line 2, column biosample_id"),
        ("biosample_id\nGb\u0661\n".encode(), "line 2, column biosample_id"),
        (b"biosample_id\n../Gb1\n", "line 2, column biosample_id"),
        (b"biosample_id\n\xff\n", "not text in UTF-8"),
        (b'biosample_id\n"' + b"x" * 200_000 + b'"\n', "cannot be read as CSV"),
    ],
)
def test_a_file_that_is_wrong_is_refused_with_line_column_value_and_remedy(data: bytes, said: str) -> None:
    with pytest.raises(RequestError, match=f"biosamples_uri: .*{said}"):
        read_biosamples(data)


def test_every_wrong_line_is_told() -> None:
    with pytest.raises(RequestError) as caught:
        read_biosamples(b"biosample_id\nx\nGb1\ny\n")
    assert len(caught.value.problems) == 2
