"""Opening PostgreSQL connections with asyncpg, for the engine's pool and for LISTEN.

The URL goes to asyncpg whole, as libpq would read it (several hosts, sockets, certificates). A connection whose peer
has vanished without a word (a machine without power, a cut cable) is noticed by both ends in under half a minute:
here by TCP keep-alive and TCP_USER_TIMEOUT, there by the server's own, so that no node hangs and no lock is kept.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import asyncpg

from jobrunner.storage import forks
from jobrunner.storage.dialect import CONNECT_TIMEOUT_SECONDS

if TYPE_CHECKING:
    import sqlalchemy as sa

POOLER_TRANSACTION = "transaction"
_PEER_TIMEOUT_MS = 20_000
_KEEPALIVE_IDLE_SECONDS, _KEEPALIVE_INTERVAL_SECONDS, _KEEPALIVE_COUNT = 10, 5, 2
_SERVER_SETTINGS = {
    "application_name": "jobrunner",
    "jit": "off",  # our statements are short: compiling them costs more than running them
    "idle_in_transaction_session_timeout": "60000",
    "tcp_keepalives_idle": str(_KEEPALIVE_IDLE_SECONDS),
    "tcp_keepalives_interval": str(_KEEPALIVE_INTERVAL_SECONDS),
    "tcp_keepalives_count": str(_KEEPALIVE_COUNT),
}


async def connect(url: sa.URL, *, pooler: str | None = None) -> Any:
    """Open an asyncpg connection.

    Args:
        url: A PostgreSQL URL as `parse_url` gives it.
        pooler: `transaction` when a proxy such as PgBouncer gives each transaction another server connection: then
            nothing is kept in the session (no named prepared statements, no settings the proxy would refuse).

    Raises:
        OSError, asyncpg.PostgresError, asyncpg.InterfaceError: No connection; TimeoutError after 10 s.
    """
    settings = {"application_name": "jobrunner"} if pooler == POOLER_TRANSACTION else dict(_SERVER_SETTINGS)
    settings |= {key: str(value) for key, value in url.query.items() if key in settings}
    connection = await asyncpg.connect(
        _dsn(url),
        password=url.password,  # a URL without a user name does not show it
        timeout=CONNECT_TIMEOUT_SECONDS,
        statement_cache_size=0 if pooler == POOLER_TRANSACTION else 100,
        server_settings=settings,
    )
    _watch_peer(connection)
    forks.keep_private(connection, _fileno)
    return connection


def _dsn(url: sa.URL) -> str:
    """The URL for asyncpg: SQLAlchemy's name for `sslmode` is `ssl`."""
    query = dict(url.query)
    if "ssl" in query:
        query["sslmode"] = query.pop("ssl")
    return url.set(drivername="postgresql", query=query).render_as_string(hide_password=False)


def _fileno(connection: Any) -> int:
    return int(connection._transport.get_extra_info("socket").fileno())  # asyncpg has no other way to its socket


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
