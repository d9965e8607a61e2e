"""An operator that waits: the legs of `triggers.leg`, recorded for the receipt as every step is."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from airflow.sdk import Context
from operators.common.base import WaybillOperator
from triggers.leg import Leg, Legs, Wait

__all__ = ["Leg", "LegOperator", "Wait"]


class LegOperator(Legs, WaybillOperator):
    """Base of an operator that defers: it declares `act`, `trigger`, and the connection that the trigger looks through."""

    def __init__(self, *, conn_id: str = "", **kwargs: Any):
        super().__init__(**kwargs)
        self.conn_id = conn_id or self.conn_id

    def recorded(self, context: Context) -> AbstractContextManager[dict[str, Any]]:
        return self.refusing(context)
