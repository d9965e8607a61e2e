"""Build `.venv` from the pinned requirements: `python3 rehearsal/setup_env.py`, which is what `make setup` runs.

On a bare Debian there is neither pip nor ensurepip: then it fetches uv, one static binary, from the package index and
checks it against the sha256 that the index gives. A second run reads a stamp and touches no network.

Invariant: it uses the standard library alone, since it runs before anything is installed.
"""

from __future__ import annotations

import argparse
import base64
import configparser
import fcntl
import hashlib
import html.parser
import io
import json
import os
import platform
import shutil
import ssl
import subprocess
import sys
import urllib.parse
import urllib.request
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
TOOLS = ROOT / ".waybill" / "uv"
STAMP = VENV / ".waybill-stamp"
REQUIREMENTS = ("requirements.txt", "requirements-dev.txt")
SUPPORTED = ((3, 11), (3, 12), (3, 13))
UV_VERSION = "0.13.8"
UV_OLDEST = (0, 5)  # the first with UV_DEFAULT_INDEX
SYSTEM_PIP_CONF = Path("/etc/pip.conf")
SIMPLE_API = "application/vnd.pypi.simple.v1+json, text/html;q=0.5"


class SetupError(Exception):
    """Setup cannot go on; the message says what to do."""


# -- the interpreter


def describe_python(command: str) -> tuple[int, int] | None:
    """(major, minor) of a CPython, None if `command` does not run or is another implementation."""
    script = "import sys; print(*sys.version_info[:2]) if sys.implementation.name == 'cpython' else None"
    try:
        done = subprocess.run([command, "-c", script], capture_output=True, text=True, timeout=60, check=True)
        major, minor = done.stdout.split()
    except (OSError, ValueError, subprocess.SubprocessError):
        return None  # also the shim of a version manager that has no such version
    return int(major), int(minor)


def choose_python(wanted: str | None) -> tuple[str, tuple[int, int]]:
    """The interpreter for `.venv`: the one asked for, else this one, else the first supported one on PATH."""
    supported = ", ".join(f"{major}.{minor}" for major, minor in SUPPORTED)
    if wanted:
        version = describe_python(wanted)
        if version not in SUPPORTED:
            found = "does not run as CPython" if version is None else f"is Python {version[0]}.{version[1]}"
            raise SetupError(f"PYTHON={wanted} {found}; Waybill needs CPython {supported}")
        return wanted, version
    for command in (sys.executable, *(f"python{major}.{minor}" for major, minor in SUPPORTED)):
        version = describe_python(command)
        if version in SUPPORTED:
            return command, version
    here = ".".join(map(str, sys.version_info[:2]))
    raise SetupError(
        f"Waybill needs CPython {supported}; found only {here}. Name one: make setup PYTHON=/path/to/python3.11"
    )


# -- the stamp


def fingerprint(version: tuple[int, int], root: Path = ROOT) -> str:
    """What `.venv` was built from: the requirement files and the Python version."""
    digest = hashlib.sha256(f"1 {version[0]}.{version[1]}".encode())
    for name in REQUIREMENTS:
        digest.update((root / name).read_bytes())
    return digest.hexdigest()


def venv_version(venv: Path = VENV) -> tuple[int, int] | None:
    """The Python version of an existing environment; None if there is none, or its interpreter is gone."""
    python = venv / "bin" / "python"
    return describe_python(str(python)) if python.exists() else None


def is_current(version: tuple[int, int], stamp: Path = STAMP, root: Path = ROOT) -> bool:
    return stamp.exists() and stamp.read_text(encoding="utf-8").strip() == fingerprint(version, root)


# -- where packages come from


def pip_configuration(environment: dict[str, str]) -> dict[str, str]:
    """pip's own settings, later files over earlier ones: index-url, extra-index-url, find-links, cert, trusted-host."""
    home = Path(environment.get("HOME", "/"))
    files = [
        *(Path(folder) / "pip" / "pip.conf" for folder in environment.get("XDG_CONFIG_DIRS", "/etc/xdg").split(":")),
        SYSTEM_PIP_CONF,
        home / ".pip" / "pip.conf",
        Path(environment.get("XDG_CONFIG_HOME", str(home / ".config"))) / "pip" / "pip.conf",
    ]
    if environment.get("PIP_CONFIG_FILE"):
        files.append(Path(environment["PIP_CONFIG_FILE"]))
    parser = configparser.RawConfigParser()
    for file in files:
        try:
            parser.read(file, encoding="utf-8")
        except (OSError, configparser.Error, UnicodeDecodeError) as error:
            print(f"ignoring {file}: {error}", file=sys.stderr)
    found: dict[str, str] = {}
    for section in ("global", "install"):
        if parser.has_section(section):
            found.update((key.replace("_", "-"), value) for key, value in parser.items(section))
    for name in ("index-url", "extra-index-url", "find-links", "cert", "trusted-host"):
        value = environment.get("PIP_" + name.upper().replace("-", "_"))
        if value:
            found[name] = value
    return found


def public_index(name: str = "pypi") -> str:
    return f"https://{name}.org/simple"


def index_environment(environment: dict[str, str]) -> dict[str, str]:
    """`environment` with pip's settings translated to uv's, for a machine where only pip is configured.

    An index with a password thus reaches uv by its environment and never by an argument.
    """
    pip = pip_configuration(environment)
    added: dict[str, str] = {}
    if not any(environment.get(name) for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL")) and pip.get("index-url"):
        added["UV_DEFAULT_INDEX"] = pip["index-url"]
    if not any(environment.get(name) for name in ("UV_INDEX", "UV_EXTRA_INDEX_URL")) and pip.get("extra-index-url"):
        added["UV_EXTRA_INDEX_URL"] = " ".join(pip["extra-index-url"].split())
        added["UV_INDEX_STRATEGY"] = "unsafe-best-match"  # how pip treats further indexes
    if not environment.get("UV_FIND_LINKS") and pip.get("find-links"):
        added["UV_FIND_LINKS"] = ",".join(pip["find-links"].split())
    if not environment.get("SSL_CERT_FILE") and pip.get("cert"):
        added["SSL_CERT_FILE"] = pip["cert"]
    if not environment.get("UV_INSECURE_HOST") and pip.get("trusted-host"):
        added["UV_INSECURE_HOST"] = " ".join(pip["trusted-host"].split())
    if not os.access(environment.get("HOME", "/nonexistent"), os.W_OK) and not environment.get("UV_CACHE_DIR"):
        added["UV_CACHE_DIR"] = str(TOOLS / "cache")
    return {**environment, **added}


def index_url(environment: dict[str, str]) -> str:
    """The simple index that a download asks; `environment` comes from `index_environment`."""
    return environment.get("UV_DEFAULT_INDEX") or environment.get("UV_INDEX_URL") or public_index()


def without_credentials(url: str) -> tuple[str, str | None]:
    """The URL without its user info, and that as the value of an Authorization header."""
    parts = urllib.parse.urlsplit(url)
    credentials, at, host = parts.netloc.rpartition("@")
    if not at:
        return url, None
    user_info = urllib.parse.unquote(credentials).encode()
    return urllib.parse.urlunsplit(parts._replace(netloc=host)), "Basic " + base64.b64encode(user_info).decode()


# -- the uv wheel


class _Links(html.parser.HTMLParser):
    """The links of an index page in its HTML form (PEP 503): file name -> URL with #sha256=."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        href = dict(attrs).get("href")
        if tag == "a" and href:
            self.found.append(href)


def index_files(body: bytes, content_type: str, page: str) -> dict[str, tuple[str, str]]:
    """File name -> (URL, sha256) from an index page, JSON (PEP 691) or HTML (PEP 503). Files without sha256 are left out."""
    if "json" in content_type:
        listed = json.loads(body)["files"]
        pairs = [(urllib.parse.urljoin(page, file["url"]), file.get("hashes", {}).get("sha256", "")) for file in listed]
    else:
        links = _Links()
        links.feed(body.decode())
        split = [urllib.parse.urldefrag(urllib.parse.urljoin(page, href)) for href in links.found]
        pairs = [(url, fragment.partition("sha256=")[2]) for url, fragment in split]
    return {urllib.parse.unquote(url.rsplit("/", 1)[-1]): (url, sha256) for url, sha256 in pairs if len(sha256) == 64}


def choose_wheel(names: list[str], machine: str, libc: str) -> str:
    """The wheel of uv, in the pinned version, for this machine ("x86_64") and C library ("glibc" or "musl")."""
    family = "manylinux" if libc == "glibc" else "musllinux"
    for name in sorted(names):
        if name.startswith(f"uv-{UV_VERSION}-py3-none-{family}") and name.endswith(f"_{machine}.whl"):
            return name
    raise SetupError(f"the index has no wheel uv {UV_VERSION} for {family} on {machine}; put uv on PATH and repeat")


def _fetch(url: str, environment: dict[str, str], authorization: str | None, accept: str = "*/*") -> tuple[bytes, str]:
    """Body and content type of a URL. Credentials appear in no message and follow no redirect."""
    request = urllib.request.Request(url, headers={"Accept": accept, "User-Agent": "waybill-setup"})
    if authorization:
        request.add_unredirected_header("Authorization", authorization)
    context = ssl.create_default_context(cafile=environment.get("SSL_CERT_FILE") or None)
    try:
        with urllib.request.urlopen(request, timeout=60, context=context) as answer:
            return answer.read(), answer.headers.get("Content-Type", "")
    except (OSError, ValueError) as error:
        remedy = "the network, the proxy and PIP_INDEX_URL; SSL_CERT_FILE where a company signs its own certificates"
        raise SetupError(f"cannot read {url}: {error}. Check {remedy}") from error


def download_uv(environment: dict[str, str], folder: Path = TOOLS) -> Path:
    """Fetch uv's wheel from the index, check it, and put its binary into `folder`."""
    index, authorization = without_credentials(index_url(environment))
    page = index.rstrip("/") + "/uv/"
    files = index_files(*_fetch(page, environment, authorization, SIMPLE_API), page)
    name = choose_wheel(list(files), platform.machine(), "glibc" if platform.libc_ver()[0] == "glibc" else "musl")
    url, sha256 = files[name]
    own = urllib.parse.urlsplit(url).netloc == urllib.parse.urlsplit(index).netloc
    wheel, _ = _fetch(url, environment, authorization if own else None)
    if hashlib.sha256(wheel).hexdigest() != sha256:
        raise SetupError(f"{name} from {url} does not have the sha256 the index gives: not used")
    with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
        binary = archive.read(f"uv-{UV_VERSION}.data/scripts/uv")
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / "uv.partial"
    partial.write_bytes(binary)
    partial.chmod(0o755)
    return partial.replace(folder / "uv")


# -- finding uv


def works(command: list[str]) -> bool:
    """Whether `command` is a uv that is new enough."""
    try:
        done = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=60, check=True)
        version = tuple(int(part) for part in done.stdout.split()[1].split(".")[:2])
    except (OSError, ValueError, IndexError, subprocess.SubprocessError):
        return False
    return version >= UV_OLDEST


def _with_pip(python: str, environment: dict[str, str]) -> None:
    """Let an installed pip fetch uv into the project."""
    command = [python, "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check", "--upgrade"]
    command += ["--target", str(TOOLS / "pip"), f"uv=={UV_VERSION}"]
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def _with_ensurepip(python: str, environment: dict[str, str]) -> None:
    """Let the pip that Python brings along fetch uv, in an environment of its own."""
    seed = TOOLS / "seed"
    subprocess.run([python, "-m", "venv", "--clear", str(seed)], check=True, capture_output=True)
    subprocess.run(
        [str(seed / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-input", f"uv=={UV_VERSION}"],
        env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip


def find_uv(python: str, environment: dict[str, str]) -> list[str]:
    """The command that runs uv: one that is there, else one that pip fetches, else one that we fetch."""
    local = [[str(path)] for path in (VENV / "bin" / "uv", TOOLS / "uv", TOOLS / "pip/bin/uv", TOOLS / "seed/bin/uv")]
    on_path = shutil.which("uv", path=environment.get("PATH"))
    for command in [*local, *([[on_path]] if on_path else []), [python, "-m", "uv"]]:
        if works(command):
            return command
    print("uv is not installed here: fetching it into .waybill/uv", flush=True)
    for make, binary in ((_with_pip, TOOLS / "pip/bin/uv"), (_with_ensurepip, TOOLS / "seed/bin/uv")):
        try:
            make(python, environment)
        except (OSError, subprocess.SubprocessError):
            continue  # no pip, no ensurepip, or one that may not install: the next way needs neither
        if works([str(binary)]):
            return [str(binary)]
    downloaded = [str(download_uv(environment))]
    if not works(downloaded):
        raise SetupError(f"{downloaded[0]} does not run on this machine; put uv on PATH and repeat")
    return downloaded


# -- the environment


def _run_uv(command: list[str], environment: dict[str, str]) -> None:
    try:
        subprocess.run(command, env=environment, cwd=ROOT, check=True)
    except subprocess.CalledProcessError as error:
        hint = "Is the package index reachable (PIP_INDEX_URL, proxy, SSL_CERT_FILE)?"
        raise SetupError(f"uv ended with status {error.returncode}: see above. {hint}") from error


def build(wanted: str | None, environment: dict[str, str]) -> None:
    """Bring `.venv` to what the requirement files say; does nothing, offline, if it is there already."""
    existing = venv_version()
    python, version = (
        choose_python(wanted) if wanted or existing not in SUPPORTED else (str(VENV / "bin/python"), existing)
    )
    if existing == version and is_current(version):
        STAMP.touch()  # make compares times
        print(f".venv is up to date (Python {version[0]}.{version[1]})", flush=True)
        return
    environment = index_environment(environment)
    if existing != version:
        python = shutil.which(python) or python
        uv = find_uv(python, environment)
        shutil.rmtree(VENV, ignore_errors=True)
        _run_uv([*uv, "venv", "--quiet", "--no-python-downloads", "--python", python, str(VENV)], environment)
    else:
        uv = find_uv(python, environment)
    print(f"installing the pinned requirements into .venv (Python {version[0]}.{version[1]})", flush=True)
    STAMP.unlink(missing_ok=True)
    files = [argument for name in REQUIREMENTS for argument in ("--requirement", name)]
    quiet = [] if sys.stderr.isatty() else ["--quiet"]  # two hundred lines in a log help nobody; a progress bar does
    _run_uv([*uv, "pip", "install", *quiet, "--python", str(VENV / "bin" / "python"), *files], environment)
    STAMP.write_text(fingerprint(version) + "\n", encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="setup_env.py", description="Build .venv from the pinned requirements.")
    parser.add_argument("--python", help="the interpreter to use (default: this one, if it is supported)")
    parser.add_argument("uv", nargs=argparse.REMAINDER, help="`-- ARGS`: run uv with these arguments instead")
    arguments = parser.parse_args(argv)
    TOOLS.mkdir(parents=True, exist_ok=True)
    try:
        with (TOOLS / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # two terminals, one environment
            if arguments.uv:
                environment = index_environment(dict(os.environ))
                _run_uv([*find_uv(sys.executable, environment), *arguments.uv[1:]], environment)
            else:
                build(arguments.python, dict(os.environ))
    except SetupError as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
