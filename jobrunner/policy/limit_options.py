"""What a worker definition must satisfy where it limits its runs; part of `definitions`. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from jobrunner.errors import InvalidSetting, InvalidWorker
from jobrunner.policy.rates import parse_rate

if TYPE_CHECKING:
    from jobrunner.model.worker import WorkerConfig

LONGEST_KEY = 200
_FIELD = re.compile(r"[A-Za-z0-9_-]{1,100}(\.[A-Za-z0-9_-]{1,100}){0,9}\Z")
_LIMIT = re.compile(r"[A-Za-z0-9._-]{1,200}\Z")


def check(name: str, config: WorkerConfig) -> None:
    """Refuse options that go by the key of a run where there is none, and flags that are no flags."""
    for flag in ("smooth", "fair", "ordered"):
        if not isinstance(getattr(config, flag), bool):
            raise InvalidWorker(name, f"{flag} must be true or false, not {getattr(config, flag)!r}")
    if config.limit_key is not None and not (isinstance(config.limit_key, str) and _FIELD.match(config.limit_key)):
        raise InvalidWorker(
            name,
            "limit_key must name a field of the payload: letters, digits, _ and -, with dots between where it lies"
            f" deeper, not {config.limit_key!r}",
        )
    if config.limit_key is not None and any(
        config.limit_key == field or config.limit_key.startswith(f"{field}.") for field in config.hidden_fields
    ):
        raise InvalidWorker(name, f"limit_key {config.limit_key} is one of hidden_fields, and a run's key is shown")
    if config.limit_key is None:
        for option in ("max_running_per_key", "rate_per_key", "fair", "ordered"):
            if getattr(config, option):
                raise InvalidWorker(name, f"{option} goes by a key: name the payload's field as limit_key")
    if config.smooth and config.rate is None and config.rate_per_key is None:
        raise InvalidWorker(name, "smooth spaces the starts of a rate: give rate or rate_per_key")


def limit_key_of(config: WorkerConfig, payload: Any = None) -> str | None:
    """Return the key of a run with that payload, or with the worker's own, as the database reads it."""
    if config.limit_key is None:
        return None
    value: Any = config.payload if payload is None else payload
    for part in config.limit_key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if value is None or isinstance(value, dict | list):
        return None
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text[:LONGEST_KEY] or None


def checked_rate(name: str, field: str, given: object) -> str | None:
    """Return a rate as it is stored, or raise `InvalidWorker`."""
    if given is None:
        return None
    try:
        parse_rate(given)
    except InvalidSetting as error:
        raise InvalidWorker(name, f"{field}: {error}") from None
    return str(given).replace(" ", "")


def checked_limits(name: str, given: object) -> tuple[str, ...]:
    """Return the names of limits, each once and in order, or raise `InvalidWorker`."""
    if isinstance(given, str) or not isinstance(given, list | tuple | set | frozenset):
        raise InvalidWorker(name, f"limits must be a list of names of limits, not {given!r}")
    for limit in given:
        if not isinstance(limit, str) or not _LIMIT.match(limit):
            raise InvalidWorker(name, f"limits: {limit!r} is no name of a limit")
    return tuple(sorted(set(given)))
