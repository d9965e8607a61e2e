"""What a caller may ask of jgi_staging: the form, the check, and the documentation.

Invariant: every field has a default, since the runs of a schedule ask for nothing; nothing remote is asked before the whole
conf is found right.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from typing import Any

import pydantic

from include.core.errors import RequestError
from include.core.request import Request, in_section
from include.core.text import is_bare_uri, printable
from include.jgi.models import REMOVE_FILES

DETAILS = in_section("Details")
BIOSAMPLE = re.compile(r"Gb[0-9]+")
COLUMNS = ("biosample_id", "biosamplegoldid", "gold_biosample_id", "biosample gold id")
CSV_LIMIT_BYTES = 10 << 20


class StagingRequest(Request):
    """Conf of jgi_staging. Without any field the run goes on with all projects that are known."""

    dry_run: bool = pydantic.Field(
        False,
        title="Dry run",
        description="Stop after the plan: the receipt says what would be asked for and when, and nothing is asked for.",
    )
    project: str = pydantic.Field(
        "",
        max_length=100,
        pattern=r"^([A-Za-z0-9][A-Za-z0-9_.-]*)?$",
        title="Project",
        description="The project to work on; a new name makes a new project. Empty: all projects that are known.",
        examples=["grow_project"],
    )
    proposal_id: int | None = pydantic.Field(
        None,
        gt=0,
        title="JGI proposal",
        description="The number of the proposal in GOLD. Needed once, for a new project.",
        examples=[503125],
    )
    biosamples_uri: str = pydantic.Field(
        "",
        title="File with biosamples",
        description="A CSV with the column biosample_id, in a place that connection `waybill_inputs` allows. Empty: all "
        "biosamples of the proposal.",
        examples=["s3://our-inputs/grow_biosamples.csv"],
    )
    nmdc_study_id: str = pydantic.Field(
        "",
        pattern=r"^(nmdc:[A-Za-z0-9-]+)?$",
        title="NMDC study",
        description="Kept with the project.",
        examples=["nmdc:sty-11-aygzgv51"],
        json_schema_extra=DETAILS,
    )
    priority: float = pydantic.Field(
        1.0,
        gt=0,
        le=1000,
        title="Priority",
        description="Files of a project with priority 2 wait half as long for their turn.",
        json_schema_extra=DETAILS,
    )
    remove_files: list[str] = pydantic.Field(
        default=list(REMOVE_FILES),
        title="Leave out file names with",
        description="Files whose name contains one of these are not staged.",
        examples=[list(REMOVE_FILES)],
        json_schema_extra=DETAILS,
    )
    wait_hours: float = pydantic.Field(
        20.0,
        gt=0,
        le=24 * 30,
        title="Wait for tapes (hours)",
        description="How long this run waits for what it asked for. What is not there by then is the next run's.",
        json_schema_extra=DETAILS,
    )

    @classmethod
    def cross_field_errors(cls, conf: Mapping[str, Any]) -> list[str]:
        faults = []
        needs = [name for name in ("proposal_id", "biosamples_uri", "nmdc_study_id") if conf.get(name)]
        if needs and not conf.get("project"):
            faults.append(f"project: it is empty, and {' and '.join(needs)} belong to one project; give its name")
        uri = conf.get("biosamples_uri")
        if isinstance(uri, str) and uri and not is_bare_uri(uri):
            faults.append("biosamples_uri: it holds a user, a query or a fragment; give the plain place of a file")
        if uri and not conf.get("proposal_id"):
            faults.append("proposal_id: it is missing; give the number of the proposal that the biosamples belong to")
        return faults


def read_biosamples(data: bytes) -> list[str]:
    """The biosample ids of a CSV, each once, in its order. Raises RequestError with every fault: line, column, value, remedy."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise RequestError("biosamples_uri: the file is not text in UTF-8; save it as CSV in UTF-8") from None
    separator = ";" if ";" in text.partition("\n")[0] else "\t" if "\t" in text.partition("\n")[0] else ","
    try:
        return _biosamples(csv.reader(io.StringIO(text, newline=""), delimiter=separator))
    except csv.Error as error:
        raise RequestError(f"biosamples_uri: the file cannot be read as CSV ({error}); save it as CSV again") from None


def _biosamples(reader: Any) -> list[str]:
    header = [name.strip() for name in next(reader, [])]
    column = next((at for at, name in enumerate(header) if name.lower() in COLUMNS), None)
    if column is None:
        named = printable(", ".join(header), 200) if header else "nothing"
        raise RequestError(
            f"biosamples_uri: line 1 names {named}, and no column biosample_id; give that column its name"
        )
    found: dict[str, None] = {}
    wrong = []
    for row in reader:
        if not any(cell.strip() for cell in row):
            continue
        value = row[column].strip() if column < len(row) else ""
        if not BIOSAMPLE.fullmatch(value):
            wrong.append(
                f"biosamples_uri: line {reader.line_num}, column {header[column]}: {printable(value, 60)} is no biosample; "
                "write Gb and digits, as Gb0305643"
            )
        found[value] = None
    if wrong:
        raise RequestError(wrong)
    if not found:
        raise RequestError("biosamples_uri: the file names no biosample; write one id per line below biosample_id")
    return list(found)
