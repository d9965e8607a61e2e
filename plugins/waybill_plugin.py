"""The one file that Airflow's plugin manager runs: what Waybill adds to Airflow itself.

Invariant: `.airflowignore` beside it keeps the manager away from every other file here. A new
plugin or trigger takes effect when api-server and triggerer are restarted.
"""

from __future__ import annotations

import sys
from typing import Any

from airflow.plugins_manager import AirflowPlugin
from operators.common.receipt import ReceiptLink


def _apps() -> list[dict[str, Any]]:
    """The portal, in the one process that serves it: elsewhere its imports would only cost time."""
    if "airflow.api_fastapi.app" not in sys.modules:
        return []
    from portal.app import app

    return [{"app": app, "url_prefix": "/waybill", "name": "Waybill"}]


class WaybillPlugin(AirflowPlugin):
    name = "waybill"
    operator_extra_links = [ReceiptLink()]
    fastapi_apps = _apps()
