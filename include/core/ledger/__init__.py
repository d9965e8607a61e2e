"""The ledger: what Waybill meant to do, what it did, and the proof that the record was not changed afterwards.

Read in this order: `states` (the state machine as a table), `schema` (two tables and their migrations), `store` (every
change goes through its one write lock), `submit` (the one call that systems use), `audit` (the chain). The thing to know
before changing it: an intent is committed *before* the request leaves, so whatever dies, the row says what may be out
there. `python -m include.core.ledger` is the operator's view.
"""

from include.core.ledger.schema import engine_for, init, ledger_url
from include.core.ledger.states import CLOSED, OPEN, State
from include.core.ledger.store import Intent, Ledger, Owner, Quota, Submission
from include.core.ledger.submit import Guard, HarmlessTwin, Probe, Walk, submit_once

__all__ = [
    "CLOSED",
    "OPEN",
    "Guard",
    "HarmlessTwin",
    "Intent",
    "Ledger",
    "Owner",
    "Probe",
    "Quota",
    "State",
    "Submission",
    "Walk",
    "engine_for",
    "init",
    "ledger_url",
    "submit_once",
]
