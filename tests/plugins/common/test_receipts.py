"""The receipt task, whatever happened before it, and the page on which the portal shows it."""

from __future__ import annotations

import asyncio
import html
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hooks import waybill
from hooks.waybill import receipts
from operators.common import receipt as operators_common
from operators.common.load_request import LoadRequestOperator
from operators.common.receipt import ReceiptLink, receipt_url
from operators.icav2.receipt import ICAv2ReceiptOperator
from portal.app import app, may_read_run

from harness.fixtures import Connect, connections_to
from include.core.errors import (
    AuthError,
    ConflictingRequest,
    Forbidden,
    Held,
    LedgerError,
    NotFound,
    QuotaExceeded,
    RemoteError,
    RequestError,
    Stopped,
    TransientError,
    VerificationError,
    WaybillError,
)
from include.core.ledger import Intent, Ledger, Owner, State, Submission
from include.core.receipt import Receipt
from include.core.receipt import folder as run_folder
from include.core.request import Request
from include.core.steps import StepRecords
from tests.plugins.doubles import DAG_ID, RUN_ID, Run


@pytest.fixture
def receipt(receipts_folder: Path) -> ICAv2ReceiptOperator:
    return ICAv2ReceiptOperator(task_id="receipt")


def records_of_run() -> StepRecords:
    return StepRecords(receipts().objects, f"{run_folder(DAG_ID, RUN_ID)}/steps")


def recorded(step: str, state: str, **facts: Any) -> None:
    """What a step of the run has left behind."""
    asyncio.run(records_of_run().write(step, state, task_id=step, **facts))


PLAN = {"uri": "file:///x", "sha256": "0", "size_bytes": 1}


def document(folder: Path, run_id: str = RUN_ID) -> dict[str, Any]:
    return json.loads((folder / DAG_ID / run_id / "receipt.json").read_text())


def test_it_runs_whatever_happened_before(receipt: ICAv2ReceiptOperator):
    assert receipt.trigger_rule == "all_done"


def test_a_refused_request_gives_an_incomplete_receipt_with_outcome_and_remedy(
    receipt: ICAv2ReceiptOperator, ledger: Ledger, receipts_folder: Path
):
    run = Run({"typo": 1})
    recorded("load_request", "refused", problems=["typo: this field is not known; take it out"])
    with pytest.raises(VerificationError, match="Refused, nothing was copied"):
        run.execute(receipt)
    told = document(receipts_folder)
    assert told["state"] == "incomplete"
    assert "typo" in told["outcome"]
    assert told["remedy"] == "Correct typo, then trigger the DAG with the corrected conf; nothing was started."
    assert told["problems"] == ["typo: this field is not known; take it out"]
    assert run.xcoms["receipt", "outcome"] == f"{told['outcome']} {told['remedy']}"
    number, digest = ledger.head()
    assert told["ledger"] == {"id": ledger.ledger_id, "number": number, "sha256": digest}
    assert told["versions"].keys() == {"waybill", "airflow", "python"}


def test_a_missing_ledger_does_not_keep_it_from_being_written(
    receipt: ICAv2ReceiptOperator, connect: Connect, receipts_folder: Path, tmp_path: Path
):
    connect("waybill_ledger", f"sqlite:///{tmp_path / 'nowhere.db'}")
    with pytest.raises(VerificationError):
        Run().execute(receipt)
    told = document(receipts_folder)
    assert (told["state"], told["ledger"]) == ("incomplete", None)


def test_a_copy_that_left_nothing_behind_is_not_called_complete(
    receipt: ICAv2ReceiptOperator, ledger: Ledger, receipts_folder: Path
):
    recorded("plan", "done", plan=PLAN, counts={"files": 4})
    with pytest.raises(VerificationError, match="did not come to its end"):
        Run().execute(receipt)
    assert document(receipts_folder)["state"] == "incomplete"


def test_a_proof_that_has_gone_is_not_called_complete(
    receipt: ICAv2ReceiptOperator, ledger: Ledger, receipts_folder: Path
):
    gone = {"uri": f"{receipts_folder.as_uri()}/x", "sha256": "0" * 64, "size_bytes": 1}
    totals = {"files": 2, "files proved": 2, "bytes": 6, "proved bytes": 6, "destinations": 1}
    run = Run()
    documents = {"output": gone, "per-file proof": gone}
    recorded("copy", "done", report={"documents": documents, "totals": totals, "missing": [], "missing_count": 0})
    with pytest.raises(VerificationError, match="cannot be read"):
        run.execute(receipt)
    told = document(receipts_folder)
    assert told["state"] == "incomplete"
    assert "Clear the task copy" in told["remedy"]


def test_counts_alone_do_not_make_a_run_complete(receipt: ICAv2ReceiptOperator, ledger: Ledger, receipts_folder: Path):
    proof = {"source_uri": "icav2://s/a", "dest_uri": "icav2://t/", "path": "a", "size_bytes": 3, "by": "size"}
    lines = "".join(json.dumps({**proof, "verdict": verdict}) + "\n" for verdict in ("ok", "missing"))
    store = receipts().objects
    empty = {"job_list_with_attempt_counter": [], "counters": {}}
    documents = {
        "output": asyncio.run(store.put("output.json", json.dumps(empty).encode())).to_dict(),
        "per-file proof": asyncio.run(store.put("proof.jsonl", lines.encode())).to_dict(),
        "not copied": asyncio.run(store.put("not_copied.json", b"[]")).to_dict(),
    }
    totals = {"files": 2, "files proved": 2, "bytes": 6, "proved bytes": 6, "destinations": 1}
    run = Run()
    recorded("copy", "done", report={"documents": documents, "totals": totals, "missing": ["a"], "missing_count": 0})
    with pytest.raises(VerificationError):
        run.execute(receipt)
    assert document(receipts_folder)["state"] == "incomplete"


def test_the_link_leads_to_the_portal_under_the_address_of_the_api(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://airflow.example.org/prefix/")
    key = type("Key", (), {"dag_id": DAG_ID, "run_id": RUN_ID})
    expected = f"https://airflow.example.org/prefix/waybill/receipts/{DAG_ID}/{RUN_ID}"
    assert ReceiptLink().get_link(None, ti_key=key) == receipt_url(DAG_ID, RUN_ID) == expected


# -- the portal --------------------------------------------------------------------------------------------------


@pytest.fixture
def portal(receipts_folder: Path, ledger: Ledger) -> Iterator[TestClient]:
    """The portal as a user sees it who may read the run."""
    (guard,) = may_read_run
    app.dependency_overrides[guard.dependency] = lambda: None
    yield TestClient(app)
    app.dependency_overrides.clear()


def stored(**fields: Any) -> None:
    asyncio.run(
        receipts().write(Receipt(**{"dag_id": DAG_ID, "run_id": RUN_ID, "state": "complete", "outcome": "", **fields}))
    )


def reserved(ledger: Ledger, key: str = "icav2://project/folder/") -> None:
    ledger.open(Intent("icav2", "copy_batch", key, {"a": 1}, Owner(DAG_ID, RUN_ID, "copy")))


def sent(ledger: Ledger) -> Submission:
    """A job of this run that ICA has accepted."""
    intent = Intent("icav2", "copy_batch", "icav2://project/folder/", {"a": 1}, Owner(DAG_ID, RUN_ID, "copy"))
    row = ledger.begin(ledger.open(intent), response_deadline=60)
    assert row is not None
    return ledger.record_sent(row, "job-1", why="answer")


def test_a_finished_receipt_is_shown_as_page_and_as_document(portal: TestClient):
    stored(outcome="All 4 files are at their destinations.")
    page = portal.get(f"/receipts/{DAG_ID}/{RUN_ID}")
    assert page.status_code == 200
    assert "All 4 files are at their destinations." in page.text
    assert page.headers["cache-control"] == "no-store"
    assert portal.get(f"/receipts/{DAG_ID}/{RUN_ID}/receipt.json").json()["state"] == "complete"


def test_while_the_run_goes_on_it_shows_the_ledger_as_it_is_now(portal: TestClient, ledger: Ledger):
    reserved(ledger)
    shown = portal.get(f"/receipts/{DAG_ID}/{RUN_ID}/receipt.json").json()
    assert shown["state"] == "running"
    assert shown["items"] == [{"effect": "icav2://project/folder/", "state": "reserved", "generation": 1, "job": None}]
    stored(state="running", outcome="Copying goes on.")
    shown = portal.get(f"/receipts/{DAG_ID}/{RUN_ID}/receipt.json").json()
    assert (shown["outcome"], len(shown["items"])) == ("Copying goes on.", 1)


def test_what_a_caller_wrote_is_shown_as_text(portal: TestClient, ledger: Ledger):
    reserved(ledger, "icav2://project/<script>alert(1)</script>/")
    stored(state="running", outcome="<img src=x onerror=alert(1)>")
    page = portal.get(f"/receipts/{DAG_ID}/{RUN_ID}").text
    assert "<script>alert" not in page
    assert "<img src=x" not in page


@pytest.mark.parametrize(
    "path", [f"{DAG_ID}/nobody", "%2e%2e/x", f"{DAG_ID}/%2e%2e", f"{DAG_ID}/%2e%2e%2f%2e%2e%2fetc"]
)
def test_a_run_that_nobody_knows_is_not_found_and_no_path_leads_out(portal: TestClient, path: str):
    stored()
    assert portal.get(f"/receipts/{path}/receipt.json").status_code == 404


def test_a_ledger_that_cannot_be_read_is_said_and_not_hidden(portal: TestClient, connect: Connect, tmp_path: Path):
    connect("waybill_ledger", f"sqlite:///{tmp_path / 'nowhere.db'}")
    answer = portal.get(f"/receipts/{DAG_ID}/{RUN_ID}")
    assert answer.status_code == 503
    assert "include.core.ledger init" in answer.text


def test_every_route_depends_on_a_permission_and_only_reads():
    routes = [route for route in app.routes if hasattr(route, "dependant")]
    assert len(routes) == len(app.routes) == 3
    for route in routes:
        assert route.dependencies == may_read_run, f"{route.path} would be public"
        assert route.methods == {"GET"}
        assert not inspect.iscoroutinefunction(route.endpoint), f"{route.path} would run in the event loop of all pages"


def test_a_page_is_made_in_a_thread_and_leaves_no_connection_open(
    portal: TestClient, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
):
    reserved(ledger)
    ledger.close()
    url_of = waybill.url_of

    def opened(connection: Any) -> Any:
        with pytest.raises(RuntimeError, match="no running event loop"):
            asyncio.get_running_loop()
        return url_of(connection)

    monkeypatch.setattr(waybill, "url_of", opened)
    for path in ("", "/receipt.json"):
        assert portal.get(f"/receipts/{DAG_ID}/{RUN_ID}{path}").status_code == 200
    assert connections_to(ledger) == 0


def test_open_rows_are_told_in_the_receipt(receipt: ICAv2ReceiptOperator, ledger: Ledger, receipts_folder: Path):
    reserved(ledger)
    row = ledger.begin(ledger.in_states(State.RESERVED)[0], response_deadline=60)
    assert row is not None
    ledger.move(row, State.IN_DOUBT, why="no answer")
    with pytest.raises(VerificationError):
        Run().execute(receipt)
    assert "icav2://project/folder/" in document(receipts_folder)["held"][0]


# -- step records ------------------------------------------------------------------------------------------------


def test_a_refusal_by_the_plan_and_the_reason_of_a_failed_copy_are_in_the_receipt(
    receipt: ICAv2ReceiptOperator, ledger: Ledger, receipts_folder: Path
):
    recorded("plan", "refused", problems=["icav2://x: this source does not exist"])
    with pytest.raises(VerificationError, match="Refused, nothing was copied: icav2://x"):
        Run().execute(receipt)
    recorded("plan", "done", plan=PLAN, counts={"files": 4})
    recorded("copy", "failed", why="ICA is closed")
    with pytest.raises(VerificationError, match="Task copy: ICA is closed"):
        Run().execute(receipt)
    assert document(receipts_folder)["asked"] == {"files": 4}


def test_a_step_that_begins_again_takes_away_what_the_steps_after_it_left(ledger: Ledger, receipts_folder: Path):
    records = StepRecords(receipts().objects, "x/steps", ("load_request", "plan", "copy"))
    asyncio.run(records.write("copy", "done", report={"missing_count": 0}))
    asyncio.run(records.begin("plan"))
    assert asyncio.run(records.read_all(("load_request", "plan", "copy"))) == {
        "load_request": {}, "plan": {"state": "running"}, "copy": {},
    }  # fmt: skip


def test_no_decision_and_no_receipt_reads_what_another_task_has_put_into_airflows_database():
    operators = Path(operators_common.__file__).parents[1]
    readers = [path for path in operators.rglob("*.py") if "xcom_pull" in path.read_text()]
    assert readers == []


# -- remedies by cause, and the page that says them ----------------------------------------------------------------


def page_of(folder: Path) -> str:
    return html.unescape((folder / DAG_ID / RUN_ID / "receipt.html").read_text())


FAILURES: list[tuple[WaybillError, str]] = [
    (AuthError("GET /jobs answered 401"), "Renew the credential of connection waybill_icav2, then clear task copy."),
    (
        Forbidden("403"),
        "Give the user of connection waybill_icav2 the right that the error names, then clear task copy.",
    ),
    (
        TransientError("busy", retry_after=600),
        "This may pass by itself, and was tried several times: clear task copy once",
    ),
    (Held("submission 7 is held"), "resolve ID --as sent --external-id JOB|--as reserved|--as cancelled"),
    (LedgerError("the chain is broken"), "See that connection waybill_ledger opens"),
    (RemoteError("ICA refuses the batch"), "deal with the reason that it gives, then clear task copy."),
    (ConflictingRequest("another payload"), "find out whose it is"),
    (NotFound("no such project"), "else put back what is named, then clear task copy"),
    (Stopped("amy stopped it"), "Mend what the question names, then clear task copy"),
    (QuotaExceeded("full", available_at=0.0), "Clear task copy"),
]


@pytest.mark.parametrize(("error", "remedy"), FAILURES, ids=lambda one: type(one).__name__)
def test_each_failure_of_a_step_is_on_the_page_with_its_reason_and_its_own_remedy(
    receipt: ICAv2ReceiptOperator, ledger: Ledger, receipts_folder: Path, error: WaybillError, remedy: str
):
    recorded("plan", "done", plan=PLAN, counts={"files": 4})
    recorded("copy", "running")
    asyncio.run(records_of_run().end("copy", error, task_id="copy", connections=["waybill_icav2"]))
    with pytest.raises(VerificationError):
        Run().execute(receipt)
    told = document(receipts_folder)
    assert remedy in told["remedy"]
    assert told["problems"] == [str(error)]
    for text in (remedy, str(error), "Incomplete: something is missing"):
        assert text in page_of(receipts_folder)


def test_files_that_differ_and_files_that_were_not_copied_are_two_remedies(
    receipt: ICAv2ReceiptOperator, ledger: Ledger, receipts_folder: Path
):
    store = receipts().objects
    rows = [("a", "icav2://t/x/", "size_mismatch"), ("b", "icav2://t/y/", "missing"), ("c", "icav2://t/y/", "ok")]
    same = {"size_bytes": 3, "by": "size"}
    proofs = [
        {"source_uri": f"icav2://s/{path}", "dest_uri": uri, "path": path, "verdict": verdict, **same}
        for path, uri, verdict in rows
    ]
    lines = "".join(json.dumps(proof) + "\n" for proof in proofs)
    jobs = [{"dest_uri": uri, "job_status": False, "job_id": None, "job_attempt_counter": 6, "failed_jobs_list": []}
            for uri in ("icav2://t/x/", "icav2://t/y/")]  # fmt: skip
    missing = [
        "icav2://s/a → icav2://t/x/: size mismatch",
        "icav2://s/b → icav2://t/y/: missing (job-9 failed: too small)",
    ]
    output = {"job_list_with_attempt_counter": jobs, "counters": {}}
    documents = {
        "output": asyncio.run(store.put("output.json", json.dumps(output).encode())).to_dict(),
        "per-file proof": asyncio.run(store.put("proof.jsonl", lines.encode())).to_dict(),
        "not copied": asyncio.run(store.put("not_copied.json", json.dumps(missing).encode())).to_dict(),
    }
    totals = {"files": 3, "files proved": 1, "bytes": 9, "proved bytes": 3, "destinations": 2}
    report = {"documents": documents, "totals": totals, "missing": missing, "missing_count": 2}
    recorded("copy", "failed", report=report, cause="mismatch")
    with pytest.raises(VerificationError):
        Run().execute(receipt)
    told = document(receipts_folder)
    assert told["problems"] == missing
    assert "icav2://t/x/ (1 file of another size than the source: a): A file of that name" in told["remedy"]
    assert "icav2://t/y/ (1 file missing: b): This run tries no more" in told["remedy"]
    assert "job-9 failed: too small" in page_of(receipts_folder)


class HandedOn(ICAv2ReceiptOperator):
    def build_receipt(self, context: Any, ledger: Ledger | None) -> Receipt:
        rest = "100 of 300 files are on tape still; the run of tomorrow asks for them."
        return Receipt(dag_id=DAG_ID, run_id=RUN_ID, state="handed_on", outcome=rest)


def test_what_is_handed_on_to_the_next_run_is_green_and_said(ledger: Ledger, receipts_folder: Path, portal: TestClient):
    run = Run()
    run.execute(HandedOn(task_id="receipt"))
    assert document(receipts_folder)["state"] == "handed_on"
    assert "nothing is wrong, and the rest is the next run's" in page_of(receipts_folder)
    shown = portal.get(f"/receipts/{DAG_ID}/{RUN_ID}/receipt.json").json()
    assert (shown["state"], shown["items"]) == ("handed_on", [])
    assert "100 of 300 files are on tape still" in portal.get(f"/receipts/{DAG_ID}/{RUN_ID}").text
    assert asyncio.run(records_of_run().read("receipt"))["receipt_state"] == "handed_on"


def test_a_refusal_of_hundreds_of_lines_is_cut_nowhere_without_saying_so(
    receipt: ICAv2ReceiptOperator, ledger: Ledger, receipts_folder: Path
):
    lines = [f"manifest.icav2://s/{number}: {'x' * 100}" for number in range(500)]
    recorded("load_request", "refused", why="…", problems=lines)
    run = Run()
    with pytest.raises(VerificationError, match="and 495 more: all are listed below"):
        run.execute(receipt)
    told = document(receipts_folder)
    assert told["problems"][:200] == lines[:200]
    assert told["problems"][200].startswith("and 300 more: document problems, file://")
    assert len(run.xcoms["receipt", "outcome"]) <= 4000


def test_without_a_usable_place_for_receipts_the_first_step_is_refused_and_names_the_connection(
    connect: Connect, ledger: Ledger, tmp_path: Path
):
    (tmp_path / "file").write_text("no folder")
    load = LoadRequestOperator(task_id="load_request", model=Request)
    for extra in ({"prefix": (tmp_path / "file" / "receipts").as_uri()}, {"prefix": "ftp://x/y"}, {}):
        connect("waybill_receipts", json.dumps({"conn_type": "generic", "extra": extra}))
        run = Run()
        with pytest.raises(RequestError, match="refused, 1 problem"):
            run.execute(load)
        [problem] = run.xcoms["load_request", "request_errors"]
        assert problem.startswith("connection waybill_receipts: ")
        assert "that every worker can write to" in problem


def test_a_run_without_records_is_judged_by_the_ledger_and_a_complete_receipt_of_an_earlier_release_is_kept_and_not_its_own(
    receipt: ICAv2ReceiptOperator, ledger: Ledger, receipts_folder: Path
):
    sent(ledger)
    run = Run()
    with pytest.raises(VerificationError, match="did not come to its end"):
        run.execute(receipt)
    stored(outcome="All 4 files are at their destinations.")
    with pytest.raises(VerificationError, match="earlier release, or for another run under the same run id"):
        run.execute(receipt)
    assert document(receipts_folder)["outcome"] == "All 4 files are at their destinations."


def test_a_complete_receipt_of_another_request_under_the_same_run_id_makes_no_run_green(
    receipt: ICAv2ReceiptOperator, ledger: Ledger, receipts_folder: Path
):
    stored(outcome="All 4 files are at their destinations.", request_sha256="a" * 64)
    with pytest.raises(VerificationError):
        Run().execute(receipt)
    assert document(receipts_folder)["state"] == "incomplete"


def test_an_error_of_one_part_of_a_step_is_not_hidden_by_another_that_went_well(receipts_folder: Path):
    records = StepRecords(receipts().objects, "x/steps")
    asyncio.run(records.begin("copy"))
    asyncio.run(records.end("copy"))
    asyncio.run(records.end("copy", VerificationError("three files are missing")))
    assert asyncio.run(records.read("copy"))["state"] == "failed"
