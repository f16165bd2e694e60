"""Which errors are tried again, and after how long: `retry_on` and `retry_delay` of `register_worker`.

Both are code and live with the handler; nothing of them is stored. They judge what a handler raised. A timeout and a
lost node are always tried again (the handler did not choose them), and so is `RetryAfter`, which says so itself.
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from jobrunner.errors import InvalidWorker, seconds_of
from jobrunner.runtime.raised import kind_of, kinds_of, message_of, text_of
from jobrunner.runtime.results import RemoteError, never_begun

RetryDelay = Callable[[int, BaseException], "float | timedelta | None"]


@dataclass(frozen=True)
class RetryRule:
    """`on` None: every error is tried again. `delay` None, or what it returns: the worker's stored delays hold."""

    on: tuple[type[BaseException] | str, ...] | None = None
    delay: RetryDelay | None = None

    def judge(self, error: BaseException, attempt: int) -> dict[str, Any]:
        """Return what an outcome says of a retry: `is_final` and why, or `delay_seconds`."""
        try:
            if self.on is not None and not any(_matches(error, kind) for kind in self.on):
                return {"is_final": True, "reason": f"not tried again: {kind_of(error)} is not in retry_on"}
        except BaseException as broken:  # noqa: BLE001 - a class that cannot say what is one of it
            return {"reason": f"retry_on failed, so it is tried again: {kind_of(broken)}: {message_of(broken)}"}
        return {} if self.delay is None else _wanted(self.delay, attempt, error)


def _wanted(delay: RetryDelay, attempt: int, error: BaseException) -> dict[str, Any]:
    """Ask the program's function; the attempt's error is what counts, whatever becomes of the question."""
    try:
        wanted = delay(attempt, error)
    except BaseException as broken:  # noqa: BLE001 - the program's own, `SystemExit` too
        return {"reason": f"retry_delay failed, so the usual delay holds: {kind_of(broken)}: {message_of(broken)}"}
    if wanted is None:
        return {}
    try:
        seconds = seconds_of(wanted)
    except BaseException:  # noqa: BLE001 - it is no length of time, or of a class that cannot say
        seconds = math.nan
    if 0 <= seconds < math.inf:
        return {"delay_seconds": seconds}
    never_begun(wanted)  # a coroutine, of which Python would say that nobody awaited it
    return {"reason": f"retry_delay returned {_shown(wanted)}, so the usual delay holds"}


def _shown(value: object) -> str:
    try:
        return text_of(repr(value)) or "nothing"
    except BaseException:  # noqa: BLE001 - a broken __repr__ is the program's
        return f"an object of type {type(value).__name__}"


def _matches(error: BaseException, kind: type[BaseException] | str) -> bool:
    """Say whether the error is of that kind; names do where the class itself is in another process."""
    if isinstance(kind, str):
        found = _loaded(kind)
        if found is None:
            return any(name == kind or name.rpartition(".")[2] == kind for name in kinds_of(error))
        kind = found
    if type(error) is RemoteError:
        return f"{kind.__module__}.{kind.__qualname__}" in error.kinds
    return issubclass(type(error), kind)


def _loaded(name: str) -> type[BaseException] | None:
    """Return the class that `module.Class` names, also by an alias, if its module has been imported."""
    module, _, attribute = name.rpartition(".")
    found = getattr(sys.modules.get(module or "builtins"), attribute, None)
    return found if isinstance(found, type) and issubclass(found, BaseException) else None


def read_retry_rule(worker: str, on: Any, delay: Any) -> RetryRule:
    """Check what `register_worker` was given.

    Raises:
        InvalidWorker: `on` holds something other than exception classes and their names, or `delay` is no function
            of two arguments.
    """
    kinds: tuple[Any, ...] | None = None
    if on is not None:
        kinds = (on,) if isinstance(on, str | type) else tuple(on) if isinstance(on, Iterable) else ()
        is_kind = [isinstance(k, str) or (isinstance(k, type) and issubclass(k, BaseException)) for k in kinds]
        if not kinds or not all(is_kind):
            raise InvalidWorker(worker, f"retry_on must be exception classes or their names, not {on!r}")
    if delay is not None:
        try:
            inspect.signature(delay).bind(1, ValueError())
        except (TypeError, ValueError):
            raise InvalidWorker(
                worker, f"retry_delay must be a function of the attempt and the error, not {delay!r}"
            ) from None
        if inspect.iscoroutinefunction(delay):
            raise InvalidWorker(worker, "retry_delay must be a plain def")
    return RetryRule(kinds, delay)
