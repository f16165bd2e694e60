"""A worker: a named, stored definition of work, and the state beside it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from datetime import datetime, timedelta


class WorkerExecutionMode(StrEnum):
    """What makes a worker due."""

    SCHEDULED = "scheduled"
    TRIGGERED = "triggered"
    CONTINUOUS = "continuous"


class JobPriority(IntEnum):
    """Higher starts first, strictly."""

    LOW = 0
    NORMAL = 1
    HIGH = 2
    CRITICAL = 3


class Misfire(StrEnum):
    """What a schedule does with the times it could not serve."""

    RUN_ONCE = "run_once"
    RUN_ALL = "run_all"
    SKIP = "skip"


class Isolation(StrEnum):
    """Where a handler's code runs."""

    INLINE = "inline"
    THREAD = "thread"
    PROCESS = "process"
    COMMAND = "command"


class DependencyCondition(StrEnum):
    """What a dependency asks of the worker depended on."""

    SUCCEEDED = "succeeded"
    FRESH = "fresh"


class CircuitState(StrEnum):
    """The circuit breaker of a worker."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True, slots=True)
class Dependency:
    """One edge: the worker that carries it waits for `depends_on`."""

    depends_on: str
    condition: DependencyCondition = DependencyCondition.SUCCEEDED
    max_age_seconds: float | None = None

    if TYPE_CHECKING:  # what a program may write; registering a worker makes of it what the fields say

        def __init__(
            self,
            depends_on: str,
            condition: DependencyCondition | Literal["succeeded", "fresh"] = ...,
            max_age_seconds: float | timedelta | str | None = None,
        ) -> None: ...


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """A worker's definition as code or an operator gives it. Durations are in seconds.

    `interval_seconds` is the period of a scheduled worker and the pause of a continuous one;
    None means the default for the mode, and for `isolation` the one that fits the function's kind.
    `payload_schema` is what the handler's annotations say of the payload, as JSON Schema; empty where any payload will
    do. `hidden_fields` are fields of the payload (dotted, where they lie deeper) that only an administrator sees; a
    `ping` is a URL that is told of each start and end.
    `limit_key` is a field of the payload (dotted, where it lies deeper), by whose value `max_running_per_key`,
    `rate_per_key`, `fair` and `ordered` go. A rate is text such as `"100/1m"`; `limits` are limits shared by workers.
    Validate with `policy.definitions.check_definition`.
    """

    name: str
    handler: str = ""
    execution_mode: WorkerExecutionMode = WorkerExecutionMode.SCHEDULED
    interval_seconds: float | None = None
    cron: str | None = None
    timezone: str = "UTC"
    jitter_seconds: float = 0.0
    timeout_seconds: float = 60.0
    max_retries: int = 3
    retry_delay_seconds: float = 5.0
    retry_backoff: float = 2.0
    retry_max_delay_seconds: float = 3600.0
    priority: JobPriority = JobPriority.NORMAL
    max_consecutive_failures: int = 5
    cooldown_seconds: float | None = None
    max_running: int = 1
    misfire: Misfire = Misfire.RUN_ONCE
    isolation: Isolation | None = None
    memory_limit_mb: int | None = None
    payload: dict[str, Any] = field(default_factory=dict)
    payload_schema: dict[str, Any] = field(default_factory=dict)
    hidden_fields: tuple[str, ...] = ()
    ping: str | None = None
    limit_key: str | None = None
    max_running_per_key: int | None = None
    rate: str | None = None
    rate_per_key: str | None = None
    smooth: bool = False
    fair: bool = False
    ordered: bool = False
    description: str = ""
    depends_on: tuple[Dependency, ...] = ()
    blocks: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class WorkerState:
    """One `worker_state` row: what the gates and the end of a run read and write."""

    worker: str
    is_enabled: bool = True
    disabled_by: str | None = None
    disabled_reason: str | None = None
    paused_until: datetime | None = None
    paused_reason: str | None = None
    circuit_state: CircuitState = CircuitState.CLOSED
    circuit_opened_at: datetime | None = None
    cooldown_current_seconds: float | None = None
    probe_at: datetime | None = None
    probe_run_id: int | None = None
    consecutive_failures: int = 0
    next_run_at: datetime | None = None
    last_due_at: datetime | None = None
    last_run_at: datetime | None = None
    last_run_outcome: str | None = None
    last_success_at: datetime | None = None
    last_error: str | None = None
    last_duration_ms: int | None = None
    last_fence: int = 0
    total_runs: int = 0
    total_failures: int = 0
    last_ended_at: datetime | None = None
    paused_at: datetime | None = None
    disabled_actor: str | None = None
    paused_by: str | None = None
    missed_from: datetime | None = None
