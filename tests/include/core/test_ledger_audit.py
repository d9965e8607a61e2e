"""Tampering is seen, and the operator's commands say what is true and exit accordingly."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection

from include.core.ledger import Ledger, State, init, verify
from include.core.ledger.__main__ import main
from include.core.ledger.rows import canonical
from include.core.ledger.schema import engine_for, lock
from include.core.ledger.transaction import chain_sha256
from include.core.receipt import LedgerHead, Receipt, ReceiptStore
from tests.include.core.ledger_world import Clock, Remote, begun, intent, submit
from tests.include.core.test_ledger_states import at

S = State


@pytest.fixture
def used(ledger: Ledger) -> Ledger:
    """A ledger with 12 events and 3 submissions in several states."""
    at(ledger, S.DONE, intent("a"), job="a")
    at(ledger, S.HELD, intent("b"))
    at(ledger, S.FAILED, intent("c"), job="c")
    assert verify(ledger).problems == []
    return ledger


def tamper(url: URL, *statements: str) -> None:
    engine = engine_for(url)
    with engine.begin() as conn:
        for statement in statements:
            conn.exec_driver_sql(statement)
    engine.dispose()


EVENT = "waybill_events"
ROW = "waybill_submissions"
FORGED = (
    f"INSERT INTO {EVENT} SELECT {{to}}, submission_id, at, body, previous_sha256, sha256 FROM {EVENT} WHERE number = 5"
)


@pytest.mark.parametrize(
    ("statements", "problem"),
    [
        ([f"UPDATE {EVENT} SET body = replace(body, 'test', 'best') WHERE number = 3"], "event 3 does not fit"),
        ([f"UPDATE {EVENT} SET body = 'no json' WHERE number = 3"], "event 3 does not fit"),
        ([f"UPDATE {EVENT} SET sha256 = previous_sha256 WHERE number = 3"], "event 3 does not fit"),
        ([f"UPDATE {EVENT} SET previous_sha256 = sha256 WHERE number = 3"], "event 3 does not fit"),
        ([f"UPDATE {EVENT} SET at = at - 1 WHERE number = 3"], "event 3: its columns"),
        ([f"UPDATE {EVENT} SET submission_id = 2 WHERE number = 3"], "event 3: its columns"),
        ([f"DELETE FROM {EVENT} WHERE number = 3"], "event 3 is missing"),
        ([f"DELETE FROM {EVENT} WHERE number = 1"], "event 1 is missing"),
        ([f"DELETE FROM {EVENT} WHERE number = 12"], "submission 3 differs"),
        ([f"DELETE FROM {EVENT}"], "submission 1 differs"),
        ([FORGED.format(to=13)], "event 13 does not fit"),
        ([FORGED.format(to=14)], "event 13 is missing"),
        ([FORGED.format(to=0)], "event 1 is missing"),
        ([f"UPDATE {ROW} SET state = 'DONE' WHERE id = 3"], "submission 3 differs"),
        ([f"UPDATE {ROW} SET size_bytes = 1 WHERE id = 1"], "submission 1 differs"),
        ([f"UPDATE {ROW} SET detail = '{{}} ' WHERE id = 1"], "submission 1 differs"),
        ([f"DELETE FROM {ROW} WHERE id = 2"], "submission 2 is missing"),
        (
            [
                f"INSERT INTO {ROW} SELECT 9, system, kind, 'z', generation, state, fencing_token, 'z', payload_sha256, "
                "size_bytes, dag_id, run_id, task_id, map_index, reserved_at, sending_at, accept_deadline, closed_at, "
                f"cancel_requested_at, detail, request_sha256, account FROM {ROW} WHERE id = 1"
            ],
            "submission 9 differs",
        ),
    ],
)
def test_every_change_by_hand_is_seen(used: Ledger, url: URL, statements: list[str], problem: str):
    tamper(url, *statements)
    assert problem in "\n".join(verify(used).problems)


def rewrite_from(conn: Connection, number: int, change: Callable[[dict], None]) -> None:
    """What somebody would do who knows how the chain is made: change one event and make all digests after it anew."""
    lock(conn)
    rows = conn.execute(
        sa.text(f"SELECT number, body, previous_sha256 FROM {EVENT} WHERE number >= {number} ORDER BY number")
    )
    previous = None
    for row in rows.mappings().all():
        previous = previous or row["previous_sha256"]
        body = json.loads(row["body"])
        if row["number"] == number:
            change(body)
        digest = chain_sha256(previous, canonical(body))
        values = {"b": canonical(body), "p": previous, "s": digest, "n": row["number"], "a": body["at"]}
        conn.execute(
            sa.text(f"UPDATE {EVENT} SET body = :b, previous_sha256 = :p, sha256 = :s, at = :a WHERE number = :n"),
            values,
        )
        previous = digest


@pytest.mark.parametrize(
    ("number", "change", "problem"),
    [
        (3, lambda body: body.update(before="HELD"), "a move that does not exist"),
        (12, lambda body: body["row"].update(state="HELD"), "a move that does not exist"),
        (3, lambda body: body.update(at=body["at"] - 10), "older than the one before"),
    ],
)
def test_a_chain_made_anew_must_still_tell_a_possible_story(
    used: Ledger, url: URL, number: int, change: Callable[[dict], None], problem: str
):
    engine = engine_for(url)
    with engine.begin() as conn:
        rewrite_from(conn, number, change)
    assert problem in "\n".join(verify(used).problems)


def receipt(ledger_id: str, number: int, sha256: str, run_id: str = "run-1") -> dict:
    return {"dag_id": "copy", "run_id": run_id, "ledger": {"id": ledger_id, "number": number, "sha256": sha256}}


def test_a_chain_that_was_cut_or_made_anew_does_not_fit_the_receipts(used: Ledger, url: URL):
    receipts = [receipt(used.ledger_id, *used.head(), "run-1"), receipt(used.ledger_id, *used.head(), "run-2")]
    assert (verify(used, receipts).problems, verify(used, receipts).receipts) == ([], 2)
    engine = engine_for(url)
    with engine.begin() as conn:
        rewrite_from(conn, 12, lambda body: body.update(why="another reason"))
    assert [p.split(",")[0] for p in verify(used, receipts).problems] == [
        f"receipt copy/run-{n} names event 12 {receipts[0]['ledger']['sha256'][:12]}" for n in (1, 2)
    ]
    tamper(url, f"DELETE FROM {EVENT} WHERE submission_id = 3", f"DELETE FROM {ROW} WHERE id = 3")
    assert verify(used).problems == []  # the end of the chain is only as sure as the last receipt
    assert len(verify(used, receipts).problems) == 2


def test_receipts_of_another_ledger_are_named_and_empty_ones_say_nothing(used: Ledger):
    receipts = [
        receipt("another", *used.head()),
        {"dag_id": "copy", "run_id": "early", "ledger": None},
        receipt(used.ledger_id, 0, "0" * 64),
        {"dag_id": "copy", "run_id": "odd", "ledger": {"id": used.ledger_id}},
    ]
    audit = verify(used, receipts)
    assert len(audit.problems) == 2
    assert "belongs to ledger another" in audit.problems[0]
    assert "copy/odd" in audit.problems[1]


def test_a_ledger_that_is_written_meanwhile_is_seen_at_one_instant(
    used: Ledger, open_ledger: Callable[..., Ledger], clock: Clock, monkeypatch: pytest.MonkeyPatch
):
    writer, real = open_ledger(clock=clock), verify.__globals__["chain_sha256"]

    def written_meanwhile(*args: str) -> str:
        writer.annotate(writer.get(3), {"note": writer.head()[0]}, why="meanwhile")
        return real(*args)

    monkeypatch.setitem(verify.__globals__, "chain_sha256", written_meanwhile)
    assert verify(used).problems == []
    assert used.head()[0] > 12


# -- the commands -----------------------------------------------------------------------------------------------------


@pytest.fixture
def cli(
    empty_url: URL, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[int, str]]]:
    """Runs a command; returns its exit status and all that it said."""
    monkeypatch.setenv("AIRFLOW_CONN_WAYBILL_LEDGER", empty_url.render_as_string(hide_password=False))

    def call(*argv: str) -> tuple[int, str]:
        try:
            status = main(list(argv))
        except SystemExit as exit_:
            status = int(exit_.code or 0)
        said = capsys.readouterr()
        return status, said.out + said.err

    yield call


def test_init_creates_then_says_that_it_is_there(cli: Callable[..., tuple[int, str]]):
    assert cli("verify")[0] == 2
    status, said = cli("init")
    assert (status, "created" in said) == (0, True)
    status, said = cli("init")
    assert (status, "up to date" in said) == (0, True)
    assert cli("verify")[0] == 0


def test_what_is_in_doubt_is_listed_with_their_remedy(cli: Callable[..., tuple[int, str]], empty_url: URL):
    init(empty_url)
    assert cli("in-doubt") == (0, "nothing is in doubt\n")
    ledger = Ledger(empty_url)
    at(ledger, S.HELD, intent("a"))
    at(ledger, S.IN_DOUBT, intent("b"))
    at(ledger, S.SENT, intent("c"))
    status, said = cli("in-doubt")
    assert (status, "resolve 1 --as" in said, "2 in doubt" in said) == (1, True, True)


def test_a_sender_who_should_have_answered_is_in_doubt(cli: Callable[..., tuple[int, str]], empty_url: URL):
    init(empty_url)
    Ledger(empty_url, clock=lambda: 1_000.0).begin(
        Ledger(empty_url, clock=lambda: 1_000.0).open(intent()), response_deadline=60
    )
    status, said = cli("in-doubt")
    assert (status, "SENDING" in said) == (1, True)


@pytest.mark.parametrize(
    ("options", "state"),
    [
        (["--as", "sent", "--external-id", "job-7"], S.SENT),
        (["--as", "reserved"], S.RESERVED),
        (["--as", "cancelled"], S.CANCELLED),
    ],
)
def test_a_person_resolves_and_the_ledger_keeps_who_and_why(
    cli: Callable[..., tuple[int, str]], empty_url: URL, options: list[str], state: State
):
    init(empty_url)
    ledger = Ledger(empty_url)
    row = at(ledger, S.HELD)
    status, said = cli("resolve", str(row.id), *options, "--who", "amy", "--why", "asked the vendor")
    assert (status, "run-1" in said) == (0, True)
    resolved = ledger.get(row.id)
    assert (resolved.state, resolved.external_id) == (state, "job-7" if state == S.SENT else None)
    event = ledger.event_bodies(row.id)[-1]
    assert (event["who"], event["why"]) == ("amy", "asked the vendor")
    again = submit(ledger, Remote())  # clearing the task goes on
    assert (again.generation, again.external_id) == {
        S.SENT: (1, "job-7"),
        S.RESERVED: (1, "job-1"),
        S.CANCELLED: (2, "job-1"),
    }[state]


@pytest.mark.parametrize(
    "argv",
    [
        ["resolve", "1", "--as", "sent", "--who", "amy", "--why", "x"],
        ["resolve", "1", "--as", "reserved", "--external-id", "j", "--who", "amy", "--why", "x"],
        ["resolve", "1", "--as", "reserved", "--who", "amy"],
        ["resolve", "1", "--as", "reserved", "--who", " ", "--why", "x"],
        ["resolve", "1", "--as", "done", "--who", "amy", "--why", "x"],
        ["resolve", "2", "--as", "reserved", "--who", "amy", "--why", "not held"],
        ["resolve", "4", "--as", "reserved", "--who", "amy", "--why", "only in doubt"],
        ["resolve", "9", "--as", "reserved", "--who", "amy", "--why", "not there"],
        ["resolve", "1", "--as", "sent", "--external-id", "job-1", "--who", "amy", "--why", "another's job"],
        ["cancel", "3", "--who", "amy", "--why", "has ended"],
        ["show", "9"],
        [],
    ],
)
def test_a_wrong_call_changes_nothing_and_exits_with_2(
    cli: Callable[..., tuple[int, str]], empty_url: URL, argv: list[str]
):
    init(empty_url)
    ledger = Ledger(empty_url)
    at(ledger, S.HELD, intent("a"))
    at(ledger, S.SENT, intent("b"), job="job-1")
    at(ledger, S.DONE, intent("c"), job="job-2")
    at(ledger, S.IN_DOUBT, intent("d"))
    head = ledger.head()
    status, said = cli(*argv)
    assert (status, bool(said)) == (2, True)
    assert ledger.head() == head


def test_a_cancellation_request_is_written_down(cli: Callable[..., tuple[int, str]], empty_url: URL):
    init(empty_url)
    ledger = Ledger(empty_url)
    row = at(ledger, S.SENT)
    assert cli("cancel", str(row.id), "--who", "amy", "--why", "wrong plate")[0] == 0
    assert ledger.get(row.id).cancel_requested_at is not None
    assert f"{row.state}, cancel requested" in cli("show")[1]
    assert ledger.event_bodies(row.id)[-1]["who"] == "amy"


def test_verify_reads_receipts_and_exits_with_1_where_the_ledger_is_broken(
    cli: Callable[..., tuple[int, str]], empty_url: URL, tmp_path: Path
):
    init(empty_url)
    ledger = Ledger(empty_url)
    at(ledger, S.SENT)
    number, sha256 = ledger.head()
    head = LedgerHead(id=ledger.ledger_id, number=number, sha256=sha256)
    (tmp_path / "receipts").mkdir()
    prefix = f"file://{tmp_path}/receipts"
    done = Receipt(dag_id="copy", run_id="run-1", state="complete", outcome="done", ledger=head)
    asyncio.run(ReceiptStore.at(prefix).write(done))
    status, said = cli("verify", "--receipts", prefix)
    assert (status, "whole" in said, "1 receipts agree" in said) == (0, True, True)
    tamper(empty_url, f"DELETE FROM {EVENT} WHERE number = 3")
    status, said = cli("verify", "--receipts", prefix)
    assert (status, "BROKEN" in said, "receipt copy/run-1" in said) == (1, True, True)


def test_show_lists_what_is_open_and_tells_one_submissions_story(cli: Callable[..., tuple[int, str]], empty_url: URL):
    init(empty_url)
    ledger = Ledger(empty_url)
    row = at(ledger, S.SENT, intent("open one"))
    at(ledger, S.DONE, intent("closed one"), job="job-2")
    assert ("open one" in cli("show")[1], "closed one" in cli("show")[1]) == (True, False)
    assert "closed one" in cli("show", "--all")[1]
    status, said = cli("show", str(row.id))
    assert (status, "SENDING → SENT" in said, "copy/run-1/submit" in said) == (0, True, True)


def test_an_empty_answer_is_a_sentence(cli: Callable[..., tuple[int, str]], empty_url: URL, tmp_path: Path):
    init(empty_url)
    assert cli("show") == (0, "no submission is open; --all lists the closed ones\n")
    assert cli("show", "--all") == (0, "the ledger is empty\n")
    assert cli("hold") == (0, "no system is on hold\n")
    status, said = cli("verify", "--receipts", f"file://{tmp_path}/elsewhere")
    assert (status, "no receipt lies there" in said) == (2, True)


def test_a_hold_of_a_system_that_is_not_known_holds_nothing(cli: Callable[..., tuple[int, str]], empty_url: URL):
    init(empty_url)
    at(Ledger(empty_url), S.SENT)
    asked = ("--until", "2999-01-31T06:00Z", "--who", "amy", "--why", "serviced")
    status, said = cli("hold", "tap", *asked)
    assert (status, "known: tape" in said, cli("hold")[1]) == (2, True, "no system is on hold\n")
    assert cli("hold", "tape", *asked)[0] == 0 and cli("hold", "new", *asked, "--new")[0] == 0
    assert {line.split()[0] for line in cli("hold")[1].splitlines()} == {"new", "tape"}
    ended = ("--until", "now", *asked[2:])
    assert "is ended" in cli("hold", "tape", *ended)[1]
    assert cli("hold", "tape", *ended) == (0, "tape was not on hold\n")


def test_the_commands_never_print_the_password(
    cli: Callable[..., tuple[int, str]], empty_url: URL, monkeypatch: pytest.MonkeyPatch
):
    password = "s3cr3t"
    for text in (
        f"postgresql://u:{password}@127.0.0.1:1/x",
        f"postgresql://u:{password}@h:p/x",
        f"mysql://u:{password}@h/x",
    ):
        monkeypatch.setenv("AIRFLOW_CONN_WAYBILL_LEDGER", text)
        for command in ("init", "in-doubt", "verify", "show"):
            status, said = cli(command)
            assert (status, password in said) == (2, False)


def test_a_row_and_its_last_event_are_spelled_alike(ledger: Ledger):
    """Not equal in value only: whoever recomputes a body from the row gets the same bytes."""
    row = begun(ledger)
    ledger.record_sent(row, "job-1", why="answer")
    with ledger.reading() as conn:
        stored = dict(conn.execute(sa.text(f"SELECT * FROM {ROW}")).mappings().one())
        body = conn.execute(sa.text(f"SELECT body FROM {EVENT} ORDER BY number DESC LIMIT 1")).scalar_one()
    assert canonical(json.loads(body)["row"]) == canonical(stored)
