"""The first task of every DAG: the conf, checked as a whole, or every fault in it at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from airflow.sdk import Context
from hooks.waybill import check_ledger, inputs
from operators.common.base import WaybillOperator

from include.core.errors import RequestError
from include.core.objects import Objects
from include.core.request import Request, bulky_fields, load, load_without_faults

Extra = Callable[[Any, list[Objects]], Any]


class LoadRequestOperator(WaybillOperator):
    """Checks `dag_run.conf` against `model` (strictly: Airflow lets unknown keys pass) and returns it with its defaults.

    What the model declares as bulky is left out, since it would not fit XCom. `check(request, input_places)` may check more,
    without touching a remote; it raises RequestError. A ledger that is missing or unreadable, and receipts that cannot be
    written, are refused here too, before anything remote happens.
    """

    step = "load_request"

    def __init__(self, *, model: type[Request], check: Extra | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        self.model = model
        self.check = check

    def execute(self, context: Context) -> Mapping[str, Any]:
        with self.refusing(context) as facts:
            request = self._checked(context["dag_run"].conf or {})
            check_ledger()
            shown: dict[str, Any] = request.model_dump(mode="json", exclude=bulky_fields(self.model))
            facts["request"] = shown
        return shown

    def _checked(self, conf: Mapping[str, Any]) -> Request:
        """The request. Raises RequestError with the faults of single fields, of the whole and of `check` together."""
        problems: list[str] = []
        request: Request | None
        try:
            request = load(self.model, conf)
        except RequestError as error:
            problems, request = list(error.problems), load_without_faults(self.model, conf, error.problems)
        try:
            if request is not None and self.check is not None:
                self.check(request, inputs())
        except RequestError as error:
            problems += error.problems
        if problems or request is None:
            raise RequestError(list(dict.fromkeys(problems)))
        return request
