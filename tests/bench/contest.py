"""Peers: their environments, their programs, and taking turns with them.

A peer's program is a file of `peers/` (see `peers/common.py`), run by the Python of an environment that has that peer.

Environments are made once, in `.bench/` of the checkout, with the versions pinned here.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tests.bench.product import ROOT

FOLDER = ROOT / ".bench"


@dataclass(frozen=True)
class Peer:
    """A peer in one of its ways of running."""

    name: str
    program: str
    packages: tuple[str, ...]
    databases: tuple[str, ...]
    python: tuple[int, int] = (3, 11)
    options: tuple[str, ...] = ()
    most: int = 10_000  # jobs: of a slow one fewer are asked, the rate stays comparable

    @property
    def version(self) -> str:
        return self.packages[0].replace("==", " ")


_PGQUEUER = ("pgqueuer==1.6.0", "asyncpg==0.32.0", "uvloop==0.23.0")
PEERS = [
    Peer("pgqueuer", "pgqueuer_", _PGQUEUER, ("postgres",), most=50_000),
    Peer("pgqueuer+uvloop", "pgqueuer_", _PGQUEUER, ("postgres",), options=("uvloop",), most=500_000),
    Peer("procrastinate", "procrastinate_", ("procrastinate==3.10.0",), ("postgres",), most=2_000),
    Peer("oban", "oban_", ("oban==0.7.0",), ("postgres",), python=(3, 12)),
    Peer("huey", "huey_", ("huey==3.5.4",), ("sqlite",)),
    Peer("apscheduler3", "apscheduler3", ("apscheduler==3.11.3", "sqlalchemy==2.1.9"), ("sqlite",), most=500),
    Peer(
        "apscheduler4",
        "apscheduler4",
        ("apscheduler==4.0.0a6", "sqlalchemy[asyncio]==2.1.9", "sniffio==1.3.1"),
        ("sqlite",),
        most=500,
    ),
]


def peers(wanted: Sequence[str], database: str) -> list[Peer]:
    """The peers of these names (`pgqueuer` means all its ways) that know the database."""
    return [
        peer
        for peer in PEERS
        if database in peer.databases
        and any(peer.name.rstrip("34").split("+")[0] == name or peer.name == name for name in wanted)
    ]


@cache
def interpreter(version: tuple[int, int]) -> str | None:
    """A Python of at least that version; looked for on the path and where pyenv keeps them."""
    if sys.version_info[:2] >= version:
        return getattr(sys, "_base_executable", sys.executable)
    for minor in range(version[1], version[1] + 4):
        found = shutil.which(f"python3.{minor}")
        kept = sorted((Path.home() / ".pyenv/versions").glob(f"3.{minor}.*/bin/python"))
        for candidate in [found, *map(str, kept)]:
            if candidate and subprocess.run([candidate, "-c", ""], capture_output=True, check=False).returncode == 0:
                return candidate
    return None


@cache
def environment(peer: Peer) -> Path:
    """The Python of the peer's environment, made if need be. Raises RuntimeError if it cannot be had."""
    folder = FOLDER / "-".join(peer.packages[0].split("=="))
    python, stamp = folder / "bin/python", folder / ".made"
    wanted = " ".join(peer.packages)
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    base = interpreter(peer.python)
    if base is None:
        raise RuntimeError(f"{peer.version} needs Python {'.'.join(map(str, peer.python))}, and there is none")
    shutil.rmtree(folder, ignore_errors=True)
    for command in (
        [base, "-m", "venv", str(folder)],
        [str(python), "-m", "pip", "install", "--quiet", "--upgrade", "pip"],
        [str(python), "-m", "pip", "install", "--quiet", *peer.packages],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
        if done.returncode != 0:
            raise RuntimeError(f"{peer.version} cannot be installed: {done.stderr.strip()[-300:]}")
    stamp.write_text(wanted)
    return python


def command(peer: Peer, phase: str, url: str, options: dict[str, Any]) -> list[str]:
    words = {**options, **dict.fromkeys(peer.options, True)}
    return [str(environment(peer)), "-m", "tests.bench.peers", peer.program, phase, url, json.dumps(words)]


def surroundings() -> dict[str, str]:
    """The environment of a peer's process: its program lies in our checkout."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def call(peer: Peer, phase: str, url: str, options: dict[str, Any], seconds: float = 120) -> dict[str, Any]:
    """Run a phase of a peer's program and return what it measured."""
    done = subprocess.run(
        command(peer, phase, url, options),
        cwd=ROOT,
        env=surroundings(),
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{peer.name} {phase}: {done.stderr.strip()[-600:]}")
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def take_turns(contestants: Mapping[str, Callable[[], float]], times: int) -> dict[str, list[float]]:
    """Measure each in turn, so often: what the machine does meanwhile meets all alike."""
    samples: dict[str, list[float]] = {name: [] for name in contestants}
    broken: set[str] = set()
    for _ in range(times):
        for name, measure in contestants.items():
            if name in broken:
                continue
            try:
                samples[name].append(measure())
            except (RuntimeError, TimeoutError, subprocess.TimeoutExpired) as error:
                broken.add(name)  # a contestant that cannot run is left out, and says why
                print(f"  {name} is left out: {error}", file=sys.stderr, flush=True)
    return samples
