"""What is proved, what may be cleared away, what counts as an attempt, and what a caller reads: pure functions, random runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from include.core import effects
from include.core.effects import Phase, Standing
from include.core.ledger import Owner, State, Submission
from include.icav2 import report, rules
from include.icav2.models import Content, CopyRequest, Data, Destination, Item, Verdict
from include.icav2.rules import CopySettings
from include.icav2.verify import Made, incomplete, judge, partial_files, prove

MD5, OTHER_MD5, MULTIPART = "a" * 32, "b" * 32, f"{'a' * 32}-3"


def data(path: str = "/x/f", status: str = "AVAILABLE", size: int = 5, etag: str | None = MD5, **more: Any) -> Data:
    more = {"id": f"fil.{path}", "is_folder": False, "created": 100.0} | more
    return Data(name=path.rstrip("/").rsplit("/", 1)[-1], path=path, status=status, size_bytes=size, etag=etag, **more)


def item(name: str = "f", data_id: str = "fil.src") -> Item:
    return Item(
        source_uri=f"icav2://s/{name}", data_id=data_id, name=name, files=[Content(path=name, size_bytes=5, etag=MD5)]
    )


DEST = Destination(dest_uri="icav2://p/x/", project_id="p", path="/x/", items=[item()])


@pytest.mark.parametrize(
    ("there", "verdict"),
    [
        (None, Verdict.MISSING),
        (data(status="DELETING"), Verdict.MISSING),
        (data(status="PARTIAL"), Verdict.PARTIAL),
        (data(size=4), Verdict.SIZE_MISMATCH),
        (data(etag=OTHER_MD5), Verdict.ETAG_MISMATCH),
        (data(etag=f'"{MD5.upper()}"'), Verdict.OK),
        (data(etag=MULTIPART), Verdict.OK),
        (data(etag=None), Verdict.OK),
        (data(status="ARCHIVED"), Verdict.OK),
        (data(status="ARCHIVED", size=4), Verdict.SIZE_MISMATCH),
    ],
)
def test_a_file_is_judged_by_status_size_and_single_part_md5(there, verdict):
    expected = Content(path="f", size_bytes=5, etag=MD5)
    assert judge(expected, there, use_etag=True)[0] == verdict
    by_size = Verdict.OK if verdict == Verdict.ETAG_MISMATCH else verdict
    assert judge(expected, there, use_etag=False)[0] == by_size


OURS = Made(frozenset({"fil.src"}), 90.0, 110.0, frozenset({"fil./x/f"}))


def removed(there: Data, *made: Made, destination: Destination = DEST, more: tuple[Data, ...] = ()) -> list[str]:
    listing = {d.path: d for d in (there, *more)}
    proofs = prove(destination, listing, use_etag=True)
    return [d.path for d in partial_files(destination, proofs, made, listing)]


def test_a_partial_file_made_while_our_job_ran_is_a_leftover():
    assert removed(data(status="PARTIAL"), OURS) == ["/x/f"]


def test_a_whole_but_wrong_file_is_a_leftover_only_if_our_batch_names_it_and_it_was_made_in_that_time():
    assert removed(data(size=4), OURS) == ["/x/f"]
    assert removed(data(size=4, id="fil.stranger"), OURS) == []
    assert removed(data(size=4, created=89.9), OURS) == []


@pytest.mark.parametrize("there", [data(), data(status="DELETING"), data(path="/x/other", status="PARTIAL")])
def test_good_files_vanishing_ones_and_names_that_are_not_ours_are_no_leftovers(there):
    assert removed(there, OURS) == []


@pytest.mark.parametrize("created", [0.0, 89.9, 110.1])
def test_a_partial_file_from_before_or_after_our_jobs_is_a_strangers(created):
    assert removed(data(status="PARTIAL", created=created), OURS) == []


def test_without_an_ended_job_of_this_very_item_nothing_is_a_leftover():
    assert removed(data(status="PARTIAL")) == []
    assert removed(data(status="PARTIAL"), Made(frozenset({"fil.another"}), 90.0, 110.0, frozenset())) == []


def test_a_wrong_file_in_a_folder_is_a_leftover_only_if_our_batch_made_the_folder():
    files = [Content(path="r/deep/f", size_bytes=5, etag=MD5)]
    folder = Item(source_uri="icav2://s/r/", data_id="fol.src", name="r", is_folder=True, files=files)
    destination = DEST.model_copy(update={"items": [folder]})
    made = Made(frozenset({"fol.src"}), 90.0, 110.0, frozenset({"fol.made"}))
    wrong = data("/x/r/deep/f", size=4)
    for folder_data, expected in [
        (data("/x/r/", id="fol.made", is_folder=True), ["/x/r/deep/f"]),
        (data("/x/r/", id="fol.stranger", is_folder=True), []),
        (data("/x/r/", id="fol.made", is_folder=True, created=10.0), []),
    ]:
        assert removed(wrong, made, destination=destination, more=(folder_data,)) == expected


# -- attempts, slots, output: over random histories ---------------------------------------------------------------


OWNER = Owner("d", "run", "copy")


def row(
    number: int,
    state: State,
    run: str,
    job: str | None,
    ids: list[str],
    attached: tuple[Owner, ...] = (),
    **detail: Any,
) -> Submission:
    return Submission(
        id=number, system="icav2", kind="copy_batch", business_key=DEST.key, generation=number, state=state,
        fencing_token="t", external_id=job, payload_sha256="", size_bytes=0, owner=Owner("d", run, "copy"), reserved_at=0.0,
        sending_at=1.0, accept_deadline=2.0, closed_at=3.0, cancel_requested_at=None, detail={"data_ids": ids, **detail},
        attached=attached,
    )  # fmt: skip


@st.composite
def histories(draw: st.DrawFn) -> list[Submission]:
    states = [State.FAILED, State.SUPERSEDED, State.DONE, State.CANCELLED, State.REJECTED]
    rows = []
    for number in range(1, draw(st.integers(0, 7)) + 1):
        state = draw(st.sampled_from(states))
        sent = state in (State.FAILED, State.DONE) or (state == State.SUPERSEDED and draw(st.booleans()))
        attached = (OWNER,) if draw(st.booleans()) else ()
        run = draw(st.sampled_from(["run", "other"]))
        ids = draw(st.sampled_from([["fil.src"], ["fil.src", "fil.b"], ["fil.else"]]))
        rows.append(row(number, state, run, f"job{number}" if sent else None, ids, attached))
    return rows


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(histories(), st.sampled_from(list(Phase))), max_size=6))
def test_the_output_keeps_the_sops_invariants_over_random_runs(parts):
    standings, rows = [], {}
    for number, (history, phase) in enumerate(parts):
        destination = DEST.model_copy(update={"path": f"/x{number}/", "dest_uri": f"icav2://p/x{number}/"})
        current = f"job{len(history) + 1}" if phase in (Phase.RUNNING,) else None
        if phase in (Phase.RUNNING,):
            history = [*history, row(len(history) + 1, State.SENT, "run", current, ["fil.src"])]
        standings.append(Standing(destination, phase, job_id=current))
        rows[destination.key] = history
    output = report.output(standings, rows, OWNER)
    jobs, counters = output["job_list_with_attempt_counter"], output["counters"]
    assert sum(counters.values()) == len(jobs) == len({job["dest_uri"] for job in jobs})
    assert output["job_status_iterable_parameter"] == {
        "job_status_iterable": counters["jobs_passed"] + counters["jobs_failed"]
    }
    assert [report.ORDER[job["job_status"]] for job in jobs] == sorted(report.ORDER[job["job_status"]] for job in jobs)
    pairs = {(source, job["dest_uri"]) for job in jobs for source in job["source_uris"]}
    assert pairs == {(i.source_uri, s.target.dest_uri) for s in standings for i in s.target.items}
    for job in jobs:
        assert len(set(job["failed_jobs_list"])) == len(job["failed_jobs_list"])
        if job["job_status"] is not False:
            assert job["job_id"] not in job["failed_jobs_list"]
            assert job["job_attempt_counter"] == len(job["failed_jobs_list"]) + 1
        else:
            assert job["job_attempt_counter"] >= max(1, len(job["failed_jobs_list"]))


@settings(max_examples=200, deadline=None)
@given(histories(), st.integers(0, 6))
def test_attempts_are_this_runs_failures_with_this_item_and_nothing_else(history, cap):
    mine = [
        r
        for r in history
        if (r.owner.run_id == "run" or r.attached)
        and r.state in (State.FAILED, State.SUPERSEDED)
        and "fil.src" in r.detail["data_ids"]
    ]
    may = rules.may_send(history, OWNER, DEST.items, CopySettings(max_resubmissions=cap))
    assert bool(may) == (len(mine) <= cap)


@settings(max_examples=200, deadline=None)
@given(histories(), st.floats(0, 100), st.lists(st.tuples(st.integers(0, 10), st.floats(0.1, 9)), max_size=3))
def test_a_superseded_job_counts_as_writing_until_it_is_seen_to_end_or_is_long_overdue(history, timeout, seen):
    settings = CopySettings(job_timeout_seconds=timeout, visibility_window_seconds=5.0, request_timeout_seconds=5.0)
    alive = rules.still_writing(history, 50.0, settings, seen)
    for r in history:
        until = rules.may_write_until(r, 50.0, settings, seen)
        assert (r in alive) == (r.state == State.SUPERSEDED and until >= 50.0)
        if r.external_id is None:
            assert until <= 3.0 + timeout, "never longer than a job may run"
            if seen and timeout > 10.0:
                assert until >= 3.0 + 10.0, "never shorter than a job may stay hidden"


def test_how_long_a_lost_job_may_write_is_ten_times_what_was_seen_for_its_size():
    lost = replace(row(1, State.SUPERSEDED, "run", None, ["fil.src"]), size_bytes=100)
    settings = CopySettings(job_timeout_seconds=7200.0)

    def seconds(*seen: tuple[int, float]) -> float:
        return rules.may_write_until(lost, 0.0, settings, seen) - 3.0

    assert seconds() == 7200.0
    assert seconds((100, 10.0)) == 120.0, "not less than ICA may hide a job"
    assert seconds((100, 60.0)) == 600.0
    assert seconds((50, 60.0)) == 1200.0
    assert seconds((500, 60.0)) == 600.0
    assert seconds((0, 60.0)) == 7200.0


def test_a_lost_job_that_is_shown_to_be_absent_and_one_that_ended_do_not_write():
    settings = CopySettings()
    absent = row(1, State.SUPERSEDED, "run", None, ["fil.src"], absent="a later job of ours is listed")
    ended = row(2, State.SUPERSEDED, "run", "job2", ["fil.src"], job_finished=5.0)
    assert rules.still_writing([absent, ended], 50.0, settings) == []
    assert rules.lost([absent, ended]) == [absent], "it is still looked for, for the record"


@pytest.mark.parametrize(
    ("states", "seen"),
    [
        ([], 0),
        ([State.DONE], 1),
        ([State.DONE, State.SENT], 1),
        ([State.RESERVED], 0),
        ([State.FAILED, State.REJECTED], 2),
    ],
)
def test_what_is_still_open_at_a_look_is_not_seen(states, seen):
    rows = [row(number, state, "run", f"job{number}", []) for number, state in enumerate(states, start=1)]
    assert rules.seen_generation(rows) == seen


def test_options_become_the_engines_settings():
    request = CopyRequest(
        manifest={"a": []}, max_resubmissions=2, max_in_flight=7, job_timeout_minutes=1.5, verify="size"
    )
    settings = CopySettings.of(request)
    assert (settings.max_resubmissions, settings.max_in_flight, settings.job_timeout_seconds) == (2, 7, 90.0)
    assert not settings.use_etag


def test_the_last_look_decides_what_has_passed():
    good = prove(DEST, {"/x/f": data()}, use_etag=True)
    bad = prove(DEST, {}, use_etag=True)
    failed, passed = Standing(DEST, Phase.FAILED, "6 submissions"), Standing(DEST, Phase.PASSED)
    held = Standing(DEST, Phase.HELD, "a doubt")
    assert report.proved([failed, held], good)[0].phase == Phase.PASSED
    assert report.proved([failed, held], good)[1].phase == Phase.HELD
    assert report.proved([passed], bad)[0].phase == Phase.FAILED
    assert report.output(report.proved([passed], bad), {}, OWNER)["counters"]["jobs_failed"] == 1
    assert report.not_copied(report.proved([failed], bad), bad) == [
        "“icav2://s/f” → “icav2://p/x/”: missing (6 submissions)"
    ]
    assert incomplete(DEST, bad) == DEST.items


def test_receipt_rows_and_totals_count_files_and_bytes():
    proofs = prove(DEST, {"/x/f": data()}, use_etag=True)
    output = report.output([Standing(DEST, Phase.PASSED, job_id="j")], {}, OWNER)
    [receipt_row] = report.receipt_items(output, proofs)
    assert receipt_row["destination"] == "icav2://p/x/"
    assert (receipt_row["files"], receipt_row["proved"], receipt_row["state"], receipt_row["job"]) == (
        1,
        1,
        "passed",
        "j",
    )
    totals = report.totals(proofs, output)
    assert (totals["files proved"], totals["proved bytes"], totals["destinations passed"]) == (1, 5, 1)
    assert report.proof_lines(proofs).count(b"\n") == 1


@pytest.mark.parametrize(
    ("failed", "passed", "opens"), [(4, 0, False), (5, 0, True), (4, 1, True), (4, 2, False), (200, 800, False)]
)
def test_the_circuit_opens_when_nearly_all_jobs_fail_within_a_minute(failed, passed, opens):
    rows = [row(n, State.FAILED if n < failed else State.DONE, "run", f"j{n}", []) for n in range(failed + passed)]
    assert (effects.circuit_open_until(rows, 10.0) is not None) == opens
    assert effects.circuit_open_until(rows, 3.0 + effects.CIRCUIT_SECONDS) is None
