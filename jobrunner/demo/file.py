"""The demo's SQLite file: made fresh, never in the place of a file that is not the demo's, with tables of its own.

The statements here and in `workers.py` are those of an application that keeps its data beside jobrunner's tables.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import psutil

from jobrunner.errors import DatabaseError, Refused
from jobrunner.runtime.identity import start_ticks

if TYPE_CHECKING:
    from pathlib import Path

_TABLES = """
CREATE TABLE demo_readings (
    run_id INTEGER, sensor TEXT, value REAL, read_at TEXT, PRIMARY KEY (run_id, sensor)
);
CREATE TABLE demo_summary (
    sensor TEXT PRIMARY KEY, readings INTEGER, lowest REAL, average REAL, highest REAL, run_id INTEGER
);
CREATE TABLE demo_outbox (run_id INTEGER PRIMARY KEY, recipient TEXT, subject TEXT, sent_at TEXT);
"""
_LIVE_NODES = "SELECT pid, process_started_at, start_ticks FROM nodes WHERE state IN ('active', 'draining')"
_SAME_START_SECONDS = 0.1


def make_fresh(path: Path) -> None:
    """Make the file with the demo's own tables; one left by an earlier demo is replaced.

    Raises:
        Refused: the path is taken by something else, or a demo runs on it now.
        DatabaseError: the file cannot be made there.
    """
    if path.exists() or path.is_symlink():
        _refuse_others(path)
        for name in (f"{path.name}-wal", f"{path.name}-shm", path.name):
            path.with_name(name).unlink(missing_ok=True)
    if not path.parent.is_dir():
        raise DatabaseError(f"there is no folder {path.parent}; make it, or name another file with --file")
    try:
        path.touch(mode=0o600)  # as any database of ours: its owner's alone
        with closing(sqlite3.connect(path)) as connection:
            connection.executescript(_TABLES)
    except (OSError, sqlite3.Error) as error:
        raise DatabaseError(f"{path} cannot be made: {error}; name another file with --file") from None


def _refuse_others(path: Path) -> None:
    if path.is_file() and path.stat().st_size == 0:
        return
    try:
        tables = _tables(path) if path.is_file() else set()
    except sqlite3.Error:
        tables = set()
    if "demo_readings" not in tables:
        raise Refused(f"{path} exists and was not made by the demo; name another file with --file")
    for node in read(path, _LIVE_NODES) if "nodes" in tables else []:
        if _is_alive(node["pid"], node["process_started_at"], node["start_ticks"]):
            raise Refused(f"a demo runs on {path} now (pid {node['pid']}); name another file with --file")


def _tables(path: Path) -> set[str]:
    """Return the names of the tables in a file that may be anybody's, without touching it."""
    with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as connection:
        return {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}


def _is_alive(pid: int, started_at: str, ticks: int | None) -> bool:
    if ticks is not None:
        return start_ticks(pid) == ticks
    moment = datetime.fromisoformat(started_at).replace(tzinfo=UTC).timestamp()
    try:
        return bool(abs(psutil.Process(pid).create_time() - moment) < _SAME_START_SECONDS)
    except psutil.Error:
        return False


def read(path: Path, sql: str) -> list[dict[str, Any]]:
    """Return the rows of a query."""
    # Not `mode=ro`: the last to leave must be able to clear away the files that SQLite keeps beside the database.
    with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=rw", uri=True, timeout=10)) as connection:
        connection.execute("PRAGMA query_only = ON")
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute(sql)]


def write(path: Path, sql: str, *rows: tuple[Any, ...]) -> int:
    """Do one statement, for each of `rows`, in a transaction; return how many rows it changed."""
    with closing(sqlite3.connect(path, timeout=10)) as connection, connection:
        return connection.executemany(sql, rows or [()]).rowcount
