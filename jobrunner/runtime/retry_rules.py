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
from typing import Any

from jobrunner.errors import InvalidWorker
from jobrunner.runtime.results import RemoteError

RetryDelay = Callable[[int, BaseException], "float | None"]


@dataclass(frozen=True)
class RetryRule:
    """`on` None: every error is tried again. `delay` None, or what it returns: the worker's stored delays hold."""

    on: tuple[type[BaseException] | str, ...] | None = None
    delay: RetryDelay | None = None

    def judge(self, error: BaseException, attempt: int) -> dict[str, Any]:
        """Return what an outcome says of a retry: `is_final` and why, or `delay_seconds`."""
        if self.on is not None and not any(_matches(error, kind) for kind in self.on):
            name = error.kind if isinstance(error, RemoteError) else type(error).__name__
            return {"is_final": True, "reason": f"not tried again: {name} is not in retry_on"}
        if self.delay is None:
            return {}
        try:
            seconds = self.delay(attempt, error)
        except Exception as broken:  # noqa: BLE001 - the program's own; the attempt's error is what counts
            return {"reason": f"retry_delay failed, so the usual delay holds: {type(broken).__name__}: {broken}"}
        if seconds is None:
            return {}
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < math.inf:
            return {"reason": f"retry_delay returned {seconds!r}, so the usual delay holds"}
        return {"delay_seconds": float(seconds)}


def _matches(error: BaseException, kind: type[BaseException] | str) -> bool:
    """Say whether the error is of that kind; names do where the class itself is in another process."""
    if isinstance(kind, str):
        found = _loaded(kind)
        if found is None:
            return any(name == kind or name.rpartition(".")[2] == kind for name in _kinds(error))
        kind = found
    if isinstance(error, RemoteError):
        return f"{kind.__module__}.{kind.__qualname__}" in error.kinds
    return isinstance(error, kind)


def _loaded(name: str) -> type[BaseException] | None:
    """Return the class that `module.Class` names, also by an alias, if its module has been imported."""
    module, _, attribute = name.rpartition(".")
    found = getattr(sys.modules.get(module or "builtins"), attribute, None)
    return found if isinstance(found, type) and issubclass(found, BaseException) else None


def _kinds(error: BaseException) -> Iterable[str]:
    if isinstance(error, RemoteError):
        return error.kinds
    return [f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__]


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
