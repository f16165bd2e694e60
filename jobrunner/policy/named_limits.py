"""What a named limit must satisfy, and how an operator's overrides are laid over what code said. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from jobrunner.errors import InvalidSetting, InvalidWorker
from jobrunner.model.named_limit import LimitConfig
from jobrunner.policy.near import did_you_mean, near_name
from jobrunner.policy.rates import parse_rate

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from jobrunner.model.worker import WorkerConfig

FIELDS = ("max_running", "rate")
"""What a limit says, and an operator can set."""
_NAME = re.compile(r"[A-Za-z0-9._-]{1,200}\Z")
_MAX_COUNT = 2**31 - 1


def check_limit_name(name: object) -> str:
    """Return a valid name of a limit, or raise `InvalidSetting`."""
    if not isinstance(name, str) or not _NAME.match(name):
        raise InvalidSetting(f"limit {name!r}: a name is 1 to 200 letters, digits, '.', '_' or '-'")
    return name


def check_limit(name: object, max_running: object = None, rate: object = None) -> LimitConfig:
    """Return a limit as it is declared, its values in their own types.

    Raises:
        InvalidSetting: a value cannot be used, or it limits nothing.
    """
    known = check_limit_name(name)
    if max_running is None and rate is None:
        raise InvalidSetting(f"limit {known!r} limits nothing: give max_running, rate or both")
    return LimitConfig(known, **checked_values(known, {"max_running": max_running, "rate": rate}))


def checked_values(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of some of `FIELDS` as they are stored; None is no limit of that kind.

    Raises:
        InvalidSetting: one is no field of a limit, or cannot be used.
    """
    checked: dict[str, Any] = {}
    for field, value in values.items():
        if field not in FIELDS:
            raise InvalidSetting(f"limit {name!r}: {field!r} cannot be set; {did_you_mean(field, FIELDS)}")
        if value is not None:
            checked[field] = _count(name, value) if field == "max_running" else _rate(name, value)
        else:
            checked[field] = None
    return checked


def _count(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidSetting(f"limit {name!r}: max_running must be a whole number, not {value!r}")
    if not 0 <= value <= _MAX_COUNT:
        raise InvalidSetting(f"limit {name!r}: max_running must be 0 to {_MAX_COUNT}, not {value}")
    return value


def _rate(name: str, value: object) -> str:
    try:
        parse_rate(value)
    except InvalidSetting as error:
        raise InvalidSetting(f"limit {name!r}: rate: {error}") from None
    return str(value).replace(" ", "")


def to_document(limit: LimitConfig) -> dict[str, Any]:
    """Write a limit as the JSON document kept in `limits.definition`: what it says, and nothing of what it does not."""
    return {field: value for field in FIELDS if (value := getattr(limit, field)) is not None}


def effective(name: str, definition: Mapping[str, Any], overrides: Mapping[str, Any]) -> LimitConfig:
    """Merge what code said with what operators set. What cannot be used, written by hand, is passed over."""
    merged: dict[str, Any] = {}
    for layer in (definition, overrides):
        for field in FIELDS:
            if field in layer:
                try:
                    merged |= checked_values(name, {field: layer[field]})
                except InvalidSetting:
                    continue
    return LimitConfig(name, **merged)


def named_by(configs: Iterable[WorkerConfig]) -> dict[str, str]:
    """Return the limits that workers name, in the order of names, each with the first of the workers."""
    found: dict[str, str] = {}
    for config in configs:
        for limit in config.limits:
            found.setdefault(limit, config.name)
    return dict(sorted(found.items()))


def refuse_unknown(named: Mapping[str, str], known: Collection[str], near: Iterable[str]) -> None:
    """Raise `InvalidWorker` for the first of `named_by` that is not `known`, with the one of `near` that was meant."""
    for limit, worker in named.items():
        if limit not in known:
            meant = near_name(limit, near)
            more = "declare it with orchestrator.limit()" if meant is None else f"did you mean {meant!r}?"
            raise InvalidWorker(
                worker, f"names the limit {limit!r}, which is known neither in code nor in the database; {more}"
            )
