"""What a handler raised, as plain text and numbers. Its objects are asked nothing unguarded.

Their methods are the handler's code: they may raise anything, return anything, and be hundreds of megabytes long. What
the type alone can tell is asked of the type (`type(error)`, not `error.__class__`), the rest inside a guard that even
`SystemExit` does not pass. Where an error's own `__str__` fails, its class is what is known of it.
"""

from __future__ import annotations

import traceback
from collections import deque
from typing import TYPE_CHECKING

from jobrunner.errors import Discard, RetryAfter, Snooze, seconds_of
from jobrunner.runtime.results import RemoteError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

SIGNALS: tuple[type[Discard | Snooze | RetryAfter], ...] = (Discard, RetryAfter, Snooze)
"""What a handler may raise to say what follows; of several at once the first of these holds."""
MOST_CHARACTERS = 64 * 1024 + 1
"""Of a text: one more than can be stored, so that it shows as cut, and nothing is done to hundreds of megabytes."""

_name = type.__dict__["__name__"].__get__
_module = type.__dict__["__module__"].__get__
_qualname = type.__dict__["__qualname__"].__get__
_trace = BaseException.__dict__["__traceback__"].__get__
_members = BaseExceptionGroup.__dict__["exceptions"].__get__


def text_of(value: object) -> str | None:
    """Return what `value` says of itself, at most 64 Ki characters of it; None if it cannot say."""
    try:
        text = str.__getitem__(str(value), slice(MOST_CHARACTERS))  # of whatever subclass of str
    except BaseException:  # noqa: BLE001 - a broken __str__ is the handler's, whatever it raises
        return None
    return str.__str__(text)


def kind_of(error: BaseException) -> str:
    """Return the name of the error's class."""
    if type(error) is RemoteError:
        return error.kind
    return str.__str__(_name(type(error)))


def kinds_of(error: BaseException) -> tuple[str, ...]:
    """Return `module.Class` of its class and of all that one derives from."""
    if type(error) is RemoteError:
        return error.kinds
    return tuple(f"{_module(kind)}.{_qualname(kind)}" for kind in type.__dict__["__mro__"].__get__(type(error)))


def message_of(error: BaseException) -> str:
    """Return what the error says; never empty, since an empty error explains nothing."""
    text = text_of(error)
    return text if text is not None and text.strip() else kind_of(error)


def where_of(error: BaseException | None) -> TracebackType | None:
    """Return the error's traceback object."""
    return None if error is None else _trace(error)


def traceback_of(error: BaseException) -> str | None:
    """Return the traceback as text; of one that is very long, the end."""
    if type(error) is RemoteError:
        return error.text
    where = _trace(error)
    if where is None and BaseException.__dict__["__cause__"].__get__(error) is None:
        return None
    try:
        return _end_of(traceback.TracebackException(type(error), error, where).format())
    except BaseException:  # noqa: BLE001 - the handler's objects: what they raise hides what was raised, not where
        return _places(where)


def _places(where: TracebackType | None) -> str | None:
    try:
        return _end_of(traceback.format_tb(where))
    except BaseException:  # noqa: BLE001 - reading a source may be a module loader of the handler's
        return None


def _end_of(pieces: Iterable[str]) -> str:
    """Join the last pieces, some 64 Ki characters, without keeping all of them."""
    kept: deque[str] = deque()
    size = 0
    for piece in pieces:
        kept.append(piece[-MOST_CHARACTERS:])
        size += len(kept[-1])
        while size - len(kept[0]) >= MOST_CHARACTERS:
            size -= len(kept.popleft())
    return "".join(kept)


def signal_in(error: BaseException) -> Discard | Snooze | RetryAfter | None:
    """Return what the handler asks for: the error itself, or one of a group that holds nothing but such (a TaskGroup).

    Of several the strongest holds, `Discard` before `RetryAfter` before `Snooze`; of one kind the longest time.
    """
    found: list[tuple[int, float, Discard | Snooze | RetryAfter]] = []
    left = [error]
    while left:
        each = left.pop()
        kind = type(each)
        if issubclass(kind, BaseExceptionGroup):
            left += _members(each)
            continue
        place = next((place for place, signal in enumerate(SIGNALS) if issubclass(kind, signal)), None)
        if place is None:
            return None
        found.append((-place, wanted_seconds(each), each))  # type: ignore[arg-type]  # it is one of them
    return max(found, key=lambda signal: signal[:2])[2] if found else None


def wanted_seconds(signal: BaseException) -> float:
    """Return for how long a signal asks; 0 where what it was given afterwards is no length of time."""
    try:
        return max(seconds_of(getattr(signal, "seconds", 0.0)), 0.0)
    except BaseException:  # noqa: BLE001 - an attribute that the handler has set, or a property of its own
        return 0.0


def reason_of(signal: BaseException) -> str:
    """Return the reason a signal gives; else what it says, or its class."""
    try:
        reason = getattr(signal, "reason", None)
    except BaseException:  # noqa: BLE001 - a property of the handler's own class
        reason = None
    text = None if reason is None else text_of(reason)
    return message_of(signal) if text is None else text
