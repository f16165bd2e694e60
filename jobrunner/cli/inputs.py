"""Reading what people type: payloads, times, priorities, and the values of `admin set`."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

import typer

from jobrunner.cli.output import note
from jobrunner.errors import InvalidPayload, InvalidSetting, InvalidWorker, UsageError
from jobrunner.policy import definitions
from jobrunner.policy.durations import is_clock_time, parse_duration, parse_time
from jobrunner.policy.words import show_time
from jobrunner.runtime import moments

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import datetime

    from jobrunner.model.worker import JobPriority

_MOST_BYTES_READ = 8 * definitions.MAX_PAYLOAD_BYTES  # white space does not count, but must end somewhere
_OF_LIMITS = frozenset({"limit_key", "max_running_per_key", "rate", "rate_per_key"})
_NULLABLE = frozenset({"interval_seconds", "cron", "cooldown_seconds", "memory_limit_mb", "ping"}) | _OF_LIMITS
_COUNTS = frozenset(
    {"max_retries", "max_consecutive_failures", "max_running", "memory_limit_mb", "max_running_per_key"}
)
_FLAGS = frozenset({"smooth", "fair", "ordered"})


def read_payload(given: str | None) -> dict[str, Any] | None:
    """Return the payload given as JSON, as `@FILE`, or as `-` for standard input; None for none.

    Raises:
        InvalidPayload: it cannot be read, is no JSON object, or is larger than 1 MiB.
    """
    if given is None:
        return None
    text = _read_text(given)
    try:
        payload = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        said = str(error) or type(error).__name__
        raise InvalidPayload(f'the payload is no JSON: {said}; write an object such as \'{{"to": "ann"}}\'') from None
    if payload is None:
        raise InvalidPayload("the payload must be a JSON object, not null")
    return definitions.check_payload(payload)


def _read_text(given: str) -> str:
    try:
        if given == "-":
            raw = sys.stdin.buffer.read(_MOST_BYTES_READ + 1)
        elif given.startswith("@"):
            with open(_path(given[1:]), "rb") as file:  # noqa: PTH123 - a name in bytes
                raw = file.read(_MOST_BYTES_READ + 1)
        else:
            raw = given.encode("utf-8", "surrogateescape")
        if len(raw) > _MOST_BYTES_READ:
            raise InvalidPayload("the payload is over 1 MiB, the most there may be")
        return raw.decode("utf-8")
    except OSError as error:
        raise InvalidPayload(f"the payload cannot be read: {error.strerror}: {given[1:]!r}") from None
    except UnicodeDecodeError:
        raise InvalidPayload("the payload is not UTF-8 text") from None


def _path(name: str) -> bytes:
    try:
        return os.fsencode(name)
    except UnicodeEncodeError:  # the locale cannot say it, but it was typed
        return name.encode()


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON value")


def read_duration(option: str, given: str | None) -> float | None:
    """Return the seconds given to `option`. Raises `InvalidSetting`, naming the option."""
    return None if given is None else _named(option, lambda: parse_duration(given))


def read_time(option: str, given: str | None) -> datetime | None:
    """Return the time given to `option`. Raises `InvalidSetting`, naming the option."""
    return None if given is None else _named(option, lambda: parse_time(given))


def require_one(is_first: bool, is_second: bool, advice: str) -> None:
    """Raise `UsageError` unless one of two ways to name things was taken; `advice` names both."""
    if is_first == is_second:
        raise UsageError(f"{advice}, not both" if is_first else advice)


def ask_or_refuse(verb: str, what: str) -> None:
    """Ask on a terminal whether what is about to be done shall be; go on only after a yes.

    Raises:
        UsageError: there is no terminal to ask on.
        typer.Abort: the answer was no.
    """
    if sys.stdin is None or not sys.stdin.isatty():
        raise UsageError(f"this would {verb} {what}, and there is nobody to ask; pass --yes")
    typer.confirm(f"{verb.capitalize()} {what}?", abort=True, err=True)


def read_past(option: str, given: str | None, now: datetime) -> datetime | None:
    """Return the time given to `option`, or the one a duration ago, or when this machine's clock last showed it.

    Raises `InvalidSetting`, naming the option.
    """
    moment = moments.read_past(option, given, now)
    _note_clock_time(option, given, moment)
    return moment


def read_span(since: str | None, until: str | None, now: datetime) -> tuple[datetime | None, datetime | None]:
    """Return the times given to `--since` and `--until`. Raises `InvalidSetting` where nothing can lie between them."""
    first, last = moments.read_span(since, until, now, ("--since", "--until"))
    _note_clock_time("--since", since, first)
    _note_clock_time("--until", until, last)
    return first, last


def _note_clock_time(option: str, given: str | None, moment: datetime | None) -> None:
    if given is not None and moment is not None and is_clock_time(given):
        note(f"{option} {given} is {show_time(moment)}")


def _named(option: str, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except InvalidSetting as error:
        raise InvalidSetting(f"{option}: {error}") from None


def read_priority(worker: str, given: str) -> JobPriority:
    """Return the priority given by name or number. Raises `InvalidWorker`."""
    return definitions.parse_priority(worker, int(given) if given in {"0", "1", "2", "3"} else given)


def read_assignments(worker: str, given: Iterable[str]) -> dict[str, Any]:
    """Return the values of `field=value` arguments, each as its field's type.

    Raises:
        InvalidSetting: an argument is no assignment, or names a field twice.
        InvalidWorker: a value does not fit its field.
        InvalidPayload: the payload is no JSON object.
    """
    return {field: _value(worker, field, text) for field, text in _parted(given, "interval_seconds=30").items()}


def read_limit_values(given: Iterable[str]) -> dict[str, Any]:
    """Return the values of `field=value` arguments of a named limit; `null` is no limit of that kind.

    Raises:
        InvalidSetting: an argument is no assignment, names a field twice, or is no number where one is needed.
    """
    values: dict[str, Any] = {}
    for field, text in _parted(given, "max_running=4").items():
        if text == "null":
            values[field] = None
        elif field == "max_running":
            try:
                values[field] = int(text)
            except ValueError:
                raise InvalidSetting(f"max_running must be a whole number, not {text!r}") from None
        else:
            values[field] = text
    return values


def _parted(given: Iterable[str], example: str) -> dict[str, str]:
    values: dict[str, str] = {}
    for item in given:
        field, equals, text = item.partition("=")
        if not equals or not field:
            raise InvalidSetting(f"{item!r} is no assignment; write field=value, such as {example}")
        if field in values:
            raise InvalidSetting(f"{field} is given twice; keep one")
        values[field] = text
    return values


def _value(worker: str, field: str, text: str) -> Any:
    if text == "null" and field in _NULLABLE:
        return None
    if field == "payload":
        return read_payload(text)
    if field == "hidden_fields":
        return [part.strip() for part in text.split(",") if part.strip()]
    if field == "priority":
        return int(read_priority(worker, text))
    if field in _FLAGS:
        if text not in {"true", "false"}:
            raise InvalidWorker(worker, f"{field} must be true or false, not {text!r}")
        return text == "true"
    if field in _COUNTS:
        return _count(worker, field, text)
    if field.endswith("_seconds") or field == "retry_backoff":
        return _number(worker, field, text)
    return text


def _count(worker: str, field: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise InvalidWorker(worker, f"{field} must be a whole number, not {text!r}") from None


def _number(worker: str, field: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        pass
    try:
        return parse_duration(text)
    except InvalidSetting:
        raise InvalidWorker(worker, f"{field} must be a number, not {text!r}") from None
