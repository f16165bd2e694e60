"""The first schema: tables, indexes, triggers and views.

Revision ID: 0001
Revises: nothing
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_TIME = sa.Text().with_variant(postgresql.TIMESTAMP(timezone=True), "postgresql")
_JSON = sa.Text().with_variant(postgresql.JSONB(), "postgresql")
_BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
# What a STRICT table of SQLite takes.
_FLAG = sa.Boolean().with_variant(sa.Integer(), "sqlite")
_REAL: sa.types.TypeEngine[Any] = sa.Double().with_variant(sa.REAL(), "sqlite")
_TIME_SHAPE = (
    "{c} GLOB '[1-9][0-9][0-9][0-9]-[0-1][0-9]-[0-3][0-9] [0-2][0-9]:[0-5][0-9]:[0-5][0-9]"
    ".[0-9][0-9][0-9][0-9][0-9][0-9]' AND {c} >= '1970'"
)
# A shape lets the 30th of February and the hour 29 pass: SQLite's own reading of the text must give it back. Without a
# modifier it reads them as they are; of the fraction it makes a rounded second. It costs 0.4 us.
_REAL_TIME = f"{_TIME_SHAPE} AND datetime(substr({{c}}, 1, 19), '+0 days') IS substr({{c}}, 1, 19)"
_LONGEST_SECONDS = 3162240000
_MAX_COUNT, _MAX_BIG_COUNT, _MOST_ATTEMPTS = 2147483647, 4611686018427387904, 1000000000
_TRIGGERS = ("schedule", "manual", "continuous", "replay")
_MAX_PAYLOAD_BYTES = 1024 * 1024
# Queues and counters: vacuum them early and at full speed, or their dead rows slow every tick down.
_BUSY_TABLES = {"worker_state": 70, "runs": 85, "nodes": 70}
"""Fill factor in percent: room for a row's next version on its page."""
_VACUUM = (
    "autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 500, autovacuum_vacuum_cost_delay = 0,"
    " autovacuum_analyze_scale_factor = 0.05, autovacuum_analyze_threshold = 500"
)


def upgrade() -> None:
    _create_workers()
    _create_edges()
    _create_worker_state()
    _create_runs()
    _create_run_history()
    _create_dead_letters()
    _create_nodes()
    _create_audit_log()
    if _is_sqlite():
        _create_sqlite_triggers()
    else:
        for table, fill_factor in _BUSY_TABLES.items():
            op.execute(f"ALTER TABLE {_p()}{table} SET (fillfactor = {fill_factor}, {_VACUUM})")
        _create_postgres_triggers()
        # Who may use the schema may know its revision: triggers look at it first.
        op.execute(f"GRANT SELECT ON {_p()}{op.get_context().version_table} TO PUBLIC")
    _create_views()


def downgrade() -> None:
    """IF EXISTS: a schema of which parts are gone can be taken away all the same."""
    for view in ("run_stats", "run_failures", "worker_status"):
        op.execute(f"DROP VIEW IF EXISTS {_p()}{view}")
    for table in (
        "audit_log",
        "node_handlers",
        "nodes",
        "dead_letters",
        "run_history",
        "runs",
        "worker_state",
        "worker_blocks",
        "worker_dependencies",
        "workers",
    ):
        op.drop_table(table, schema=_schema(), if_exists=True)  # its triggers and indexes go with it
    if not _is_sqlite():
        for function in (
            "refuse_client",
            "fill_run_priority",
            "refuse_history_update",
            "raise_revision",
            "wake_nodes_at_commit",
            "wake_nodes",
            "take_turn",
        ):
            op.execute(f"DROP FUNCTION IF EXISTS {_p()}{function}")
        op.execute(f"DROP SEQUENCE IF EXISTS {_p()}wakeup_clock")


# --- small words for what follows ---------------------------------------------------------------------------------


def _is_sqlite() -> bool:
    return op.get_context().dialect.name == "sqlite"


def _schema() -> str | None:
    return op.get_context().version_table_schema


def _p() -> str:
    """The prefix of our names in hand-written SQL."""
    return f'"{_schema()}".' if _schema() else ""


def _now() -> sa.TextClause:
    return sa.text("(strftime('%Y-%m-%d %H:%M:%f', 'now') || '000')" if _is_sqlite() else "now()")


def _check(table: str, name: str, condition: str) -> sa.CheckConstraint:
    return sa.CheckConstraint(condition, name=op.f(f"ck_{table}_{name}"))


def _one_of(table: str, column: str, *values: str) -> sa.CheckConstraint:
    """SQLite builds a table of what follows IN for every statement, and looks each row up in it: 2 us a run in all."""
    if _is_sqlite():
        return _check(table, column, " OR ".join(f"{column} = '{value}'" for value in values))
    return _check(table, column, f"{column} IN ({', '.join(repr(value) for value in values)})")


def _real_times(table: str, *columns: str, is_copied: bool = False) -> list[sa.CheckConstraint]:
    """Real times from 1970 to 9999; on PostgreSQL in one constraint, since each is parsed anew for every statement."""
    if _is_sqlite():
        rule = _TIME_SHAPE if is_copied else _REAL_TIME
        return [_check(table, f"{c}_time", f"{c} IS NULL OR {rule.format(c=c)}") for c in columns]
    first, last = (f"{word}({', '.join(columns)})" if columns[1:] else columns[0] for word in ("least", "greatest"))
    bounds = "'1970-01-01 00:00:00+00'::timestamptz", "'9999-12-31 23:59:59.999999+00'::timestamptz"
    return [_check(table, "times", f"{first} >= {bounds[0]} AND {last} < {bounds[1]}")]


def _seconds(table: str, *columns: str, above: bool = False) -> list[sa.CheckConstraint]:
    least = "> 0" if above else ">= 0"
    return [_check(table, c, f"{c} {least} AND {c} <= {_LONGEST_SECONDS}") for c in columns]


def _counts(table: str, least: int, *columns: str, most: int = _MAX_COUNT) -> list[sa.CheckConstraint]:
    return [_check(table, c, f"{c} BETWEEN {least} AND {most}") for c in columns]


def _json_kind(table: str, column: str, kind: str = "object") -> sa.CheckConstraint:
    if _is_sqlite():
        return _check(table, f"{column}_{kind}", f"json_valid({column}) AND json_type({column}) = '{kind}'")
    return _check(table, f"{column}_{kind}", f"jsonb_typeof({column}) = '{kind}'")


def _payload_checks(table: str) -> list[sa.CheckConstraint]:
    if _is_sqlite():
        size = f"length(CAST(payload AS BLOB)) <= {_MAX_PAYLOAD_BYTES}"
    else:
        size = f"octet_length(payload::text) <= {_MAX_PAYLOAD_BYTES + 65536}"
    return [_json_kind(table, "payload"), _check(table, "payload_size", size)]


def _primary_key(table: str, *columns: str) -> sa.PrimaryKeyConstraint:
    return sa.PrimaryKeyConstraint(*columns, name=op.f(f"pk_{table}"))


def _foreign_key(table: str, column: str, target: str, target_column: str) -> sa.ForeignKeyConstraint:
    prefix = f"{_schema()}." if _schema() else ""
    return sa.ForeignKeyConstraint([column], [f"{prefix}{target}.{target_column}"], name=op.f(f"fk_{table}_{column}"))


def _table(name: str, *parts: sa.schema.SchemaItem, **options: Any) -> None:
    op.create_table(name, *parts, schema=_schema(), sqlite_strict=True, **options)


def _index(name: str, table: str, *columns: str, where: str | None = None, unique: bool = False) -> None:
    condition = None if where is None else sa.text(where)
    op.create_index(
        op.f(name),
        table,
        list(columns),
        unique=unique,
        schema=_schema(),
        sqlite_where=condition,
        postgresql_where=condition,
    )


# --- tables -------------------------------------------------------------------------------------------------------


def _create_workers() -> None:
    name_rule = (
        "length(name) BETWEEN 1 AND 200 AND name NOT GLOB '*[^A-Za-z0-9._-]*'"
        if _is_sqlite()
        else "name ~ '^[A-Za-z0-9._-]{1,200}$'"
    )
    _table(
        "workers",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("handler", sa.Text, nullable=False),
        sa.Column("execution_mode", sa.Text, nullable=False),
        sa.Column("interval_seconds", _REAL),
        sa.Column("cron", sa.Text),
        sa.Column("timezone", sa.Text, nullable=False, server_default="UTC"),
        sa.Column("jitter_seconds", _REAL, nullable=False, server_default="0"),
        sa.Column("timeout_seconds", _REAL, nullable=False, server_default="60"),
        sa.Column("max_retries", sa.Integer, nullable=False, server_default="3"),
        sa.Column("retry_delay_seconds", _REAL, nullable=False, server_default="5"),
        sa.Column("retry_backoff", _REAL, nullable=False, server_default="2"),
        sa.Column("retry_max_delay_seconds", _REAL, nullable=False, server_default="3600"),
        sa.Column("priority", sa.Integer, nullable=False, server_default="1"),
        sa.Column("max_consecutive_failures", sa.Integer, nullable=False, server_default="5"),
        sa.Column("cooldown_seconds", _REAL),
        sa.Column("max_running", sa.Integer, nullable=False, server_default="1"),
        sa.Column("misfire", sa.Text, nullable=False, server_default="run_once"),
        sa.Column("isolation", sa.Text, nullable=False, server_default="inline"),
        sa.Column("memory_limit_mb", sa.Integer),
        sa.Column("payload", _JSON, nullable=False, server_default="{}"),
        sa.Column("definition", _JSON, nullable=False, server_default="{}"),
        sa.Column("overrides", _JSON, nullable=False, server_default="{}"),
        sa.Column("definition_hash", sa.Text, nullable=False),
        sa.Column("definition_version", sa.Integer),
        sa.Column("description", sa.Text, nullable=False, server_default=""),
        sa.Column("created_at", _TIME, nullable=False, server_default=_now()),
        sa.Column("updated_at", _TIME, nullable=False, server_default=_now()),
        sa.Column("revision", _BIG, nullable=False, server_default="1"),
        _primary_key("workers", "name"),
        _check("workers", "name", name_rule),
        _one_of("workers", "execution_mode", "scheduled", "triggered", "continuous"),
        _one_of("workers", "misfire", "run_once", "run_all", "skip"),
        _one_of("workers", "isolation", "inline", "thread", "process", "command"),
        _check(
            "workers",
            "schedule",
            "(execution_mode = 'scheduled' AND (interval_seconds IS NULL) <> (cron IS NULL) "
            "AND (interval_seconds IS NULL OR interval_seconds >= 0.001))"
            " OR (execution_mode = 'triggered' AND interval_seconds IS NULL AND cron IS NULL)"
            " OR (execution_mode = 'continuous' AND interval_seconds >= 0 AND cron IS NULL)",
        ),
        _check("workers", "interval_seconds", f"interval_seconds <= {_LONGEST_SECONDS}"),
        *_counts("workers", 0, "priority", most=3),
        *_seconds("workers", "jitter_seconds", "retry_delay_seconds", "retry_max_delay_seconds"),
        *_seconds("workers", "timeout_seconds", "cooldown_seconds", above=True),
        _check("workers", "retry_backoff", f"retry_backoff >= 1 AND retry_backoff <= {_LONGEST_SECONDS}"),
        *_counts("workers", 0, "max_retries"),
        *_counts("workers", 0, "revision", most=_MAX_BIG_COUNT),
        *_counts("workers", 1, "max_consecutive_failures", "max_running", "memory_limit_mb"),
        *_payload_checks("workers"),
        _json_kind("workers", "definition"),
        _json_kind("workers", "overrides"),
        *_real_times("workers", "created_at", "updated_at"),
    )


def _create_edges() -> None:
    _table(
        "worker_dependencies",
        sa.Column("worker", sa.Text, nullable=False),
        sa.Column("depends_on", sa.Text, nullable=False),
        sa.Column("condition", sa.Text, nullable=False, server_default="succeeded"),
        sa.Column("max_age_seconds", _REAL),
        _primary_key("worker_dependencies", "worker", "depends_on"),
        _foreign_key("worker_dependencies", "worker", "workers", "name"),
        _foreign_key("worker_dependencies", "depends_on", "workers", "name"),
        _one_of("worker_dependencies", "condition", "succeeded", "fresh"),
        _check("worker_dependencies", "not_itself", "worker <> depends_on"),
        *_seconds("worker_dependencies", "max_age_seconds", above=True),
    )
    _index("ix_worker_dependencies_depends_on", "worker_dependencies", "depends_on")
    _table(
        "worker_blocks",
        sa.Column("worker", sa.Text, nullable=False),
        sa.Column("blocks", sa.Text, nullable=False),
        _primary_key("worker_blocks", "worker", "blocks"),
        _foreign_key("worker_blocks", "worker", "workers", "name"),
        _foreign_key("worker_blocks", "blocks", "workers", "name"),
        _check("worker_blocks", "not_itself", "worker <> blocks"),
    )
    _index("ix_worker_blocks_blocks", "worker_blocks", "blocks")


def _create_worker_state() -> None:
    _table(
        "worker_state",
        sa.Column("worker", sa.Text, nullable=False),
        sa.Column("is_enabled", _FLAG, nullable=False, server_default=sa.true()),
        sa.Column("disabled_by", sa.Text),
        sa.Column("disabled_reason", sa.Text),
        sa.Column("paused_until", _TIME),
        sa.Column("paused_reason", sa.Text),
        sa.Column("circuit_state", sa.Text, nullable=False, server_default="closed"),
        sa.Column("circuit_opened_at", _TIME),
        sa.Column("cooldown_current_seconds", _REAL),
        sa.Column("probe_at", _TIME),
        sa.Column("probe_run_id", _BIG),
        sa.Column("consecutive_failures", sa.Integer, nullable=False, server_default="0"),
        sa.Column("next_run_at", _TIME),
        sa.Column("last_due_at", _TIME),
        sa.Column("last_run_at", _TIME),
        sa.Column("last_run_outcome", sa.Text),
        sa.Column("last_success_at", _TIME),
        sa.Column("last_error", sa.Text),
        sa.Column("last_duration_ms", _BIG),
        sa.Column("last_fence", _BIG, nullable=False, server_default="0"),
        sa.Column("total_runs", _BIG, nullable=False, server_default="0"),
        sa.Column("total_failures", _BIG, nullable=False, server_default="0"),
        sa.Column("last_ended_at", _TIME),
        sa.Column("priority", sa.Integer, nullable=False, server_default="1"),
        sa.Column("streak_since_id", _BIG, nullable=False, server_default="0"),
        sa.Column("paused_at", _TIME),
        sa.Column("disabled_actor", sa.Text),
        sa.Column("paused_by", sa.Text),
        sa.Column("missed_from", _TIME),
        sa.Column("reach_seconds", _REAL, nullable=False, server_default="0"),
        _waits_from(),
        _primary_key("worker_state", "worker"),
        _foreign_key("worker_state", "worker", "workers", "name"),
        _one_of("worker_state", "disabled_by", "operator", "circuit"),
        _one_of("worker_state", "circuit_state", "closed", "open", "half_open"),
        _check("worker_state", "disabled_by_someone", "is_enabled = (disabled_by IS NULL)"),
        *_counts("worker_state", 0, "consecutive_failures"),
        *_counts(
            "worker_state", 0, "last_fence", "total_runs", "total_failures", "last_duration_ms", most=_MAX_BIG_COUNT
        ),
        *_counts("worker_state", 0, "priority", most=3),
        *_seconds("worker_state", "cooldown_current_seconds", above=True),
        *_seconds("worker_state", "reach_seconds"),
        *_real_times(
            "worker_state",
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
    )
    _index("ix_worker_state_due", "worker_state", "priority", "next_run_at", "worker", where="next_run_at IS NOT NULL")
    _index("ix_worker_state_probe_at", "worker_state", "probe_at", where="probe_at IS NOT NULL")
    _index("ix_worker_state_paused_until", "worker_state", "paused_until", where="paused_until IS NOT NULL")
    _index("ix_worker_state_next_run_at", "worker_state", "next_run_at", where="next_run_at IS NOT NULL")
    _index("ix_worker_state_waits_from", "worker_state", "waits_from", where="waits_from IS NOT NULL")


def _waits_from() -> sa.Column[float]:
    """When the waits that a worker is in began, the last of them, or its last run ended, in seconds since 1970.

    One that lies ahead began under a clock that was wrong, and one look into the index finds it. The wait for the next
    time is as long as the worker's reach, or does not count where a pause or a cooldown, and not the schedule, says why
    the next time is so late.
    """
    epoch = "((julianday({}) - 2440587.5) * 86400.0)" if _is_sqlite() else "extract(epoch FROM {} AT TIME ZONE 'UTC')"
    planned = f"{epoch.format('next_run_at')} - reach_seconds"
    is_late = " AND ".join(
        f"({end} IS NULL OR {planned} > {epoch.format(end)})" for end in ("paused_until", "probe_at")
    )
    began = (
        f"CASE WHEN {is_late} THEN {planned} END",
        f"CASE WHEN paused_until IS NOT NULL THEN {epoch.format('paused_at')} END",
        f"{epoch.format('probe_at')} - coalesce(cooldown_current_seconds, 0)",
        # Its loop goes on from there. Of others it changes with every run, which an index would make dear.
        f"CASE WHEN next_run_at IS NOT NULL THEN {epoch.format('last_ended_at')} END",
    )
    latest = ", ".join(f"coalesce({each}, 0)" for each in began)
    expression = f"nullif({'max' if _is_sqlite() else 'greatest'}({latest}), 0)"
    return sa.Column("waits_from", _REAL, sa.Computed(expression, persisted=not _is_sqlite()))


def _create_runs() -> None:
    _table(
        "runs",
        sa.Column("id", _BIG, sa.Identity(always=True), nullable=False),
        sa.Column("worker", sa.Text, nullable=False),
        sa.Column("trigger", sa.Text, nullable=False, server_default="manual"),
        sa.Column("state", sa.Text, nullable=False, server_default="pending"),
        sa.Column("priority", sa.Integer),
        sa.Column("scheduled_for", _TIME, nullable=False, server_default=_now()),
        sa.Column("due_at", _TIME, nullable=False, server_default=_now()),
        sa.Column("payload", _JSON, nullable=False, server_default="{}"),
        sa.Column("key", sa.Text),
        sa.Column("attempt", sa.Integer, nullable=False, server_default="1"),
        sa.Column("is_forced", _FLAG, nullable=False, server_default=sa.false()),
        sa.Column("slot", sa.Integer),
        sa.Column("fence", _BIG),
        sa.Column("node_id", sa.Text),
        sa.Column("started_at", _TIME),
        sa.Column("progress", _JSON),
        sa.Column("cancel_requested_at", _TIME),
        sa.Column("created_at", _TIME, nullable=False, server_default=_now()),
        sa.Column("key_scope", sa.Text, nullable=False, server_default="waiting"),
        sa.Column("first_started_at", _TIME),
        sa.Column("lost_in_a_row", sa.Integer, nullable=False, server_default="0"),
        sa.Column("output", sa.Text),
        sa.Column("output_lines", sa.Integer),
        sa.Column("cancel_reason", sa.Text),
        sa.Column("replay_of", _BIG),
        sa.Column("waits_since", _TIME),
        sa.Column("is_ours", _FLAG, nullable=False, server_default=sa.false()),
        _primary_key("runs", "id"),
        _foreign_key("runs", "worker", "workers", "name"),
        _one_of("runs", "trigger", *_TRIGGERS),
        _one_of("runs", "state", "pending", "running", "stopping"),
        _one_of("runs", "key_scope", "waiting", "live"),
        *_counts("runs", 0, "priority", most=3),
        _check(
            "runs",
            "numbers",
            f"attempt BETWEEN 1 AND {_MOST_ATTEMPTS} AND lost_in_a_row BETWEEN 0 AND {_MOST_ATTEMPTS}"
            f" AND slot BETWEEN 0 AND {_MAX_COUNT} AND fence BETWEEN 0 AND {_MAX_BIG_COUNT} AND id > 0",
        ),
        _check("runs", "key", "length(key) BETWEEN 1 AND 200"),
        _check(
            "runs",
            "claim",
            "(state = 'pending' AND fence IS NULL AND slot IS NULL AND node_id IS NULL AND started_at IS NULL)"
            " OR (state <> 'pending' AND fence IS NOT NULL AND slot IS NOT NULL"
            " AND node_id IS NOT NULL AND started_at IS NOT NULL)",
        ),
        *_payload_checks("runs"),
        *_real_times(
            "runs",
            "scheduled_for",
            "due_at",
            "started_at",
            "cancel_requested_at",
            "created_at",
            "first_started_at",
            "waits_since",
        ),
        sqlite_autoincrement=True,
    )
    _index("ix_runs_pending", "runs", "worker", "priority", "due_at", "id", where="state = 'pending'")
    _index("ix_runs_due_at", "runs", "due_at", where="state = 'pending'")
    _index("ix_runs_forced", "runs", "worker", "due_at", where="state = 'pending' AND is_forced")
    _index("ix_runs_retry", "runs", "worker", "due_at", where="state = 'pending' AND attempt > 1")
    _index("ix_runs_node_id", "runs", "node_id", where="state <> 'pending'")
    _index("uq_runs_worker_slot", "runs", "worker", "slot", where="slot IS NOT NULL", unique=True)
    _index("uq_runs_scheduled", "runs", "worker", where="trigger IN ('schedule', 'continuous')", unique=True)
    _index(
        "uq_runs_key_waiting",
        "runs",
        "worker",
        "key",
        where="key IS NOT NULL AND first_started_at IS NULL",
        unique=True,
    )
    _index("uq_runs_key_live", "runs", "worker", "key", where="key IS NOT NULL AND key_scope = 'live'", unique=True)
    started = "key IS NOT NULL AND first_started_at IS NOT NULL AND key_scope = 'waiting'"
    _index("ix_runs_key_started", "runs", "worker", "key", where=started)


def _create_run_history() -> None:
    _table(
        "run_history",
        sa.Column("id", _BIG, sa.Identity(), nullable=False),
        sa.Column("run_id", _BIG),
        sa.Column("fence", _BIG),
        sa.Column("worker", sa.Text, nullable=False),
        sa.Column("trigger", sa.Text, nullable=False),
        sa.Column("attempt", sa.Integer),
        sa.Column("outcome", sa.Text, nullable=False),
        sa.Column("ends_run", sa.Text),
        sa.Column("is_forced", _FLAG, nullable=False, server_default=sa.false()),
        sa.Column("scheduled_for", _TIME),
        sa.Column("due_at", _TIME),
        sa.Column("started_at", _TIME),
        sa.Column("finished_at", _TIME, nullable=False),
        sa.Column("duration_ms", _BIG),
        sa.Column("error_type", sa.Text),
        sa.Column("error", sa.Text),
        sa.Column("traceback", sa.Text),
        sa.Column("reason", sa.Text),
        sa.Column("payload", _JSON),
        sa.Column("result", _JSON),
        sa.Column("output", sa.Text),
        sa.Column("occurrences", sa.Integer),
        sa.Column("node_id", sa.Text),
        _primary_key("run_history", "id"),
        _one_of("run_history", "trigger", *_TRIGGERS),
        _one_of(
            "run_history",
            "outcome",
            "succeeded",
            "failed",
            "timed_out",
            "lost",
            "interrupted",
            "cancelled",
            "snoozed",
            "missed",
        ),
        _one_of("run_history", "ends_run", "succeeded", "exhausted", "discarded", "cancelled"),
        _check("run_history", "occurrences", "(outcome = 'missed') = (occurrences IS NOT NULL)"),
        _check("run_history", "run_id", "outcome = 'missed' OR run_id IS NOT NULL"),
        _check("run_history", "duration_ms", "duration_ms >= 0"),
        sa.UniqueConstraint("run_id", "fence", name=op.f("uq_run_history_run_id_fence")),
        *_real_times("run_history", "scheduled_for", "due_at", "started_at", "finished_at", is_copied=True),
        sqlite_autoincrement=True,
    )
    _index("ix_run_history_worker", "run_history", "worker", "id")
    _index("ix_run_history_outcome", "run_history", "outcome", "id", where="outcome <> 'succeeded'")
    _index("ix_run_history_finished_at", "run_history", "finished_at")


def _create_dead_letters() -> None:
    _table(
        "dead_letters",
        sa.Column("id", _BIG, sa.Identity(), nullable=False),
        sa.Column("run_id", _BIG, nullable=False),
        sa.Column("worker", sa.Text, nullable=False),
        sa.Column("trigger", sa.Text, nullable=False),
        sa.Column("priority", sa.Integer, nullable=False),
        sa.Column("key", sa.Text),
        sa.Column("scheduled_for", _TIME, nullable=False),
        sa.Column("payload", _JSON, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("error_type", sa.Text),
        sa.Column("error", sa.Text),
        sa.Column("traceback", sa.Text),
        sa.Column("errors", _JSON, nullable=False),
        sa.Column("died_at", _TIME, nullable=False),
        sa.Column("status", sa.Text, nullable=False, server_default="open"),
        sa.Column("resolved_at", _TIME),
        sa.Column("resolved_by", sa.Text),
        sa.Column("replay_run_id", _BIG),
        _primary_key("dead_letters", "id"),
        sa.UniqueConstraint("run_id", name=op.f("uq_dead_letters_run_id")),
        _one_of("dead_letters", "trigger", *_TRIGGERS),
        _one_of("dead_letters", "status", "open", "replayed", "discarded"),
        _check("dead_letters", "resolved", "(status = 'open') = (resolved_at IS NULL)"),
        _check("dead_letters", "replay_run_id", "(status = 'replayed') = (replay_run_id IS NOT NULL)"),
        *_counts("dead_letters", 0, "priority", most=3),
        _check("dead_letters", "key", "length(key) BETWEEN 1 AND 200"),
        _json_kind("dead_letters", "payload"),
        _json_kind("dead_letters", "errors", "array"),
        *_real_times("dead_letters", "scheduled_for", "died_at", "resolved_at"),
        sqlite_autoincrement=True,
    )
    _index("ix_dead_letters_worker", "dead_letters", "worker", "id")
    _index("ix_dead_letters_status", "dead_letters", "status", "id")


def _create_nodes() -> None:
    _table(
        "nodes",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("hostname", sa.Text, nullable=False),
        sa.Column("pid", sa.Integer, nullable=False),
        sa.Column("boot_id", sa.Text, nullable=False),
        sa.Column("process_started_at", _TIME, nullable=False),
        sa.Column("state", sa.Text, nullable=False, server_default="active"),
        sa.Column("beat", _BIG, nullable=False, server_default="0"),
        sa.Column("started_at", _TIME, nullable=False),
        sa.Column("heartbeat_at", _TIME, nullable=False),
        sa.Column("last_tick_at", _TIME),
        sa.Column("max_concurrent", sa.Integer, nullable=False),
        sa.Column("version", sa.Text, nullable=False),
        sa.Column("start_ticks", _BIG),
        sa.Column("allows_commands", _FLAG, nullable=False, server_default=sa.false()),
        _primary_key("nodes", "id"),
        _one_of("nodes", "state", "active", "draining", "stopped", "lost"),
        *_counts("nodes", 0, "pid", "max_concurrent"),
        *_counts("nodes", 0, "beat", most=_MAX_BIG_COUNT),
        *_real_times("nodes", "process_started_at", "started_at", "heartbeat_at", "last_tick_at"),
    )
    _index("ix_nodes_state", "nodes", "state")
    _table(
        "node_handlers",
        sa.Column("worker", sa.Text, nullable=False),
        sa.Column("node_id", sa.Text, nullable=False),
        _primary_key("node_handlers", "worker", "node_id"),
        _foreign_key("node_handlers", "node_id", "nodes", "id"),
    )
    _index("ix_node_handlers_node_id", "node_handlers", "node_id")


def _create_audit_log() -> None:
    _table(
        "audit_log",
        sa.Column("id", _BIG, sa.Identity(), nullable=False),
        sa.Column("at", _TIME, nullable=False, server_default=_now()),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("worker", sa.Text),
        sa.Column("detail", _JSON, nullable=False, server_default="{}"),
        _primary_key("audit_log", "id"),
        _one_of(
            "audit_log",
            "action",
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
            "upgrade",
        ),
        _json_kind("audit_log", "detail"),
        *_real_times("audit_log", "at"),
        sqlite_autoincrement=True,
    )
    _index("ix_audit_log_worker", "audit_log", "worker", "id")


# --- triggers -----------------------------------------------------------------------------------------------------


# What nobody but a program of ours may say of a new run: `is_ours` marks those. Said by anybody else it would be more
# than the right to trigger: a run past all gates, a claim, a schedule that stands still.
_CLIENTS_WORD = "a client gives a run worker, payload, priority, due_at, scheduled_for, key and key_scope, nothing else"
_NOT_A_CLIENTS = """NOT NEW.is_ours AND (
    NEW.state <> 'pending' OR NEW.trigger <> 'manual' OR NEW.attempt <> 1 OR NEW.is_forced OR NEW.lost_in_a_row <> 0
    OR NEW.first_started_at IS NOT NULL OR NEW.cancel_requested_at IS NOT NULL OR NEW.cancel_reason IS NOT NULL
    OR NEW.progress IS NOT NULL OR NEW.output IS NOT NULL OR NEW.output_lines IS NOT NULL OR NEW.replay_of IS NOT NULL
)"""


def _create_sqlite_triggers() -> None:
    """Foreign keys are off in a bare SQLite shell: triggers refuse what they would."""
    # There is no GENERATED ALWAYS. Here an id that the database is yet to give is -1.
    has_id = "(NOT NEW.is_ours AND NEW.id <> -1)"
    op.execute(
        f"""
        CREATE TRIGGER runs_refuse_client BEFORE INSERT ON runs WHEN {_NOT_A_CLIENTS} OR {has_id}
        BEGIN
            SELECT RAISE(ABORT, '{_CLIENTS_WORD}');
        END
        """
    )
    op.execute(
        """
        CREATE TRIGGER runs_refuse_unknown_worker BEFORE INSERT ON runs
        WHEN NOT EXISTS (SELECT 1 FROM workers WHERE name = NEW.worker)
        BEGIN
            SELECT RAISE(ABORT, 'unknown worker: register it before enqueueing');
        END
        """
    )
    for table, other in (("worker_dependencies", "depends_on"), ("worker_blocks", "blocks")):
        op.execute(
            f"""
            CREATE TRIGGER {table}_refuse_unknown BEFORE INSERT ON {table}
            WHEN (SELECT count(*) FROM workers WHERE name IN (NEW.worker, NEW.{other})) < 2
            BEGIN
                SELECT RAISE(ABORT, 'unknown worker: register both before they are related');
            END
            """  # noqa: S608 - made of constants
        )
    op.execute(
        """
        CREATE TRIGGER runs_fill_priority AFTER INSERT ON runs
        WHEN NEW.priority IS NULL
        BEGIN
            UPDATE runs SET priority = (SELECT priority FROM workers WHERE name = NEW.worker) WHERE id = NEW.id;
        END
        """
    )
    op.execute(
        """
        CREATE TRIGGER runs_keep_priority AFTER UPDATE OF priority ON runs WHEN NEW.priority IS NULL
        BEGIN
            UPDATE runs SET priority = (SELECT priority FROM workers WHERE name = NEW.worker) WHERE id = NEW.id;
        END
        """
    )
    op.execute(
        """
        CREATE TRIGGER run_history_refuse_update BEFORE UPDATE ON run_history
        BEGIN
            SELECT RAISE(ABORT, 'run_history is insert-only: a row is never changed');
        END
        """
    )
    op.execute(
        """
        CREATE TRIGGER workers_raise_revision AFTER UPDATE ON workers WHEN NEW.revision = OLD.revision
        BEGIN
            UPDATE workers SET revision = (OLD.revision + 1) % 4611686018427387904 WHERE name = NEW.name;
        END
        """
    )
    op.execute(
        """
        CREATE TRIGGER workers_refuse_delete BEFORE DELETE ON workers
        WHEN EXISTS (SELECT 1 FROM worker_state WHERE worker = OLD.name)
            OR EXISTS (SELECT 1 FROM worker_dependencies WHERE OLD.name IN (worker, depends_on))
            OR EXISTS (SELECT 1 FROM worker_blocks WHERE OLD.name IN (worker, blocks))
            OR EXISTS (SELECT 1 FROM runs WHERE worker = OLD.name)
        BEGIN
            SELECT RAISE(ABORT, 'other tables name this worker: remove it with jobrunner admin remove');
        END
        """
    )


def _create_postgres_triggers() -> None:
    p = _p()
    op.execute(
        f"""
        CREATE FUNCTION {p}refuse_client() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            RAISE EXCEPTION '{_CLIENTS_WORD}' USING ERRCODE = 'check_violation';
        END $$
        """
    )
    op.execute(
        f"""
        CREATE TRIGGER runs_refuse_client BEFORE INSERT ON {p}runs
        FOR EACH ROW WHEN ({_NOT_A_CLIENTS}) EXECUTE FUNCTION {p}refuse_client()
        """
    )
    op.execute(
        f"""
        CREATE FUNCTION {p}fill_run_priority() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            SELECT priority INTO NEW.priority FROM {p}workers WHERE name = NEW.worker;
            RETURN NEW;
        END $$
        """  # noqa: S608 - the schema's name is checked in database.py
    )
    op.execute(
        f"""
        CREATE TRIGGER runs_fill_priority BEFORE INSERT ON {p}runs
        FOR EACH ROW WHEN (NEW.priority IS NULL) EXECUTE FUNCTION {p}fill_run_priority()
        """
    )
    op.execute(  # the worker's own again
        f"""
        CREATE TRIGGER runs_keep_priority BEFORE UPDATE OF priority ON {p}runs
        FOR EACH ROW WHEN (NEW.priority IS NULL) EXECUTE FUNCTION {p}fill_run_priority()
        """
    )
    op.execute(
        f"""
        CREATE FUNCTION {p}refuse_history_update() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            RAISE EXCEPTION 'run_history is insert-only: a row is never changed' USING ERRCODE = 'restrict_violation';
        END $$
        """
    )
    op.execute(
        f"""
        CREATE TRIGGER run_history_refuse_update BEFORE UPDATE ON {p}run_history
        FOR EACH STATEMENT EXECUTE FUNCTION {p}refuse_history_update()
        """
    )
    op.execute(
        f"""
        CREATE FUNCTION {p}raise_revision() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            NEW.revision := (OLD.revision + 1) % 4611686018427387904;
            RETURN NEW;
        END $$
        """
    )
    op.execute(
        f"""
        CREATE TRIGGER workers_raise_revision BEFORE UPDATE ON {p}workers
        FOR EACH ROW EXECUTE FUNCTION {p}raise_revision()
        """
    )
    _create_postgres_wakeups()
    _create_postgres_turn()


def _create_postgres_wakeups() -> None:
    """Wake the nodes at most every 5 ms: NOTIFY takes a lock on the whole server at commit (storage/wakeups.py).

    The throttle is a sequence that holds the time of the last NOTIFY in ms since 1970: sequences know no transactions
    and no row locks, so that no enqueue ever waits for another. Everybody may set it who may use the schema; SECURITY
    DEFINER with its own search_path instead would cost 20 µs a commit. Who inserts runs by hand needs USAGE on the
    schema, INSERT on runs, and SELECT on workers (for the priority).
    """
    p = _p()
    op.execute(f"CREATE SEQUENCE {p}wakeup_clock AS bigint MINVALUE 0 START 0")
    op.execute(f"GRANT SELECT, UPDATE ON SEQUENCE {p}wakeup_clock TO PUBLIC")
    op.execute(
        f"""
        CREATE FUNCTION {p}wake_nodes() RETURNS void LANGUAGE plpgsql AS $$
        DECLARE
            now_ms bigint := (extract(epoch FROM clock_timestamp()) * 1000)::bigint;
            last_ms bigint := (SELECT last_value FROM {p}wakeup_clock);
        BEGIN
            -- `now_ms < last_ms`: the clock went back
            IF now_ms > last_ms + 5 OR now_ms < last_ms THEN
                PERFORM setval('{p}wakeup_clock', now_ms);
                PERFORM pg_notify('jobrunner_wakeup_{_schema()}', '');
            END IF;
        END $$
        """  # noqa: S608 - the schema's name is checked in database.py
    )
    op.execute(
        f"""
        CREATE FUNCTION {p}wake_nodes_at_commit() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            PERFORM {p}wake_nodes();
            RETURN NULL;
        END $$
        """
    )
    # What does not wait wakes nobody: a node that fires a schedule inserts a run that is running.
    # Deferred: what counts is the moment of the commit. The first row of a transaction sets `jobrunner.quiet` for the
    # rest of it, so that a million rows queue one event, not a million; setting it yourself silences a transaction.
    op.execute(
        f"""
        CREATE CONSTRAINT TRIGGER runs_wake_nodes AFTER INSERT ON {p}runs DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW WHEN (
            CASE WHEN NEW.state <> 'pending' OR current_setting('jobrunner.quiet', true) = 'on' THEN false
            ELSE set_config('jobrunner.quiet', 'on', true) = 'on' END
        )
        EXECUTE FUNCTION {p}wake_nodes_at_commit()
        """
    )


def _create_postgres_turn() -> None:
    """One turn of the short way through a tick in one round trip; storage/flow.py says what it does and why.

    A statement in a VOLATILE function sees what was committed before that statement began: locking and looking are
    two statements here as they are elsewhere. The settings keep a plan from following statistics that are older than
    the queue is: every lookup here is by an index, of few rows.
    """
    p = _p()
    op.execute(
        f"""
        CREATE FUNCTION {p}take_turn(
            this_node text, at timestamptz, free integer, names text[], revisions bigint[], stuck text[],
            f_expected timestamptz[], f_due timestamptz[], f_next timestamptz[],
            e_ids bigint[], e_fences bigint[], e_workers text[], e_finished timestamptz[], e_ms bigint[],
            e_results jsonb[], e_reasons text[], e_outputs text[],
            after_dues timestamptz[], after_ids bigint[]
        ) RETURNS TABLE (
            kind text, id bigint, worker text, trigger text, priority integer, scheduled_for timestamptz,
            due_at timestamptz, payload jsonb, key text, attempt integer, is_forced boolean, slot integer,
            fence bigint, started_at timestamptz, first_started_at timestamptz, lost_in_a_row integer,
            created_at timestamptz
        ) LANGUAGE plpgsql
        SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
        SET plan_cache_mode = force_generic_plan
        AS $$
        #variable_conflict use_column
        DECLARE
            unsure text[];
            ids bigint[];
            fences bigint[];
            slots integer[];
            starts timestamptz[];
            ended integer := 0;
            deleted integer;
            mine text[];
            plain text[];
        BEGIN
            IF cardinality(e_ids) > 0 THEN
                PERFORM FROM {p}worker_state s WHERE s.worker = ANY (e_workers)
                ORDER BY s.worker FOR NO KEY UPDATE OF s;
                unsure := ARRAY(  -- workers whose ends are never sure: a circuit's probe, a loop
                    SELECT s.worker FROM {p}worker_state s JOIN {p}workers w ON w.name = s.worker
                    WHERE s.worker = ANY (e_workers)
                        AND (s.circuit_state = 'half_open' OR w.execution_mode = 'continuous')
                );
                WITH standing AS MATERIALIZED (  -- the claims that still stand
                    SELECT r.*, e.finished_at, e.ms, e.result, e.reason, e.said
                    FROM unnest(e_ids, e_fences, e_finished, e_ms, e_results, e_reasons, e_outputs)
                        AS e (id, fence, finished_at, ms, result, reason, said)
                    CROSS JOIN LATERAL (
                        SELECT * FROM {p}runs r WHERE r.id = e.id AND r.fence = e.fence OFFSET 0
                    ) r
                    WHERE r.worker <> ALL (unsure)
                ), kept AS (
                    INSERT INTO {p}run_history (
                        run_id, fence, worker, trigger, attempt, outcome, ends_run, is_forced, scheduled_for, due_at,
                        started_at, finished_at, duration_ms, reason, payload, result, output, node_id
                    )
                    SELECT
                        s.id, s.fence, s.worker, s.trigger, s.attempt, 'succeeded', 'succeeded', s.is_forced,
                        s.scheduled_for, s.due_at, s.started_at, s.finished_at, s.ms, s.reason, s.payload, s.result,
                        s.said, s.node_id
                    FROM standing s ORDER BY s.id
                ), by_worker AS MATERIALIZED (  -- what the last of a worker's runs leaves
                    SELECT
                        s.worker, count(*) AS runs, max(s.finished_at) AS latest,
                        (array_agg(s.finished_at ORDER BY s.id DESC))[1] AS finished_at,
                        (array_agg(s.ms ORDER BY s.id DESC))[1] AS ms
                    FROM standing s GROUP BY s.worker
                ), counted AS (
                    UPDATE {p}worker_state s
                    SET consecutive_failures = 0, last_run_outcome = 'succeeded', last_error = NULL,
                        (last_success_at, last_duration_ms, total_runs, last_ended_at) = (
                            SELECT
                                c.finished_at, coalesce(c.ms, s.last_duration_ms), s.total_runs + c.runs,
                                greatest(s.last_ended_at, c.latest)
                            FROM by_worker c WHERE c.worker = s.worker
                        )
                    WHERE s.worker = ANY (ARRAY(SELECT c.worker FROM by_worker c))
                )
                SELECT array_agg(s.id), count(*) INTO ids, ended FROM standing s;
                IF ended > 0 THEN
                    DELETE FROM {p}runs r WHERE r.id = ANY (ids);
                    GET DIAGNOSTICS deleted = ROW_COUNT;
                    IF deleted <> ended THEN
                        RAISE 'runs were deleted by another program while they were being finished'
                            USING ERRCODE = 'serialization_failure';
                    END IF;
                    RETURN QUERY SELECT  -- in one row: a hundred of them would cost a millisecond on the way
                        'ended'::text, NULL::bigint, NULL::text, NULL::text, NULL::integer, NULL::timestamptz,
                        NULL::timestamptz, to_jsonb(ids), NULL::text, NULL::integer, NULL::boolean, NULL::integer,
                        NULL::bigint, NULL::timestamptz, NULL::timestamptz, NULL::integer, NULL::timestamptz;
                END IF;
            END IF;
            free := free + ended;
            IF free <= 0 OR cardinality(names) = 0 THEN
                RETURN;
            END IF;

            mine := ARRAY(
                SELECT l.worker FROM (
                    SELECT s.worker FROM {p}worker_state s
                    WHERE s.worker = ANY (names[1:cardinality(revisions)])
                    ORDER BY s.worker FOR NO KEY UPDATE OF s SKIP LOCKED
                ) l
            );
            plain := ARRAY(
                SELECT s.worker
                FROM unnest(names, revisions) AS g (name, revision)
                JOIN {p}worker_state s ON s.worker = g.name
                JOIN {p}workers w ON w.name = g.name AND w.revision = g.revision
                WHERE s.is_enabled AND s.paused_until IS NULL AND s.circuit_state = 'closed'
                    AND NOT EXISTS (SELECT FROM {p}worker_dependencies d WHERE d.worker = g.name)
                    AND NOT EXISTS (SELECT FROM {p}worker_blocks b WHERE b.worker = g.name)
                    AND NOT EXISTS (SELECT FROM {p}worker_blocks b WHERE b.blocks = g.name)
                    AND NOT EXISTS (SELECT FROM {p}nodes n WHERE n.id = this_node AND n.state IN ('lost', 'stopped'))
            );
            -- Something else is due, or a worker is no longer plain: the long way decides.
            IF cardinality(plain) < cardinality(revisions) OR EXISTS (
                -- Between the known names, not over them: of a long queue's head there are only dead entries left.
                WITH RECURSIVE gap AS MATERIALIZED (
                    SELECT k.name AS after, lead(k.name) OVER (ORDER BY k.name) AS before
                    FROM unnest(''::text || stuck || CASE WHEN cardinality(f_expected) = 0 THEN names END) AS k (name)
                ), waiting AS (
                    SELECT gap.after AS name, gap.before FROM gap
                    UNION ALL
                    SELECT
                        CASE WHEN waiting.before IS NULL THEN (
                            SELECT min(r.worker) FROM {p}runs r WHERE r.state = 'pending' AND r.worker > waiting.name
                        ) ELSE (
                            SELECT min(r.worker) FROM {p}runs r
                            WHERE r.state = 'pending' AND r.worker > waiting.name AND r.worker < waiting.before
                        ) END,
                        waiting.before
                    FROM waiting WHERE waiting.name IS NOT NULL
                )
                SELECT FROM waiting, generate_series(0, 3) AS level (p)
                WHERE waiting.name <> ALL (''::text || stuck)
                    AND (cardinality(f_expected) > 0 OR waiting.name <> ALL (names))
                    AND (
                        SELECT r.due_at FROM {p}runs r
                        WHERE r.state = 'pending' AND r.worker = waiting.name
                            AND r.priority >= level.p AND r.priority <= level.p
                        ORDER BY r.priority, r.due_at LIMIT 1
                    ) <= at
            ) OR EXISTS (
                SELECT FROM {p}worker_state s
                WHERE s.next_run_at IS NOT NULL AND s.next_run_at <= at
                    AND s.worker NOT IN (  -- hashed, where <> ALL would compare each with each
                        SELECT unnest(CASE WHEN cardinality(f_expected) > 0 THEN stuck || names ELSE stuck END)
                    )
            ) THEN
                RETURN QUERY SELECT
                    'other'::text, NULL::bigint, NULL::text, NULL::text, NULL::integer, NULL::timestamptz,
                    NULL::timestamptz, NULL::jsonb, NULL::text, NULL::integer, NULL::boolean, NULL::integer,
                    NULL::bigint, NULL::timestamptz, NULL::timestamptz, NULL::integer, NULL::timestamptz;
                RETURN;
            END IF;

            IF cardinality(f_expected) > 0 THEN  -- of the first of the names; the others find no slot
                RETURN QUERY
                WITH fired AS MATERIALIZED (
                    SELECT
                        s.worker, f.due, f.next, w.priority, w.payload, s.last_fence + 1 AS fence,
                        greatest(at, s.last_ended_at) AS now
                    FROM unnest(names, f_expected, f_due, f_next) AS f (name, expected, due, next)
                    JOIN {p}worker_state s ON s.worker = f.name AND s.next_run_at = f.expected
                    JOIN {p}workers w ON w.name = f.name
                    WHERE f.name = ANY (mine)
                        AND NOT EXISTS (SELECT FROM {p}runs r WHERE r.worker = f.name AND r.state = 'pending')
                        AND NOT EXISTS (SELECT FROM {p}runs r WHERE r.worker = f.name AND r.slot IS NOT NULL)
                ), counted AS (
                    UPDATE {p}worker_state s
                    SET next_run_at = f.next, last_due_at = f.due, last_fence = f.fence, last_run_at = f.now
                    FROM fired f WHERE s.worker = f.worker
                )
                INSERT INTO {p}runs AS r (
                    worker, trigger, state, priority, scheduled_for, due_at, payload, slot, fence, node_id, started_at,
                    first_started_at, created_at, is_ours
                )
                SELECT
                    f.worker, 'schedule', 'running', f.priority, f.due, f.due, f.payload, 0, f.fence, this_node, f.now,
                    f.now, at, true
                FROM fired f
                RETURNING
                    'claim'::text, r.id, r.worker, r.trigger, r.priority, r.scheduled_for, r.due_at, r.payload, r.key,
                    r.attempt, r.is_forced, r.slot, r.fence, r.started_at, r.first_started_at, r.lost_in_a_row,
                    r.created_at;
                RETURN;
            END IF;

            WITH busy AS MATERIALIZED (  -- each worker's slots in use; counted, never stored
                SELECT
                    s.worker, s.last_fence, greatest(at, s.last_ended_at) AS now, w.max_running,
                    ARRAY(SELECT r.slot FROM {p}runs r WHERE r.worker = s.worker AND r.slot IS NOT NULL) AS taken,
                    (g.n - 1) * 4 + 1 AS after
                FROM unnest(names) WITH ORDINALITY AS g (name, n)
                JOIN {p}worker_state s ON s.worker = g.name
                JOIN {p}workers w ON w.name = s.worker
                WHERE s.worker = ANY (mine)
            ), room AS MATERIALIZED (  -- how many more of each may start, and its free slots, the lowest first
                SELECT
                    b.worker, b.last_fence, b.now, greatest(0, least(free, b.max_running - cardinality(b.taken))) AS n,
                    ARRAY(
                        SELECT generate_series(0, cardinality(b.taken) + free - 1)
                        EXCEPT SELECT unnest(b.taken) ORDER BY 1
                    ) AS slots,
                    b.after
                FROM busy b
            ), first AS (  -- as many as could start at most, of each priority
                SELECT f.*
                FROM room CROSS JOIN generate_series(3, 0, -1) AS level (p) CROSS JOIN LATERAL (
                    SELECT r.id, r.worker, r.priority, r.due_at, r.first_started_at FROM {p}runs r
                    WHERE r.state = 'pending' AND r.worker = room.worker
                        AND (r.priority, r.due_at, r.id) > (  -- after what this node has claimed a moment ago
                            level.p, coalesce(after_dues[room.after + level.p], '-infinity'),
                            coalesce(after_ids[room.after + level.p], 0)
                        )
                        AND (r.priority, r.due_at) <= (level.p, at)  -- so that the index says where to stop
                    ORDER BY r.priority, r.due_at, r.id LIMIT room.n
                ) f
            ), numbered AS (
                SELECT f.*, row_number() OVER (PARTITION BY f.worker ORDER BY f.priority DESC, f.due_at, f.id) AS n
                FROM first f
            ), chosen AS MATERIALIZED (  -- the first of all workers in starting order
                SELECT
                    f.id, f.worker, f.first_started_at, room.slots[f.n] AS slot, room.last_fence + f.n AS fence,
                    room.now
                FROM numbered f JOIN room ON room.worker = f.worker WHERE f.n <= room.n
                ORDER BY f.priority DESC, f.due_at, f.id
                LIMIT free
            ), fenced AS (
                UPDATE {p}worker_state s
                SET (last_fence, last_run_at) = (
                    SELECT max(c.fence), coalesce(max(c.now) FILTER (WHERE c.first_started_at IS NULL), s.last_run_at)
                    FROM chosen c WHERE c.worker = s.worker
                )
                WHERE s.worker = ANY (ARRAY(SELECT c.worker FROM chosen c))
            )
            SELECT array_agg(c.id), array_agg(c.slot), array_agg(c.fence), array_agg(c.now)
            INTO ids, slots, fences, starts FROM chosen c;
            RETURN QUERY
            UPDATE {p}runs r
            SET state = 'running', node_id = this_node, (slot, fence, started_at, first_started_at) = (
                SELECT slots[n], fences[n], starts[n], coalesce(r.first_started_at, starts[n])
                FROM array_position(ids, r.id) AS n
            )
            WHERE r.id = ANY (ids) AND r.fence IS NULL  -- is pending; by its `state`, all that are would be read
            RETURNING
                'claim'::text, r.id, r.worker, r.trigger, r.priority, r.scheduled_for, r.due_at, r.payload, r.key,
                r.attempt, r.is_forced, r.slot, r.fence, r.started_at, r.first_started_at, r.lost_in_a_row,
                r.created_at;
        END $$
        """  # noqa: S608 - the schema's name is checked in database.py
    )


# --- views --------------------------------------------------------------------------------------------------------


def _create_views() -> None:
    p = _p()
    op.execute(_WORKER_STATUS.format(p=p, now=_now()))
    op.execute(_RUN_FAILURES.format(p=p))
    if _is_sqlite():
        day, since = "substr(finished_at, 1, 10)", "strftime('%Y-%m-%d 00:00:00.000000', 'now', '-29 days')"
    else:
        day = "to_char(finished_at AT TIME ZONE 'UTC', 'YYYY-MM-DD')"
        since = "(date_trunc('day', now() AT TIME ZONE 'UTC') - interval '29 days') AT TIME ZONE 'UTC'"
    op.execute(_RUN_STATS.format(p=p, day=day, since=since))


_WORKER_STATUS = """
CREATE VIEW {p}worker_status AS
SELECT
    w.name, w.handler, w.execution_mode, w.interval_seconds, w.cron, w.timezone, w.jitter_seconds, w.timeout_seconds,
    w.max_retries, w.retry_delay_seconds, w.retry_backoff, w.retry_max_delay_seconds, w.priority,
    w.max_consecutive_failures, w.cooldown_seconds, w.max_running, w.misfire, w.isolation, w.memory_limit_mb,
    w.description, w.definition_version, w.created_at, w.updated_at,
    s.is_enabled, s.disabled_by, s.disabled_actor, s.disabled_reason, s.paused_until,
    CASE WHEN s.paused_until > {now} THEN s.paused_reason END AS paused_reason,  -- a pause that is over has none
    CASE WHEN s.paused_until > {now} THEN s.paused_by END AS paused_by,
    s.circuit_state, s.circuit_opened_at, s.cooldown_current_seconds, s.probe_at, s.probe_run_id,
    s.consecutive_failures, s.next_run_at, s.last_due_at, s.last_run_at, s.last_run_outcome, s.last_success_at,
    s.last_error, s.last_duration_ms, s.last_fence, s.total_runs, s.total_failures,
    -- by `slot`, not by `state`: a claim has both, and the slots are indexed
    EXISTS (SELECT 1 FROM {p}runs AS r WHERE r.worker = w.name AND r.slot IS NOT NULL) AS is_running,
    (SELECT count(*) FROM {p}runs AS r WHERE r.worker = w.name AND r.slot IS NOT NULL) AS running_runs,
    (
        SELECT count(*)
        FROM (  -- as a range and in order: else PostgreSQL reads all runs where it has seen few workers wait
            SELECT 1 FROM {p}runs AS r WHERE r.state = 'pending' AND r.worker >= w.name AND r.worker <= w.name
            ORDER BY r.worker, r.priority, r.due_at, r.id LIMIT 10001
        ) AS waiting
    ) AS pending_runs
FROM {p}workers AS w
LEFT JOIN {p}worker_state AS s ON s.worker = w.name
"""

_RUN_FAILURES = """
CREATE VIEW {p}run_failures AS
SELECT
    id, run_id, fence, worker, trigger, attempt, outcome, ends_run, is_forced, scheduled_for, due_at, started_at,
    finished_at, duration_ms, error_type, error, traceback, reason, payload, output, node_id
FROM {p}run_history
WHERE outcome IN ('failed', 'timed_out', 'lost')
"""

_RUN_STATS = """
CREATE VIEW {p}run_stats AS
WITH recent AS (  -- the attempts and ends of the last 30 UTC days, today among them
    SELECT worker, {day} AS day, ends_run, started_at, duration_ms
    FROM {p}run_history
    WHERE finished_at >= {since} AND outcome <> 'missed'
),
ranked AS (  -- the attempts that started, shortest first
    SELECT
        worker, day, duration_ms,
        row_number() OVER (PARTITION BY worker, day ORDER BY duration_ms) AS place,
        count(*) OVER (PARTITION BY worker, day) AS places
    FROM recent
    WHERE started_at IS NOT NULL AND duration_ms IS NOT NULL
),
durations AS (  -- nearest rank: the first place that has the percentage at or before it
    SELECT
        worker, day,
        min(CASE WHEN place * 100 >= places * 50 THEN duration_ms END) AS p50_duration_ms,
        min(CASE WHEN place * 100 >= places * 95 THEN duration_ms END) AS p95_duration_ms
    FROM ranked
    GROUP BY worker, day
),
counts AS (
    SELECT
        worker, day,
        count(ends_run) AS runs,
        count(CASE WHEN ends_run IN ('exhausted', 'discarded') THEN 1 END) AS failures,
        count(started_at) AS attempts
    FROM recent
    GROUP BY worker, day
)
SELECT c.worker, c.day, c.runs, c.failures, c.attempts, d.p50_duration_ms, d.p95_duration_ms
FROM counts AS c
LEFT JOIN durations AS d ON d.worker = c.worker AND d.day = c.day
"""
