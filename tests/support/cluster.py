"""Nodes as real processes: starting, killing, stopping and asking them.

A node is `python -m tests.support.node URL …`; its options are the keywords of `start`.
Only processes started here are ever signalled, by their pid.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
from sqlalchemy.engine import make_url

Row = dict[str, Any]
ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 45.0  # for a busy machine, on which a process may take half a minute to start


class NodeProcess:
    """One node."""

    def __init__(self, name: str, url: str, folder: Path, options: dict[str, Any]) -> None:
        self.name = name
        self.log_path = folder / f"{name}.log"
        arguments = [f"--{key.replace('_', '-')}={int(v) if isinstance(v, bool) else v}" for key, v in options.items()]
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.node", url, *arguments],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=log,
                stderr=log,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def signal(self, number: signal.Signals) -> None:
        if self.process.poll() is None:
            self.process.send_signal(number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.process.wait()

    def terminate(self) -> None:
        """SIGTERM; returns at once."""
        self.signal(signal.SIGTERM)

    def wait(self, seconds: float = PATIENCE_SECONDS) -> int:
        return self.process.wait(seconds)

    def wait_ready(self) -> None:
        until(lambda: " runs " in self.log or self.process.poll() is not None, what=f"{self.name} ticks")
        assert self.process.poll() is None, self.log


class PlainSql:
    """A connection without any of our code; on PostgreSQL asyncpg, in a thread with a loop of its own."""

    def __init__(self, url: str) -> None:
        self._url = make_url(url)
        self.is_sqlite = self._url.get_backend_name() == "sqlite"
        self.prefix = "" if self.is_sqlite else "jobrunner."
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def rows(self, sql: str) -> list[Row]:
        if self.is_sqlite:
            with contextlib.closing(sqlite3.connect(str(self._url.database), timeout=10)) as connection, connection:
                connection.row_factory = sqlite3.Row
                return [dict(row) for row in connection.execute(sql).fetchall()]
        return asyncio.run_coroutine_threadsafe(self._fetch(sql), self._loop).result(30)

    async def _fetch(self, sql: str) -> list[Row]:
        connection = await asyncpg.connect(self._url.set(drivername="postgresql").render_as_string(False))
        try:
            return [dict(row) for row in await connection.fetch(sql)]
        finally:
            await connection.close()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class Cluster:
    """Some nodes on one database, and plain SQL to look at it from outside."""

    def __init__(self, url: str, folder: Path, **options: Any) -> None:
        self.url = url
        self._folder = folder
        self._options = options
        self.nodes: list[NodeProcess] = []
        self._shell = PlainSql(url)

    def start(self, count: int = 1, *, wait: bool = True, url: str | None = None, **options: Any) -> list[NodeProcess]:
        """Start nodes, and (unless told not to) wait until they tick; `url`: their own way to the database."""
        number = len(self.nodes)
        began = [
            NodeProcess(f"n{number + i}", url or self.url, self._folder, {**self._options, **options})
            for i in range(count)
        ]
        self.nodes += began
        for node in began if wait else ():
            node.wait_ready()
        return began

    def rows(self, sql: str) -> list[Row]:
        """Run plain SQL, as any program may, and return its rows; `{p}` stands for the schema."""
        return self._shell.rows(sql.replace("{p}", self._shell.prefix))

    def value(self, sql: str) -> Any:
        (row,) = self.rows(sql)
        (value,) = row.values()
        return value

    def trigger(self, worker: str, payload: str = "{}", count: int = 1) -> None:
        values = ", ".join([f"('{worker}', '{payload}')"] * count)
        self.rows(f"INSERT INTO {{p}}runs (worker, payload) VALUES {values}")

    def node_id(self, node: NodeProcess) -> str:
        """The id under which a process beats now (its newest)."""
        return str(self.value(f"SELECT id FROM {{p}}nodes WHERE pid = {node.pid} ORDER BY started_at DESC LIMIT 1"))

    def history(self, where: str = "1 = 1") -> list[Row]:
        return self.rows(f"SELECT * FROM {{p}}run_history WHERE {where} ORDER BY id")

    def close(self) -> None:
        """Kill what is left: how nodes leave in good order is for the tests to say."""
        for node in self.nodes:
            node.kill()
        self._shell.close()


def moment(value: Any) -> datetime:
    """Read a time column, which SQLite gives as text."""
    return value if isinstance(value, datetime) else datetime.fromisoformat(value).replace(tzinfo=UTC)


@dataclass(frozen=True)
class Execution:
    """One time a handler's code ran, on the machine's monotonic clock; `end` is None if it never came to its end."""

    worker: str
    run_id: int
    fence: int
    pid: int
    start: float
    end: float | None


def executions(notes: Path) -> list[Execution]:
    """Read what the handlers noted, by start."""
    found: dict[tuple[int, int, int], Execution] = {}
    for line in notes.read_text().splitlines() if notes.exists() else ():
        what, worker, run_id, fence, pid, at = line.split()
        key = (int(run_id), int(fence), int(pid))
        if what == "start":
            found[key] = Execution(worker, *key, float(at), None)
        else:
            found[key] = replace(found[key], end=float(at))
    return sorted(found.values(), key=lambda execution: execution.start)


def until(is_so: Callable[[], Any], seconds: float = PATIENCE_SECONDS, *, what: str = "it is so") -> float:
    """Wait until `is_so()`; return after how many seconds."""
    began = time.monotonic()
    while not is_so():
        if time.monotonic() - began > seconds:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        time.sleep(0.02)
    return time.monotonic() - began


@contextlib.contextmanager
def cluster(url: str, folder: Path, **options: Any) -> Iterator[Cluster]:
    """A cluster whose processes end with the block."""
    made = Cluster(url, folder, **options)
    try:
        yield made
    finally:
        made.close()
