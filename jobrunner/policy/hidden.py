"""Hiding fields of payloads that only an administrator may see. Pure.

A worker names them in `hidden_fields`, dotted where they lie deeper: `card.number`. In a list each element is looked
into. What was given is never changed: what holds a hidden value is made anew, the rest is shared.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from jobrunner.model.unreadable import Unreadable
from jobrunner.policy.channels import host_of, without_secrets
from jobrunner.policy.filters import without_payload_values

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

MASK = "•••"
_PLACE = re.compile(r"-?[0-9]+")
_PAYLOADS = ("payload", "definition", "overrides", "errors", "detail", "attempts", "letter")
"""The columns that hold payloads: a payload itself, or documents with one under that name."""
_DOCUMENTS = ("definition", "overrides", "detail", "old", "new")
"""Those that hold what a worker, a rule or a bulk operation is."""


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


def published(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row, of whatever table, without what lets in elsewhere or was looked for in hidden fields.

    Of a `ping` and of a rule's `channel` the host or the program is left; of a bulk operation's `filter` all but the
    values that it looks for in payloads.
    """
    found = dict(row)
    for key, value in row.items():
        if key == "ping" and isinstance(value, str):
            found[key] = host_of(value)
        elif key == "channel" and isinstance(value, dict):
            found[key] = without_secrets(value)
        elif key == "filter" and isinstance(value, str):
            found[key] = without_payload_values(value, MASK)
        elif key in _DOCUMENTS and isinstance(value, dict):
            found[key] = published(value)
    return found


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

    So whoever may not see a field can edit the others. What was hidden and is not stored stays as it was given; in a
    list too whose length has changed, since nobody knows which of its elements is which.
    """
    found: dict[str, Any] = payload
    for field in fields:
        found = _put_back(found, stored, field)
    return found


def _put_back(given: Any, stored: Any, path: str) -> Any:
    if isinstance(given, list) and isinstance(stored, list) and len(given) == len(stored):
        return [_put_back(item, before, path) for item, before in zip(given, stored, strict=True)]
    if not isinstance(given, dict) or not isinstance(stored, dict):
        return given
    found = {}
    for key in given.keys() & stored.keys():
        if key == path and given[key] == MASK:
            found[key] = stored[key]
        elif path.startswith(f"{key}."):
            found[key] = _put_back(given[key], stored[key], path[len(key) + 1 :])
    return {**given, **found} if found else given


def still_masked(payload: Any, fields: Sequence[str]) -> str | None:
    """Return the first of the fields that holds `MASK` itself: nobody means that as a value."""
    return next((field for field in fields if MASK in _values_at(payload, field)), None)


def is_told_by(path: Sequence[str], field: str) -> bool:
    """Say whether finding payloads by what stands at `path` tells something of a hidden field.

    It does at the field, within it, and around it. Some steps may be places in a list, into each element of which a
    hidden field leads: `cards.0.number` is of `cards.number`.
    """
    steps, hidden = tuple(path), tuple(field.split("."))
    return _is_along(steps, hidden) or _is_along(_without_places(steps), _without_places(hidden))


def _is_along(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    return all(a == b for a, b in zip(one, other, strict=False))  # one of them is how the other begins


def _without_places(steps: tuple[str, ...]) -> tuple[str, ...]:
    """Leave out what may be a place in a list; the first is none, since a payload is an object."""
    return (*steps[:1], *(step for step in steps[1:] if not _PLACE.fullmatch(step)))


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


def _values_at(value: Any, path: str) -> Iterator[Any]:
    """Yield all that the path leads to, in lists too."""
    if isinstance(value, list):
        for item in value:
            yield from _values_at(item, path)
    elif isinstance(value, dict):
        for key in value:
            if key == path:
                yield value[key]
            elif path.startswith(f"{key}."):
                yield from _values_at(value[key], path[len(key) + 1 :])
