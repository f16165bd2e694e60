"""What registering a worker makes of its options, and refuses."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from jobrunner.errors import InvalidSetting, InvalidWorker
from jobrunner.model.worker import Dependency, Isolation, WorkerConfig, WorkerExecutionMode
from jobrunner.runtime.executors.process import importable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from jobrunner.runtime.handlers import Handler
    from jobrunner.storage.workers import Registered


def normalised(options: dict[str, Any]) -> dict[str, Any]:
    """Let dependencies be given as names, pairs of fields, or `Dependency` values."""
    if "depends_on" in options:
        given = options["depends_on"]
        if isinstance(given, list | tuple | set | frozenset):
            options["depends_on"] = tuple(Dependency(**item) if isinstance(item, dict) else item for item in given)
    if "payload" in options and options["payload"] is None:
        options["payload"] = {}
    return options


def check_isolation(config: WorkerConfig, code: Handler) -> None:
    """Refuse an isolation that does not fit the function, and a payload of the worker's own that does not."""
    if config.isolation is Isolation.INLINE and not code.is_async:
        raise InvalidWorker(config.name, "isolation 'inline' needs an async def; a def runs in a 'thread'")
    if config.isolation is Isolation.THREAD and code.is_async:
        raise InvalidWorker(config.name, "isolation 'thread' needs a def; an async def runs 'inline'")
    if config.isolation is Isolation.COMMAND:
        raise InvalidWorker(config.name, "command workers have no Python code; add them with `jobrunner admin add`")
    problem = importable(code.function) if config.isolation is Isolation.PROCESS else None
    if problem is not None:
        raise InvalidWorker(config.name, problem)
    if config.execution_mode is not WorkerExecutionMode.TRIGGERED:
        code.arguments(config.payload)


def chosen_handlers(handlers: Mapping[str, Handler], patterns: Sequence[str]) -> dict[str, Handler]:
    """Return those of `handlers` whose worker a pattern names; with no pattern, all.

    Raises:
        InvalidSetting: a pattern names none: a node that waits for nothing is a mistake in writing.
    """
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in handlers):
            some = ", ".join([*sorted(handlers)[:5], *["…"][: len(handlers) > 5]]) or "none"
            raise InvalidSetting(f"workers: {pattern!r} names none of the workers registered here: {some}")
    return {
        name: code
        for name, code in handlers.items()
        if not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)
    }


def warnings_of(registered: Registered) -> Iterator[str]:
    """Yield what an operator should know of definitions that were registered."""
    if registered.kept_newer:
        yield f"a newer version= is registered; its definitions stay: {', '.join(registered.kept_newer)}"
    if registered.unused:
        yield f"overrides that cannot be used are passed over: {', '.join(registered.unused)}"
