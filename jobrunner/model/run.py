"""A run: one occurrence of a worker's work, and how an attempt at it ended."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from jobrunner.model.record import record


class Trigger(StrEnum):
    """Where a run comes from."""

    SCHEDULE = "schedule"
    MANUAL = "manual"
    CONTINUOUS = "continuous"
    REPLAY = "replay"


class RunState(StrEnum):
    """Where a live run stands. `stopping`: told to stop, its code has not ended yet."""

    PENDING = "pending"
    RUNNING = "running"
    STOPPING = "stopping"


class OutcomeKind(StrEnum):
    """How an attempt ended; `missed` is what never started."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    LOST = "lost"
    INTERRUPTED = "interrupted"
    CANCELLED = "cancelled"
    SNOOZED = "snoozed"
    MISSED = "missed"


class EndsRun(StrEnum):
    """How a whole run ended, on the history row of its last attempt."""

    SUCCEEDED = "succeeded"
    EXHAUSTED = "exhausted"
    DISCARDED = "discarded"
    CANCELLED = "cancelled"


ClaimKey = tuple[int, int]
"""What names one claim for ever: the run's id and the claim's fence."""

HELD_UNTIL = datetime(9999, 1, 1, tzinfo=UTC)
"""The `due_at` of a step of a flow that waits for others: in no queue, and for no time."""
MOST_ATTEMPTS = 1_000_000_000
"""A run that has come so far is not tried again, whatever its retries."""
USES_UP_AN_ATTEMPT = frozenset({OutcomeKind.FAILED, OutcomeKind.TIMED_OUT, OutcomeKind.LOST})
FROM_SCHEDULE = frozenset({Trigger.SCHEDULE, Trigger.CONTINUOUS})


@record
class Run:
    """One `runs` row."""

    id: int
    worker: str
    trigger: Trigger
    state: RunState
    priority: int
    scheduled_for: datetime
    due_at: datetime
    payload: dict[str, Any]
    key: str | None
    attempt: int
    is_forced: bool
    slot: int | None = None
    fence: int | None = None
    node_id: str | None = None
    started_at: datetime | None = None
    first_started_at: datetime | None = None
    lost_in_a_row: int = 0
    cancel_requested_at: datetime | None = None
    created_at: datetime | None = None
    cancel_reason: str | None = None
    trace_context: str | None = None
    limit_key: str | None = None
    batch_id: int | None = None
    flow_id: int | None = None
    step: str | None = None
    is_rated: bool = False

    @property
    def claim_key(self) -> ClaimKey:
        """The run's id and fence; the fence is 0 for a run that is not claimed."""
        return (self.id, self.fence or 0)


@record
class Outcome:
    """How one attempt ended, as the executor reports it.

    `delay_seconds` overrides the retry delay (`RetryAfter`, `retry_delay`), or is the length of a snooze, or the time
    after which an interrupted run may be claimed again;
    `is_final` ends the run whatever retries are left, and `is_discard` marks the end as `discarded`.
    `does_not_fit` marks a payload that the handler's annotations refuse: retried, ends `discarded`.
    `retry_from`: from when on the retry delay counts, where that is before `finished_at`: the last sign of life of a
    node that was found dead.
    """

    kind: OutcomeKind
    finished_at: datetime
    duration_ms: int | None = None
    error_type: str | None = None
    error: str | None = None
    traceback: str | None = None
    reason: str | None = None
    result: Any = None
    output: str | None = None
    delay_seconds: float | None = None
    is_final: bool = False
    is_discard: bool = False
    does_not_fit: bool = False
    retry_from: datetime | None = None
