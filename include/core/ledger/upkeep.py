"""Looking after the ledger without Airflow: what has been in doubt for long, and carrying out cancellation requests."""

from __future__ import annotations

from collections.abc import Callable

from include.core.ledger import Ledger, State, Submission

IN_DOUBT_SECONDS = 3600.0  # a younger row in doubt is still being searched for by the task that sent it


# Cancels the job of a SENT row by its exact id and waits until the remote has ended it; then it moves the row, since only it
# knows how the job ended. Returns what it did, as a sentence. Must bear being called again for a row it did not finish.
Canceller = Callable[[Ledger, Submission], str]


# By system. ICAv2 is not here and cannot be: its API has nothing that ends a job (docs/icav2.md).
CANCELLERS: dict[str, Canceller] = {}


def long_in_doubt(book: Ledger) -> list[Submission]:
    """What `in-doubt` lists, once its answer has been missed for an hour: HELD, IN_DOUBT, or SENDING without its sender."""
    missed_before = book.now() - IN_DOUBT_SECONDS
    rows = book.in_states(State.HELD, State.IN_DOUBT, State.SENDING, State.ACCEPTED)
    return [row for row in rows if row.answer_missed_at < missed_before]


def carry_out(book: Ledger, row: Submission) -> str:
    """Does what can be done about one cancellation request, and says what that was."""
    if row.state != State.SENT:
        return f"{line(row)}: it stays, since whether there is a job is not known: that must be resolved first"
    cancel = CANCELLERS.get(row.system)
    if cancel is None:
        return (
            f"{line(row)}: it stays, since nothing can be cancelled at {row.system}: what was sent ends by itself, and the "
            "next run that asks for the same adopts it"
        )
    return cancel(book, row)


def line(row: Submission) -> str:
    """A row as people look for it: by number, remote job and run."""
    job = f", job {row.external_id}" if row.external_id else ""
    return f"submission {row.id}, {row}{job}, of run {row.owner.dag_id}/{row.owner.run_id}"
