"""What a caller may ask of plate_drill: the form, the check, and the documentation.

Invariant: every field has a default, since the runs of a schedule ask for nothing; and only what lies under a prefix of
connection waybill_archives is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pydantic

from include.core.errors import RequestError
from include.core.request import Request, in_section
from include.core.text import bare_uri, is_bare_uri

COLD = in_section("Cold storage")
MOST_PLATES = 100  # what a run hands from task to task fits XCom up to here


class DrillRequest(Request):
    """Conf of plate_drill. Without any field it reads a few plates of all configured prefixes."""

    dry_run: bool = pydantic.Field(
        False,
        title="Dry run",
        description="Stop after the plan: it lists which plates would be read and what reading them costs, and reads none.",
    )
    plates: int = pydantic.Field(
        3,
        ge=1,
        le=MOST_PLATES,
        title="Plates to look at",
        description="How many plates are drawn from all that lie there.",
    )
    max_gib: float = pydantic.Field(
        1000,
        gt=0,
        le=1_000_000,
        title="Most to read (GiB)",
        description="A plate that would read more than what is left of this is named in the receipt and not read.",
    )
    seed: str = pydantic.Field(
        "",
        title="Seed of the draw",
        description="The same seed draws the same plates again; the receipt says which one was used. Empty: the id of the run.",
        examples=["2026-11"],
    )
    prefixes: list[str] = pydantic.Field(
        default=[],
        title="Only under these prefixes",
        description="Prefixes of tarballs, each below one of connection `waybill_archives`. Empty: all of that connection.",
        examples=[["s3://imaging-platform-cold/imaging_analysis/2013_Gustafsdottir_PLOSONE/"]],
    )
    report_uri: str = pydantic.Field(
        "",
        title="Report of a Compute checksum job",
        description="Where the `manifest.json` of a completion report of S3 Batch Operations lies, below a prefix in `reports` "
        "of connection `waybill_archives`. What lies in cold storage is compared with it.",
        examples=["s3://our-reports/checksums/job-0123/manifest.json"],
        json_schema_extra=COLD,
    )

    @classmethod
    def cross_field_errors(cls, conf: Mapping[str, Any]) -> list[str]:
        faults = []
        given = conf.get("prefixes")
        for uri in given if isinstance(given, list) else []:
            if isinstance(uri, str) and not (uri.startswith("s3://") and is_bare_uri(uri)):
                faults.append(f"prefixes: {bare_uri(uri)} is refused; give s3://bucket/prefix")
        report = conf.get("report_uri")
        if (
            isinstance(report, str)
            and report
            and not (report.startswith("s3://") and report.endswith("/manifest.json"))
        ):
            faults.append(f"report_uri: {bare_uri(report)} is refused; give s3://bucket/…/manifest.json")
        return faults

    def checked(self, archives: Sequence[str], reports: Sequence[str]) -> list[str]:
        """The prefixes to look at, of those configured. Raises RequestError with every fault."""
        problems = [
            f"prefixes: {bare_uri(uri)} does not lie under a prefix of connection waybill_archives ({', '.join(archives)})"
            for uri in self.prefixes
            if not any(uri.startswith(allowed) for allowed in archives)
        ]
        if self.report_uri and not any(self.report_uri.startswith(allowed) for allowed in reports):
            allowed = ", ".join(reports) or "none is configured: add the extra reports"
            problems.append(
                f"report_uri: {bare_uri(self.report_uri)} does not lie under reports of connection waybill_archives ({allowed})"
            )
        if problems:
            raise RequestError(problems)
        return list(self.prefixes or archives)
