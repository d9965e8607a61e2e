"""The ledger: what Waybill meant to do, what it did, and the proof that the record was not changed afterwards.

Read in this order: `states` (the state machine as a table), `schema` (tables, migrations, engines), `rows` (values),
`writing` (a change and its event), `store` (every change goes through its one write lock), `submit` (the one call that
systems use), `audit` (the chain). The thing to know
before changing it: an intent is committed *before* the request leaves, so whatever dies, the row says what may be out
there. `python -m include.core.ledger` is the operator's view.
"""

from include.core.ledger.audit import Audit, verify
from include.core.ledger.rows import Intent, Owner, Quota, Submission
from include.core.ledger.schema import engine_for, init, ledger_url, url_from_fields
from include.core.ledger.states import CLOSED, OPEN, State
from include.core.ledger.store import Ledger
from include.core.ledger.submit import (
    AttemptLost,
    DoubtPending,
    Guard,
    HarmlessTwin,
    Probe,
    Sent,
    Walk,
    resolve,
    submit_once,
)

__all__ = [
    "CLOSED",
    "OPEN",
    "AttemptLost",
    "Audit",
    "DoubtPending",
    "Guard",
    "HarmlessTwin",
    "Intent",
    "Ledger",
    "Owner",
    "Probe",
    "Quota",
    "Sent",
    "State",
    "Submission",
    "Walk",
    "engine_for",
    "init",
    "ledger_url",
    "resolve",
    "submit_once",
    "url_from_fields",
    "verify",
]
