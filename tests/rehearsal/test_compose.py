"""The production files agree with each other and with the repository; Docker itself checks them where it is there."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from rehearsal.settings import ROOT, parse_env

COMPOSE = ROOT / "docker-compose.yaml"
TEXT = COMPOSE.read_text(encoding="utf-8")
EXAMPLE = parse_env((ROOT / ".env.example").read_text(encoding="utf-8"))
USED = set(re.findall(r"(?<!\$)\$\{(\w+)", TEXT))


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(TEXT)
    return loaded


def _airflow_services(compose: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        name: service for name, service in compose["services"].items() if str(service["image"]).startswith("waybill:")
    }


def test_the_example_names_every_variable_and_no_other() -> None:
    assert set(EXAMPLE) - {"COMPOSE_PROFILES"} == USED


def test_no_secret_has_a_value_in_the_example_or_a_default_in_the_compose_file() -> None:
    secret = {name for name in EXAMPLE if re.search("PASSWORD|KEY|SECRET", name)}
    assert len(secret) == 7
    assert {EXAMPLE[name] for name in secret} == {""}
    assert not re.findall(r"\$\{(?:\w*(?:PASSWORD|KEY|SECRET)\w*):-[^}]+\}", TEXT)


def test_every_airflow_service_reads_the_common_settings_and_sees_our_code(compose: dict[str, Any]) -> None:
    services = _airflow_services(compose)
    assert {"api-server", "scheduler", "dag-processor", "triggerer", "worker", "airflow-init", "ledger-init"} == set(
        services
    )
    for name, service in services.items():
        assert service["env_file"] == ["airflow.env"], name
        assert service["environment"]["PYTHONPATH"] == "/opt/airflow", name
        mounted = {volume.split(":")[0] for volume in service["volumes"]}
        assert {"./dags", "./plugins", "./include"} <= mounted, name


def test_keys_and_ledger_are_the_same_for_all_services(compose: dict[str, Any]) -> None:
    shared = ("AIRFLOW__CORE__FERNET_KEY", "AIRFLOW__API_AUTH__JWT_SECRET", "AIRFLOW_CONN_WAYBILL_LEDGER")
    for service in _airflow_services(compose).values():
        for key in shared:
            assert service["environment"][key] == compose["x-airflow"]["environment"][key]


def test_every_mount_and_settings_file_exists(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (ROOT / source).exists() if source.startswith(".") else source in compose["volumes"], (name, volume)
        for file in service.get("env_file", []):
            assert (ROOT / file).is_file()
        for config in service.get("configs", []):
            assert config["source"] in compose["configs"]


def test_every_dependency_is_a_service_that_can_meet_its_condition(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for name, service in services.items():
        for needed, how in service.get("depends_on", {}).items():
            assert needed in services, name
            if how["condition"] == "service_healthy":
                assert "healthcheck" in services[needed], name
            else:
                assert services[needed]["restart"] != "unless-stopped", f"{needed} would be run again and again"


def test_everything_that_stays_up_has_a_health_check(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert ("healthcheck" in service) == (service["restart"] == "unless-stopped"), name


def test_nothing_is_published_beyond_loopback(compose: dict[str, Any]) -> None:
    ports = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_no_secret_stands_in_a_command(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        words = str(service.get("command", "")) + str(service.get("healthcheck", {}).get("test", ""))
        assert not re.search(r"(?<!\$)\$\{", words), f"{name}: Compose would put the value into the process list"


def test_the_image_has_the_airflow_and_the_requirements_that_are_tested() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    pinned = re.search(
        r"^apache-airflow-core==(\S+)", (ROOT / "requirements.txt").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert pinned
    assert f"FROM apache/airflow:slim-{pinned[1]}-python3.11" in dockerfile
    assert "COPY requirements.txt" in dockerfile


def test_docker_itself_accepts_the_file(tmp_path: Path) -> None:
    docker = shutil.which("docker")
    if not docker or subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("no `docker compose` on this machine: the file is checked by the tests above only")
    filled = tmp_path / "filled.env"
    filled.write_text("".join(f"{name}={value or 'x'}\n" for name, value in EXAMPLE.items()), encoding="utf-8")
    command = [
        docker,
        "compose",
        "--env-file",
        str(filled),
        "--file",
        str(COMPOSE),
        "--profile",
        "celery",
        "config",
        "--quiet",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
