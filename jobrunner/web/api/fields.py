"""The fields that routes take, in a query or a body: how each is read, and how the document describes it.

A field is read the same from JSON, from a form and from a query, so that a page without JavaScript can do what a
program does. What a route does not take is refused, with the name that was probably meant.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from jobrunner.errors import InvalidPayload, InvalidSetting
from jobrunner.policy.arguments import check_text, read_id
from jobrunner.policy.durations import parse_time
from jobrunner.policy.near import did_you_mean
from jobrunner.runtime.moments import read_length, read_past

MOST_ROWS = 500
_TRUE, _FALSE = frozenset({"1", "true", "yes", "on"}), frozenset({"0", "false", "no", "off", ""})


@dataclass(frozen=True, slots=True)
class Kind:
    """How a field is read from what was given: `read(name, given, now)`; and the JSON Schema that says so."""

    read: Callable[[str, Any, datetime], Any]
    schema: Mapping[str, Any]
    is_several: bool = False


@dataclass(frozen=True, slots=True)
class Field:
    """One field; `choices` are all it may be, `default` what it is where it is not given."""

    name: str
    kind: Kind
    about: str
    default: Any = None
    choices: tuple[str, ...] = ()
    is_required: bool = False

    @property
    def schema(self) -> dict[str, Any]:
        """The field's JSON Schema."""
        schema = dict(self.kind.schema)
        if self.choices and self.kind.is_several:
            schema["items"] = {**schema["items"], "enum": list(self.choices)}
        elif self.choices:
            schema["enum"] = list(self.choices)
        if isinstance(self.default, str | int | float | bool):
            schema["default"] = self.default
        return schema

    def read(self, given: Any, now: datetime) -> Any:
        """Return the value. Raises `InvalidSetting` or `InvalidPayload`."""
        value = self.kind.read(self.name, given, now)
        for each in value if self.kind.is_several else (value,):
            if self.choices and each not in self.choices:
                raise InvalidSetting(f"{self.name} {each!r} is none of {', '.join(self.choices)}")
        return value


def read_fields(fields: Sequence[Field], given: Mapping[str, Any], now: datetime) -> dict[str, Any]:
    """Return the value of every field, of those not given the default.

    Raises:
        InvalidSetting: a field is missing, unknown, or cannot be used.
        InvalidPayload: a payload is none.
    """
    known = {field.name: field for field in fields}
    for name in given:
        if name not in known:
            advice = did_you_mean(name, known) if known else "this route takes nothing"
            raise InvalidSetting(f"no such field: {name}; {advice}")
    values = {}
    for field in fields:
        if given.get(field.name) is not None:
            values[field.name] = field.read(given[field.name], now)
        elif field.is_required:
            raise InvalidSetting(f"{field.name} is missing: {field.about}")
        else:
            values[field.name] = field.default
    return values


def _text(name: str, given: Any, _now: datetime) -> str:
    return check_text(name, given)


def _texts(name: str, given: Any, _now: datetime) -> tuple[str, ...]:
    several = [given] if isinstance(given, str) else given
    if not isinstance(several, list) or not several:
        raise InvalidSetting(f"{name} must be text, or a list of texts, not {given!r}")
    return tuple(check_text(name, each) for each in several)


def _id(name: str, given: Any, _now: datetime) -> int:
    return read_id(name, given.strip() if isinstance(given, str) else given)


def _limit(name: str, given: Any, now: datetime) -> int:
    number = _id(name, given, now)
    if not 1 <= number <= MOST_ROWS:
        raise InvalidSetting(f"{name} must be from 1 to {MOST_ROWS}, not {number}; `after` gives what follows")
    return number


def _number(name: str, given: Any, _now: datetime) -> float:
    try:
        number = math.nan if isinstance(given, bool) else float(given)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise InvalidSetting(f"{name} must be a number, not {given!r}")
    return number


def _flag(name: str, given: Any, _now: datetime) -> bool:
    said = str(given).strip().lower()
    if isinstance(given, bool) or said in _TRUE | _FALSE:
        return given if isinstance(given, bool) else said in _TRUE
    raise InvalidSetting(f"{name} must be true or false, not {given!r}")


def _past(name: str, given: Any, now: datetime) -> datetime | None:
    return read_past(name, check_text(name, given), now)


def _time(name: str, given: Any, _now: datetime) -> datetime:
    try:
        return parse_time(check_text(name, given))
    except InvalidSetting as error:
        raise InvalidSetting(f"{name}: {error}") from None


def _length(name: str, given: Any, _now: datetime) -> float:
    return read_length(name, given)


def _object(name: str, given: Any, _now: datetime) -> dict[str, Any]:
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except (ValueError, RecursionError) as error:
            raise InvalidPayload(f"{name} is no JSON: {error}") from None
    if not isinstance(given, dict):
        raise InvalidPayload(f"{name} must be a JSON object, not {json.dumps(given)[:100]}")
    return given


def _priority(name: str, given: Any, _now: datetime) -> str | int:
    if isinstance(given, int) and not isinstance(given, bool):
        return given
    text = check_text(name, given)
    return int(text) if text in {"0", "1", "2", "3"} else text


TEXT = Kind(_text, {"type": "string"})
TEXTS = Kind(_texts, {"type": "array", "items": {"type": "string"}}, is_several=True)
ID = Kind(_id, {"type": "integer"})
LIMIT = Kind(_limit, {"type": "integer", "minimum": 1, "maximum": MOST_ROWS})
NUMBER = Kind(_number, {"type": "number"})
FLAG = Kind(_flag, {"type": "boolean"})
PAST = Kind(_past, {"type": "string", "description": "a time (UTC without a zone), or a duration ago such as 2h"})
TIME = Kind(_time, {"type": "string", "format": "date-time"})
LENGTH = Kind(_length, {"type": ["number", "string"], "description": "seconds, or text such as 90s, 15m, 2h"})
OBJECT = Kind(_object, {"type": "object"})
PRIORITY = Kind(_priority, {"type": ["string", "integer"], "description": "LOW, NORMAL, HIGH or CRITICAL, or 0 to 3"})
