"""What registering a worker makes of its options, and refuses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jobrunner.errors import InvalidWorker
from jobrunner.model.worker import Dependency, Isolation, WorkerConfig, WorkerExecutionMode
from jobrunner.runtime.executors.process import importable

if TYPE_CHECKING:
    from jobrunner.runtime.handlers import Handler


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
