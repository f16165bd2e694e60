"""The tables, as SQLAlchemy Core.

Migrations are the truth for a database; `alembic check` keeps this file equal to them. All names carry the schema
token `jobrunner`: the engine translates it to the configured schema on PostgreSQL and to none on SQLite.
Columns marked "ours" serve the program; the others are for who asks by SQL, too.
"""

from __future__ import annotations

import sqlalchemy as sa

from jobrunner.model.limits import LONGEST_SECONDS, MAX_BIG_COUNT, MAX_COUNT
from jobrunner.model.run import MOST_ATTEMPTS, RunState, Trigger
from jobrunner.model.worker import CircuitState, DependencyCondition, Isolation, Misfire, WorkerExecutionMode
from jobrunner.storage.tables.alert_tables import alert_deliveries, alert_rules, alerts
from jobrunner.storage.tables.bulk_table import bulk_operations
from jobrunner.storage.tables.constraints import (
    LONGEST_KEY,
    LONGEST_TRACE_CONTEXT,
    counts,
    json_kind,
    json_object,
    on,
    one_of,
    partial_index,
    real_times,
    seconds,
)
from jobrunner.storage.tables.kept_tables import HAS_LEFT, audit_log, dead_letters, node_handlers, nodes, run_history
from jobrunner.storage.tables.limit_tables import batches, limits, run_after
from jobrunner.storage.tables.metadata import NOW, SCHEMA_TOKEN, metadata
from jobrunner.storage.tables.types import Big, FirstRevision, Flag, Id, Json, Real, UtcDateTime

__all__ = [
    "HAS_LEFT",
    "NOW",
    "SCHEMA_TOKEN",
    "alert_deliveries",
    "alert_rules",
    "alerts",
    "audit_log",
    "batches",
    "bulk_operations",
    "dead_letters",
    "limits",
    "metadata",
    "node_handlers",
    "nodes",
    "run_after",
    "run_history",
    "runs",
    "worker_blocks",
    "worker_dependencies",
    "worker_limits",
    "worker_state",
    "workers",
]

_PENDING = "state = 'pending'"

workers = sa.Table(
    "workers",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("handler", sa.Text, nullable=False),
    sa.Column("execution_mode", sa.Text, nullable=False),
    sa.Column("interval_seconds", Real),
    sa.Column("cron", sa.Text),
    sa.Column("timezone", sa.Text, nullable=False, server_default="UTC"),
    sa.Column("jitter_seconds", Real, nullable=False, server_default="0"),
    sa.Column("timeout_seconds", Real, nullable=False, server_default="60"),
    sa.Column("max_retries", sa.Integer, nullable=False, server_default="3"),
    sa.Column("retry_delay_seconds", Real, nullable=False, server_default="5"),
    sa.Column("retry_backoff", Real, nullable=False, server_default="2"),
    sa.Column("retry_max_delay_seconds", Real, nullable=False, server_default="3600"),
    sa.Column("priority", sa.Integer, nullable=False, server_default="1"),
    sa.Column("max_consecutive_failures", sa.Integer, nullable=False, server_default="5"),
    sa.Column("cooldown_seconds", Real),
    sa.Column("max_running", sa.Integer, nullable=False, server_default="1"),
    sa.Column("misfire", sa.Text, nullable=False, server_default="run_once"),
    sa.Column("isolation", sa.Text, nullable=False, server_default="inline"),
    sa.Column("memory_limit_mb", sa.Integer),
    sa.Column("payload", Json, nullable=False, server_default="{}"),
    # What the handler's annotations say of the payload, as JSON Schema; empty: any will do, or nobody knows.
    sa.Column("payload_schema", Json, nullable=False, server_default="{}"),
    # Fields of the payload that only an administrator sees.
    sa.Column("hidden_fields", Json, nullable=False, server_default="[]"),
    # A URL that is told of each start and end, by the protocol of Healthchecks.
    sa.Column("ping", sa.Text),
    # A field of the payload, dotted; what each run has there is kept in `runs.limit_key`.
    sa.Column("limit_key", sa.Text),
    sa.Column("max_running_per_key", sa.Integer),
    sa.Column("rate", sa.Text),  # such as 100/1m
    sa.Column("rate_per_key", sa.Text),
    sa.Column("smooth", Flag, nullable=False, server_default=sa.false()),
    sa.Column("fair", Flag, nullable=False, server_default=sa.false()),
    sa.Column("ordered", Flag, nullable=False, server_default=sa.false()),
    sa.Column("definition", Json, nullable=False, server_default="{}"),
    sa.Column("overrides", Json, nullable=False, server_default="{}"),
    sa.Column("definition_hash", sa.Text, nullable=False),
    sa.Column("definition_version", sa.Integer),
    sa.Column("description", sa.Text, nullable=False, server_default=""),
    sa.Column("created_at", UtcDateTime, nullable=False, server_default=NOW),
    sa.Column("updated_at", UtcDateTime, nullable=False, server_default=NOW),
    # Ours: a database trigger raises it with every change of the row: what a node has read under it still holds.
    sa.Column("revision", Big, nullable=False, server_default="1"),
    on("sqlite", "length(name) BETWEEN 1 AND 200 AND name NOT GLOB '*[^A-Za-z0-9._-]*'", "name"),
    on("postgresql", "name ~ '^[A-Za-z0-9._-]{1,200}$'", "name"),
    one_of("execution_mode", WorkerExecutionMode),
    one_of("misfire", Misfire),
    one_of("isolation", Isolation),
    sa.CheckConstraint(
        "(execution_mode = 'scheduled' AND (interval_seconds IS NULL) <> (cron IS NULL) "
        "AND (interval_seconds IS NULL OR interval_seconds >= 0.001))"
        " OR (execution_mode = 'triggered' AND interval_seconds IS NULL AND cron IS NULL)"
        " OR (execution_mode = 'continuous' AND interval_seconds >= 0 AND cron IS NULL)",
        name="schedule",
    ),
    sa.CheckConstraint(f"interval_seconds <= {LONGEST_SECONDS:.0f}", name="interval_seconds"),
    *counts(0, "priority", most=3),
    *seconds("jitter_seconds", "retry_delay_seconds", "retry_max_delay_seconds"),
    *seconds("timeout_seconds", "cooldown_seconds", above=True),
    sa.CheckConstraint(f"retry_backoff >= 1 AND retry_backoff <= {LONGEST_SECONDS:.0f}", name="retry_backoff"),
    *counts(0, "max_retries"),
    *counts(0, "revision", most=MAX_BIG_COUNT),
    *counts(1, "max_consecutive_failures", "max_running", "memory_limit_mb", "max_running_per_key"),
    sa.CheckConstraint(
        "limit_key IS NOT NULL OR (max_running_per_key IS NULL AND rate_per_key IS NULL AND NOT fair AND NOT ordered)",
        name="limit_key",
    ),
    *json_object("payload"),
    *json_kind("definition"),
    *json_kind("overrides"),
    *json_kind("payload_schema"),
    *json_kind("hidden_fields", "array"),
    *real_times("created_at", "updated_at"),
    sqlite_strict=True,
)

worker_dependencies = sa.Table(
    "worker_dependencies",
    metadata,
    sa.Column("worker", sa.Text, sa.ForeignKey(workers.c.name), primary_key=True),
    sa.Column("depends_on", sa.Text, sa.ForeignKey(workers.c.name), primary_key=True),
    sa.Column("condition", sa.Text, nullable=False, server_default="succeeded"),
    sa.Column("max_age_seconds", Real),
    one_of("condition", DependencyCondition),
    sa.CheckConstraint("worker <> depends_on", name="not_itself"),
    *seconds("max_age_seconds", above=True),
    sa.Index(None, "depends_on"),
    sqlite_strict=True,
)

worker_blocks = sa.Table(
    "worker_blocks",
    metadata,
    sa.Column("worker", sa.Text, sa.ForeignKey(workers.c.name), primary_key=True),
    sa.Column("blocks", sa.Text, sa.ForeignKey(workers.c.name), primary_key=True),
    sa.CheckConstraint("worker <> blocks", name="not_itself"),
    sa.Index(None, "blocks"),
    sqlite_strict=True,
)

worker_limits = sa.Table(
    "worker_limits",
    metadata,
    sa.Column("worker", sa.Text, sa.ForeignKey(workers.c.name), primary_key=True),
    sa.Column("limit_name", sa.Text, sa.ForeignKey(limits.c.name), primary_key=True),
    sa.Index(None, "limit_name"),
    sqlite_strict=True,
)

worker_state = sa.Table(
    "worker_state",
    metadata,
    sa.Column("worker", sa.Text, sa.ForeignKey(workers.c.name), primary_key=True),
    sa.Column("is_enabled", Flag, nullable=False, server_default=sa.true()),
    sa.Column("disabled_by", sa.Text),
    sa.Column("disabled_reason", sa.Text),
    sa.Column("paused_until", UtcDateTime),
    sa.Column("paused_reason", sa.Text),
    sa.Column("circuit_state", sa.Text, nullable=False, server_default="closed"),
    sa.Column("circuit_opened_at", UtcDateTime),
    sa.Column("cooldown_current_seconds", Real),
    sa.Column("probe_at", UtcDateTime),
    sa.Column("probe_run_id", Big),
    sa.Column("consecutive_failures", sa.Integer, nullable=False, server_default="0"),
    sa.Column("next_run_at", UtcDateTime),
    sa.Column("last_due_at", UtcDateTime),
    sa.Column("last_run_at", UtcDateTime),
    sa.Column("last_run_outcome", sa.Text),
    sa.Column("last_success_at", UtcDateTime),
    sa.Column("last_error", sa.Text),
    sa.Column("last_duration_ms", Big),
    sa.Column("last_fence", Big, nullable=False, server_default="0"),
    sa.Column("total_runs", Big, nullable=False, server_default="0"),
    sa.Column("total_failures", Big, nullable=False, server_default="0"),
    # Ours: the latest end of an attempt; no run starts before it, whatever the clocks of two nodes say.
    sa.Column("last_ended_at", UtcDateTime),
    # Ours: the worker's priority again, so that one index finds the due schedules in starting order.
    sa.Column("priority", sa.Integer, nullable=False, server_default="1"),
    # Ours: when the streak was last zeroed by hand; `db verify` recomputes the streak from there on.
    sa.Column("streak_since_id", Big, nullable=False, server_default="0"),
    # Ours: when a pause of a given length began; NULL for one whose end was named. See `policy.clocks`.
    sa.Column("paused_at", UtcDateTime),
    # Ours: who disabled it, who paused it, and the first time of its schedule that passes meanwhile and is in no
    # `missed` row yet. See `policy.missed`.
    sa.Column("disabled_actor", sa.Text),
    sa.Column("paused_by", sa.Text),
    sa.Column("missed_from", UtcDateTime),
    # Ours: how far ahead its next time may lie. The database keeps `waits_from`, when its waits began, with an index of
    # its own (migration 0001): a look for waits that began ahead of now touches one row.
    sa.Column("reach_seconds", Real, nullable=False, server_default="0"),
    # Ours: raised by a trigger with every change of what the fast path rests on. See `policy.fast_path`.
    sa.Column("revision", Big, nullable=False, server_default=FirstRevision()),
    one_of("disabled_by", ("operator", "circuit")),
    one_of("circuit_state", CircuitState),
    sa.CheckConstraint("is_enabled = (disabled_by IS NULL)", name="disabled_by_someone"),
    *counts(0, "consecutive_failures"),
    *counts(0, "last_fence", "total_runs", "total_failures", "last_duration_ms", "revision", most=MAX_BIG_COUNT),
    *counts(0, "priority", most=3),
    *seconds("cooldown_current_seconds", above=True),
    *seconds("reach_seconds"),
    *real_times(
        "paused_until",
        "circuit_opened_at",
        "probe_at",
        "next_run_at",
        "last_due_at",
        "last_run_at",
        "last_success_at",
        "last_ended_at",
        "paused_at",
        "missed_from",
    ),
    sqlite_strict=True,
)
partial_index(
    "ix_worker_state_due",
    worker_state.c.priority,
    worker_state.c.next_run_at,
    worker_state.c.worker,
    where="next_run_at IS NOT NULL",
)
partial_index("ix_worker_state_probe_at", worker_state.c.probe_at, where="probe_at IS NOT NULL")
partial_index("ix_worker_state_paused_until", worker_state.c.paused_until, where="paused_until IS NOT NULL")
# With the name, in which those are ordered that fire at the same moment: at midnight that may be all.
partial_index(
    "ix_worker_state_next_run_at", worker_state.c.next_run_at, worker_state.c.worker, where="next_run_at IS NOT NULL"
)
# For who asks what is wrong: most workers are in neither.
partial_index("ix_worker_state_disabled", worker_state.c.worker, where="NOT is_enabled")
partial_index("ix_worker_state_failing", worker_state.c.worker, where="consecutive_failures > 0")

runs = sa.Table(
    "runs",
    metadata,
    sa.Column("id", Id, sa.Identity(always=True), primary_key=True),
    sa.Column("worker", sa.Text, sa.ForeignKey(workers.c.name), nullable=False),
    sa.Column("trigger", sa.Text, nullable=False, server_default="manual"),
    sa.Column("state", sa.Text, nullable=False, server_default="pending"),
    sa.Column("priority", sa.Integer),  # filled by a database trigger from the worker when NULL
    sa.Column("scheduled_for", UtcDateTime, nullable=False, server_default=NOW),
    sa.Column("due_at", UtcDateTime, nullable=False, server_default=NOW),
    sa.Column("payload", Json, nullable=False, server_default="{}"),
    sa.Column("key", sa.Text),
    sa.Column("attempt", sa.Integer, nullable=False, server_default="1"),
    sa.Column("is_forced", Flag, nullable=False, server_default=sa.false()),
    sa.Column("slot", sa.Integer),
    sa.Column("fence", Big),
    sa.Column("node_id", sa.Text),
    sa.Column("started_at", UtcDateTime),
    sa.Column("progress", Json),
    sa.Column("cancel_requested_at", UtcDateTime),
    sa.Column("created_at", UtcDateTime, nullable=False, server_default=NOW),
    # Ours: `waiting` or `live`, how far `key` is unique.
    sa.Column("key_scope", sa.Text, nullable=False, server_default="waiting"),
    # Ours: the first claim's start, kept by retries: a run that has it no longer holds its key as "not started".
    sa.Column("first_started_at", UtcDateTime),
    # Ours: attempts lost in a row, for the rule of the poison run.
    sa.Column("lost_in_a_row", sa.Integer, nullable=False, server_default="0"),
    # Ours: what the attempt has said so far, as `run_history.output` will have it, and how many lines that were.
    sa.Column("output", sa.Text),
    sa.Column("output_lines", sa.Integer),
    # Ours: why it was asked to cancel, for its history row.
    sa.Column("cancel_reason", sa.Text),
    # Ours: the dead letter a replay comes from.
    sa.Column("replay_of", Big),
    # Ours: when a wait of a given length began (a retry, a snooze, a delay); NULL where the time itself was named.
    sa.Column("waits_since", UtcDateTime),
    # Of the trace that the trigger was part of: a W3C `traceparent`, and after a space its `tracestate`, if it has one.
    sa.Column("trace_context", sa.Text),
    # What its payload has at the worker's `limit_key`, read once, when it was added.
    sa.Column("limit_key", sa.Text),
    sa.Column("batch_id", Big),
    # The steps of a flow have a number in common, and each its name; `run_after` says which waits for which.
    sa.Column("flow_id", Big),
    sa.Column("step", sa.Text),
    # Ours: the place that it takes among the active runs of its key, as `slot` among those of its worker.
    sa.Column("key_slot", sa.Integer),
    # Ours: its start counts in a rate.
    sa.Column("is_rated", Flag, nullable=False, server_default=sa.false()),
    # Ours: a program of ours wrote the row. Of any other, a database trigger takes only what a client may say.
    sa.Column("is_ours", Flag, nullable=False, server_default=sa.false()),
    one_of("trigger", Trigger),
    one_of("state", RunState),
    one_of("key_scope", ("waiting", "live")),
    *counts(0, "priority", most=3),
    sa.CheckConstraint(
        f"attempt BETWEEN 1 AND {MOST_ATTEMPTS} AND lost_in_a_row BETWEEN 0 AND {MOST_ATTEMPTS}"
        f" AND slot BETWEEN 0 AND {MAX_COUNT} AND fence BETWEEN 0 AND {MAX_BIG_COUNT} AND id > 0"
        f" AND key_slot BETWEEN 0 AND {MAX_COUNT}",
        name="numbers",
    ),
    sa.CheckConstraint(f"length(key) BETWEEN 1 AND {LONGEST_KEY}", name="key"),
    sa.CheckConstraint(
        f"length(limit_key) BETWEEN 1 AND {LONGEST_KEY} AND length(step) BETWEEN 1 AND {LONGEST_KEY}", name="names"
    ),
    sa.CheckConstraint(f"length(trace_context) <= {LONGEST_TRACE_CONTEXT}", name="trace_context"),
    # A claim is whole or absent: fence, slot, node and start come and go together.
    sa.CheckConstraint(
        "(state = 'pending' AND fence IS NULL AND slot IS NULL AND node_id IS NULL AND started_at IS NULL)"
        " OR (state <> 'pending' AND fence IS NOT NULL AND slot IS NOT NULL"
        " AND node_id IS NOT NULL AND started_at IS NOT NULL)",
        name="claim",
    ),
    *json_object("payload"),
    *real_times(
        "scheduled_for",
        "due_at",
        "started_at",
        "cancel_requested_at",
        "created_at",
        "first_started_at",
        "waits_since",
    ),
    sqlite_autoincrement=True,
    sqlite_strict=True,
)
partial_index("ix_runs_pending", runs.c.worker, runs.c.priority, runs.c.due_at, runs.c.id, where=_PENDING)
partial_index("ix_runs_due_at", runs.c.due_at, where=_PENDING)
partial_index("ix_runs_forced", runs.c.worker, runs.c.due_at, where="state = 'pending' AND is_forced")
partial_index("ix_runs_retry", runs.c.worker, runs.c.due_at, where="state = 'pending' AND attempt > 1")
partial_index("uq_runs_scheduled", runs.c.worker, where="trigger IN ('schedule', 'continuous')", unique=True)
partial_index(
    "uq_runs_key_waiting",
    runs.c.worker,
    runs.c.key,
    where="key IS NOT NULL AND first_started_at IS NULL",
    unique=True,
)
partial_index(
    "uq_runs_key_live", runs.c.worker, runs.c.key, where="key IS NOT NULL AND key_scope = 'live'", unique=True
)
# For who asks with a live key: the runs that hold theirs no longer, but have not ended.
partial_index(
    "ix_runs_key_started",
    runs.c.worker,
    runs.c.key,
    where="key IS NOT NULL AND first_started_at IS NOT NULL AND key_scope = 'waiting'",
)
_KEYED = "state = 'pending' AND limit_key IS NOT NULL"
partial_index("ix_runs_limit_key", runs.c.worker, runs.c.limit_key, runs.c.id, where=_KEYED)
partial_index(
    "uq_runs_key_slot", runs.c.worker, runs.c.limit_key, runs.c.key_slot, where="key_slot IS NOT NULL", unique=True
)
partial_index("ix_runs_batch_id", runs.c.batch_id, where="batch_id IS NOT NULL")
partial_index("ix_runs_flow_id", runs.c.flow_id, where="flow_id IS NOT NULL")
