"""Answers that name nothing, remotes that take a key of ours, quotas of accounts, and holds."""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from include.core.errors import Held, LedgerError, QuotaExceeded
from include.core.ledger import (
    Accepted,
    ClientKey,
    InDoubt,
    Intent,
    Ledger,
    LookAgain,
    OnHold,
    Probe,
    Quota,
    SendFence,
    State,
    verify,
)
from include.core.ledger import archive as archives
from include.core.ledger.archive import archive, archives_in
from include.core.ledger.rows import Submission
from include.core.ledger.upkeep import long_in_doubt
from tests.include.core.ledger_world import TIMEOUT, VISIBILITY_WINDOW, Clock, Remote, begun, intent, owner, submit
from tests.include.core.test_ledger_states import at

S = State
TEN = Quota(limit_bytes=10, doubt_expires=True)


def only(ledger: Ledger) -> Submission:
    (row,) = ledger.generations("tape", "restore", "plate-7")
    return row


# -- a yes that names nothing ---------------------------------------------------------------------------------------------


class Nameless(Remote):
    """Says yes and gives no id; its jobs are hidden until `hidden` is emptied."""

    async def send(self, row: Submission, fence: SendFence) -> Accepted:  # type: ignore[override]
        job = await super().send(row, fence)
        self.hidden.add(str(job))
        return Accepted({"answer": "202"}, named_within_seconds=600.0)


def test_a_yes_without_an_id_waits_for_the_id_and_is_never_sent_again(ledger: Ledger, clock: Clock):
    remote = Nameless()
    for _ in range(3):
        with pytest.raises(InDoubt, match="does not show its job yet"):
            submit(ledger, remote)
        clock.at += VISIBILITY_WINDOW + TIMEOUT + 1
        remote.now += VISIBILITY_WINDOW + TIMEOUT + 1
    assert (only(ledger).state, only(ledger).detail["answer"], remote.requests) == (S.ACCEPTED, "202", 1)
    remote.hidden.clear()
    assert (submit(ledger, remote).external_id, remote.requests) == ("job-1", 1)
    assert verify(ledger).problems == []


def test_a_yes_whose_job_is_never_shown_is_held_after_its_deadline_and_in_doubt_only_then(ledger: Ledger, clock: Clock):
    remote = Nameless()
    with pytest.raises(InDoubt):
        submit(ledger, remote)
    clock.at += 599
    assert long_in_doubt(ledger) == []
    clock.at += 3602
    assert [row.id for row in long_in_doubt(ledger)] == [only(ledger).id]
    with pytest.raises(Held, match="accepted"):
        submit(ledger, remote)
    assert remote.requests == 1


def test_a_late_yes_ends_the_doubt_of_its_own_attempt_only(ledger: Ledger):
    attempt = begun(ledger)
    ledger.move(attempt, S.IN_DOUBT, why="no answer")
    assert ledger.record_accepted(attempt, {}, named_within=60).state == S.ACCEPTED
    assert ledger.record_accepted(attempt, {}, named_within=60).state == S.ACCEPTED  # twice is once
    old = begun(ledger, intent("other"))
    ledger.begin(ledger.move(old, S.RESERVED, why="thought absent"), response_deadline=60)
    with pytest.raises(LedgerError, match="second job"):
        ledger.record_accepted(old, {"answer": "202"}, named_within=60)
    assert [late["said"] for late in ledger.get(old.id).detail["late_acceptances"]] == [{"answer": "202"}]
    assert verify(ledger).problems == []


def test_each_late_yes_counts_in_a_quota_and_keeps_its_facts(ledger: Ledger):
    attempts = []
    for step in range(3):
        attempts.append(begun(ledger, intent("other", size=10)))
        if step < 2:
            ledger.move(ledger.move(attempts[-1], S.IN_DOUBT, why="x"), S.RESERVED, why="absence proved")
    row = ledger.record_sent(attempts[2], "job-3", why="answer")
    for number, attempt in enumerate([*attempts[:2], attempts[0]]):  # the last is the first one's, written twice
        with pytest.raises(LedgerError, match="second job"):
            ledger.record_accepted(attempt, {"ticket": number % 2}, named_within=60)
    assert [late["said"] for late in ledger.get(row.id).detail["late_acceptances"]] == [{"ticket": 0}, {"ticket": 1}]
    assert ledger.quota_reading("tape", "restore", Quota(100)).used_bytes == 30
    assert verify(ledger).problems == []


# -- the same client key -------------------------------------------------------------------------------------------------


class Keyed(Remote):
    """Takes a request once per key, however often it comes."""

    def __init__(self) -> None:
        super().__init__()
        self.keys: list[str] = []
        self.taken: dict[str, str] = {}
        self.asked_for_keys = 0

    async def key(self, row: Submission) -> str:
        self.asked_for_keys += 1
        return f"key-{self.asked_for_keys}"

    def accept(self, key: str) -> str:
        client_key = self.keys[-1]
        if client_key not in self.taken:
            self.taken[client_key] = super().accept(key)
        return self.taken[client_key]

    async def send(self, row: Submission, fence: SendFence):  # type: ignore[no-untyped-def,override]
        self.keys.append(str(row.client_key))
        return await super().send(row, fence)

    def keyed_probe(self, valid_seconds: float = 3600.0) -> Probe:
        return replace(self.probe(), client_key=ClientKey(self.key, valid_seconds))


@pytest.mark.parametrize("fault", ["lost", "unsent"])
def test_a_lost_answer_is_sent_again_at_once_under_the_same_key(ledger: Ledger, fault: str):
    remote = Keyed()
    remote.hidden.add("job-1")
    remote.faults = [fault]
    row = submit(ledger, remote, probe=remote.keyed_probe())
    assert (row.state, row.generation, remote.keys) == (S.SENT, 1, ["key-1", "key-1"])
    assert (len(remote.jobs), remote.asked_for_keys) == (1, 1)
    assert verify(ledger).problems == []


def test_lost_answers_are_not_answered_by_request_after_request(ledger: Ledger):
    remote = Keyed()
    remote.faults = ["lost"] * 30
    remote.hidden.add("job-1")
    with pytest.raises(InDoubt, match="no answer 2 times") as waits:
        submit(ledger, remote, probe=remote.keyed_probe())
    assert (len(remote.keys), len(remote.jobs), waits.value.retry_after) == (2, 1, 30.0)


def test_a_key_that_the_remote_may_have_forgotten_is_not_trusted(ledger: Ledger, clock: Clock):
    remote = Keyed()
    remote.faults = ["lost"] * 30
    remote.hidden.add("job-1")
    probe = remote.keyed_probe(valid_seconds=3600)
    for _ in range(4):
        with pytest.raises(InDoubt):
            submit(ledger, remote, probe=probe)
        clock.at += 1000
    with pytest.raises(InDoubt, match="not found"):
        submit(ledger, remote, probe=probe)
    assert len(remote.keys) <= 9  # within the hour that the key is good for
    assert len(remote.jobs) == 1


def test_two_workers_send_under_one_key(ledger: Ledger):
    row = ledger.open(intent())
    first, second = ledger.keep_client_key(row, "a"), ledger.keep_client_key(row, "b")
    assert first.client_key == second.client_key == "a"


def test_the_answer_to_one_of_two_attempts_under_one_key_names_the_job_of_both(ledger: Ledger):
    row = ledger.keep_client_key(ledger.open(intent()), "a")
    first = ledger.begin(row, response_deadline=60.0)
    assert first is not None
    doubt = ledger.move(first, S.IN_DOUBT, why="found sending, without its sender")
    second = ledger.begin(ledger.move(doubt, S.RESERVED, why="sent again"), response_deadline=60.0)
    assert second is not None
    assert ledger.record_sent(first, "job-1", why="answer").state == S.SENT
    assert ledger.record_sent(second, "job-1", why="answer").state == S.SENT
    assert verify(ledger).problems == []


# -- quotas ------------------------------------------------------------------------------------------------------------------


def of_account(key: str, size: int, account: str) -> Intent:
    return Intent("tape", "restore", key, {}, owner(), size_bytes=size, account=account)


def test_accounts_have_quotas_of_their_own_and_a_reading_says_when_what_is_free(ledger: Ledger, clock: Clock):
    start = clock.at
    at(ledger, S.SENT, of_account("a", 4, "amy"), job="a")
    clock.at += 100
    at(ledger, S.SENT, of_account("b", 5, "amy"), job="b")
    ledger.open(of_account("c", 10, "bob"), quota=TEN)
    with pytest.raises(QuotaExceeded, match="of amy"):
        ledger.open(of_account("d", 2, "amy"), quota=TEN)
    found = ledger.quota_reading("tape", "restore", TEN, account="amy")
    assert (found.used_bytes, found.free_bytes) == (9, 1)
    assert found.frees == ((start + TEN.span, 4), (start + 100 + TEN.span, 5))
    assert ledger.quota_reading("tape", "restore", TEN, account="eve").free_bytes == 10


@pytest.mark.parametrize("state", [S.RESERVED, S.SENDING, S.IN_DOUBT, S.HELD])
def test_a_doubt_stops_counting_one_window_after_its_request_can_have_been_accepted(
    ledger: Ledger, clock: Clock, state: State
):
    row = at(ledger, state, intent("a", size=10))
    last = row.accept_deadline or row.reserved_at
    clock.at = last + TEN.span - 1
    with pytest.raises(QuotaExceeded) as caught:
        ledger.open(intent("b", size=1), quota=TEN)
    assert caught.value.available_at == last + TEN.span
    clock.at += 1
    ledger.open(intent("b", size=1), quota=TEN)


def test_a_doubt_that_does_not_expire_is_named_instead_of_a_promise(ledger: Ledger):
    row = at(ledger, S.HELD, intent("a", size=10))
    with pytest.raises(QuotaExceeded, match=rf"submission {row.id} reached the remote.*in-doubt"):
        ledger.open(intent("b", size=1), quota=Quota(limit_bytes=10))


def test_what_comes_back_from_a_doubt_passes_the_quota_again_before_it_is_sent(ledger: Ledger, clock: Clock):
    remote = Remote()
    old = at(ledger, S.IN_DOUBT, intent("a", size=10))
    clock.at = float(old.accept_deadline or 0) + TEN.span
    submit(ledger, remote, intent("b", size=10), quota=TEN)
    ledger.move(old, S.RESERVED, why="absence proved")
    with pytest.raises(QuotaExceeded):
        submit(ledger, remote, intent("a", size=10), quota=TEN)
    assert (remote.requests, ledger.get(old.id).state) == (1, S.RESERVED)


# -- holds --------------------------------------------------------------------------------------------------------------------


def test_on_hold_nothing_is_sent_nothing_fails_and_the_reason_is_told(ledger: Ledger, clock: Clock):
    remote = Remote()
    ledger.hold("tape", until=clock.at + 7200, who="amy", why="the library is serviced")
    with pytest.raises(OnHold, match=r"tape is on hold until .* UTC \(amy: the library is serviced\)") as parked:
        submit(ledger, remote)
    assert (parked.value.retry_after, parked.value.no_effect, remote.requests) == (3600.0, True, 0)
    assert only(ledger).state == S.RESERVED
    assert [hold.system for hold in ledger.holds()] == ["tape"]
    clock.at += 7200
    assert submit(ledger, remote).state == S.SENT
    assert ledger.holds() == []


def test_a_hold_concerns_its_system_and_may_be_ended_early(ledger: Ledger, clock: Clock):
    remote = Remote()
    ledger.hold("disk", until=clock.at + 7200, who="amy", why="moved")
    ledger.hold("tape", until=clock.at + 7200, who="amy", why="serviced")
    ledger.hold("tape", until=clock.at, who="bob", why="done early")
    assert submit(ledger, remote).state == S.SENT


def test_the_ground_is_not_cleared_on_hold(ledger: Ledger, clock: Clock):
    async def prepare(_row: Submission, _fence: SendFence) -> None:
        raise AssertionError("must not be reached")

    ledger.hold("tape", until=clock.at + 60, who="amy", why="serviced")
    with pytest.raises(OnHold):
        submit(ledger, Remote(), prepare=prepare)


def test_a_hold_that_comes_between_preparing_and_sending_is_kept(ledger: Ledger, clock: Clock):
    remote = Remote()

    async def send(row: Submission, fence: SendFence) -> str:
        ledger.hold("tape", until=clock.at + 60, who="amy", why="serviced")
        return str(await remote.send(row, fence))

    with pytest.raises(OnHold):
        submit(ledger, remote, send=send)
    assert (remote.requests, only(ledger).state) == (0, S.RESERVED)


# -- the archive, and what a remote may say ---------------------------------------------------------------------------------


def ended(ledger: Ledger, keys: range) -> list[Submission]:
    return [at(ledger, S.DONE, intent(f"key-{n}", payload="x" * 10), job=f"job-{n}") for n in keys]


def test_an_archive_moves_what_ended_keeps_what_was_done_and_the_chain_goes_through_it(
    ledger: Ledger, clock: Clock, tmp_path: Path
):
    rows = ended(ledger, range(5))
    clock.at += 8 * 86_400
    young = at(ledger, S.DONE, intent("young"), job="job-young")
    (made,) = archive(ledger, tmp_path, before=clock.at - 7 * 86_400 - 10)
    assert made.submission_ids == {row.id for row in rows}
    assert verify(ledger, archived=archives_in(tmp_path)).problems == []
    (lacking,) = [p for p in verify(ledger).problems if "--archives" in p]
    assert made.path.name in lacking
    assert ledger.event_bodies(rows[0].id) == []
    assert ledger.event_bodies(young.id) != []
    remote = Remote(jobs={f"job-{n}": "old" for n in range(10)})
    assert submit(ledger, remote, intent("key-0", payload="x" * 10)).state == S.DONE  # still known as done
    assert (remote.requests, ledger.known("tape", "restore", ["job-3"])) == (0, {"job-3"})
    with pytest.raises(LookAgain):  # a worker that looked before that job had ended, a week ago or not
        submit(ledger, remote, intent("key-0", payload="x" * 10), seen_absent=0)
    assert submit(ledger, remote, intent("key-0", payload="x" * 10), seen_absent=1).generation == 2
    assert archive(ledger, tmp_path, before=clock.at - 7 * 86_400 - 10) == []
    assert verify(ledger, archived=archives_in(tmp_path)).problems == []


def test_what_was_placed_somewhere_is_known_for_ever(ledger: Ledger, clock: Clock, tmp_path: Path):
    """The names of what is there, and of a job that ended badly everything: what it left may be found years later."""
    names = [f"file-{n:060d}" for n in range(40)]
    facts = {"created_ids": ["fil.1"], "job_created": 1.0, "job_finished": 2.0}
    failed = at(ledger, S.SENT, replace(intent("key"), detail={"names": names, "data_ids": ["a"]}), job="job-1")
    ledger.move(failed, S.FAILED, why="one file is missing", detail=facts)
    done = at(ledger, S.SENT, replace(intent("key"), detail={"names": names, "data_ids": ["a"]}), job="job-2")
    ledger.move(done, S.DONE, why="proved", detail={"is_effective": True, "secondary": 1})
    clock.at += 8 * 86_400
    at(ledger, S.DONE, intent("young"), job="job-young")
    (made,) = archive(ledger, tmp_path, before=clock.at - 7 * 86_400 - 10)
    assert made.submission_ids == {failed.id, done.id}
    bad, good = ledger.generations("tape", "restore", "key")
    assert {name: bad.detail[name] for name in facts} == facts
    assert (bad.detail["names"], good.detail["names"], good.detail["is_effective"]) == (names, names, True)
    assert "secondary" not in good.detail
    assert verify(ledger, archived=archives_in(tmp_path)).problems == []
    ledger.annotate(bad, {"taken_to_have_ended": True}, why="later")
    assert verify(ledger, archived=archives_in(tmp_path)).problems == []
    (path,) = [made.path]
    text = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(text.replace(b"0" * 59 + b"7", b"0" * 59 + b"8")))
    with ledger._engine.begin() as conn:
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        conn.exec_driver_sql(f"UPDATE waybill_archives SET sha256 = '{sha256}'")
    assert any(
        f"in {path.name} was changed" in problem for problem in verify(ledger, archived=archives_in(tmp_path)).problems
    )


def test_what_ended_lately_or_without_its_effect_is_not_archived(ledger: Ledger, clock: Clock, tmp_path: Path):
    """What a failed job left behind must be known to whoever asks next; and no look is a week old."""
    at(ledger, S.FAILED, intent("failed"))
    at(ledger, S.SUPERSEDED, intent("superseded"))
    redone = at(ledger, S.DONE, intent("redone"), job="job-2")
    ledger.open(intent("redone"), seen_absent=redone.generation)
    clock.at += 8 * 86_400
    at(ledger, S.DONE, intent("young"), job="job-3")
    assert archive(ledger, tmp_path, before=clock.at - 7 * 86_400 - 10) == []
    with pytest.raises(LedgerError, match="more than a week ago"):
        archive(ledger, tmp_path, before=clock.at - 86_400)


def test_two_that_archive_at_once_lose_nothing(ledger: Ledger, clock: Clock, tmp_path: Path, monkeypatch):
    ended(ledger, range(4))
    clock.at += 8 * 86_400
    at(ledger, S.DONE, intent("young"), job="job-young")
    real, other = archives._take_out, []

    def second_comes_first(*args: object) -> None:
        if not other:
            other.append(1)
            with pytest.raises(LedgerError, match="exists already"):
                archive(ledger, tmp_path, before=clock.at - 7 * 86_400 - 10)
        real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(archives, "_take_out", second_comes_first)
    if ledger._engine.dialect.name == "sqlite":  # there the first holds the one write lock meanwhile; reading goes on
        assert len(archive(ledger, tmp_path, before=clock.at - 7 * 86_400 - 10)) == 1
        assert verify(ledger, archived=archives_in(tmp_path)).problems == []


def test_what_stays_of_an_archived_row_is_checked_too(ledger: Ledger, clock: Clock, tmp_path: Path):
    change = '{"is_effective":true,"waybill_archived":true}'
    row = at(ledger, S.DONE, intent("old"))
    clock.at += 8 * 86_400
    at(ledger, S.DONE, intent("young"), job="job-young")
    archive(ledger, tmp_path, before=clock.at - 7 * 86_400 - 10)
    with ledger._engine.begin() as conn:
        conn.exec_driver_sql(f"UPDATE waybill_submissions SET detail = '{change}' WHERE id = {row.id}")
    (problem,) = verify(ledger, archived=archives_in(tmp_path)).problems
    assert f"submission {row.id} differs" in problem


def test_many_late_answers_are_found_and_no_false_alarm(ledger: Ledger):
    old = begun(ledger)
    ledger.begin(ledger.move(old, S.RESERVED, why="thought absent"), response_deadline=60)
    for number in range(60):
        with pytest.raises(LedgerError):
            ledger.record_sent(old, f"a-late-job-with-a-long-name-{number:020}", why="answer")
    assert verify(ledger).problems == []
    assert len(ledger.get(old.id).detail["late_answers"]) == 60


def test_a_remotes_words_are_not_taken_for_a_document_of_ours(ledger: Ledger):
    said = {"waybill_document": {"sha256": "0" * 64}}
    sent = ledger.record_sent(begun(ledger), "job-1", why="answer", detail={"said": said})
    assert sent.detail["said"] == said == ledger.get(sent.id).detail["said"]
    assert verify(ledger).problems == []


def test_a_claim_is_given_back_where_nothing_was_sent_after_all(ledger: Ledger, clock: Clock):
    async def prepare(_row: Submission, _fence: SendFence) -> None:
        ledger.hold("tape", until=clock.at + 60, who="amy", why="serviced")

    with pytest.raises(OnHold):
        submit(ledger, Remote(), prepare=prepare)
    ledger.hold("tape", until=clock.at, who="amy", why="done")
    assert submit(ledger, Remote()).state == S.SENT
