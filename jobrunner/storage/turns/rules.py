"""The rules of a turn, in words that both databases read; each database's text is made of them.

What differs between the texts is mechanics: locks, `unnest` and `json_each`, temporary tables. The aliases are the same
in both: `r` a run, `s` its worker's state, `w` its definition, `e` an end, `f` a firing.
"""

from __future__ import annotations

from dataclasses import fields
from operator import itemgetter
from typing import Any

from jobrunner.model.run import Run, RunState, Trigger

REVISION = "w.revision + s.revision"
"""Both only grow, so the sum stands for both. The one is raised with the definition and its relations, the other with
the switches (migration 0001); they are two because nobody who holds the one row need wait for the other."""
AFTER_SUCCESS = "consecutive_failures = 0, last_run_outcome = 'succeeded', last_error = NULL"
HISTORY_COLUMNS = (
    "run_id, fence, worker, trigger, attempt, outcome, ends_run, is_forced, scheduled_for, due_at, started_at,"
    " finished_at, duration_ms, reason, payload, result, output, node_id, trace_context, limit_key,"
    " is_rated"
)
HISTORY_OF_SUCCESS = (
    "r.id, r.fence, r.worker, r.trigger, r.attempt, 'succeeded', 'succeeded', r.is_forced, r.scheduled_for, r.due_at,"
    " r.started_at, e.finished_at, e.ms, e.reason, r.payload, e.result, e.output, r.node_id,"
    " r.trace_context, r.limit_key, r.is_rated"
)
STARTING_ORDER = "f.priority DESC, f.due_at, f.id"
FIRED_COLUMNS = (
    "worker, trigger, state, priority, scheduled_for, due_at, payload, slot, fence, node_id, started_at,"
    " first_started_at, created_at, is_ours"
)
FIRED = (
    "f.worker, 'schedule', 'running', w.priority, f.due, f.due, w.payload, 0, f.fence, {node}, f.at, f.at, {now}, true"
)
IS_FORCED_PAST = (
    "EXISTS (SELECT 1 FROM {p}runs r WHERE r.state = 'pending' AND r.is_forced AND r.worker = {worker}"
    " AND r.due_at <= {now})"
)
"""Of a worker with a rate: a turn judges its runs by that, and a forced one passes it. The long way starts those."""
HAS_NO_RUN = (
    "NOT EXISTS (SELECT 1 FROM {p}runs r WHERE r.worker = s.worker AND r.state = 'pending')"
    " AND NOT EXISTS (SELECT 1 FROM {p}claims c WHERE c.worker = s.worker)"
)
CLAIM = {
    "id": "bigint",
    "worker": "text",
    "trigger": "text",
    "priority": "integer",
    "scheduled_for": "timestamptz",
    "due_at": "timestamptz",
    "payload": "jsonb",
    "key": "text",
    "attempt": "integer",
    "is_forced": "boolean",
    "slot": "integer",
    "fence": "bigint",
    "started_at": "timestamptz",
    "first_started_at": "timestamptz",
    "lost_in_a_row": "integer",
    "created_at": "timestamptz",
    "trace_context": "text",
    "limit_key": "text",
    "batch_id": "bigint",
    "flow_id": "bigint",
    "step": "text",
    "is_rated": "boolean",
}
"""What a turn answers of each claim, in this order, with PostgreSQL's types. The rest of a claimed `Run` is known."""
CLAIMED = ", ".join(f"r.{column}" for column in CLAIM)
_TRIGGERS = {str(trigger): trigger for trigger in Trigger}
_TRIGGER = list(CLAIM).index("trigger")
_KNOWN: dict[str, Any] = {"state": RunState.RUNNING, "cancel_requested_at": None, "cancel_reason": None}
_GIVEN = [*CLAIM, "node_id", *_KNOWN]
_in_order = itemgetter(*(_GIVEN.index(field.name) for field in fields(Run)))


def claimed_run(values: list[Any], node_id: str) -> Run:
    """Build a run from the values of `CLAIM`, which are used up; its times and payload are as the model has them."""
    values[_TRIGGER] = _TRIGGERS[values[_TRIGGER]]
    return Run(*_in_order([*values, node_id, *_KNOWN.values()]))
