"""What came of a handler: its result as it can be stored, JSON of at most 64 KiB; its error from another process.

A result is copied into plain JSON first, piece by piece, and no further than 64 KiB go: so a huge one costs the loop
no more than a large one, and nothing of the handler's own classes is asked twice, or by the database's driver. What a
method of a result raises (`items` of a dict of its own kind) is the attempt's error.

What JSON has no word for is written as a payload's is (`payloads.py`), by the type of the value: a UUID, a time, a
`Decimal` or a path as text, an enum's member as its value, a dataclass or a model as an object.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import sys
import types
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from typing import Any
from uuid import UUID

MAX_RESULT_BYTES = 64 * 1024
MOST_LEVELS = 200
"""How deep a result may be nested. SQLite reads 1,000 levels, Python about as many, less where it is deep in calls."""
_MOST_BITS = 14_000
"""Of a whole number: 4,214 digits. Python reads 4,300 and PostgreSQL 131,072."""
_LAZY = {
    "generator": "a generator that was never begun; do the work in the handler, without yield",
    "async_generator": "an async generator that nobody has run to its end; do the work in the handler, without yield",
    "coroutine": "a coroutine that nobody awaits; make it an async def",
    "task": "a task that nobody awaits; await it in the handler",
    "awaitable": "an awaitable that nobody awaits; make it an async def",
    "iterator": "an iterator of which nothing was asked; make a list of it, or loop over it",
}


_TEXTS = (UUID, date, time, timedelta, Decimal, PurePath, bytes)  # a datetime is a date
_ITERATORS = (map, filter, zip, enumerate, reversed)


class _NotKept(Exception):
    """A result that is no JSON, or none that a database takes."""


def storable_result(value: Any) -> tuple[Any, str | None]:
    """Return the result as plain JSON of at most 64 KiB, or None and the reason why it is not kept.

    Raises:
        BaseException: what a method of the result raised.
    """
    if value is None:
        return None, None
    try:
        plain = _Copy().of(value, 0)
        size = len(json.dumps(plain, allow_nan=False, ensure_ascii=False).encode())
    except _NotKept as why:
        return None, f"its result is not kept, since it {why}"
    if size > MAX_RESULT_BYTES:
        return None, f"its result is not kept, since it is {size:,} bytes; the most is {MAX_RESULT_BYTES:,}"
    return plain, None


class _Copy:
    """Copies one result, and gives up when it is sure to be too large."""

    def __init__(self) -> None:
        self._left = MAX_RESULT_BYTES  # every value takes a byte at least, every character of a text one

    def of(self, value: Any, level: int) -> Any:
        """Return `value` in plain types, as `json` would write it. Types are asked, not their values."""
        kind = type(value)
        self._count(1)
        if value is None or kind is bool:
            return value
        if issubclass(kind, str):
            return self._text(value)
        if issubclass(kind, int):
            return _whole(value)
        if issubclass(kind, float):
            return _fraction(value)
        if level >= MOST_LEVELS:
            raise _NotKept(f"is nested deeper than {MOST_LEVELS} levels")
        if issubclass(kind, dict):
            items = dict.items(value) if kind is dict else value.items()
            return {self._key(key): self.of(item, level + 1) for key, item in items}
        if issubclass(kind, list | tuple):
            items = list.__iter__(value) if issubclass(kind, list) else tuple.__iter__(value)
            return [self.of(item, level + 1) for item in items]
        return self._typed(value, kind, level + 1)

    def _typed(self, value: Any, kind: type, level: int) -> Any:
        """Return what JSON has no word for, as a payload says it."""
        if issubclass(kind, _TEXTS):
            return self._text(_as_text(value))
        if issubclass(kind, Enum):
            return self.of(value.value, level)
        if issubclass(kind, set | frozenset):
            return [self.of(item, level) for item in value]
        if _is_model(kind):
            return self.of(_as_json(value), level)
        if dataclasses.is_dataclass(kind):
            return {field.name: self.of(_field(value, field.name), level) for field in dataclasses.fields(kind)}
        raise _NotKept(f"is no JSON: it holds an object of type {kind.__name__}")

    def _count(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise _NotKept(f"is more than {MAX_RESULT_BYTES:,} bytes")

    def _text(self, value: str) -> str:
        self._count(str.__len__(value))
        text = str.__str__(value)
        if "\0" in text:
            raise _NotKept("holds a character that a database cannot store")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise _NotKept("is no JSON: it holds half of a character") from None
        return text

    def _key(self, key: Any) -> str:
        kind = type(key)
        if issubclass(kind, str):
            return self._text(key)
        if issubclass(kind, Enum):
            return self._key(key.value)
        if issubclass(kind, _TEXTS):
            return self._text(_as_text(key))
        if key is None or kind is bool or issubclass(kind, int | float):
            return json.dumps(self.of(key, 0))
        raise _NotKept(f"is no JSON: it holds a key of type {kind.__name__}")


def _as_text(value: Any) -> str:
    if isinstance(value, bytes) and len(value) > MAX_RESULT_BYTES:
        raise _NotKept(f"is more than {MAX_RESULT_BYTES:,} bytes")
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, datetime):
        offset = value.utcoffset()
        if offset is not None and offset.total_seconds() % 60:
            value = value.astimezone(UTC)  # an offset is written in minutes
    try:
        return str(_as_json(value))
    except UnicodeDecodeError:
        raise _NotKept("holds bytes that are no UTF-8 text") from None


def _as_json(value: Any) -> Any:
    from pydantic_core import PydanticSerializationError, to_jsonable_python  # noqa: PLC0415 - few results need it

    try:
        return to_jsonable_python(value, by_alias=True)
    except PydanticSerializationError as error:
        raise _NotKept(f"is no JSON: {str(error).splitlines()[0]}") from None


def _is_model(kind: type) -> bool:
    """Say whether pydantic writes it: where it was not imported, nothing is of its kind."""
    return "pydantic" in sys.modules and hasattr(kind, "__pydantic_serializer__")


def _field(value: Any, name: str) -> Any:
    try:
        return getattr(value, name)
    except AttributeError:
        raise _NotKept(f"is no JSON: its field {name} was never set") from None


def _whole(value: int) -> int:
    if int.bit_length(value) > _MOST_BITS:
        raise _NotKept("is no JSON that everyone can read: it holds a number of more than 4,000 digits")
    return int.__int__(value)


def _fraction(value: float) -> float:
    number = float.__float__(value)
    if number - number != 0.0:  # inf and nan
        raise _NotKept(f"is no JSON: it holds {number!r}")
    return number


def never_begun(value: Any) -> str | None:
    """Say what is wrong with a value that stands for work nobody has begun, and close it, so that nothing warns.

    None for every other value. Raises what a value of the handler's own class does.
    """
    if value is None:
        return None
    name = _lazy_name(value)
    if name is None:
        return None
    _close(value)
    return f"the handler returned {_LAZY[name]}"


def _lazy_name(value: Any) -> str | None:
    kind = type(value)
    if kind is types.GeneratorType and not value.gi_code.co_flags & inspect.CO_ITERABLE_COROUTINE:
        return "generator" if inspect.getgeneratorstate(value) == inspect.GEN_CREATED else None
    if kind is types.AsyncGeneratorType:
        return None if value.ag_frame is None else "async_generator"
    if kind is types.CoroutineType:
        return "coroutine"
    if kind is types.GeneratorType or hasattr(kind, "__await__"):
        return "task" if hasattr(kind, "add_done_callback") else "awaitable"
    return "iterator" if kind in _ITERATORS or kind.__module__ == "itertools" else None


def _close(value: Any) -> None:
    """End what was never begun. Of a task that has failed, the error is looked at: it would be told of otherwise."""
    try:
        if hasattr(type(value), "add_done_callback"):
            if not value.cancel() and not value.cancelled():
                value.exception()
        elif hasattr(type(value), "close"):
            value.close()
    except BaseException:  # noqa: BLE001, S110 - its clean-up is the handler's code; the attempt has failed as it is
        pass


class RemoteError(Exception):
    """What a handler raised in another process, as text. `kinds` names its class and those it derives from."""

    def __init__(self, kind: str, kinds: tuple[str, ...], message: str, text: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.kinds = kinds
        self.text = text
