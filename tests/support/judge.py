"""Short words for the facts that the gates judge. Times are seconds after `NOW`."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from jobrunner.model.facts import ActiveRun, Candidate, Facts, Gate, Start, Verdict, WorkerFacts
from jobrunner.model.worker import CircuitState, Dependency, WorkerConfig, WorkerExecutionMode, WorkerState
from jobrunner.policy.gates import decide_starts
from jobrunner.policy.verdicts import explain

NOW = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
SUCCEEDED: dict[str, Any] = {"last_run_outcome": "succeeded", "last_success_at": NOW - timedelta(seconds=60)}


def at(seconds: float) -> datetime:
    """The time `seconds` after now."""
    return NOW + timedelta(seconds=seconds)


def waits(worker: str, run_id: int, *, due: float = 0.0, priority: int = 1, **more: Any) -> Candidate:
    """A waiting run."""
    return Candidate(worker, run_id, priority, at(due), **more)


def runs(worker: str, run_id: int = 900, slot: int = 0, *, since: float = -10.0) -> ActiveRun:
    """An active run."""
    return ActiveRun(run_id, worker, slot, "node-1", at(since))


def worker(
    name: str,
    *waiting: Candidate,
    active: Iterable[ActiveRun] = (),
    depends_on: Iterable[str | Dependency] = (),
    counterparts: Iterable[str] = (),
    max_running: int = 1,
    priority: int = 1,
    next_run: float | None = None,
    retry: float | None = None,
    has_handler: bool = True,
    elsewhere: bool = False,
    scheduled_run: int | None = None,
    **state: Any,
) -> WorkerFacts:
    """A triggered worker and its runs; `next_run` gives it a due time of its schedule, `state` is its state."""
    edges = tuple(edge if isinstance(edge, Dependency) else Dependency(edge) for edge in depends_on)
    config = WorkerConfig(
        name,
        execution_mode=WorkerExecutionMode.TRIGGERED,
        depends_on=edges,
        max_running=max_running,
        priority=priority,  # type: ignore[arg-type]  # a number does here
    )
    return WorkerFacts(
        config,
        WorkerState(name, next_run_at=None if next_run is None else at(next_run), **state),
        has_handler=has_handler,
        has_handler_elsewhere=elsewhere,
        active=tuple(active),
        waiting=waiting,
        waiting_retry=None if retry is None else at(retry),
        counterparts=tuple(counterparts),
        scheduled_run=scheduled_run,
    )


def disabled(by: str = "operator", reason: str = "maintenance", **more: Any) -> dict[str, Any]:
    """The state of a disabled worker."""
    return {"is_enabled": False, "disabled_by": by, "disabled_reason": reason, **more}


def tripped(probe: float | None = None, **more: Any) -> dict[str, Any]:
    """The state of a worker whose circuit is open; `probe` is when a probe may start."""
    probe_at = None if probe is None else at(probe)
    return disabled("circuit", "it kept failing", **{"circuit_state": CircuitState.OPEN, "probe_at": probe_at, **more})


def facts(*workers: WorkerFacts, slots: int = 5) -> Facts:
    """A snapshot."""
    known = {each.config.name: each for each in workers}
    return Facts(NOW, known, slots)


def started(*workers: WorkerFacts, slots: int = 5) -> list[int | str]:
    """What one pass starts, in order: run ids, and the names of workers whose schedule fires."""
    return [start.worker if start.run_id is None else start.run_id for start in decide(*workers, slots=slots)]


def decide(*workers: WorkerFacts, slots: int = 5) -> list[Start]:
    """What one pass decides."""
    return decide_starts(facts(*workers, slots=slots))


def verdicts(name: str, *workers: WorkerFacts, slots: int = 5) -> dict[Gate, Verdict]:
    """What `explain` says, by gate."""
    return {verdict.gate: verdict for verdict in explain(facts(*workers, slots=slots), name)[1]}


def shut(name: str, *workers: WorkerFacts, slots: int = 5) -> set[Gate]:
    """The gates that `explain` shows shut."""
    return {gate for gate, verdict in verdicts(name, *workers, slots=slots).items() if not verdict.is_open}


def why(name: str, gate: Gate, *workers: WorkerFacts, slots: int = 5) -> str:
    """The reason that `explain` gives for a gate."""
    return verdicts(name, *workers, slots=slots)[gate].reason


def names(starts: Collection[Start]) -> list[str]:
    """The workers of some starts."""
    return [start.worker for start in starts]
