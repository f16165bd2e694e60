"""What a program is told of runs: one of them, live or ended, and the rows of its history."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datetime import datetime

_LIVE = frozenset({"pending", "running", "stopping"})


@dataclass(frozen=True, slots=True)
class RunInfo:
    """A run as the database has it: live, or ended and in the history. Times are UTC.

    `state` is `pending`, `running` or `stopping` while it is live, then how it ended: `succeeded`, `exhausted`,
    `discarded` or `cancelled`. `result`, `error_type`, `error` and `reason` are those of its last attempt that has
    ended, so that a run that waits for its next attempt has the error of the one before.
    """

    id: int
    worker: str
    state: str
    trigger: str
    attempt: int
    """The attempt that waits, runs, or was the last; from 1."""
    payload: dict[str, Any] | None
    is_forced: bool
    scheduled_for: datetime | None
    due_at: datetime | None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    result: Any = None
    error_type: str | None = None
    error: str | None = None
    reason: str | None = None
    output: str | None = None
    progress: dict[str, Any] | None = None
    """What a live run says of it: `fraction` (0 to 1) and `message`."""
    cancel_requested_at: datetime | None = None
    letter_id: int | None = None
    """The dead letter that was kept of it."""

    @property
    def has_ended(self) -> bool:
        """Whether it will not be tried again."""
        return self.state not in _LIVE

    @property
    def has_succeeded(self) -> bool:
        """Whether it has ended, and well."""
        return self.state == "succeeded"


@dataclass(frozen=True, slots=True)
class HistoryRow:
    """A row of `run_history`, by the names of its columns: an ended attempt, or times that were missed.

    `ends_run` is None where the run waited for another attempt; `run_id` is None, and `occurrences` a number, where
    times were missed. `duration_ms` is in milliseconds, times are UTC.
    """

    id: int
    run_id: int | None
    fence: int | None
    worker: str
    trigger: str
    attempt: int | None
    outcome: str
    ends_run: str | None
    is_forced: bool
    scheduled_for: datetime | None
    due_at: datetime | None
    started_at: datetime | None
    finished_at: datetime
    duration_ms: int | None
    error_type: str | None
    error: str | None
    traceback: str | None
    reason: str | None
    payload: dict[str, Any] | None
    result: Any
    output: str | None
    occurrences: int | None
    node_id: str | None
    trace_context: str | None
    limit_key: str | None = None
    batch_id: int | None = None
    flow_id: int | None = None
    step: str | None = None
    is_rated: bool = False
