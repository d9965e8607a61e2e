"""Setup on a bare machine: which Python, which index, which wheel, and when nothing is to be done."""

from __future__ import annotations

import hashlib
import io
import json
import re
import sys
import zipfile
from pathlib import Path

import pytest

from rehearsal import setup_env
from rehearsal.setup_env import SetupError, choose_wheel, index_environment, index_files

V = setup_env.UV_VERSION
MANYLINUX = f"uv-{V}-py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.whl"
WHEELS = [
    f"uv-{V}.tar.gz",
    f"uv-{V}-py3-none-macosx_11_0_arm64.whl",
    f"uv-{V}-py3-none-manylinux_2_17_aarch64.manylinux2014_aarch64.whl",
    f"uv-{V}-py3-none-musllinux_1_1_x86_64.whl",
    MANYLINUX,
    f"uv-{V}-py3-none-win_amd64.whl",
    "uv-0.1.0-py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
]
SHA = "a" * 64


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment of a machine with no configuration of pip, and a project folder of its own."""
    monkeypatch.setattr(setup_env, "SYSTEM_PIP_CONF", tmp_path / "etc" / "pip.conf")
    return {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "XDG_CONFIG_DIRS": str(tmp_path / "xdg")}


@pytest.mark.parametrize(
    ("machine", "libc", "wheel"),
    [("x86_64", "glibc", MANYLINUX), ("x86_64", "musl", WHEELS[3]), ("aarch64", "glibc", WHEELS[2])],
)
def test_the_wheel_of_this_machine_is_chosen(machine: str, libc: str, wheel: str) -> None:
    assert choose_wheel(WHEELS, machine, libc) == wheel


def test_a_machine_without_a_wheel_is_told_what_to_do() -> None:
    with pytest.raises(SetupError, match=r"no wheel .* riscv64; put uv on PATH"):
        choose_wheel(WHEELS, "riscv64", "glibc")


def test_an_index_page_is_read_as_json_and_as_html() -> None:
    page = "http://index/simple/uv/"
    body = json.dumps(
        {"files": [{"url": "../../f/a%2Bb.whl", "hashes": {"sha256": SHA}}, {"url": "b.whl", "hashes": {}}]}
    )
    expected = {"a+b.whl": ("http://index/f/a%2Bb.whl", SHA)}
    assert index_files(body.encode(), "application/vnd.pypi.simple.v1+json", page) == expected
    html = f'<a href="../../f/a%2Bb.whl#sha256={SHA}">a+b.whl</a><a href="b.whl">no digest</a><a href="c.whl#md5=1">weak</a>'
    assert index_files(html.encode(), "text/html; charset=utf-8", page) == expected


def _answers(monkeypatch: pytest.MonkeyPatch, wheel: bytes, sha256: str, where: str) -> list[tuple[str, str | None]]:
    asked: list[tuple[str, str | None]] = []
    listing = json.dumps({"files": [{"url": f"{where}/{MANYLINUX}", "hashes": {"sha256": sha256}}]}).encode()

    def fetch(url: str, _environment: dict[str, str], authorization: str | None, accept: str = "") -> tuple[bytes, str]:
        asked.append((url, authorization))
        return (wheel, "") if url.endswith(".whl") else (listing, "application/vnd.pypi.simple.v1+json")

    monkeypatch.setattr(setup_env, "_fetch", fetch)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr("platform.libc_ver", lambda: ("glibc", "2.36"))
    return asked


def _wheel() -> tuple[bytes, str]:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(f"uv-{V}.data/scripts/uv", "#!/bin/sh\necho uv 9.9.9\n")
    return stream.getvalue(), hashlib.sha256(stream.getvalue()).hexdigest()


@pytest.mark.parametrize(("where", "shown"), [("http://index/f", "Basic dTpwIHc="), ("http://files/f", None)])
def test_credentials_go_to_the_index_and_to_no_other_host(
    bare: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, shown: str | None
) -> None:
    wheel, sha256 = _wheel()
    asked = _answers(monkeypatch, wheel, sha256, where)
    binary = setup_env.download_uv(bare | {"UV_DEFAULT_INDEX": "http://u:p%20w@index/simple"}, tmp_path / "uv")
    assert setup_env.works([str(binary)])
    assert asked == [("http://index/simple/uv/", "Basic dTpwIHc="), (f"{where}/{MANYLINUX}", shown)]


def test_a_wheel_with_another_digest_is_not_used(
    bare: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _answers(monkeypatch, _wheel()[0], SHA, "http://files")
    with pytest.raises(SetupError, match="does not have the sha256"):
        setup_env.download_uv(bare, tmp_path / "uv")
    assert not (tmp_path / "uv").exists()


def test_pip_s_settings_are_translated_for_uv_and_its_own_win(bare: dict[str, str], tmp_path: Path) -> None:
    conf = tmp_path / ".config" / "pip" / "pip.conf"
    conf.parent.mkdir(parents=True)
    conf.write_text(
        "[global]\nindex-url = https://mirror/simple\ncert = /ca.pem\nextra-index-url =\n  https://a\n  https://b\n"
        "[install]\nfind-links = /w%heels\n",
        encoding="utf-8",
    )
    found = index_environment(bare)
    assert found["UV_DEFAULT_INDEX"] == "https://mirror/simple"
    assert found["UV_EXTRA_INDEX_URL"] == "https://a https://b"
    assert found["UV_FIND_LINKS"] == "/w%heels"
    assert found["SSL_CERT_FILE"] == "/ca.pem"
    assert (
        index_environment(bare | {"PIP_INDEX_URL": "https://variable/simple"})["UV_DEFAULT_INDEX"]
        == "https://variable/simple"
    )
    assert setup_env.index_url(index_environment(bare | {"UV_INDEX_URL": "https://uv/simple"})) == "https://uv/simple"


def test_a_machine_without_configuration_asks_the_public_index(bare: dict[str, str]) -> None:
    assert index_environment(bare) == bare
    assert setup_env.index_url(bare) == setup_env.public_index()


def test_the_stamp_follows_requirements_and_python(tmp_path: Path) -> None:
    for name in setup_env.REQUIREMENTS:
        (tmp_path / name).write_text("a==1\n", encoding="utf-8")
    stamp = tmp_path / "stamp"
    assert not setup_env.is_current((3, 11), stamp, tmp_path)
    stamp.write_text(setup_env.fingerprint((3, 11), tmp_path) + "\n", encoding="utf-8")
    assert setup_env.is_current((3, 11), stamp, tmp_path)
    assert not setup_env.is_current((3, 12), stamp, tmp_path)
    (tmp_path / "requirements-dev.txt").write_text("a==2\n", encoding="utf-8")
    assert not setup_env.is_current((3, 11), stamp, tmp_path)


def test_this_python_serves_and_another_program_is_refused() -> None:
    assert setup_env.choose_python(None)[1] == sys.version_info[:2]
    for wrong in ("/bin/true", "/nonexistent/python3.11"):
        with pytest.raises(
            SetupError, match=re.escape(f"PYTHON={wrong} does not run as CPython; Waybill needs CPython 3.11, ")
        ):
            setup_env.choose_python(wrong)


def test_an_old_python_is_named_with_the_remedy(tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text("#!/bin/sh\necho 3 9\n", encoding="utf-8")
    old.chmod(0o755)
    with pytest.raises(SetupError, match=r"is Python 3\.9; Waybill needs"):
        setup_env.choose_python(str(old))


def test_a_uv_that_is_too_old_or_a_broken_shim_is_passed_over(tmp_path: Path) -> None:
    for name, script in {"old": "echo uv 0.4.30", "shim": "exit 127", "new": "echo 'uv 0.13.8 (x86_64)'"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    assert [setup_env.works([str(tmp_path / name)]) for name in ("old", "shim", "new", "none")] == [
        False,
        False,
        True,
        False,
    ]
