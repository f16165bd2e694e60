"""The seam: all that differs between SQLite and PostgreSQL, apart from opening connections (engine.py).

Errors are told apart by code, never by their text: SQLite's extended result code, PostgreSQL's SQLSTATE. Both are
looked for along the chain of causes, so that every question here may be asked of the driver's error, of SQLAlchemy's
around it, or of ours around that.
"""

from __future__ import annotations

import sqlite3
import ssl
from typing import TYPE_CHECKING, Any, Protocol

import asyncpg
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from jobrunner.errors import DatabaseError, DatabaseUnavailable, GaveWay, ReadTooLong, SchemaMissing
from jobrunner.storage.database.rowsets import PostgresRows, SqliteRows

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from sqlalchemy.ext.asyncio import AsyncConnection

CONNECT_TIMEOUT_SECONDS = 10.0
BUSY_TIMEOUT_SECONDS = 5.0
_MIGRATION_LOCK = 0x6A6F6272756E6E65  # "jobrunne": one key for the advisory lock, the same on every node
_PRUNE_LOCK = _MIGRATION_LOCK + 1


class Dialect(Protocol):
    """What storage asks of the database at hand."""

    def __hash__(self) -> int:
        """Statements are built once for each database and kept by it."""

    name: str
    has_writing_ctes: bool
    """Can a SELECT begin with `WITH … AS (UPDATE … RETURNING …)`?"""

    def insert(self, table: sa.Table) -> postgresql.Insert | sqlite.Insert:
        """An INSERT that knows ON CONFLICT."""

    def schema_prefix(self, schema: str) -> str:
        """What to write before a table's name in hand-written SQL: `"jobrunner".`, or nothing."""

    async def lock_for_migration(self, conn: AsyncConnection) -> None:
        """Wait until no other process migrates; the lock ends with the transaction of `conn`."""

    async def keep_state(self, conn: AsyncConnection, prefix: str) -> None:
        """Keep `claims` and `worker_state` from being emptied and filled again until the transaction ends.

        Before its first read: its snapshot would not see the rows that were put back (`storage.runs.compaction`).
        """

    async def try_prune_lock(self, conn: AsyncConnection) -> bool:
        """Take the lock of pruning until the transaction of `conn` ends; False, at once, if another has it."""

    def new_rows(self, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> tuple[sa.Insert, Any]:
        """Return the INSERT of many rows, and its parameters; there is at least one row."""

    def rows(self, parameter: str, **columns: sa.types.TypeEngine[Any]) -> sa.FromClause:
        """The row set that the JSON array bound as `parameter` holds, one object a row."""

    def elements(self, parameter: str) -> sa.FromClause:
        """The row set of the JSON array bound as `parameter`: `value` (NULL where it is null), and place `n`."""

    def limit_key(self, payload: sa.ColumnElement[Any], field: sa.ColumnElement[str]) -> sa.ColumnElement[str]:
        """What `payload` has at the dotted `field`, as text; NULL where that is nothing, a list or an object."""

    def epoch(self, moment: sa.ColumnElement[Any]) -> sa.ColumnElement[float]:
        """Return a time as a number of seconds, to a millisecond."""

    def first_runs(
        self,
        names: sa.FromClause,
        kind: str,
        columns: Sequence[sa.Column[Any]],
        conditions: Sequence[sa.ColumnElement[bool]],
        order: sa.Column[Any],
        most: int,
    ) -> sa.Select[Any]:
        """As `kind`, the first `most` runs by `order` of each of `names` that meet `conditions`."""

    def newest_ends(
        self,
        parameter: str,
        columns: Sequence[sa.Column[Any]],
        most: int,
        conditions: Sequence[sa.ColumnElement[bool]] = (),
    ) -> sa.Select[Any]:
        """The newest `most` rows of history of each named worker that meet `conditions` on the id, in no order."""

    def first_waiting(
        self,
        parameter: str,
        limit: Any,
        priorities: Sequence[int],
        columns: Sequence[sa.Column[Any]],
        *,
        is_due: bool | None = True,
    ) -> sa.Select[Any]:
        """The first `limit` waiting runs of each named worker and priority, as kind 'w'.

        Of those that are due, with `is_due` False of those that are not yet, and with None of all.
        """

    def is_unique_violation(self, exc: BaseException) -> bool:
        """Did a UNIQUE or primary key constraint refuse the row?"""

    def is_disconnect(self, exc: BaseException) -> bool:
        """Is the connection gone, or of no more use?"""

    def failure(self, exc: BaseException, where: str) -> DatabaseError | SchemaMissing | None:
        """Say in our words what is wrong with the database or the connection.

        Args:
            exc: The driver's error, or one around it.
            where: The database's URL, password hidden.

        Returns:
            The error to raise instead: DatabaseUnavailable for what may go away by itself. None when the statement
            is at fault (a constraint, a missing table, bad SQL): that error is the caller's.
        """


def links(exc: BaseException) -> Iterator[BaseException]:
    """Walk from an error to what it was raised from: SQLAlchemy's `orig`, then `__cause__`."""
    seen: set[int] = set()
    pending: list[BaseException | None] = [exc]
    while pending:
        link = pending.pop(0)
        if link is not None and id(link) not in seen:
            seen.add(id(link))
            yield link
            pending += [getattr(link, "orig", None), link.__cause__]


def first_line(exc: BaseException) -> str:
    """The first line of what an error says, without a full stop."""
    return (str(exc).strip().splitlines() or [type(exc).__name__])[0].rstrip(".")


class SqliteDialect(SqliteRows):
    """SQLite: one file, one writer at a time, BEGIN IMMEDIATE is the lock."""

    name = "sqlite"
    has_writing_ctes = False

    _BUSY = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL})
    _PASSING = _BUSY | {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_INTERRUPT}

    def __init__(self, path: Path, most_seconds: float | None = None) -> None:
        self.path = path
        self._most_seconds = most_seconds

    def insert(self, table: sa.Table) -> sqlite.Insert:
        """An INSERT that knows ON CONFLICT."""
        return sqlite.insert(table)

    def schema_prefix(self, schema: str) -> str:  # noqa: ARG002 - the seam's signature
        """SQLite has no schemas: nothing."""
        return ""

    def create_file(self) -> None:
        """Create an empty database file that only its owner may read and write, if there is none.

        Raises:
            DatabaseError: The folder does not exist or may not be written.
        """
        try:
            self.path.touch(mode=0o600)  # what SQLite keeps beside it takes the same
        except OSError as exc:
            reason = self._cannot_open()
            raise reason if isinstance(reason, DatabaseError) else self._may_not_create() from exc

    async def lock_for_migration(self, conn: AsyncConnection) -> None:
        """The transaction began with BEGIN IMMEDIATE, so the lock is held already."""

    async def keep_state(self, conn: AsyncConnection, prefix: str) -> None:
        """Nothing is ever emptied."""

    async def try_prune_lock(self, conn: AsyncConnection) -> bool:  # noqa: ARG002 - PostgreSQL needs it
        """The transaction began with BEGIN IMMEDIATE, so the lock is held already."""
        return True

    def is_unique_violation(self, exc: BaseException) -> bool:
        """Did a UNIQUE or primary key constraint refuse the row?"""
        return self._code(exc) in {
            sqlite3.SQLITE_CONSTRAINT_UNIQUE,
            sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY,
            sqlite3.SQLITE_CONSTRAINT_ROWID,
        }

    def is_disconnect(self, exc: BaseException) -> bool:
        """A file does not hang up, but a connection whose file was moved or damaged is of no more use."""
        code = self._code(exc)
        return code == sqlite3.SQLITE_READONLY_DBMOVED or (code or 0) & 0xFF in {
            sqlite3.SQLITE_CORRUPT,
            sqlite3.SQLITE_NOTADB,
        }

    def failure(self, exc: BaseException, where: str) -> DatabaseError | SchemaMissing | None:
        """Say what is wrong with the file."""
        code = self._code(exc)
        if code is None:
            return _pool_exhausted(exc, where)
        primary = code & 0xFF
        if self._most_seconds is not None and primary == sqlite3.SQLITE_INTERRUPT:
            return ReadTooLong(self._most_seconds)
        if primary == sqlite3.SQLITE_CANTOPEN:
            return self._cannot_open()
        if primary in self._BUSY:
            return DatabaseUnavailable(
                f"{self.path} is locked by another process for more than {BUSY_TIMEOUT_SECONDS:g} s; "
                "end whatever holds a transaction open on it, or try again"
            )
        if primary in self._PASSING:
            reason = _PASSING_TEXT.get(primary) or first_line(exc)
            return DatabaseUnavailable(f"{self.path} cannot be used just now: {reason}")
        text = _LASTING_TEXT.get(primary)
        return DatabaseError(f"{self.path} {text}") if text else None

    def _cannot_open(self) -> DatabaseError | SchemaMissing:
        """Find out why SQLite could not open the file; it does not say."""
        if not self.path.parent.is_dir():
            return DatabaseError(f"there is no folder {self.path.parent}; create it, or correct the database URL")
        if self.path.is_dir():
            return DatabaseError(f"{self.path} is a folder; the database URL must name a file in it")
        if not self.path.exists():
            return SchemaMissing()
        return DatabaseError(f"{self.path} cannot be opened; check its permissions and those of its folder")

    def _may_not_create(self) -> DatabaseError:
        return DatabaseError(f"{self.path} cannot be created; check the permissions of its folder")

    def _code(self, exc: BaseException) -> int | None:
        for link in links(exc):
            code = getattr(link, "sqlite_errorcode", None)
            if isinstance(code, int):
                return code
        return None


_PASSING_TEXT = {
    sqlite3.SQLITE_FULL: "the disk is full; free some space",
    sqlite3.SQLITE_INTERRUPT: "the statement was interrupted",
}
_LASTING_TEXT = {
    sqlite3.SQLITE_READONLY: "cannot be written; check the permissions of the file and its folder",
    sqlite3.SQLITE_PERM: "may not be accessed; check the permissions of the file and its folder",
    sqlite3.SQLITE_AUTH: "may not be accessed; check the permissions of the file and its folder",
    sqlite3.SQLITE_CORRUPT: "is damaged; restore it from a backup, or save what can be read with sqlite3's .recover",
    sqlite3.SQLITE_NOTADB: "is no SQLite database; correct the database URL, or move that file away",
}


class PostgresDialect(PostgresRows):
    """PostgreSQL through asyncpg: many machines, row locks, SQLSTATEs."""

    name = "postgresql"
    has_writing_ctes = True

    def __init__(self, *, has_pooler: bool = False, most_seconds: float | None = None) -> None:
        self._has_pooler = has_pooler
        self._most_seconds = most_seconds

    def insert(self, table: sa.Table) -> postgresql.Insert:
        """An INSERT that knows ON CONFLICT."""
        return postgresql.insert(table)

    def schema_prefix(self, schema: str) -> str:
        """The schema, quoted, and a dot."""
        return f'"{schema}".'

    async def lock_for_migration(self, conn: AsyncConnection) -> None:
        """Take an advisory lock that commit, rollback or a crash releases, also behind a transaction pooler."""
        await conn.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
        # From here on rather give up than make everybody queue behind a lock we wait for.
        await conn.exec_driver_sql("SET LOCAL lock_timeout = '10s'")
        await conn.exec_driver_sql("SET LOCAL statement_timeout = 0")
        await conn.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 0")

    async def keep_state(self, conn: AsyncConnection, prefix: str) -> None:
        """LOCK TABLE takes no snapshot; in the mode of a SELECT, which nobody else notices."""
        await conn.exec_driver_sql(f"LOCK TABLE {prefix}claims, {prefix}worker_state IN ACCESS SHARE MODE")

    async def try_prune_lock(self, conn: AsyncConnection) -> bool:
        """Try an advisory lock that commit, rollback or a crash releases."""
        return bool((await conn.execute(sa.select(sa.func.pg_try_advisory_xact_lock(_PRUNE_LOCK)))).scalar_one())

    def is_unique_violation(self, exc: BaseException) -> bool:
        """SQLSTATE 23505."""
        return self._sqlstate(exc) == "23505"

    def is_disconnect(self, exc: BaseException) -> bool:
        """The server hung up, is going down, or turned read-only under us (a fail-over)."""
        state = self._sqlstate(exc)
        if state is None:
            return any(isinstance(link, OSError | asyncpg.InternalClientError) for link in links(exc))
        return state[:2] == "08" or state in _HUNG_UP or state == "25006"

    def failure(self, exc: BaseException, where: str) -> DatabaseError | None:
        """Say what is wrong with the server or the connection."""
        state = self._sqlstate(exc)
        if state is None:
            return self._unreachable(exc, where) or _pool_exhausted(exc, where)
        if self._most_seconds is not None and state == _QUERY_CANCELED:
            return ReadTooLong(self._most_seconds)
        if not self._has_pooler and _is_poolers(state, exc):
            return DatabaseError(
                f"{where} looks like a transaction-pooling proxy such as PgBouncer ({self._said(exc)});"
                " set JOBRUNNER_POOLER=transaction"
            )
        if state in _REFUSED:
            return DatabaseError(f"{where} refuses: {self._said(exc)}; {_REFUSED[state]}")
        if state in _GAVE_WAY:
            return GaveWay(f"{where}: {self._said(exc)}; nothing was written; try again")
        if self.is_disconnect(exc) or state[:2] in {"53", "58"}:
            return DatabaseUnavailable(f"{where}: {self._said(exc)}; {_advice(state)}")
        return None

    def _unreachable(self, exc: BaseException, where: str) -> DatabaseError | None:
        """Errors without a SQLSTATE: the network's, and the driver's own."""
        for link in links(exc):
            if isinstance(link, ssl.SSLCertVerificationError):
                return DatabaseError(f"{where}: the server's certificate is refused: {link.verify_message}")
            if isinstance(link, TimeoutError):
                said = str(link) or "a statement had no answer in time, and its connection is given up"
                return DatabaseUnavailable(
                    f"{where} does not answer: {said}; check the server, the network and proxies"
                )
            if isinstance(link, OSError):
                return DatabaseUnavailable(
                    f"{where} cannot be reached: {first_line(link)}; check that the server runs, and host and port"
                )
            if isinstance(link, asyncpg.ClientConfigurationError):
                return DatabaseError(f"{where} cannot be used: {first_line(link)}; correct the database URL")
            if isinstance(link, asyncpg.InternalClientError | asyncpg.TargetServerAttributeNotMatched):
                return DatabaseUnavailable(f"{where}: {first_line(link)}; the connection is given up")
        if any("connection is closed" in str(link) for link in links(exc) if isinstance(link, asyncpg.InterfaceError)):
            return DatabaseUnavailable(f"{where}: the connection is closed; it is opened again at the next try")
        return None

    def _said(self, exc: BaseException) -> str:
        said = [link for link in links(exc) if isinstance(link, asyncpg.PostgresError)]
        return first_line(said[-1] if said else exc)

    def _sqlstate(self, exc: BaseException) -> str | None:
        for link in links(exc):
            state = getattr(link, "sqlstate", None)
            if isinstance(state, str):
                return state
        return None


# Class 57 is "operator intervention"; 25P03 and 57P05 are time limits on idle connections.
_HUNG_UP = frozenset({"57P01", "57P02", "57P03", "57P04", "57P05", "25P03", "25P04"})
# Serialization, deadlock, no lock in time, statement cancelled.
_QUERY_CANCELED = "57014"
_GAVE_WAY = frozenset({"40001", "40P01", "55P03", _QUERY_CANCELED})
_REFUSED = {
    "28P01": "correct the password in the database URL",
    "28000": "check user and database in the URL, and the server's pg_hba.conf",
    "3D000": "create the database, or correct its name in the URL",
    "42501": "grant that right to the user of the database URL",
    "22023": "correct the parameters of the database URL",
    "42704": "correct the parameters of the database URL",
}


# A prepared statement is not there, or already: each transaction had another server.
_ANOTHER_SESSION = frozenset({"26000", "42P05"})


def _is_poolers(state: str, exc: BaseException) -> bool:
    """Say whether an error is one that a proxy's clients see; PgBouncer has no code of its own for the second kind."""
    return state in _ANOTHER_SESSION or (state == "08P01" and "unsupported startup parameter" in str(exc))


def _advice(state: str) -> str:
    if state == "53300":
        return "raise max_connections, or lower the number of nodes or their pools"
    if state in {"53100", "58030"}:
        return "free space on the server's disk"
    if state == "25006":
        return "the server takes no writes now (a standby, or full?)"
    return "try again once the server is up"


def _pool_exhausted(exc: BaseException, where: str) -> DatabaseError | None:
    if any(isinstance(link, sa.exc.TimeoutError) for link in links(exc)):
        return DatabaseUnavailable(f"{where}: all of this process's connections are busy; raise its pool size")
    return None
