"""jobrunner: a persistent, SQL-backed job runner. The public names; everything else may change.

The names are imported when they are first used: the command line asks for `--help` more often than for a node.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jobrunner.errors import Discard, JobrunnerError, RetryAfter, Snooze, StopRequested
    from jobrunner.model.named_limit import LimitConfig
    from jobrunner.model.reports import HistoryRow, RunInfo
    from jobrunner.model.worker import Dependency, JobPriority, WorkerConfig, WorkerExecutionMode, WorkerState
    from jobrunner.runtime.context import RunContext
    from jobrunner.runtime.options import WorkerOptions
    from jobrunner.runtime.orchestrator import WorkerOrchestrator

__all__ = [
    "Dependency",
    "Discard",
    "HistoryRow",
    "JobPriority",
    "JobrunnerError",
    "LimitConfig",
    "RetryAfter",
    "RunContext",
    "RunInfo",
    "Snooze",
    "StopRequested",
    "WorkerConfig",
    "WorkerExecutionMode",
    "WorkerOptions",
    "WorkerOrchestrator",
    "WorkerState",
]

_WHERE = {
    "Discard": "jobrunner.errors",
    "JobrunnerError": "jobrunner.errors",
    "RetryAfter": "jobrunner.errors",
    "Snooze": "jobrunner.errors",
    "StopRequested": "jobrunner.errors",
    "LimitConfig": "jobrunner.model.named_limit",
    "HistoryRow": "jobrunner.model.reports",
    "RunInfo": "jobrunner.model.reports",
    "Dependency": "jobrunner.model.worker",
    "JobPriority": "jobrunner.model.worker",
    "WorkerConfig": "jobrunner.model.worker",
    "WorkerExecutionMode": "jobrunner.model.worker",
    "WorkerState": "jobrunner.model.worker",
    "RunContext": "jobrunner.runtime.context",
    "WorkerOptions": "jobrunner.runtime.options",
    "WorkerOrchestrator": "jobrunner.runtime.orchestrator",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'jobrunner' has no attribute {name!r}")
    value = getattr(import_module(_WHERE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
