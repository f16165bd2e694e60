"""Short words for runs, outcomes and what follows from them. Times are seconds after `NOW`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from jobrunner.model.run import Outcome, OutcomeKind, Run, RunState, Trigger
from jobrunner.model.worker import WorkerConfig, WorkerExecutionMode, WorkerState
from jobrunner.policy.definitions import check_definition
from jobrunner.policy.transitions import Finish, decide_finish

NOW = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)


def at(seconds: float) -> datetime:
    """The time `seconds` after now."""
    return NOW + timedelta(seconds=seconds)


def config(mode: str = "scheduled", **more: Any) -> WorkerConfig:
    """A checked definition."""
    return check_definition(WorkerConfig("a", execution_mode=WorkerExecutionMode(mode), **more))


def a_run(run_id: int = 1, **more: Any) -> Run:
    """An active run, ten seconds old."""
    return Run(
        **{
            "id": run_id,
            "worker": "a",
            "trigger": Trigger.MANUAL,
            "state": RunState.RUNNING,
            "priority": 1,
            "scheduled_for": at(-20),
            "due_at": at(-15),
            "payload": {},
            "key": None,
            "attempt": 1,
            "is_forced": False,
            "slot": 0,
            "fence": 1,
            "node_id": "n",
            "started_at": at(-10),
            "first_started_at": at(-10),
            **more,
        }
    )


def outcome(kind: str = "succeeded", seconds: float = 0.0, **more: Any) -> Outcome:
    """An attempt's outcome."""
    if kind in {"failed", "timed_out", "lost"}:
        more = {"error_type": "ValueError", "error": "no luck", **more}
    return Outcome(OutcomeKind(kind), at(seconds), **{"duration_ms": 10_000, **more})


def end(
    kind: str = "succeeded",
    run: Run | None = None,
    state: WorkerState | None = None,
    rules: WorkerConfig | None = None,
    current: WorkerConfig | None = None,
    jitter: float = 0.0,
    seconds: float = 0.0,
    **more: Any,
) -> Finish:
    """Decide the end of one attempt."""
    rules = rules or current or config()
    return decide_finish(
        run or a_run(), outcome(kind, seconds, **more), rules, current or rules, state or WorkerState("a"), jitter
    )
