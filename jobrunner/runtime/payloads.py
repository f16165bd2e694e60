"""Writing what a caller triggers with: typed values become the JSON that the check before an attempt reads back.

The handler's annotations are the one description of its fields. `handlers.py` makes a model of them, which reads JSON
before an attempt, and writes it here. JSON is given as it is. Anything else (a UUID, a time, a dataclass, a model) is
written as its annotation says, read as the attempt will read it, and refused unless the same value comes back: what
reaches the handler is what the caller meant, or the caller is told.

Where this process does not know the code, values are written by their own types, and the attempt checks them.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from jobrunner.errors import InvalidPayload
from jobrunner.policy.definitions import payload_text

if TYPE_CHECKING:
    from jobrunner.runtime.handlers import Handler

_PLAIN = str | int | float | None
_MISSING = object()


def read_payload(payload: Any, handler: Handler | None) -> tuple[dict[str, Any], str]:
    """Return a trigger's payload as plain JSON, and as its text, checked; `handler` is None where the code is unknown.

    Raises:
        InvalidPayload: it is no JSON object, too large, or does not fit the handler; the message names the field.
    """
    plain, text = write_payload(payload, handler)
    if handler is not None:
        model = handler.check(text)
        if plain is not payload:
            _refuse_changed(payload, plain, handler.values_of(model), handler)
    return plain, text


def write_payload(payload: Any, handler: Handler | None) -> tuple[dict[str, Any], str]:
    """Write a payload as `read_payload` does, without reading it back: it may be a part of what the handler takes."""
    try:
        return payload, payload_text(payload)  # most are JSON already
    except InvalidPayload:
        typed = [name for name in payload if _is_typed(payload[name])] if isinstance(payload, dict) else []
        if not typed:
            raise
    if handler is not None and handler.fields is None:
        path, value = _first_typed((str(typed[0]),), payload[typed[0]])
        raise InvalidPayload(
            f"{path}: {_a(value)} is no JSON, and {handler.label} has no annotation that says how to read it back; "
            "write it as text, or take it as a parameter with a type"
        )
    written = {name: _written(name, payload[name], handler) for name in typed}
    plain = {**payload, **written}
    return plain, payload_text(plain)


def _is_typed(value: object) -> bool:
    """Say whether a value holds what JSON has no word for."""
    try:
        json.dumps(value)
    except TypeError:
        return True
    except (ValueError, RecursionError):  # a circle, or too deep: `payload_text` says so
        return False
    return False


def _written(name: Any, value: Any, handler: Handler | None) -> Any:
    from pydantic_core import to_jsonable_python  # noqa: PLC0415 - only typed values need it

    try:
        if handler is not None and isinstance(name, str) and handler.has_field(name):
            return handler.write(name, value)
        return to_jsonable_python(value, by_alias=True)
    except UnicodeDecodeError:
        problem = "its bytes are no UTF-8 text; annotate it as pydantic's Base64Bytes, or give text"
    except Exception as error:  # noqa: BLE001 - a serializer is the program's, and so are the values' methods
        path, found = _first_typed((str(name),), value)
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InvalidPayload(f"{path}: {_a(found)} cannot be written as JSON: {said}") from None
    raise InvalidPayload(f"{name}: {problem}")


def _first_typed(path: tuple[str, ...], value: Any) -> tuple[str, Any]:
    """Find the first value inside that JSON has no word for, and its path."""
    items: Iterator[tuple[Any, Any]] = iter(())
    if isinstance(value, dict):
        items = iter(value.items())
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    for key, item in items:
        if _is_typed(item):
            return _first_typed((*path, str(key)), item)
    return ".".join(path), value


def _refuse_changed(given: dict[str, Any], plain: dict[str, Any], read: Mapping[str, Any], handler: Handler) -> None:
    """Compare the typed fields with what the attempt would read."""
    for name, value in given.items():
        if plain[name] is value:
            continue
        for path, before, after in _changes((name,), value, read.get(name, _MISSING)):
            where = ".".join(path)
            raise InvalidPayload(f"{where}: {_difference(before, after)} (the payload does not fit {handler.label})")


def _difference(before: Any, after: Any) -> str:
    if type(before) is type(after):
        return f"{_shown(before)} would be read back as {_shown(after)}; give a value that JSON keeps"
    if after is _MISSING:
        return f"{_a(before)} would not be read back; annotate the field with the type of what is given"
    return f"{_a(before)} would be read back as {_a(after)}; give that, or annotate the field with what is given"


def _changes(path: tuple[str, ...], before: Any, after: Any) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    """Go through both, and yield where they differ. Values that JSON has a word for are what the check has let pass."""
    if isinstance(before, _PLAIN):
        return
    parts = _parts(before)
    if parts is None:
        if not _is_same(before, after):
            yield path, before, after
        return
    others = _parts(after) if _are_alike(before, after) else None
    if others is None or len(others) != len(parts):
        yield path, before, after
        return
    for key, part in parts.items():
        if key in others:
            yield from _changes((*path, str(key)), part, others[key])
        else:
            yield (*path, str(key)), key, _MISSING


def _parts(value: Any) -> dict[Any, Any] | None:
    """Return the parts of a value that has any, by key, place or name."""
    if isinstance(value, dict):
        return value
    if isinstance(value, list | tuple):
        return dict(enumerate(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name, _MISSING) for field in dataclasses.fields(value)}
    fields = getattr(type(value), "model_fields", None)
    if isinstance(fields, dict):
        return {name: getattr(value, name, _MISSING) for name in fields}
    return None


def _are_alike(before: Any, after: Any) -> bool:
    """Say whether one may stand for the other: JSON has one kind of list, but a subclass has fields of its own."""
    if isinstance(before, dict):
        return isinstance(after, dict)
    if isinstance(before, list | tuple):
        return isinstance(after, list | tuple)
    return type(before) is type(after)


def _is_same(before: Any, after: Any) -> bool:
    if type(after) not in type(before).__mro__:
        return isinstance(before, set | frozenset) and isinstance(after, set | frozenset) and before == after
    if isinstance(before, datetime) and isinstance(after, datetime):  # those of two zones are equal if they can be
        return (before.replace(tzinfo=None), before.utcoffset()) == (after.replace(tzinfo=None), after.utcoffset())
    try:
        return bool(before == after)
    except Exception:  # noqa: BLE001 - a value of the program's own class
        return False


def _a(value: object) -> str:
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeioAEIO' else 'a'} {name}"


def _shown(value: object) -> str:
    try:
        text = str(value)
    except Exception:  # noqa: BLE001 - a broken __str__
        return _a(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
