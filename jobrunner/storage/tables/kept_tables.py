"""The tables of what was, and who was there: history, letters, nodes, the audit log. `define` has them all."""

from __future__ import annotations

import sqlalchemy as sa

from jobrunner.model.limits import MAX_BIG_COUNT
from jobrunner.model.run import EndsRun, OutcomeKind, Trigger
from jobrunner.storage.tables.constraints import (
    LONGEST_KEY,
    counts,
    json_kind,
    one_of,
    partial_index,
    real_times,
    seconds,
)
from jobrunner.storage.tables.metadata import NOW, metadata
from jobrunner.storage.tables.types import Big, Flag, Id, Json, Real, UtcDateTime

run_history = sa.Table(
    "run_history",
    metadata,
    sa.Column("id", Id, sa.Identity(), primary_key=True),
    sa.Column("run_id", Big),
    sa.Column("fence", Big),
    sa.Column("worker", sa.Text, nullable=False),
    sa.Column("trigger", sa.Text, nullable=False),
    sa.Column("attempt", sa.Integer),
    sa.Column("outcome", sa.Text, nullable=False),
    sa.Column("ends_run", sa.Text),
    sa.Column("is_forced", Flag, nullable=False, server_default=sa.false()),
    sa.Column("scheduled_for", UtcDateTime),
    sa.Column("due_at", UtcDateTime),
    sa.Column("started_at", UtcDateTime),
    sa.Column("finished_at", UtcDateTime, nullable=False),
    sa.Column("duration_ms", Big),
    sa.Column("error_type", sa.Text),
    sa.Column("error", sa.Text),
    sa.Column("traceback", sa.Text),
    sa.Column("reason", sa.Text),
    sa.Column("payload", Json),
    sa.Column("result", Json),
    sa.Column("output", sa.Text),
    sa.Column("occurrences", sa.Integer),
    sa.Column("node_id", sa.Text),
    sa.Column("trace_context", sa.Text),
    sa.Column("limit_key", sa.Text),
    sa.Column("batch_id", Big),
    sa.Column("flow_id", Big),
    sa.Column("step", sa.Text),
    # Ours: its start counts in a rate.
    sa.Column("is_rated", Flag, nullable=False, server_default=sa.false()),
    one_of("trigger", Trigger),
    one_of("outcome", OutcomeKind),
    one_of("ends_run", EndsRun),
    # What never started has no claim; what was missed is counted.
    sa.CheckConstraint("(outcome = 'missed') = (occurrences IS NOT NULL)", name="occurrences"),
    sa.CheckConstraint("outcome = 'missed' OR run_id IS NOT NULL", name="run_id"),
    sa.CheckConstraint("duration_ms >= 0", name="duration_ms"),
    sa.UniqueConstraint("run_id", "fence"),
    sa.Index("ix_run_history_worker", "worker", "id"),
    sa.Index("ix_run_history_finished_at", "finished_at"),
    *real_times("scheduled_for", "due_at", "started_at", "finished_at", is_copied=True),
    sqlite_autoincrement=True,
    sqlite_strict=True,
)

# Nearly every row has succeeded: to find one of those needs no index, and each row less in it is time saved.
partial_index("ix_run_history_outcome", run_history.c.outcome, run_history.c.id, where="outcome <> 'succeeded'")
# For who counts starts, and for who asks after a batch or a flow: those who use none of it have no entry.
partial_index("ix_run_history_rated", run_history.c.worker, run_history.c.started_at, where="is_rated")
partial_index(
    "ix_run_history_limit_key",
    run_history.c.worker,
    run_history.c.limit_key,
    run_history.c.started_at,
    where="limit_key IS NOT NULL",
)
partial_index("ix_run_history_batch_id", run_history.c.batch_id, run_history.c.id, where="batch_id IS NOT NULL")
partial_index("ix_run_history_flow_id", run_history.c.flow_id, run_history.c.id, where="flow_id IS NOT NULL")

dead_letters = sa.Table(
    "dead_letters",
    metadata,
    sa.Column("id", Id, sa.Identity(), primary_key=True),
    sa.Column("run_id", Big, nullable=False, unique=True),
    sa.Column("worker", sa.Text, nullable=False),
    sa.Column("trigger", sa.Text, nullable=False),
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("key", sa.Text),
    sa.Column("limit_key", sa.Text),
    sa.Column("batch_id", Big),
    sa.Column("scheduled_for", UtcDateTime, nullable=False),
    sa.Column("payload", Json, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("error_type", sa.Text),
    sa.Column("error", sa.Text),
    sa.Column("traceback", sa.Text),
    sa.Column("errors", Json, nullable=False),
    sa.Column("died_at", UtcDateTime, nullable=False),
    sa.Column("status", sa.Text, nullable=False, server_default="open"),
    sa.Column("resolved_at", UtcDateTime),
    sa.Column("resolved_by", sa.Text),
    sa.Column("replay_run_id", Big),
    one_of("trigger", Trigger),
    one_of("status", ("open", "replayed", "discarded")),
    sa.CheckConstraint("(status = 'open') = (resolved_at IS NULL)", name="resolved"),
    sa.CheckConstraint("(status = 'replayed') = (replay_run_id IS NOT NULL)", name="replay_run_id"),
    sa.Index("ix_dead_letters_worker", "worker", "id"),
    sa.Index("ix_dead_letters_status", "status", "id"),
    *counts(0, "priority", most=3),
    sa.CheckConstraint(f"length(key) BETWEEN 1 AND {LONGEST_KEY}", name="key"),
    *json_kind("payload"),
    *json_kind("errors", "array"),
    *real_times("scheduled_for", "died_at", "resolved_at"),
    sqlite_autoincrement=True,
    sqlite_strict=True,
)

# Said so, and not by `status`: SQLite would take the index of that, and go through the open letters of everybody.
LETTER_IS_OPEN = "dead_letters.resolved_at IS NULL"
partial_index("ix_dead_letters_open", dead_letters.c.worker, dead_letters.c.id, where="resolved_at IS NULL")
# From a run that was replayed to the letter it replays.
partial_index("ix_dead_letters_replay_run_id", dead_letters.c.replay_run_id, where="replay_run_id IS NOT NULL")

nodes = sa.Table(
    "nodes",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("hostname", sa.Text, nullable=False),
    sa.Column("pid", sa.Integer, nullable=False),
    sa.Column("boot_id", sa.Text, nullable=False),
    sa.Column("process_started_at", UtcDateTime, nullable=False),
    sa.Column("state", sa.Text, nullable=False, server_default="active"),
    sa.Column("beat", Big, nullable=False, server_default="0"),
    sa.Column("started_at", UtcDateTime, nullable=False),
    sa.Column("heartbeat_at", UtcDateTime, nullable=False),
    sa.Column("last_tick_at", UtcDateTime),
    sa.Column("max_concurrent", sa.Integer, nullable=False),
    sa.Column("version", sa.Text, nullable=False),
    # Ours: when its process started, in ticks since the boot: what no setting of the clock changes. NULL: not Linux.
    sa.Column("start_ticks", Big),
    # Ours: whether the node runs command workers, for `explain` and the handler gate.
    sa.Column("allows_commands", Flag, nullable=False, server_default=sa.false()),
    # Ours: after so long without a beat it is silent, for those who ask from outside.
    sa.Column("lease_seconds", Real, nullable=False, server_default="30"),
    one_of("state", ("active", "draining", "stopped", "lost")),
    *seconds("lease_seconds", above=True),
    sa.Index(None, "state"),
    *counts(0, "pid", "max_concurrent"),
    *counts(0, "beat", most=MAX_BIG_COUNT),
    *real_times("process_started_at", "started_at", "heartbeat_at", "last_tick_at"),
    sqlite_strict=True,
)

HAS_LEFT = "nodes.state IN ('lost', 'stopped')"
"""A node of such a state claims nothing: it is out, and must join anew."""

# Ours: which live node has the code of which worker, for "no live node has the handler" and `admin remove`.
node_handlers = sa.Table(
    "node_handlers",
    metadata,
    sa.Column("worker", sa.Text, primary_key=True),
    sa.Column("node_id", sa.Text, sa.ForeignKey(nodes.c.id), primary_key=True),
    sa.Index(None, "node_id"),
    sqlite_strict=True,
)

AUDIT_ACTIONS = (
    "enable",
    "disable",
    "trip",
    "probe",
    "close",
    "pause",
    "resume",
    "set",
    "unset",
    "add",
    "remove",
    "cancel",
    "replay",
    "discard",
    "node_lost",
    "clock",
    "bulk",
    "upgrade",
    "alert_add",
    "alert_remove",
    "limit_set",
    "limit_unset",
)

audit_log = sa.Table(
    "audit_log",
    metadata,
    sa.Column("id", Id, sa.Identity(), primary_key=True),
    sa.Column("at", UtcDateTime, nullable=False, server_default=NOW),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("worker", sa.Text),
    sa.Column("detail", Json, nullable=False, server_default="{}"),
    one_of("action", AUDIT_ACTIONS),
    sa.Index("ix_audit_log_worker", "worker", "id"),
    *json_kind("detail"),
    *real_times("at"),
    sqlite_autoincrement=True,
    sqlite_strict=True,
)
