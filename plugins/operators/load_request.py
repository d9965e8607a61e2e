"""The first task of every DAG: the conf, checked as a whole, or every fault in it at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from airflow.sdk import Context
from hooks.waybill import inputs, ledger
from operators.base import WaybillOperator

from include.core.objects import Objects
from include.core.requests import Request, load

Extra = Callable[[Any, list[Objects]], Any]


class LoadRequestOperator(WaybillOperator):
    """Checks `dag_run.conf` against `model` (strictly: Airflow lets unknown keys pass) and returns it with its defaults.

    `check(request, input_places)` may check more, without touching a remote; it raises RequestError. A missing or
    unreadable ledger is refused here too, before anything remote happens.
    """

    def __init__(self, *, model: type[Request], check: Extra | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        self.model = model
        self.check = check

    def execute(self, context: Context) -> Mapping[str, Any]:
        with self.refusing(context):
            request = load(self.model, context["dag_run"].conf)
            if self.check is not None:
                self.check(request, inputs())
        ledger()
        return request.model_dump(mode="json", exclude={"manifest", "manifest_b64gz"})
