"""Opening PostgreSQL connections with asyncpg, for the engine's pool and for LISTEN.

The URL goes to asyncpg whole, as libpq would read it (several hosts, sockets, certificates). A connection whose peer
has vanished without a word (a machine without power, a cut cable) is noticed by both ends in under half a minute:
here by TCP keep-alive and TCP_USER_TIMEOUT, there by the server's own, so that no node hangs and no lock is kept.

A peer that is there and says nothing (a proxy that acknowledges and forwards nothing, a server process that was
stopped) neither sees. So every statement, BEGIN, COMMIT and ROLLBACK has a deadline, `patience`. The server is told a
shorter one, since it can say why (a lock), gives up nothing but that statement, and leaves the connection of use. A
connection whose statement had no answer until the deadline is given up, and whether that statement was carried out is
not known.
"""

from __future__ import annotations

import socket
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg

from jobrunner.errors import DatabaseError
from jobrunner.storage.database import forks, postgres_url
from jobrunner.storage.database.dialect import CONNECT_TIMEOUT_SECONDS

if TYPE_CHECKING:
    import sqlalchemy as sa

POOLER_TRANSACTION = "transaction"
PATIENCE_SECONDS = 30.0
"""How long a statement may take, unless it is known to be a long one."""
LONGEST_SECONDS = 6 * 3600.0
"""How long even a long one may take: making an index of a large table, checking a long history."""
SERVERS_SHARE = 0.8
_PEER_TIMEOUT_MS = 20_000
_KEEPALIVE_IDLE_SECONDS, _KEEPALIVE_INTERVAL_SECONDS, _KEEPALIVE_COUNT = 10, 5, 2
_SERVER_SETTINGS = {
    "jit": "off",  # our statements are short: compiling them costs more than running them
    "idle_in_transaction_session_timeout": "60000",
    "tcp_keepalives_idle": str(_KEEPALIVE_IDLE_SECONDS),
    "tcp_keepalives_interval": str(_KEEPALIVE_INTERVAL_SECONDS),
    "tcp_keepalives_count": str(_KEEPALIVE_COUNT),
}


async def connect(url: sa.URL, *, pooler: str | None = None, patience: float = PATIENCE_SECONDS) -> Any:
    """Open an asyncpg connection.

    Args:
        url: A PostgreSQL URL as `parse_url` gives it.
        pooler: `transaction` when a proxy such as PgBouncer gives each transaction another server connection: then
            nothing is kept in the session (no named prepared statements, no settings the proxy would refuse).
        patience: Seconds that connecting and each statement may take; beyond them TimeoutError is raised.
            `set_deadline` changes it.

    Raises:
        OSError, asyncpg.PostgresError, asyncpg.InterfaceError: No connection; TimeoutError after 10 s, or what the
            URL's `connect_timeout` says.
        DatabaseError: The database's encoding is not UTF8.
    """
    settings = {"application_name": "jobrunner"}
    if pooler != POOLER_TRANSACTION:
        settings |= {**_SERVER_SETTINGS, "statement_timeout": str(round(patience * SERVERS_SHARE * 1000))}
    settings |= {key: str(value) for key, value in url.query.items() if key in settings}
    options: dict[str, Any] = {
        "password": url.password,  # a URL without a user name does not show it
        "timeout": min(postgres_url.number(url, "connect_timeout", 0) or CONNECT_TIMEOUT_SECONDS, patience),
        "command_timeout": patience,
        "statement_cache_size": 0 if pooler == POOLER_TRANSACTION else 100,
        "server_settings": settings,
    }
    _refuse_missing_files(url)
    if url.query.get("sslrootcert") == "system":
        options["ssl"] = ssl.create_default_context()
    connection = await _connect_to_any(url, options)
    forks.keep_private(connection, _fileno)
    _refuse_other_encodings(connection, url)
    _watch_peer(connection, url)
    return connection


async def _connect_to_any(url: sa.URL, options: dict[str, Any]) -> Any:
    """Try several hosts one after the other, each for its whole time: with one for all, a dead host would use it up.

    That is asyncpg's way, and left to it where all have to be asked before one is taken.
    """
    hosts = postgres_url.hosts_of(url)
    if not hosts or url.query.get("target_session_attrs") == "prefer-standby":
        return await _connect_once(url, options)
    last: Exception = OSError("no host is named")
    for host in hosts:
        try:
            return await _connect_once(url.update_query_dict({"host": host}), options)
        except (OSError, asyncpg.CannotConnectNowError, asyncpg.TargetServerAttributeNotMatched) as error:
            last = error
    raise last


async def _connect_once(url: sa.URL, options: dict[str, Any]) -> Any:
    try:
        return await asyncpg.connect(_dsn(url), **options)
    except TimeoutError as error:
        if error.args:  # the kernel's, which says more
            raise
        raise TimeoutError(f"no connection within {options['timeout']:g} s") from error


def _refuse_missing_files(url: sa.URL) -> None:
    """Say which file is missing: the driver's error looks like that of a server which is not there."""
    for name, path in postgres_url.files_of(url).items():
        if not Path(path).is_file():
            raise asyncpg.ClientConfigurationError(f"there is no file {path}, which {name} names")


def _refuse_other_encodings(connection: Any, url: sa.URL) -> None:
    """Refuse a database that cannot hold every character: it would fail at the first é of somebody's output."""
    encoding = getattr(connection.get_settings(), "server_encoding", None)  # told at the start, by proxies too
    if encoding not in {None, "UTF8"}:
        connection.terminate()
        name = url.database or "NAME"
        raise DatabaseError(
            f"the database {name} has the encoding {encoding}, and jobrunner needs UTF8: make another one,"
            f" `createdb -E UTF8 -T template0 NAME`, and move what is in it with pg_dump and psql"
        )


def set_deadline(connection: Any, seconds: float) -> None:
    """Give each of the connection's statements so many seconds from now on."""
    connection._config = connection._config._replace(command_timeout=seconds)  # asyncpg takes it only when it connects


def _dsn(url: sa.URL) -> str:
    """The URL for asyncpg: SQLAlchemy's name for `sslmode` is `ssl`."""
    query = {key: value for key, value in url.query.items() if key not in postgres_url.OURS}
    if query.get("sslrootcert") == "system":
        del query["sslrootcert"]
    if "ssl" in query:
        query["sslmode"] = query.pop("ssl")
    return url.set(drivername="postgresql", query=query).render_as_string(hide_password=False)


def _fileno(connection: Any) -> int:
    return int(connection._transport.get_extra_info("socket").fileno())  # asyncpg has no other way to its socket


def _watch_peer(connection: Any, url: sa.URL) -> None:
    """Let the kernel notice a peer that is gone; Linux knows all of these options, others some."""
    transport = connection._transport  # asyncpg has no other way to its socket
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family == getattr(socket, "AF_UNIX", None) or url.query.get("keepalives") == "0":
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, name, default in (
        ("TCP_KEEPIDLE", "keepalives_idle", _KEEPALIVE_IDLE_SECONDS),
        ("TCP_KEEPINTVL", "keepalives_interval", _KEEPALIVE_INTERVAL_SECONDS),
        ("TCP_KEEPCNT", "keepalives_count", _KEEPALIVE_COUNT),
        ("TCP_USER_TIMEOUT", "tcp_user_timeout", _PEER_TIMEOUT_MS),
    ):
        if hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), postgres_url.number(url, name, default))
