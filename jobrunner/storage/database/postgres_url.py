"""What stands in a PostgreSQL URL: libpq's parameters, taken where the driver can, told of once where it cannot.

People paste the URL that psql takes. Most of it asyncpg reads itself, and what it does not know it sends to the server
as a setting (`search_path`, `statement_timeout`); the rest is sorted out here. Several hosts, however they are written,
become one parameter: `host=one:5432,two:5433`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from jobrunner.errors import InvalidDatabaseUrl
from jobrunner.telemetry.logs import logger

if TYPE_CHECKING:
    from collections.abc import Iterable

    import sqlalchemy as sa

OURS = frozenset(
    {
        "connect_timeout",
        "keepalives",
        "keepalives_idle",
        "keepalives_interval",
        "keepalives_count",
        "tcp_user_timeout",
    }
)
"""Numbers that the driver does not know, and that `postgres_driver` sees to."""
_FILES = frozenset({"sslrootcert", "sslcert", "sslkey", "sslcrl"})
# Not to be had with asyncpg, and the values which ask for nothing that it does not do anyway.
_IGNORED: dict[str, frozenset[str]] = {
    "channel_binding": frozenset({"disable", "prefer"}),
    "client_encoding": frozenset({"auto", "utf8", "utf-8", "unicode"}),
    "command_timeout": frozenset(),
    "gssdelegation": frozenset({"0"}),
    "gssencmode": frozenset({"disable", "prefer"}),
    "load_balance_hosts": frozenset({"disable"}),
    "max_protocol_version": frozenset(),
    "min_protocol_version": frozenset({"3.0"}),
    "oauth_client_id": frozenset(),
    "oauth_client_secret": frozenset(),
    "oauth_issuer": frozenset(),
    "oauth_scope": frozenset(),
    "prepared_statement_cache_size": frozenset(),
    "replication": frozenset({"false", "off", "no", "0"}),
    "require_auth": frozenset(),
    "requirepeer": frozenset(),
    "requiressl": frozenset({"0"}),
    "scram_client_key": frozenset(),
    "scram_server_key": frozenset(),
    "servicefile": frozenset(),
    "sslcertmode": frozenset({"allow"}),
    "sslcompression": frozenset({"0"}),
    "sslcrldir": frozenset(),
    "sslkeylogfile": frozenset(),
    "sslsni": frozenset({"1"}),
    "statement_cache_size": frozenset(),
}
_SEVERAL_HOSTS = re.compile(
    r"(?P<start>postgres(?:ql)?(?:\+\w+)?://)(?:(?P<user>[^@/?]*)@)?(?P<hosts>[^@/?]*,[^@/?]*)"
    r"(?P<path>/[^?]*)?(?:\?(?P<query>.*))?"
)
_told: set[str] = set()


def hosts_as_parameter(raw: str) -> str:
    """Move several hosts of a URL into its parameter `host`: what reads URLs knows of one host only."""
    found = _SEVERAL_HOSTS.fullmatch(raw.strip())
    if found is None:
        return raw
    user = "" if found["user"] is None else f"{found['user']}@"
    query = "" if not found["query"] else f"&{found['query']}"
    return f"{found['start']}{user}{found['path'] or '/'}?host={found['hosts']}{query}"


def checked(url: sa.URL) -> sa.URL:
    """Bring a URL's parameters into the form that `postgres_driver` takes.

    Raises:
        InvalidDatabaseUrl: one of them cannot be read, or hosts and ports do not go together.
    """
    query = {key: _one(values) for key, values in url.query.items()}
    password, sslmode = query.pop("password", None), query.pop("sslmode", None)
    if password:
        url = url.set(password=password)
    if sslmode:
        query["ssl"] = sslmode
    _check_numbers(query)
    _tell_ignored(name for name in query if name in _IGNORED and query[name].lower() not in _IGNORED[name])
    query = {name: value for name, value in query.items() if name not in _IGNORED}
    fallback = query.pop("fallback_application_name", None)
    if fallback:
        query.setdefault("application_name", fallback)
    address = query.pop("hostaddr", None)
    if address and "host" not in query and not url.host:
        query["host"] = address
    if "," in query.get("host", ""):
        query["host"] = _with_ports(query["host"], query.pop("port", ""))
    return url.set(query=query)


def hosts_of(url: sa.URL) -> list[str]:
    """Return the hosts, each with its port, of a URL that names several; nothing if it names one."""
    hosts = _one(url.query.get("host", ""))
    return hosts.split(",") if "," in hosts else []


def files_of(url: sa.URL) -> dict[str, str]:
    """Return the files that the URL names, by parameter."""
    return {name: _one(value) for name, value in url.query.items() if name in _FILES and value != "system"}


def number(url: sa.URL, name: str, default: int) -> int:
    """Return one of the numbers in `OURS`; 0 or less, as in libpq, is the default."""
    value = int(_one(url.query.get(name, "0")))
    return value if value > 0 else default


def _one(values: str | tuple[str, ...]) -> str:
    return values if isinstance(values, str) else ",".join(values)


def _check_numbers(query: dict[str, str]) -> None:
    for name in sorted(OURS & query.keys()):
        if not re.fullmatch(r"-?\d{1,9}", query[name]):
            raise InvalidDatabaseUrl(f"{name} in the database URL must be a whole number, not {query[name]!r}")


def _with_ports(hosts: str, ports: str) -> str:
    """Give each host its port, from a second list, where there is one; libpq takes one port for all of them, too."""
    names, numbers = hosts.split(","), ports.split(",") if ports else []
    if len(numbers) == 1:
        numbers *= len(names)
    if numbers and len(numbers) != len(names):
        raise InvalidDatabaseUrl(f"the database URL names {len(names)} hosts and {len(numbers)} ports")
    return ",".join(f"{name}:{port}" for name, port in zip(names, numbers, strict=True)) if numbers else hosts


def _tell_ignored(names: Iterable[str]) -> None:
    new = sorted(set(names) - _told)
    if new:
        _told.update(new)
        is_or_are = "is" if len(new) == 1 else "are"
        logger.warning("%s in the database URL %s ignored: the driver has no such option", ", ".join(new), is_or_are)
