"""What was recorded of a worker around a moment that is past. Values only; `policy.past_facts` makes facts of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from jobrunner.model.run import EndsRun, OutcomeKind, Trigger
    from jobrunner.model.worker import WorkerConfig


@dataclass(frozen=True, slots=True)
class Spell:
    """One attempt: a row of history, or a live run (`finished_at` None), which may not have started yet.

    Of what has ended no priority is kept: it is None, and that of the worker counts. `created_at` is known of live runs
    only. `duration_ms` is in milliseconds. `is_rated`: it counts in a rate, as all do that run.
    """

    run_id: int
    trigger: Trigger
    attempt: int
    is_forced: bool
    scheduled_for: datetime
    due_at: datetime
    started_at: datetime | None
    node_id: str | None = None
    fence: int | None = None
    finished_at: datetime | None = None
    outcome: OutcomeKind | None = None
    ends_run: EndsRun | None = None
    error_type: str | None = None
    error: str | None = None
    reason: str | None = None
    duration_ms: int | None = None
    priority: int | None = None
    created_at: datetime | None = None
    first_started_at: datetime | None = None
    limit_key: str | None = None
    is_rated: bool = True

    def is_over(self, at: datetime) -> bool:
        """Say whether the attempt had ended by then."""
        return self.finished_at is not None and self.finished_at <= at

    def has_started(self, at: datetime) -> bool:
        """Say whether it had started by then."""
        return self.started_at is not None and self.started_at <= at


@dataclass(frozen=True, slots=True)
class Passed:
    """One `missed` row: the times from `first` to `last`, noted at `noted_at`."""

    first: datetime
    last: datetime
    noted_at: datetime
    occurrences: int
    reason: str


@dataclass(frozen=True, slots=True)
class Switch:
    """One row of the audit log."""

    at: datetime
    action: str
    actor: str
    detail: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Past:
    """What was recorded of a worker around a moment, each in the order of time, and its definition then.

    `spells` holds the attempts of each run in their order.
    """

    config: WorkerConfig
    created_at: datetime
    spells: Mapping[int, tuple[Spell, ...]]
    passed: tuple[Passed, ...] = ()
    switches: tuple[Switch, ...] = ()
    counterparts: tuple[str, ...] = ()
