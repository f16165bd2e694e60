"""The two sets of the soak: nodes on PostgreSQL, each through a proxy of its own, and one on SQLite.

A node is a real `jobrunner run`. One that ends is started anew by `Node.watch`, whoever ended it; only an end that
nobody asked for, and that no trouble explains, counts as wrong.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from sqlalchemy.engine import make_url

from jobrunner.storage.schema.migrate import upgrade_database
from tests.soak.clock import set_offset
from tests.soak.proxy import Proxy
from tests.support.cluster import ROOT, PlainSql, Row, until
from tests.support.postgres import LocalPostgres

LEASE_SECONDS = 12.0
LONGEST_SAID, WATCHERS_NEED_SECONDS, START_SECONDS = 240, 10.0, 15.0


def environment(**more: str) -> dict[str, str]:
    """Ours without the settings of whoever started the soak."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith("JOBRUNNER_")}
    return {**mine, "PYTHONPATH": str(ROOT), **more}


def jobrunner(url: str, *words: str, seconds: float = 120.0) -> subprocess.CompletedProcess[str]:
    """Run the command line on a database, as an operator does."""
    command = [sys.executable, "-m", "jobrunner", *words, "--database-url", url]
    return subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False, timeout=seconds
    )


def shape(line: str) -> str:
    """Return a line without what differs from one time to the next: its end, and its numbers as `#`."""
    return re.sub(r"[0-9a-f]*[0-9][0-9a-f.:-]*", "#", line)[-LONGEST_SAID:]


class Node:
    """One node's place: the process that runs there now, and those that did."""

    def __init__(self, name: str, url: str, folder: Path, notes: Path, proxy: Proxy | None = None) -> None:
        self.name, self.url, self.proxy = name, url, proxy
        self.clock, self.log_path = folder / f"{name}.clock", folder / f"{name}.log"
        self.deaths: dict[int, float] = {}  # by pid: a moment before its end, monotonic; inf if we do not know
        self.ended_by_itself: Counter[str] = Counter()  # how, by exit code and its last line
        self.excused_until = 0.0  # monotonic: until then an end of its own is no fault
        self._notes = notes
        self._is_over = threading.Event()
        self.process = self._start()
        self._watch = threading.Thread(target=self._restart_what_ends, daemon=True)
        self._watch.start()

    @property
    def pid(self) -> int:
        return self.process.pid

    def _start(self) -> subprocess.Popen[bytes]:
        options = ["--allow-commands", f"--lease={LEASE_SECONDS}", "--tick-interval=1"]
        options += ["--max-concurrent=12", "--drain-timeout=5", f"--database-url={self.url}"]
        self._started_at = time.monotonic()
        with self.log_path.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "jobrunner", "run", "tests.soak.workload", *options],
                cwd=ROOT,
                env=environment(SOAK_NOTES=str(self._notes), SOAK_CLOCK=str(self.clock)),
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C is for the soak, which then ends its nodes
            )

    def _restart_what_ends(self) -> None:
        while not self._is_over.is_set():
            process = self.process
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(0.2)
                if self._is_over.is_set():
                    return
                if process.pid not in self.deaths and time.monotonic() > self.excused_until:
                    said = self.log_path.read_text(errors="replace").splitlines()
                    self.ended_by_itself[f"exit {code}: {shape(said[-1]) if said else 'without a word'}"] += 1
                self.deaths.setdefault(process.pid, float("inf"))
                self._is_over.wait(1.0)
                self.process = self._start()

    def end(self, number: signal.Signals) -> None:
        """SIGKILL or SIGTERM the process that is there; another takes its place."""
        self.deaths[self.pid] = time.monotonic() if number == signal.SIGKILL else float("inf")
        self.process.send_signal(number)

    def stop(self, seconds: float) -> int | None:
        """SIGTERM for good; its exit code (0 of one that is still starting), or None if it had to be killed."""
        self._is_over.set()
        self._watch.join()
        if self.process.poll() is None:
            self.process.terminate()
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            return None
        is_starting = time.monotonic() - self._started_at < START_SECONDS
        return 0 if is_starting and code == -signal.SIGTERM else code

    def kill(self) -> None:
        self._is_over.set()
        self._watch.join()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def descendants(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.Error):
            return list(psutil.Process(self.pid).children(recursive=True))
        return []


@dataclass
class Set:
    """One database and the nodes on it."""

    name: str
    url: str
    notes: Path
    sql: PlainSql
    server: LocalPostgres | None = None
    nodes: list[Node] = field(default_factory=list)
    disturbed: list[tuple[float, float]] = field(default_factory=list)  # monotonic
    steps: int = 0  # of a node's clock

    def rows(self, sql: str) -> list[Row]:
        """Run plain SQL past the proxies; `{p}` stands for the schema."""
        return self.sql.rows(sql.replace("{p}", self.sql.prefix))

    def disturb(self, seconds: float) -> None:
        """Note that from now on, and for so long after, nothing is as usual."""
        self.disturbed.append((time.monotonic(), time.monotonic() + seconds))

    def was_calm(self, at: float) -> bool:
        return not any(start <= at <= end for start, end in self.disturbed)

    def calm_down(self) -> None:
        """End whatever trouble there is."""
        for node in self.nodes:
            set_offset(node.clock, 0.0)
            with contextlib.suppress(ProcessLookupError):
                node.process.send_signal(signal.SIGCONT)
            if node.proxy is not None:
                node.proxy.resume()


def left_behind(folder: Path) -> list[psutil.Process]:
    """Return what runs of what the nodes started, wherever it went: known by what it has in its environment."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("SOAK_NOTES", "").startswith(f"{folder}/") and process.status() != "zombie":
                found.append(process)
    return found


def end_what_is_left(folder: Path) -> list[str]:
    """Once the nodes have ended, kill what has outlived them for longer than their watchers need; name it."""
    with contextlib.suppress(AssertionError):
        until(lambda: not left_behind(folder), WATCHERS_NEED_SECONDS)
    told: Counter[str] = Counter()
    for process in left_behind(folder):
        with contextlib.suppress(psutil.Error):
            told[" ".join(process.cmdline())[:120]] += 1
            process.kill()
    return [f"{count} x outlived its node: {line}" for line, count in told.items()]


@contextlib.contextmanager
def sets(folder: Path) -> Iterator[list[Set]]:
    """Both sets, started; all processes end with the block."""
    with contextlib.ExitStack() as stack:
        server = LocalPostgres()
        stack.callback(server.close)
        postgres = _set(stack, "postgres", server.create_database(), folder, server)
        sqlite = _set(stack, "sqlite", f"sqlite+aiosqlite:///{folder / 'soak.db'}", folder, None)
        for number in (1, 2):
            proxy = Proxy(server.port)
            stack.callback(proxy.close)
            url = make_url(postgres.url).set(port=proxy.port).render_as_string(False)
            _add_node(stack, postgres, f"pg-{number}", url, folder, proxy)
        _add_node(stack, sqlite, "sqlite-1", sqlite.url, folder, None)
        try:
            yield [postgres, sqlite]
        finally:
            for node in [*postgres.nodes, *sqlite.nodes]:
                node.kill()
            end_what_is_left(folder)


def _set(stack: contextlib.ExitStack, name: str, url: str, folder: Path, server: LocalPostgres | None) -> Set:
    upgrade_database(url)
    made = Set(name, url, folder / f"{name}.notes", PlainSql(url), server)
    stack.callback(made.sql.close)
    made.rows("CREATE TABLE soak_bookings (run_id BIGINT NOT NULL)")
    _add_command(url, "command", "echo hello; sleep 0.3 # soak-command")
    _add_command(url, "long-command", "sleep 4 & wait # soak-command")
    _add_command(url, "victim-command", "echo hello # soak-command")
    return made


def _add_command(url: str, name: str, command: str) -> None:
    words = ["admin", "add", name, "--shell", f"--command={command}", "--triggered", "--max-running=2"]
    done = jobrunner(url, *words, "--max-retries=20", "--retry-delay=0.2s")
    assert done.returncode == 0, done.stderr


def _add_node(stack: contextlib.ExitStack, where: Set, name: str, url: str, folder: Path, proxy: Proxy | None) -> None:
    node = Node(name, url, folder, where.notes, proxy)
    stack.callback(node.kill)
    where.nodes.append(node)
