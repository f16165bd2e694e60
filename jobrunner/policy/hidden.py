"""Hiding fields of payloads that only an administrator may see. Pure.

A worker names them in `hidden_fields`, dotted where they lie deeper: `card.number`. In a list each element is looked
into. What was given is never changed: what holds a hidden value is made anew, the rest is shared.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from jobrunner.model.unreadable import Unreadable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

MASK = "•••"
_PAYLOADS = ("payload", "definition", "overrides", "errors", "detail", "attempts", "letter")
"""The columns that hold payloads: a payload itself, or documents with one under that name."""


def masked(payload: Any, fields: Sequence[str]) -> Any:
    """Return a payload with `MASK` in the place of each of the fields that it has.

    Of one that cannot be read nobody knows where the fields are: it is hidden whole.
    """
    if isinstance(payload, Unreadable):
        return {"unreadable": MASK} if fields else payload
    for field in fields:
        payload = _changed(payload, field, lambda _: MASK)
    return payload


def masked_row(row: Mapping[str, Any], fields: Sequence[str] | None) -> dict[str, Any]:
    """Return a row, of whatever table, with the fields hidden in each payload that it holds.

    None: nobody knows which fields there are to hide, so that each payload is hidden whole.
    """
    if fields is not None and not fields:
        return dict(row)
    return {
        column: _in_document(column, value, fields) if column in _PAYLOADS else value for column, value in row.items()
    }


def _in_document(name: str, value: Any, fields: Sequence[str] | None) -> Any:
    """Hide the fields in a payload, or in all payloads that a document holds."""
    if name == "payload":
        return masked(value, fields) if fields is not None else MASK if value else value
    if isinstance(value, Unreadable):
        return masked(value, [MASK])
    if isinstance(value, dict):
        return {key: _in_document(key, inner, fields) for key, inner in value.items()}
    if isinstance(value, list):
        return [_in_document("", inner, fields) for inner in value]
    return value


def restored(payload: dict[str, Any], stored: Any, fields: Sequence[str]) -> dict[str, Any]:
    """Return an edited payload with what `masked` had hidden in it put back from the one that is stored.

    So whoever may not see a field can edit the others. What was hidden and is not stored stays as it was given.
    """
    for field in fields:
        found = _value_at(stored, field)
        if found is not _NOTHING:
            payload = _changed(payload, field, partial(_kept, found))
    return payload


def _kept(stored: Any, given: Any) -> Any:
    return stored if given == MASK else given


def still_masked(payload: Any, fields: Sequence[str]) -> str | None:
    """Return the first of the fields that holds `MASK` itself: nobody means that as a value."""
    return next((field for field in fields if _value_at(payload, field) == MASK), None)


_NOTHING = object()


def _changed(value: Any, path: str, change: Callable[[Any], Any]) -> Any:
    """Return the value with `change` made where the dotted path leads; a name with dots in it is looked for, too."""
    if isinstance(value, list):
        return [_changed(item, path, change) for item in value]
    if not isinstance(value, dict):
        return value
    found = {}
    for key in value:
        if key == path:
            found[key] = change(value[key])
        elif path.startswith(f"{key}."):
            found[key] = _changed(value[key], path[len(key) + 1 :], change)
    return {**value, **found} if found else value


def _value_at(value: Any, path: str) -> Any:
    """Return what the path leads to, through objects only; `_NOTHING` where there is nothing."""
    if not isinstance(value, dict):
        return _NOTHING
    if path in value:
        return value[path]
    for key in value:
        if path.startswith(f"{key}."):
            found = _value_at(value[key], path[len(key) + 1 :])
            if found is not _NOTHING:
                return found
    return _NOTHING
