"""What a local stack's processes find in their environment."""

from __future__ import annotations

import importlib.util
import stat
from pathlib import Path

import pytest
import yaml

from rehearsal import settings
from rehearsal.errors import StackError

HOSTILE = {
    "PATH": "/usr/bin",
    "LANG": "C.UTF-8",
    "HOME": "/home/somebody",
    "AWS_PROFILE": "production",
    "AWS_SECRET_ACCESS_KEY": "real",
    "AIRFLOW_HOME": "/srv/airflow",
    "AIRFLOW__CORE__LOAD_EXAMPLES": "True",
    "AIRFLOW_CONN_WAYBILL_LEDGER": "postgresql://production",
    "HTTPS_PROXY": "http://proxy:3128",
    "PYTHONPATH": "/elsewhere",
}


def test_comments_and_blank_lines_are_skipped_and_values_are_taken_as_they_are() -> None:
    assert settings.parse_env('# why\n\nA=1\n  B_C="x=y" # z\n') == {"A": "1", "B_C": '"x=y" # z'}


@pytest.mark.parametrize(
    ("text", "message"), [("A=1\nA=2", "line 2: A is set twice"), ("A", "KEY=VALUE"), ("A B=1", "KEY=VALUE")]
)
def test_a_settings_file_with_a_mistake_is_refused(text: str, message: str) -> None:
    with pytest.raises(StackError, match=message):
        settings.parse_env(text)


@pytest.mark.parametrize("short", [False, True])
def test_every_setting_is_one_that_this_airflow_knows(short: bool) -> None:
    package = importlib.util.find_spec("airflow")
    assert package and package.origin
    text = (Path(package.origin).parent / "config_templates" / "config.yml").read_text(encoding="utf-8")
    known = yaml.safe_load(text)
    for key in settings.airflow_settings(short_timings=short):
        _, section, option = key.lower().split("__")
        assert option in known[section]["options"], key


def test_short_timings_are_laid_over_the_common_settings() -> None:
    common, short = settings.airflow_settings(), settings.airflow_settings(short_timings=True)
    assert common.items() - short.items() == {("AIRFLOW__SCHEDULER__TRIGGER_TIMEOUT_CHECK_INTERVAL", "5")}
    assert short["AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT"] == "10"


def test_what_the_caller_is_logged_in_to_does_not_reach_a_stack(tmp_path: Path) -> None:
    environment = settings.base_environment(tmp_path, short_timings=False, inherited=HOSTILE)
    assert environment["LANG"] == "C.UTF-8"
    assert environment["AIRFLOW__CORE__LOAD_EXAMPLES"] == "False"
    assert environment["HOME"] == str(tmp_path / "user")
    leaked = {name for name, value in HOSTILE.items() if environment.get(name) == value} - {"LANG"}
    assert leaked == set()
    assert environment["PATH"].endswith(":/usr/bin")


def test_keys_and_passwords_are_drawn_once_and_are_the_owners_only(tmp_path: Path) -> None:
    first = (settings.keys(tmp_path), settings.passwords(tmp_path))
    assert (settings.keys(tmp_path), settings.passwords(tmp_path)) == first
    assert set(first[1]) == {"admin", "amy", "uli", "vic"}
    assert len(set(first[1].values())) == 4
    for name in ("keys.json", "passwords.json"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600


def test_free_ports_are_distinct_and_outside_the_range_of_the_kernel() -> None:
    ports = settings.free_ports(20)
    assert len(set(ports)) == 20
    assert all(20_000 <= port < 32_000 for port in ports)


def test_airflow_listens_on_loopback_and_nowhere_on_its_default_ports() -> None:
    environment = settings.port_environment({"api": 1, "worker_logs": 2, "trigger_logs": 3})
    assert environment["AIRFLOW__API__HOST"] == "127.0.0.1"
    assert environment["AIRFLOW__CORE__EXECUTION_API_SERVER_URL"] == "http://127.0.0.1:1/execution/"
    assert {environment[f"AIRFLOW__LOGGING__{name}_LOG_SERVER_PORT"] for name in ("WORKER", "TRIGGER")} == {"2", "3"}
