"""The command line as its users run it: a process, in a folder of its own, without the developer's settings."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def _command(arguments: str) -> list[str]:
    return [sys.executable, "-m", "jobrunner", *shlex.split(arguments)]


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


def jobrunner(arguments: str, folder: Path, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Run `jobrunner ARGUMENTS` in `folder` to its end."""
    return subprocess.run(
        _command(arguments),
        cwd=folder,
        env=_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def start_jobrunner(arguments: str, folder: Path) -> subprocess.Popen[str]:
    """Start `jobrunner ARGUMENTS` in `folder`."""
    return subprocess.Popen(
        _command(arguments),
        cwd=folder,
        env=_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
