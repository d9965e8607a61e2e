"""What a receipt says to whoever looks for one file of a plate: the command that finds it, and the page that does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from airflow.sdk.configuration import conf

from include.plates.where import find_command


def one_file(dag_id: str, request: Mapping[str, Any], tarballs: Iterable[str]) -> dict[str, Any]:
    """To be added to a plate's item; empty where the plate has no tarballs."""
    command = find_command(str(request.get("archive_bucket", "")), tarballs)
    if not command:
        return {}
    page = f"{conf.get('api', 'base_url', fallback='').rstrip('/')}/waybill/where/{dag_id}"
    return {"one_file": {"find": command, "restore": "by the command that the answer gives", "where": page}}
