"""The documents of the Transfer API as they stand in its answers.

Invariant: times are ISO 8601 with whole seconds and an offset, `2026-11-26T10:00:00+00:00`, always UTC.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from simulators.globus.collections import Entry
from simulators.globus.model import Endpoint, Event, Moved, Skipped, Task
from simulators.globus.settings import NICE_STATUS_SECONDS

Fields = dict[str, Any]


def iso(epoch_seconds: float | None) -> str | None:
    """A time as the API writes it."""
    return None if epoch_seconds is None else datetime.fromtimestamp(int(epoch_seconds), UTC).isoformat()


def nice_status(task: Task, now: float) -> tuple[str | None, str | None, str | None]:
    """Code, short description and details of how the task fares; None for one that is over.

    An error is shown for 15 minutes after it happened, in place of `OK` and of `Queued`.
    """
    if task.is_over:
        return None, None, None
    if task.paused is not None:
        return "PAUSED", "paused by an administrator", task.paused
    error = task.error
    if error is not None and (task.status == "INACTIVE" or now - error.time < NICE_STATUS_SECONDS):
        return ("AUTH" if task.status == "INACTIVE" else error.code), error.description, error.details
    return ("OK", "OK", None) if task.state == "running" else ("Queued", "queued", None)


def task_json(task: Task, now: float, history_deleted: bool) -> Fields:
    """The `task` document."""
    nice, short, details = nice_status(task, now)
    counts, options = task.counts, task.options
    retrying = len(task.retrying)
    seconds = max(1.0, (task.completed or now) - task.requested)
    flowing = int(task.current.done) if task.current else 0
    done = counts.bytes_transferred + flowing
    return {
        "DATA_TYPE": "task",
        "task_id": task.id,
        "type": "TRANSFER",
        "status": task.status,
        "label": options.label,
        "owner_id": task.owner,
        "username": f"u_{task.owner.replace('-', '')[:26]}",
        "request_time": iso(task.requested),
        "completion_time": iso(task.completed),
        "deadline": iso(task.deadline),
        "fatal_error": None if task.fatal is None else {"code": task.fatal[0], "description": task.fatal[1]},
        "nice_status": nice,
        "nice_status_short_description": short,
        "nice_status_details": details,
        "nice_status_expires_in": None if task.is_over else -1,
        "is_ok": None if task.is_over else nice in ("OK", "Queued"),
        "is_paused": task.paused is not None,
        "canceled_by_admin": task.canceled_by_admin,
        "canceled_by_admin_message": task.canceled_by_admin_message,
        "source_endpoint_id": task.source.id,
        "source_endpoint_display_name": task.source.display_name,
        "destination_endpoint_id": task.destination.id,
        "destination_endpoint_display_name": task.destination.display_name,
        "files": counts.files,
        "directories": counts.directories,
        "files_transferred": counts.files_transferred,
        "files_skipped": counts.files_skipped,
        "bytes_transferred": done,
        "bytes_checksummed": counts.bytes_checksummed,
        "faults": counts.faults,
        "subtasks_total": counts.subtasks_total,
        "subtasks_succeeded": counts.subtasks_succeeded,
        "subtasks_pending": counts.subtasks_pending - retrying,
        "subtasks_retrying": retrying,
        "subtasks_failed": counts.subtasks_failed,
        "subtasks_canceled": counts.subtasks_canceled,
        "subtasks_expired": counts.subtasks_expired,
        "subtasks_skipped_errors": counts.subtasks_skipped_errors,
        "effective_bytes_per_second": int(done / seconds),
        "symlinks": 0,
        "sync_level": options.sync_level,
        "verify_checksum": options.verify_checksum,
        "preserve_timestamp": options.preserve_timestamp,
        "encrypt_data": options.encrypt_data,
        "skip_source_errors": options.skip_source_errors,
        "fail_on_quota_errors": options.fail_on_quota_errors,
        "delete_destination_extra": False,
        "recursive_symlinks": "ignore",
        "command": "API 0.10",
        "filter_rules": None,
        "history_deleted": history_deleted,
    }


def event_json(event: Event) -> Fields:
    """A line of an event list."""
    return {
        "DATA_TYPE": "event",
        "code": event.code,
        "is_error": event.is_error,
        "description": event.description,
        "details": event.details,
        "time": iso(event.time),
        "parent_task_id": None,
    }


def moved_json(row: Moved) -> Fields:
    """A row of `successful_transfers`; without a checksum where the task was asked for none."""
    return {
        "DATA_TYPE": "successful_transfer",
        "source_path": row.source,
        "destination_path": row.destination,
        "size": row.size,
        "checksum": row.checksum,
        "checksum_algorithm": "MD5" if row.checksum else None,
    }


def skipped_json(row: Skipped) -> Fields:
    """A row of `skipped_errors`."""
    return {
        "DATA_TYPE": "skipped_error",
        "source_path": row.source,
        "destination_path": row.destination,
        "error_code": row.code,
        "error_details": f"{row.code}: {row.source}",
        "error_time": iso(row.time),
        "checksum_algorithm": "MD5" if row.external_checksum else None,
        "external_checksum": row.external_checksum,
        "is_delete_destination_extra": False,
        "is_directory": False,
        "is_symlink": False,
    }


def pause_info_json(task: Task) -> Fields:
    """Why a task is paused: messages of both ends, and rules."""
    paused = task.paused
    rules = []
    for endpoint in (task.source, task.destination):
        if paused is not None and endpoint.paused is not None:
            rules.append(
                {
                    "DATA_TYPE": "pause_rule_limited",
                    "message": endpoint.paused,
                    "endpoint_id": endpoint.id,
                    "endpoint_display_name": endpoint.display_name,
                    "pause_task_transfer_read": endpoint is task.source,
                    "pause_task_transfer_write": endpoint is task.destination,
                }
            )
    return {
        "DATA_TYPE": "pause_info_limited",
        "pause_rules": rules,
        "source_pause_message": None,
        "source_pause_message_share": None,
        "destination_pause_message": paused if not rules else None,
        "destination_pause_message_share": None,
    }


def endpoint_json(endpoint: Endpoint, owner: str) -> Fields:
    """The `endpoint` document of a collection."""
    guest = endpoint.entity_type == "GCSv5_guest_collection"
    return {
        "DATA_TYPE": "endpoint",
        "id": endpoint.id,
        "display_name": endpoint.display_name,
        "entity_type": endpoint.entity_type,
        "owner_id": owner,
        "owner_string": "simulator",
        "description": None,
        "organization": "simulator",
        "public": True,
        "default_directory": "/",
        "disable_verify": False,
        "force_verify": False,
        "force_encryption": False,
        "gcp_connected": None,
        "gcp_paused": None,
        "is_globus_connect": False,
        "high_assurance": False,
        "mapped_collection_id": None,
        "non_functional": False,
        "acl_available": guest,
        "acl_editable": False,
        "my_effective_roles": [],
        "in_use": False,
        "https_server": endpoint.https_server,
        "DATA": [],
    }


def file_json(name: str, is_folder: bool, entry: Entry | None) -> Fields:
    """A file or folder as `ls` and `stat` show it."""
    modified = datetime.fromtimestamp(int(entry.modified if entry else 0), UTC)
    return {
        "DATA_TYPE": "file",
        "name": name,
        "type": "dir" if is_folder else "file",
        "size": entry.size if entry else 4096,
        "last_modified": modified.isoformat(sep=" "),
        "permissions": "0755" if is_folder else "0644",
        "user": "simulator",
        "group": "simulator",
        "link_target": None,
        "link_size": None,
        "link_user": None,
        "link_group": None,
        "link_last_modified": None,
    }
