"""The options of a worker, each with its type: what a type checker and an IDE know of `register_worker`.

They are the fields of `WorkerConfig`, more freely typed, and a few that are code or kept with it. `docs/options.md`
lists them; a test holds the two equal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any, Literal, TypedDict

from jobrunner.errors import InvalidSetting, InvalidWorker
from jobrunner.model.worker import (
    Dependency,
    Isolation,
    JobPriority,
    Misfire,
    WorkerExecutionMode,
)
from jobrunner.policy.durations import read_seconds
from jobrunner.policy.near import did_you_mean
from jobrunner.runtime.retry_rules import RetryDelay

Seconds = float | timedelta | str
"""A length of time: a number of seconds, a `timedelta`, or text such as `90s`, `15m`, `1h30m`."""
_PriorityName = Literal["LOW", "NORMAL", "HIGH", "CRITICAL", "low", "normal", "high", "critical"]


class WorkerOptions(TypedDict, total=False):
    """What `register_worker` and `worker` take; `docs/options.md` says what each means."""

    execution_mode: WorkerExecutionMode | Literal["scheduled", "triggered", "continuous"]
    interval_seconds: Seconds | None
    cron: str | None
    timezone: str
    jitter_seconds: Seconds
    timeout_seconds: Seconds
    max_retries: int
    retry_delay_seconds: Seconds
    retry_backoff: float
    retry_max_delay_seconds: Seconds
    priority: JobPriority | _PriorityName | int
    max_consecutive_failures: int
    cooldown_seconds: Seconds | None
    max_running: int
    misfire: Misfire | Literal["run_once", "run_all", "skip"]
    isolation: Isolation | Literal["inline", "thread", "process"] | None
    memory_limit_mb: int | None
    payload: Mapping[str, Any] | None
    hidden_fields: Iterable[str]
    ping: str | None
    limit_key: str | None
    max_running_per_key: int | None
    rate: str | None
    rate_per_key: str | None
    smooth: bool
    limits: Iterable[str]
    fair: bool
    ordered: bool
    description: str
    depends_on: Iterable[str | Dependency | Mapping[str, Any]]
    blocks: Iterable[str]
    retry_on: type[BaseException] | str | Iterable[type[BaseException] | str] | None
    retry_delay: RetryDelay | None
    capture_logs: bool | None


OPTIONS = tuple(WorkerOptions.__annotations__)


def refuse_unknown(worker: str, given: Iterable[str]) -> None:
    """Raise `InvalidWorker` for a name that is no option, with the one that was probably meant."""
    unknown = sorted(set(given) - set(OPTIONS))
    if not unknown:
        return
    raise InvalidWorker(worker, f"unknown option {unknown[0]}; {did_you_mean(unknown[0], OPTIONS)}")


def in_seconds(worker: str, name: str, value: Any) -> Any:
    """Return the seconds that an option says; what is none at all is left to the check of the definition."""
    if not isinstance(value, str | timedelta):
        return value
    try:
        return read_seconds(value)
    except InvalidSetting as error:
        raise InvalidWorker(worker, f"{name}: {error}") from None
