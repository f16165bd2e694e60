"""What a log line says of an event, by name: `docs/logs.md` lists all, `log_line.schema.json` gives their types.

An event's name is its class's, in small letters: `RunEnded` is `run_ended`. Its fields are attributes of the log
record, as `extra=` makes them, so that any formatter may use them.
"""

from __future__ import annotations

import functools
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from jobrunner.telemetry import events as e
from jobrunner.telemetry.tracing import TraceIds, ids_of

if TYPE_CHECKING:
    from jobrunner.model.run import Outcome, Run

RUN_FIELDS = ("worker", "run_id", "attempt", "fence", "node", "trace_id", "span_id")
"""What is said of a run with each line of it: of its events, and of what its handler logs."""
EVENT_FIELDS = (
    *RUN_FIELDS,
    "outcome",
    "duration_ms",
    "ends_run",
    "retry_at",
    "error_type",
    "error",
    "reason",
    "database",
    "worker_count",
    "workers",
    "running",
    "left_behind",
    "seconds",
)


def event_name(event: e.Event) -> str:
    """Return the name of an event."""
    return _named(type(event).__name__)


@functools.cache
def _named(kind: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", kind).lower()


def show_moment(moment: datetime) -> str:
    """Write a time, UTC, to the millisecond: `2026-03-01T12:00:00.123Z`."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def fields_of(event: e.Event) -> dict[str, Any]:
    """Return the name and the fields of an event; what is unknown is left out."""
    found = {"event": event_name(event), **_own(event)}
    return {name: value for name, value in found.items() if value is not None}


def run_fields(run: Run, trace: TraceIds | None) -> dict[str, Any]:
    """Return what is said of a run. Where no span of its own is known, its trace is its trigger's."""
    ids = ids_of(run) if trace is None else trace
    return {
        "worker": run.worker,
        "run_id": run.id,
        "attempt": run.attempt,
        "fence": run.fence,
        "node": run.node_id,
        "trace_id": None if ids is None else ids.trace_id,
        "span_id": None if ids is None else ids.span_id,
    }


def _own(event: e.Event) -> dict[str, Any]:  # noqa: C901 - one case an event
    match event:
        case e.RunStarted(run, trace=trace):
            return run_fields(run, trace)
        case e.RunEnded():
            retry_at = None if event.retry_at is None else show_moment(event.retry_at)
            ended = {"ends_run": event.ends_run, "retry_at": retry_at}
            return run_fields(event.run, event.trace) | _outcome(event.outcome) | ended
        case e.RunTakenAway(run):
            return run_fields(run, None)
        case e.CircuitOpened(state):
            return {"worker": state.worker, "reason": state.disabled_reason}
        case e.NodeStarted(node_id, workers, database):
            return {"node": node_id, "worker_count": workers, "database": database}
        case e.NodeDraining(node_id, running, seconds):
            return {"node": node_id, "running": running, "seconds": seconds}
        case e.NodeStopped(node_id, left_behind):
            return {"node": node_id, "left_behind": left_behind}
        case e.NodeCrashed(node_id):
            return {"node": node_id}  # the error is the record's own
        case e.NodeLost(node_id, reason):
            return {"node": node_id, "reason": reason}
        case e.DatabaseLost(error):
            return {"error": error}
        case e.DatabaseBack(seconds):
            return {"seconds": seconds}
        case e.LoopBlocked(seconds, workers):
            return {"seconds": seconds, "workers": list(workers)}
        case _:
            return {}


def _outcome(outcome: Outcome) -> dict[str, Any]:
    return {
        "outcome": str(outcome.kind),
        "duration_ms": outcome.duration_ms,
        "error_type": outcome.error_type,
        "error": outcome.error,
        "reason": outcome.reason,
    }
