"""The settings: defaults, over them the environment (`JOBRUNNER_…`), over that what is given explicitly.

Every setting `name` is also the variable `JOBRUNNER_NAME`; an empty variable counts as not set. Durations are in
seconds and may be fractions, or a `timedelta`; as text they may also be written `90s`, `15m` or `1h30m`.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from datetime import timedelta
from ipaddress import ip_network
from typing import TYPE_CHECKING, Any

from jobrunner.errors import InvalidSetting
from jobrunner.model.limits import LONGEST_SECONDS
from jobrunner.policy.durations import read_seconds
from jobrunner.policy.near import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

DEFAULT_DATABASE_URL = "sqlite+aiosqlite:///jobrunner.db"
PREFIX = "JOBRUNNER_"
_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InvalidSetting("must be text")
    return value.strip()


def _seconds(value: object, *, above: float | None = None) -> float:
    number = read_seconds(value) if isinstance(value, str | timedelta) else _number(value)
    if above is not None and number <= above:
        raise InvalidSetting(f"must be more than {above:g} seconds, not {number:g}")
    if number < 0 or number > LONGEST_SECONDS:
        raise InvalidSetting(f"must be between 0 seconds and 100 years, not {number:g}")
    return number


def _positive_seconds(value: object) -> float:
    return _seconds(value, above=0.0)


def _days(value: object) -> float:
    number = _number(value)
    if not 0 <= number <= LONGEST_SECONDS / 86400:
        raise InvalidSetting(f"must be between 0 and 36,600 days, not {number:g}")
    return number


def _number(value: object) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]  # what is no number raises
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise InvalidSetting(f"must be a number, not {value!r}")
    return number


def _count(value: object) -> int:
    number = _number(value)
    if not number.is_integer() or not 1 <= number <= 100_000:
        raise InvalidSetting(f"must be a whole number from 1 to 100,000, not {value!r}")
    return int(number)


def _patterns(value: object) -> tuple[str, ...]:
    given = value.split(",") if isinstance(value, str) else value
    if not isinstance(given, list | tuple | set | frozenset) or not given:
        raise InvalidSetting("must be patterns of workers' names, such as send-*")
    return tuple(_text(pattern) for pattern in given)


def _texts(value: object) -> tuple[str, ...]:
    given = value.split(",") if isinstance(value, str) else value
    if not isinstance(given, list | tuple | set | frozenset) or not given:
        raise InvalidSetting("must be one or more of them, with commas between")
    return tuple(_text(each) for each in given)


def _networks(value: object) -> tuple[str, ...]:
    networks = _texts(value)
    for network in networks:
        try:
            ip_network(network, strict=False)
        except ValueError:
            raise InvalidSetting(f"{network!r} is no address or network; write 10.0.0.7 or 10.0.0.0/8") from None
    return networks


def _web_url(value: object) -> str:
    url = _text(value)
    if not url.startswith(("http://", "https://")) or "@" in url or not url.isprintable():
        raise InvalidSetting("must be where the console is, such as https://jobs.example.org, without a password")
    return url


def _flag(value: object) -> bool:
    if isinstance(value, bool):
        return value
    said = str(value).strip().lower()
    if said not in _TRUE | _FALSE:
        raise InvalidSetting(f"must be true or false, not {value!r}")
    return said in _TRUE


def _one_of(*choices: str) -> Callable[[object], str]:
    def choose(value: object) -> str:
        for choice in choices:
            if str(value).strip().lower() == choice.lower():
                return choice
        raise InvalidSetting(f"must be {' or '.join(choices)}, not {value!r}")

    return choose


def _setting(default: Any, read: Callable[[object], Any], *, is_secret: bool = False) -> Any:
    return field(default=default, repr=not is_secret, metadata={"read": read})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a process of jobrunner is told from outside; make one with `load`.

    `workers` are patterns of the workers that a node runs, None for all: a list, or text with commas. `pooler` is
    `transaction` behind a transaction-pooling proxy, else None. `http` is where a node answers HTTP, `HOST:PORT`; None:
    nowhere. Behind the proxies `http_proxies` (addresses or networks) the header `http_user_header` names the person,
    who may do what `http_user_level` says. `http_hosts` are names that this server is called by, beside addresses and
    its own; `http_url` is where people find it, for links. Nodes look for incidents every `alert_interval`, and close
    one that has been over for `alert_calm`. The database's URL (it may hold a password) and the tokens are left out of
    the repr.
    """

    database_url: str = _setting(DEFAULT_DATABASE_URL, _text, is_secret=True)
    schema: str = _setting("jobrunner", _text)
    sqlite_synchronous: str = _setting("FULL", _one_of("FULL", "NORMAL"))
    pooler: str | None = _setting(None, _one_of("transaction"))
    pool_size: int = _setting(5, _count)
    tick_interval: float = _setting(5.0, _positive_seconds)
    max_concurrent: int = _setting(5, _count)
    drain_timeout: float = _setting(25.0, _seconds)
    lease: float = _setting(30.0, _positive_seconds)
    allow_commands: bool = _setting(False, _flag)
    workers: tuple[str, ...] | None = _setting(None, _patterns)
    history_days: float = _setting(30.0, _days)
    failure_days: float = _setting(90.0, _days)
    http: str | None = _setting(None, _text)
    alert_interval: float = _setting(5.0, _positive_seconds)
    alert_calm: float = _setting(30.0, _seconds)
    http_url: str | None = _setting(None, _web_url)
    http_token: str | None = _setting(None, _text, is_secret=True)
    http_operate_token: str | None = _setting(None, _text, is_secret=True)
    http_read_token: str | None = _setting(None, _text, is_secret=True)
    http_user_header: str | None = _setting(None, _text)
    http_user_level: str = _setting("operate", _one_of("read", "operate", "admin"))
    http_proxies: tuple[str, ...] | None = _setting(None, _networks)
    http_hosts: tuple[str, ...] | None = _setting(None, _texts)
    metrics_db: bool = _setting(True, _flag)
    log_level: str = _setting("INFO", _one_of("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"))
    log_format: str = _setting("text", _one_of("text", "json"))

    @classmethod
    def load(cls, environ: Mapping[str, str], **explicit: Any) -> Settings:
        """Merge the defaults, `environ` and `explicit`; of the last, None means not given.

        Raises:
            InvalidSetting: a value cannot be used; the message names the variable or the option.
            TypeError: `explicit` names no setting.
        """
        fields = {item.name: item for item in dataclasses.fields(cls)}
        unknown = sorted(set(explicit) - set(fields))
        if unknown:
            raise TypeError(f"no such setting: {unknown[0]}; {did_you_mean(unknown[0], fields)}")
        values = {}
        for name, item in fields.items():
            variable = PREFIX + name.upper()
            if explicit.get(name) is not None:
                values[name] = _read(item, name, explicit[name])
            elif environ.get(variable, "").strip():
                values[name] = _read(item, variable, environ[variable])
        return cls(**values)


def _read(item: dataclasses.Field[Any], source: str, value: object) -> Any:
    try:
        return item.metadata["read"](value)
    except InvalidSetting as error:
        shown = "cannot be used" if not item.repr else str(error)
        if item.name == "database_url":
            shown = "must not be empty; write sqlite:///jobrunner.db or postgresql://user@host/database"
        raise InvalidSetting(f"{source}: {shown}") from None
