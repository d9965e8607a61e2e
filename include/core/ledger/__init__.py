"""The ledger: what Waybill meant to do, what it did, and the proof that the record was not changed afterwards.

Read in this order: `states` (the state machine as a table), `schema` (tables, engines), `migrations` (from older tables),
`rows` (values), `odd_values` (what no database keeps), `clock` (the ledger's time), `transaction` (a change and its event),
`intents` (what may be asked), `reading`, `store` (every change goes through its one write lock), `submit` (the one call that
systems use), `audit` (the chain), `upkeep` (rows that stay in doubt, cancellation requests).
`python -m include.core.ledger` is the operator's view.

Invariant: an intent is committed *before* the request leaves, so whatever dies, the row says what the remote may have done.
"""

from include.core.ledger.audit import Audit, verify
from include.core.ledger.rows import Intent, Owner, Quota, QuotaReading, Submission
from include.core.ledger.schema import engine_for, init, ledger_url, url_from_fields
from include.core.ledger.states import CLOSED, OPEN, State
from include.core.ledger.store import Ledger, LookAgain, OnHold
from include.core.ledger.submit import (
    Accepted,
    AttemptLost,
    ClientKey,
    DuplicateSafe,
    InDoubt,
    Probe,
    RemoteSearch,
    SendFence,
    Sent,
    resolve,
    submit_once,
)

__all__ = [
    "CLOSED",
    "OPEN",
    "Accepted",
    "AttemptLost",
    "Audit",
    "ClientKey",
    "DuplicateSafe",
    "InDoubt",
    "Intent",
    "Ledger",
    "LookAgain",
    "OnHold",
    "Owner",
    "Probe",
    "Quota",
    "QuotaReading",
    "RemoteSearch",
    "SendFence",
    "Sent",
    "State",
    "Submission",
    "engine_for",
    "init",
    "ledger_url",
    "resolve",
    "submit_once",
    "url_from_fields",
    "verify",
]
