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
from typing import TYPE_CHECKING, Any

import asyncpg

from jobrunner.storage.dialect import CONNECT_TIMEOUT_SECONDS

if TYPE_CHECKING:
    import sqlalchemy as sa

POOLER_TRANSACTION = "transaction"
PATIENCE_SECONDS = 30.0
"""How long a statement may take, unless it is known to be a long one."""
LONGEST_SECONDS = 6 * 3600.0
"""How long even a long one may take: making an index of a large table, checking a long history."""
_SERVERS_SHARE = 0.8
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
        patience: Seconds that each statement may take; beyond them it raises TimeoutError. `set_deadline` changes it.

    Raises:
        OSError, asyncpg.PostgresError, asyncpg.InterfaceError: No connection; TimeoutError after 10 s.
    """
    settings = {"application_name": "jobrunner"}
    if pooler != POOLER_TRANSACTION:
        settings |= {**_SERVER_SETTINGS, "statement_timeout": str(round(patience * _SERVERS_SHARE * 1000))}
    settings |= {key: str(value) for key, value in url.query.items() if key in settings}
    try:
        connection = await asyncpg.connect(
            _dsn(url),
            password=url.password,  # a URL without a user name does not show it
            timeout=CONNECT_TIMEOUT_SECONDS,
            command_timeout=patience,
            statement_cache_size=0 if pooler == POOLER_TRANSACTION else 100,
            server_settings=settings,
        )
    except TimeoutError as error:
        if error.args:  # the kernel's, which says more
            raise
        raise TimeoutError(f"no connection within {CONNECT_TIMEOUT_SECONDS:g} s") from error
    _watch_peer(connection)
    return connection


def set_deadline(connection: Any, seconds: float) -> None:
    """Give each of the connection's statements so many seconds from now on."""
    connection._config = connection._config._replace(command_timeout=seconds)  # asyncpg takes it only when it connects


def _dsn(url: sa.URL) -> str:
    """The URL for asyncpg: SQLAlchemy's name for `sslmode` is `ssl`."""
    query = dict(url.query)
    if "ssl" in query:
        query["sslmode"] = query.pop("ssl")
    return url.set(drivername="postgresql", query=query).render_as_string(hide_password=False)


def _watch_peer(connection: Any) -> None:
    """Let the kernel notice a peer that is gone; Linux knows all of these options, others some."""
    transport = connection._transport  # asyncpg has no other way to its socket
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family == getattr(socket, "AF_UNIX", None):
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        ("TCP_KEEPIDLE", _KEEPALIVE_IDLE_SECONDS),
        ("TCP_KEEPINTVL", _KEEPALIVE_INTERVAL_SECONDS),
        ("TCP_KEEPCNT", _KEEPALIVE_COUNT),
        ("TCP_USER_TIMEOUT", _PEER_TIMEOUT_MS),
    ):
        if hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
