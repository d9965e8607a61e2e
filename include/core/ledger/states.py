"""The states of a submission and the moves between them: the only place that says which move is legal."""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    RESERVED = "RESERVED"  # the intent is written; nothing has left
    SENDING = "SENDING"  # somebody holds the fencing token and may be sending right now
    ACCEPTED = "ACCEPTED"  # the remote said yes and gave no id yet; it is never sent again
    SENT = "SENT"  # the remote accepted it and gave an id
    IN_DOUBT = "IN_DOUBT"  # whether the remote accepted it is not known
    HELD = "HELD"  # only a person can tell
    DONE = "DONE"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    SUPERSEDED = "SUPERSEDED"  # another generation takes its place; its job, if any, does no harm
    REJECTED = "REJECTED"  # the remote refused it permanently


OPEN = frozenset({State.RESERVED, State.SENDING, State.ACCEPTED, State.SENT, State.IN_DOUBT, State.HELD})
CLOSED = frozenset(State) - OPEN

MOVES: dict[State, frozenset[State]] = {
    State.RESERVED: frozenset({State.SENDING, State.CANCELLED}),
    State.SENDING: frozenset({State.SENT, State.ACCEPTED, State.RESERVED, State.REJECTED, State.IN_DOUBT}),
    State.IN_DOUBT: frozenset(
        {State.SENT, State.ACCEPTED, State.RESERVED, State.REJECTED, State.HELD, State.SUPERSEDED}
    ),
    State.ACCEPTED: frozenset({State.SENT, State.HELD}),
    State.HELD: frozenset({State.SENT, State.ACCEPTED, State.RESERVED, State.CANCELLED}),
    State.SENT: frozenset({State.DONE, State.FAILED, State.CANCELLED, State.SUPERSEDED}),
    **{state: frozenset() for state in CLOSED},
}

# While in one of these, a submission counts against its quota whatever the clock says.
UNCERTAIN = frozenset({State.RESERVED, State.SENDING, State.IN_DOUBT, State.HELD})
