"""jobrunner: a persistent, SQL-backed job runner. The public names; everything else may change."""

from __future__ import annotations

from jobrunner.errors import Discard, JobrunnerError, RetryAfter, Snooze
from jobrunner.model.worker import Dependency, JobPriority, WorkerConfig, WorkerExecutionMode
from jobrunner.runtime.context import RunContext
from jobrunner.runtime.orchestrator import WorkerOrchestrator

__all__ = [
    "Dependency",
    "Discard",
    "JobPriority",
    "JobrunnerError",
    "RetryAfter",
    "RunContext",
    "Snooze",
    "WorkerConfig",
    "WorkerExecutionMode",
    "WorkerOrchestrator",
]
