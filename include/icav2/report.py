"""What a run reports: the SOP's own output object, the failures with their reasons, and the rows of the receipt.

Invariant: the output's fields are those of the step function, also the ones that show its inner loop (`wait`,
`job_status_iterable`): callers read them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from include.core import effects
from include.core.effects import FINAL, Phase
from include.core.ledger import Owner, Submission
from include.core.receipt import Receipt
from include.core.remedies import Cause, Problem, lines_of, of_record, problems_of_steps, remedy_of
from include.core.text import few, format_bytes, pluralize, printable, sentences
from include.icav2.models import Proof, Verdict
from include.icav2.rules import CopyStanding, covers

STATUS = {Phase.PASSED: True, Phase.FAILED: False, Phase.HELD: False, Phase.RUNNING: None, Phase.WAITING: None}
MORE_TIME = "The time of this run is over (conf deadline_days gives more)."
ORDER = {True: 0, False: 1, None: 2}


def proved(standings: Sequence[CopyStanding], proofs: Sequence[Proof]) -> list[CopyStanding]:
    """The standings as the last look leaves them: what is there now decides, whatever was said before."""
    bad = Counter(proof.dest_uri for proof in proofs if proof.verdict != Verdict.OK)
    found = []
    for standing in standings:
        missing = bad[standing.target.dest_uri]
        if standing.phase == Phase.FAILED and not missing:
            standing = replace(standing, phase=Phase.PASSED, why="all files are there")
        elif standing.phase == Phase.PASSED and missing:
            standing = replace(standing, phase=Phase.FAILED, why="gone or changed since it was copied")
        found.append(standing)
    return found


def ended_by_deadline(standings: Sequence[CopyStanding]) -> list[CopyStanding]:
    """The standings of a run whose time is over: what is open is not copied by this run."""
    return [replace(s, phase=Phase.FAILED, why=_open(s)) if s.phase not in FINAL else s for s in standings]


def _open(standing: CopyStanding) -> str:
    """Why an open destination is no more waited for, and what becomes of it."""
    if standing.phase == Phase.RUNNING:
        return f"the run's time was over; its job {standing.job_id} goes on at ICA ({standing.why}), and the next run adopts it"
    return f"the run's time was over; it waited: {standing.why}"


def open_at_deadline(standings: Sequence[CopyStanding], why: str) -> str:
    """What a run says whose time is over, and whose destinations cannot even be looked at."""
    still = [s for s in standings if s.phase not in FINAL]
    named = "; ".join(f"{printable(s.target.dest_uri)}: {s.why or s.phase}" for s in still[:5])
    more = "; …" if len(still) > 5 else ""
    return (
        f"{MORE_TIME} {len(still)} of {pluralize(len(standings), 'destination')} are open ({named}{more}), and what is there "
        f"cannot be seen: {why}"
    )


def output(standings: Sequence[CopyStanding], rows: Mapping[str, Sequence[Submission]], owner: Owner) -> dict[str, Any]:
    """The step function's output for the destinations as they are now: passed, then failed, then running.

    At the end of a run the standings are those that the last look left (`proved`): receipt and output say the same.
    """
    jobs = [_job(standing, rows.get(standing.target.key, ()), owner) for standing in standings]
    jobs.sort(key=lambda job: ORDER[job["job_status"]])
    counted = Counter(job["job_status"] for job in jobs)
    return {
        "job_status_iterable_parameter": {"job_status_iterable": counted[True] + counted[False]},
        "wait_parameter": {"wait": True},
        "counters": {"jobs_failed": counted[False], "jobs_running": counted[None], "jobs_passed": counted[True]},
        "job_list_with_attempt_counter": jobs,
    }


def _job(standing: CopyStanding, rows: Sequence[Submission], owner: Owner) -> dict[str, Any]:
    """One destination as the SOP lists it. The counter is one more than the failed jobs, except after the last failure.

    `job_id` is this run's last job; where this run needed none, the one that placed the files earlier.
    """
    failed = effects.failed_jobs(rows, owner, covers(*standing.target.items))
    status = STATUS[standing.phase]
    own = [row.external_id for row in effects.of_owner(rows, owner) if row.external_id]
    earlier = [row.external_id for row in rows if row.external_id] if status else []
    current = standing.job_id or next(iter([*own[::-1], *earlier[::-1]]), None)
    if status is not False and current in failed:
        failed.remove(current)  # its files are proved all the same
    tried = len(failed) + (current is not None and current not in failed)
    return {
        "job_attempt_counter": max(1, tried) if status is False else len(failed) + 1,
        "job_id": current,
        "failed_jobs_list": failed,
        "dest_uri": standing.target.dest_uri,
        "source_uris": [item.source_uri for item in standing.target.items],
        "job_status": status,
    }


def not_copied(
    standings: Sequence[CopyStanding], proofs: Sequence[Proof], said: Mapping[tuple[str, str], str] | None = None
) -> list[str]:
    """One sentence for each file that is not where it should be: what, where, and why, by the standings that the last look
    left (`proved`). `said`: ICA's own words about an item, by destination and source."""
    why = {s.target.dest_uri: s.why for s in standings}
    words = {place: f"ICA: {printable(message)}" for place, message in (said or {}).items()}
    return [
        f"{printable(proof.source_uri)} → {printable(proof.dest_uri)}: {str(proof.verdict).replace('_', ' ')}"
        + (f" ({'; '.join(reasons)})" if reasons else "")
        for proof in proofs
        if proof.verdict != Verdict.OK
        for reasons in [[w for w in (why.get(proof.dest_uri), words.get((proof.dest_uri, proof.source_uri))) if w]]
    ]


def proof_lines(proofs: Iterable[Proof]) -> bytes:
    """The per-file proof as JSON Lines."""
    return "".join(proof.model_dump_json() + "\n" for proof in proofs).encode()


def totals(proofs: Sequence[Proof], output_object: Mapping[str, Any]) -> dict[str, int | float]:
    """Files, bytes and submissions of a run."""
    good = [proof for proof in proofs if proof.verdict == Verdict.OK]
    jobs = output_object["job_list_with_attempt_counter"]
    return {
        "destinations": len(jobs),
        "destinations passed": output_object["counters"]["jobs_passed"],
        "files": len(proofs),
        "files proved": len(good),
        "bytes": sum(proof.size_bytes for proof in proofs),
        "proved bytes": sum(proof.size_bytes for proof in good),
        "failed jobs sent again or given up": sum(len(job["failed_jobs_list"]) for job in jobs),
    }


def receipt_items(output_object: Mapping[str, Any], proofs: Sequence[Proof]) -> list[dict[str, Any]]:
    """One row per destination for the receipt."""
    expected = Counter(proof.dest_uri for proof in proofs)
    good = Counter(proof.dest_uri for proof in proofs if proof.verdict == Verdict.OK)
    return [
        {
            "destination": job["dest_uri"],
            "files": expected[job["dest_uri"]],
            "proved": good[job["dest_uri"]],
            "state": {True: "passed", False: "failed", None: "not finished"}[job["job_status"]],
            "submissions": job["job_attempt_counter"],
            "job": job["job_id"],
            "failed_jobs": job["failed_jobs_list"],
        }
        for job in output_object["job_list_with_attempt_counter"]
    ]


def dumps(document: Any) -> bytes:
    return json.dumps(document, ensure_ascii=False, indent=1).encode()


AGAIN = "it copies only what is missing"


def is_complete(summary: Mapping[str, Any], proofs: Sequence[Proof]) -> bool:
    """Whether all that was asked for is there: by the proofs themselves, not by their counts alone."""
    good = sum(proof.verdict == Verdict.OK for proof in proofs)
    return bool(summary["missing_count"] == 0 and summary["totals"]["files"] == good)


def outcome_of(summary: Mapping[str, Any], proofs: Sequence[Proof], *, good: bool) -> str:
    """The receipt's sentence about a copy that came to its end."""
    totals = summary["totals"]
    if good:
        how = " or ".join(sorted({proof.by for proof in proofs}))
        files, places = pluralize(totals["files"], "file"), pluralize(totals["destinations"], "destination")
        return f"All {files} ({format_bytes(totals['bytes'])}) are at their {places}, proved by {how}."
    proved_bytes = format_bytes(totals["proved bytes"])
    there = f"{totals['files proved']} of {totals['files']} files ({proved_bytes}) are at their destinations"
    return f"{there}; {pluralize(summary['missing_count'], 'file')} not."


def problems(output_object: Mapping[str, Any], proofs: Sequence[Proof], copied: Mapping[str, Any]) -> list[Problem]:
    """What is not as asked, one per destination and kind: what a person can do depends on both."""
    ended = {job["dest_uri"]: job["job_status"] for job in output_object["job_list_with_attempt_counter"]}
    task = str(copied.get("task_id") or "copy")
    found: dict[tuple[str, Verdict], list[str]] = {}
    for proof in proofs:
        if proof.verdict != Verdict.OK:
            found.setdefault((proof.dest_uri, proof.verdict), []).append(proof.path)
    return [_problem(uri, verdict, paths, ended.get(uri), task, copied) for (uri, verdict), paths in found.items()]


def _problem(
    uri: str, verdict: Verdict, paths: Sequence[str], status: bool | None, task: str, copied: Mapping[str, Any]
) -> Problem:
    files = [printable(path, quotes=False) for path in paths]
    why = f"{pluralize(len(files), 'file')} {_WORDS[verdict]}: {few(files, 3, 'all are in document not copied')}"
    if copied.get("cause") == Cause.HELD:
        return Problem(Cause.HELD, why, printable(uri, quotes=False), task)
    if verdict in (Verdict.SIZE_MISMATCH, Verdict.ETAG_MISMATCH):
        return Problem(Cause.MISMATCH, why, printable(uri, quotes=False), task, advice=_REPLACE)
    return Problem(Cause.REMOTE, why, printable(uri, quotes=False), task, advice=_NOT_COPIED)


_WORDS = {
    Verdict.MISSING: "missing",
    Verdict.PARTIAL: "there in part",
    Verdict.SIZE_MISMATCH: "of another size than the source",
    Verdict.ETAG_MISMATCH: "with another ETag than the source",
}
_REPLACE = (
    "A file of that name with another content is there, and ICA does not replace it: find out whose it is and delete or move "
    "it at ICA, then trigger the DAG with the same conf: only what is missing is copied."
)
_NOT_COPIED = (
    "This run tries no more: the reason that ICA gives stands behind each file. Deal with it, then trigger the DAG with the "
    "same conf: it has new attempts, and copies only what is missing. Clearing the task gives none. Small files that ICA "
    "refuses can be copied with small_files: stream."
)


def nothing_proved(steps: Mapping[str, Mapping[str, Any]], **facts: Any) -> Receipt:
    """The receipt of a run whose copy left no proof, by the records of `load_request`, `plan` and `copy`."""
    found = problems_of_steps(steps) or [of_record(steps["copy"], "copy")]
    reasons = sentences(*(f"Task {problem.task}: {problem.why}" for problem in found))
    outcome = f"The copy did not come to its end, so nothing is proved. {reasons}"
    if found[0].cause is Cause.LOST:
        outcome += " What ICA was asked goes on there."
    return Receipt(
        **facts, state="incomplete", outcome=outcome, remedy=remedy_of(found, AGAIN), problems=lines_of(found)
    )
