"""The first task: every fault at once, before anything remote, and a ledger that can be trusted or none."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pydantic
import pytest
from operators.common.load_request import LoadRequestOperator
from operators.icav2.plan import read_and_flip

from include.core.errors import LedgerError, RequestError
from include.core.ledger import Ledger
from include.core.request import XCOM_LIMIT_BYTES, Request, param_schemas
from include.icav2.models import CopyRequest
from tests.plugins.conftest import SOURCE, TARGET, Connect
from tests.plugins.doubles import Run

GOOD = {f"icav2://{SOURCE}/run/a.fastq.gz": [f"icav2://{TARGET}/cache/"]}

pytestmark = pytest.mark.usefixtures("receipts_folder")


@pytest.fixture
def load() -> LoadRequestOperator:
    return LoadRequestOperator(task_id="load_request", model=CopyRequest, check=read_and_flip)


def test_every_fault_of_the_conf_is_told_at_once_in_the_log_and_in_xcom(
    load: LoadRequestOperator, ledger: Ledger, capfd: pytest.CaptureFixture[str]
):
    run = Run({"manifest": GOOD, "typo": 1, "max_in_flight": "many", "poll_seconds": 0, "verify": "never"})
    with pytest.raises(RequestError, match="4 problems"):
        run.execute(load)
    problems = run.xcoms["load_request", "request_errors"]
    assert [problem.split(":")[0] for problem in sorted(problems)] == [
        "max_in_flight",
        "poll_seconds",
        "typo",
        "verify",
    ]
    log = capfd.readouterr().out
    for problem in problems:
        assert f"refused: {problem}" in log
    assert ("load_request", "return_value") not in run.xcoms


def test_every_fault_of_the_manifest_is_told_at_once(load: LoadRequestOperator, ledger: Ledger):
    manifest = {
        "s3://bucket/a": [f"icav2://{TARGET}/cache/"],
        f"icav2://{SOURCE}/run/b": ["icav2://my project/cache/"],
        f"icav2://{SOURCE}/run/c": [f"icav2://{TARGET}/one/", f"icav2://{TARGET}/one"],
    }
    run = Run({"manifest": manifest})
    with pytest.raises(RequestError):
        run.execute(load)
    told = "\n".join(run.xcoms["load_request", "request_errors"])
    for fault in ("s3://bucket/a", "my project", f"icav2://{TARGET}/one"):
        assert fault in told


def test_a_faulty_field_does_not_hide_what_is_wrong_with_the_manifest(load: LoadRequestOperator, ledger: Ledger):
    run = Run({"manifest": {"s3://bucket/a": [f"icav2://{TARGET}/cache/"]}, "typo": 1, "max_in_flight": 0})
    with pytest.raises(RequestError, match="3 problems"):
        run.execute(load)
    told = "\n".join(run.xcoms["load_request", "request_errors"])
    for fault in ("typo", "max_in_flight", "s3://bucket/a"):
        assert fault in told


def test_an_unknown_field_does_not_hide_that_there_are_two_manifests(load: LoadRequestOperator, ledger: Ledger):
    run = Run({"manifest": GOOD, "manifest_b64gz": "AAAA", "typo": 1})
    with pytest.raises(RequestError, match="3 problems"):
        run.execute(load)
    told = "\n".join(run.xcoms["load_request", "request_errors"])
    for fault in ("typo", "given: manifest, manifest_b64gz", "manifest_b64gz cannot be decoded"):
        assert fault in told


def test_a_manifest_of_the_wrong_type_is_not_called_missing(load: LoadRequestOperator, ledger: Ledger):
    run = Run({"manifest": ["a"], "typo": 1})
    with pytest.raises(RequestError):
        run.execute(load)
    assert "none" not in str(run.xcoms["load_request", "request_errors"])


def test_thousands_of_faults_fit_into_xcom_and_the_last_line_counts_the_rest(load: LoadRequestOperator, ledger: Ledger):
    run = Run({"manifest": {f"s3://bucket/{n}/{'x' * 500}": [f"icav2://{TARGET}/cache/"] for n in range(2000)}})
    with pytest.raises(RequestError, match="2000 problems"):
        run.execute(load)
    told = run.xcoms["load_request", "request_errors"]
    assert len(json.dumps(told)) <= XCOM_LIMIT_BYTES
    assert told[-1] == f"and {2000 - len(told) + 1} more: see the log"


@pytest.mark.parametrize("given", [{}, {"manifest": GOOD, "manifest_b64gz": "AAAA"}])
def test_not_exactly_one_manifest_is_refused(load: LoadRequestOperator, ledger: Ledger, given: dict[str, Any]):
    run = Run(given)
    with pytest.raises(RequestError):
        run.execute(load)
    assert "exactly one of manifest, manifest_b64gz and manifest_uri" in run.xcoms["load_request", "request_errors"][0]


def test_a_good_request_comes_back_with_its_defaults_and_without_the_manifest(
    load: LoadRequestOperator, ledger: Ledger
):
    run = Run({"manifest": GOOD, "max_resubmissions": 2})
    request = run.execute(load)
    assert request["max_resubmissions"] == 2
    assert request["max_in_flight"] == 200
    assert "manifest" not in request, "a manifest may hold thousands of files: it does not travel in XCom"
    assert len(json.dumps(request)) < 1000


def test_a_missing_ledger_is_refused_with_the_command_that_creates_it(
    load: LoadRequestOperator, connect: Connect, receipts_folder: Path, tmp_path: Path
):
    connect("waybill_ledger", f"sqlite:///{tmp_path / 'nowhere.db'}")
    with pytest.raises(LedgerError, match=r"python -m include\.core\.ledger init"):
        Run({"manifest": GOOD}).execute(load)
    assert not (tmp_path / "nowhere.db").exists(), "a task never creates a ledger"


class Nightly(Request):
    """What a DAG with a schedule asks for: its runs have no conf."""

    count: int = pydantic.Field(3, description="How many.")


def test_an_empty_conf_takes_the_defaults_where_every_field_has_one(ledger: Ledger):
    assert Run().execute(LoadRequestOperator(task_id="load_request", model=Nightly)) == {"count": 3}


def test_what_the_form_sends_for_fields_that_were_left_empty_is_taken(load: LoadRequestOperator, ledger: Ledger):
    form = {name: schema["default"] for name, schema in param_schemas(CopyRequest).items()}
    assert Run(form | {"manifest": GOOD}).execute(load)["manifest_uri"] is None


@pytest.mark.parametrize(
    ("prefix", "why"),
    [
        ("file:///proc/waybill", "No such file or directory"),
        ("file:///proc/self", "cannot be written"),
        ("file:///etc/hostname/receipts", "Not a directory"),
    ],
)
def test_receipts_that_cannot_be_written_are_refused_with_connection_and_path(
    load: LoadRequestOperator, ledger: Ledger, connect: Connect, prefix: str, why: str
):
    connect("waybill_receipts", json.dumps({"conn_type": "generic", "extra": {"prefix": prefix}}))
    run = Run({"manifest": GOOD})
    with pytest.raises(RequestError):  # permanent: waiting does not mend it
        run.execute(load)
    (told,) = run.xcoms["load_request", "request_errors"]
    assert told.startswith(f"connection waybill_receipts: {prefix}/")
    assert why in told


def test_receipts_without_a_connection_are_refused_and_not_retried(
    load: LoadRequestOperator, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("AIRFLOW_CONN_WAYBILL_RECEIPTS")
    run = Run({"manifest": GOOD})
    with pytest.raises(RequestError):
        run.execute(load)
    assert "connection waybill_receipts does not exist: create it" in run.xcoms["load_request", "request_errors"][0]


def test_a_ledger_newer_than_the_code_is_refused(load: LoadRequestOperator, ledger: Ledger, tmp_path: Path):
    with sqlite3.connect(tmp_path / "ledger.db") as database:
        database.execute("UPDATE waybill_ledger SET schema_version = schema_version + 1")
    database.close()
    with pytest.raises(LedgerError, match="newer than"):
        Run({"manifest": GOOD}).execute(load)


@pytest.mark.parametrize(
    ("executor", "refused"),
    [
        ("CeleryExecutor", True),
        ("LocalExecutor,CeleryExecutor", True),
        ("airflow.providers.cncf.kubernetes.executors.kubernetes_executor.KubernetesExecutor", True),
        ("LocalExecutor", False),
        ("airflow.executors.local_executor.LocalExecutor", False),
    ],
)
def test_sqlite_is_refused_with_executors_of_more_than_one_host(
    load: LoadRequestOperator, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, executor: str, refused: bool
):
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", executor)
    run = Run({"manifest": GOOD})
    if refused:
        with pytest.raises(LedgerError, match="SQLite serves one host"):
            run.execute(load)
    else:
        assert run.execute(load)["max_in_flight"] == 200


def test_a_manifest_by_uri_is_read_only_under_the_prefixes_of_the_inputs(
    load: LoadRequestOperator, ledger: Ledger, inputs_folder: Path, tmp_path: Path
):
    (inputs_folder / "m.json").write_text(json.dumps(GOOD))
    assert Run({"manifest_uri": f"{inputs_folder.as_uri()}/m.json"}).execute(load)["manifest_uri"].endswith("m.json")

    secret = tmp_path / "secret.json"
    secret.write_text('{"private": "hush"}')
    climbing = f"{inputs_folder.as_uri()}/../secret.json"
    for uri in (
        secret.as_uri(),
        climbing,
        f"{inputs_folder.as_uri()}/absent.json",
        f"{inputs_folder.as_uri()}/m.json?x=1",
    ):
        run = Run({"manifest_uri": uri})
        with pytest.raises(RequestError):
            run.execute(load)
        assert run.xcoms["load_request", "request_errors"], uri
        assert "hush" not in str(run.xcoms)


def test_a_manifest_by_uri_that_is_no_manifest_is_refused_without_quoting_it(
    load: LoadRequestOperator, ledger: Ledger, inputs_folder: Path
):
    (inputs_folder / "m.json").write_text("root:x:0:0:hush")
    run = Run({"manifest_uri": f"{inputs_folder.as_uri()}/m.json"})
    with pytest.raises(RequestError):
        run.execute(load)
    assert "hush" not in str(run.xcoms)


def test_without_configured_inputs_no_uri_is_read(load: LoadRequestOperator, ledger: Ledger, tmp_path: Path):
    (tmp_path / "m.json").write_text(json.dumps(GOOD))
    run = Run({"manifest_uri": (tmp_path / "m.json").as_uri()})
    with pytest.raises(RequestError):
        run.execute(load)
    assert "waybill_inputs" in run.xcoms["load_request", "request_errors"][0]
