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
_ALERT_KINDS = (
    "dead_letter",
    "tripped",
    "closed",
    "failing",
    "stalled",
    "late",
    "slow",
    "no_node",
    "node_lost",
    "backlog",
)
_TRANSACTION = "(pg_current_xact_id()::text::bigint)"
_MAX_PAYLOAD_BYTES = 1024 * 1024
# Queues and counters: vacuum them early and at full speed, or their dead rows slow every tick down.
_BUSY_TABLES = {"worker_state": 70, "runs": 85, "nodes": 70, "claims": 85}
"""Fill factor in percent: room for a row's next version on its page."""
_VACUUM = (
    "autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 500, autovacuum_vacuum_cost_delay = 0,"
    " autovacuum_analyze_scale_factor = 0.05, autovacuum_analyze_threshold = 500"
)


def upgrade() -> None:
    _create_workers()
    _create_limits()
    _create_edges()
    _create_worker_state()
    _create_batches()
    _create_runs()
    _create_run_after()
    _create_claims()
    _create_run_history()
    _create_dead_letters()
    _create_nodes()
    _create_audit_log()
    _create_alerts()
    _create_bulk_operations()
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
    op.execute(f"DROP {'VIEW' if _is_sqlite() else 'TABLE'} IF EXISTS {_p()}claims")
    for table in (
        "alert_deliveries",
        "alerts",
        "alert_rules",
        "bulk_operations",
        "audit_log",
        "node_handlers",
        "nodes",
        "dead_letters",
        "run_history",
        "run_after",
        "runs",
        "batches",
        "worker_state",
        "worker_limits",
        "limits",
        "worker_blocks",
        "worker_dependencies",
        "workers",
    ):
        op.drop_table(table, schema=_schema(), if_exists=True)  # its triggers and indexes go with it
    if not _is_sqlite():
        for function in (
            "refuse_client",
            *(f"{table}_changed" for table, _ in _EDGES),
            "fill_run",
            "join_batch",
            "wait_for_run",
            "keep_run_priority",
            "hold_slot",
            "follow_slots",
            "free_slots",
            "arrive_again",
            "refuse_history_update",
            "raise_revision",
            "wake_nodes_at_commit",
            "wake_nodes",
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


def _first_revision() -> sa.TextClause:
    """Microseconds since 1970: no worker that was removed had the number, so that nobody takes the new one for it."""
    if _is_sqlite():
        return sa.text("(CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER))")
    return sa.text("(extract(epoch FROM now()) * 1000000)::bigint")


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
        sa.Column("payload_schema", _JSON, nullable=False, server_default="{}"),
        sa.Column("hidden_fields", _JSON, nullable=False, server_default="[]"),
        sa.Column("ping", sa.Text),
        sa.Column("limit_key", sa.Text),
        sa.Column("max_running_per_key", sa.Integer),
        sa.Column("rate", sa.Text),
        sa.Column("rate_per_key", sa.Text),
        sa.Column("smooth", _FLAG, nullable=False, server_default=sa.false()),
        sa.Column("fair", _FLAG, nullable=False, server_default=sa.false()),
        sa.Column("ordered", _FLAG, nullable=False, server_default=sa.false()),
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
        *_counts("workers", 1, "max_consecutive_failures", "max_running", "memory_limit_mb", "max_running_per_key"),
        _check(
            "workers",
            "limit_key",
            "limit_key IS NOT NULL"
            " OR (max_running_per_key IS NULL AND rate_per_key IS NULL AND NOT fair AND NOT ordered)",
        ),
        *_payload_checks("workers"),
        _json_kind("workers", "definition"),
        _json_kind("workers", "overrides"),
        _json_kind("workers", "payload_schema"),
        _json_kind("workers", "hidden_fields", "array"),
        *_real_times("workers", "created_at", "updated_at"),
    )


def _create_limits() -> None:
    name_rule = (
        "length(name) BETWEEN 1 AND 200 AND name NOT GLOB '*[^A-Za-z0-9._-]*'"
        if _is_sqlite()
        else "name ~ '^[A-Za-z0-9._-]{1,200}$'"
    )
    _table(
        "limits",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("max_running", sa.Integer),
        sa.Column("rate", sa.Text),
        sa.Column("definition", _JSON, nullable=False, server_default="{}"),
        sa.Column("overrides", _JSON, nullable=False, server_default="{}"),
        sa.Column("created_at", _TIME, nullable=False, server_default=_now()),
        sa.Column("updated_at", _TIME, nullable=False, server_default=_now()),
        _primary_key("limits", "name"),
        _check("limits", "name", name_rule),
        *_counts("limits", 0, "max_running"),
        _json_kind("limits", "definition"),
        _json_kind("limits", "overrides"),
        *_real_times("limits", "created_at", "updated_at"),
    )


def _create_edges() -> None:
    _table(
        "worker_limits",
        sa.Column("worker", sa.Text, nullable=False),
        sa.Column("limit_name", sa.Text, nullable=False),
        _primary_key("worker_limits", "worker", "limit_name"),
        _foreign_key("worker_limits", "worker", "workers", "name"),
        _foreign_key("worker_limits", "limit_name", "limits", "name"),
    )
    _index("ix_worker_limits_limit_name", "worker_limits", "limit_name")
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
        sa.Column("revision", _BIG, nullable=False, server_default=_first_revision()),
        _waits_from(),
        _primary_key("worker_state", "worker"),
        _foreign_key("worker_state", "worker", "workers", "name"),
        _one_of("worker_state", "disabled_by", "operator", "circuit"),
        _one_of("worker_state", "circuit_state", "closed", "open", "half_open"),
        _check("worker_state", "disabled_by_someone", "is_enabled = (disabled_by IS NULL)"),
        *_counts("worker_state", 0, "consecutive_failures"),
        *_counts(
            "worker_state",
            0,
            "last_fence",
            "total_runs",
            "total_failures",
            "last_duration_ms",
            "revision",
            most=_MAX_BIG_COUNT,
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
    _index("ix_worker_state_next_run_at", "worker_state", "next_run_at", "worker", where="next_run_at IS NOT NULL")
    _index("ix_worker_state_disabled", "worker_state", "worker", where="NOT is_enabled")
    _index("ix_worker_state_failing", "worker_state", "worker", where="consecutive_failures > 0")
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


def _create_batches() -> None:
    _table(
        "batches",
        sa.Column("id", _BIG, sa.Identity(), nullable=False),
        sa.Column("on_success", sa.Text),
        sa.Column("on_failure", sa.Text),
        sa.Column("on_finish", sa.Text),
        sa.Column("payload", _JSON, nullable=False, server_default="{}"),
        sa.Column("created_at", _TIME, nullable=False, server_default=_now()),
        sa.Column("created_by", sa.Text),
        sa.Column("sealed_at", _TIME),
        sa.Column("failed_at", _TIME),
        sa.Column("finished_at", _TIME),
        sa.Column("success_run_id", _BIG),
        sa.Column("failure_run_id", _BIG),
        sa.Column("finish_run_id", _BIG),
        _primary_key("batches", "id"),
        _check("batches", "finished", "finished_at IS NULL OR sealed_at IS NOT NULL"),
        *_payload_checks("batches"),
        *_real_times("batches", "created_at", "sealed_at", "failed_at", "finished_at"),
        sqlite_autoincrement=True,
    )
    _index("ix_batches_open", "batches", "id", where="finished_at IS NULL")


def _create_run_after() -> None:
    """Edges between runs; they stay when a run has ended, so that they have no foreign key."""
    _table(
        "run_after",
        sa.Column("run_id", _BIG, nullable=False),
        sa.Column("after_run_id", _BIG, nullable=False),
        sa.Column("if_failed", sa.Text, nullable=False, server_default="cancel"),
        _primary_key("run_after", "run_id", "after_run_id"),
        _one_of("run_after", "if_failed", "cancel", "run"),
        _check("run_after", "not_itself", "run_id <> after_run_id"),
    )
    _index("ix_run_after_after_run_id", "run_after", "after_run_id")


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
        sa.Column("trace_context", sa.Text),
        sa.Column("limit_key", sa.Text),
        sa.Column("batch_id", _BIG),
        sa.Column("flow_id", _BIG),
        sa.Column("step", sa.Text),
        sa.Column("key_slot", sa.Integer),
        sa.Column("is_rated", _FLAG, nullable=False, server_default=sa.false()),
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
            f" AND slot BETWEEN 0 AND {_MAX_COUNT} AND fence BETWEEN 0 AND {_MAX_BIG_COUNT} AND id > 0"
            f" AND key_slot BETWEEN 0 AND {_MAX_COUNT}",
        ),
        _check("runs", "key", "length(key) BETWEEN 1 AND 200"),
        _check("runs", "names", "length(limit_key) BETWEEN 1 AND 200 AND length(step) BETWEEN 1 AND 200"),
        _check("runs", "trace_context", "length(trace_context) <= 1000"),
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
    keyed = "state = 'pending' AND limit_key IS NOT NULL"
    _index("ix_runs_limit_key", "runs", "worker", "limit_key", "id", where=keyed)
    _index("uq_runs_key_slot", "runs", "worker", "limit_key", "key_slot", where="key_slot IS NOT NULL", unique=True)
    _index("ix_runs_batch_id", "runs", "batch_id", where="batch_id IS NOT NULL")
    _index("ix_runs_flow_id", "runs", "flow_id", where="flow_id IS NOT NULL")
    started = "key IS NOT NULL AND first_started_at IS NOT NULL AND key_scope = 'waiting'"
    _index("ix_runs_key_started", "runs", "worker", "key", where=started)


def _create_claims() -> None:
    """`claims`: which run is active in which slot, the one way to find active runs, and the last word on slots.

    On PostgreSQL a small table that triggers keep equal to `runs`. Were it an index on `runs`, it would enter the same
    (worker, slot) with each claim, and as long as a snapshot is held anywhere each claim would step over all entries
    since. A small table can be made small again meanwhile (`storage.database.compaction`). On SQLite, which has no dead
    entries, a view of `runs`.

    `arrived`, on PostgreSQL: the transaction that put the run among those that wait, where it waits. With it a look
    finds what came since another look, in transactions that end in any order, and reads nothing else.
    """
    p = _p()
    if _is_sqlite():
        op.execute("CREATE UNIQUE INDEX uq_runs_worker_slot ON runs (worker, slot) WHERE slot IS NOT NULL")
        op.execute("CREATE VIEW claims AS SELECT worker, slot, id AS run_id FROM runs WHERE slot IS NOT NULL")
        return
    op.execute(
        f"""
        CREATE TABLE {p}claims (
            worker text NOT NULL, slot integer NOT NULL, run_id bigint NOT NULL,
            CONSTRAINT pk_claims PRIMARY KEY (worker, slot)
        )
        """
    )
    op.execute(f"ALTER TABLE {p}runs ADD COLUMN arrived bigint NOT NULL DEFAULT {_TRANSACTION}")
    # By `slot`, which a pending run has none of: so no other index seems to fit the search, whatever the statistics.
    op.execute(f"CREATE INDEX ix_runs_arrived ON {p}runs (arrived) WHERE slot IS NULL")


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
        sa.Column("trace_context", sa.Text),
        sa.Column("limit_key", sa.Text),
        sa.Column("batch_id", _BIG),
        sa.Column("flow_id", _BIG),
        sa.Column("step", sa.Text),
        sa.Column("is_rated", _FLAG, nullable=False, server_default=sa.false()),
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
    _index("ix_run_history_rated", "run_history", "worker", "started_at", where="is_rated")
    _index(
        "ix_run_history_limit_key", "run_history", "worker", "limit_key", "started_at", where="limit_key IS NOT NULL"
    )
    _index("ix_run_history_batch_id", "run_history", "batch_id", "id", where="batch_id IS NOT NULL")
    _index("ix_run_history_flow_id", "run_history", "flow_id", "id", where="flow_id IS NOT NULL")


def _create_dead_letters() -> None:
    _table(
        "dead_letters",
        sa.Column("id", _BIG, sa.Identity(), nullable=False),
        sa.Column("run_id", _BIG, nullable=False),
        sa.Column("worker", sa.Text, nullable=False),
        sa.Column("trigger", sa.Text, nullable=False),
        sa.Column("priority", sa.Integer, nullable=False),
        sa.Column("key", sa.Text),
        sa.Column("limit_key", sa.Text),
        sa.Column("batch_id", _BIG),
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
    _index("ix_dead_letters_open", "dead_letters", "worker", "id", where="resolved_at IS NULL")
    _index("ix_dead_letters_replay_run_id", "dead_letters", "replay_run_id", where="replay_run_id IS NOT NULL")


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
        sa.Column("lease_seconds", _REAL, nullable=False, server_default="30"),
        _primary_key("nodes", "id"),
        _one_of("nodes", "state", "active", "draining", "stopped", "lost"),
        *_seconds("nodes", "lease_seconds", above=True),
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


def _create_bulk_operations() -> None:
    _table(
        "bulk_operations",
        sa.Column("id", _BIG, sa.Identity(), nullable=False),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("filter", sa.Text, nullable=False),
        sa.Column("reason", sa.Text),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("rate", _REAL, nullable=False),
        sa.Column("state", sa.Text, nullable=False, server_default="running"),
        sa.Column("since", _TIME),
        sa.Column("until", _TIME),
        sa.Column("expected", _BIG, nullable=False),
        sa.Column("done", _BIG, nullable=False, server_default="0"),
        sa.Column("left_out", _BIG, nullable=False, server_default="0"),
        sa.Column("next_id", _BIG, nullable=False),
        sa.Column("last_error", sa.Text),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("ended_at", _TIME),
        sa.Column("stopped_by", sa.Text),
        sa.Column("holder", sa.Text),
        sa.Column("held_until", _TIME),
        _primary_key("bulk_operations", "id"),
        _one_of("bulk_operations", "action", "cancel", "replay", "discard"),
        _one_of("bulk_operations", "state", "running", "done", "stopped", "failed"),
        _check("bulk_operations", "ended", "(state = 'running') = (ended_at IS NULL)"),
        _check("bulk_operations", "rate", f"rate > 0 AND rate <= {_LONGEST_SECONDS}"),
        *_counts("bulk_operations", 0, "expected", "done", "left_out", "next_id", most=_MAX_BIG_COUNT),
        *_real_times("bulk_operations", "since", "until", "created_at", "ended_at", "held_until"),
        sqlite_autoincrement=True,
    )
    _index("ix_bulk_operations_running", "bulk_operations", "id", where="state = 'running'")


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
            "bulk",
            "upgrade",
            "alert_add",
            "alert_remove",
            "limit_set",
            "limit_unset",
        ),
        _json_kind("audit_log", "detail"),
        *_real_times("audit_log", "at"),
        sqlite_autoincrement=True,
    )
    _index("ix_audit_log_worker", "audit_log", "worker", "id")


def _create_alerts() -> None:
    name_rule = (
        "length(name) BETWEEN 1 AND 200 AND name NOT GLOB '*[^A-Za-z0-9._-]*'"
        if _is_sqlite()
        else "name ~ '^[A-Za-z0-9._-]{1,200}$'"
    )
    _table(
        "alert_rules",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("kinds", _JSON, nullable=False),
        sa.Column("workers", sa.Text, nullable=False, server_default="*"),
        sa.Column("channel", _JSON, nullable=False),
        sa.Column("repeat_seconds", _REAL, nullable=False, server_default="3600"),
        sa.Column("backlog_runs", sa.Integer, nullable=False, server_default="1000"),
        sa.Column("created_by", sa.Text, nullable=False),
        sa.Column("created_at", _TIME, nullable=False, server_default=_now()),
        sa.Column("looked_at", _TIME),
        sa.Column("looked_to", sa.Text, nullable=False, server_default=""),
        sa.Column("sender", sa.Text),
        _primary_key("alert_rules", "name"),
        _check("alert_rules", "name", name_rule),
        _json_kind("alert_rules", "kinds", "array"),
        _json_kind("alert_rules", "channel"),
        *_seconds("alert_rules", "repeat_seconds", above=True),
        *_counts("alert_rules", 1, "backlog_runs"),
        *_real_times("alert_rules", "created_at", "looked_at"),
    )
    _table(
        "alerts",
        sa.Column("id", _BIG, sa.Identity(), nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("worker", sa.Text),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("opened_at", _TIME, nullable=False),
        sa.Column("last_at", _TIME, nullable=False),
        sa.Column("closed_at", _TIME),
        sa.Column("count", _BIG, nullable=False, server_default="1"),
        sa.Column("summary", sa.Text, nullable=False),
        sa.Column("recovered", sa.Text),
        sa.Column("detail", _JSON, nullable=False, server_default="{}"),
        sa.Column("clear_since", _TIME),
        _primary_key("alerts", "id"),
        _one_of("alerts", "kind", *_ALERT_KINDS),
        *_counts("alerts", 1, "count", most=_MAX_BIG_COUNT),
        _json_kind("alerts", "detail"),
        *_real_times("alerts", "opened_at", "last_at", "closed_at", "clear_since"),
        sqlite_autoincrement=True,
    )
    _index("ix_alerts_worker", "alerts", "worker", "id")
    _index("uq_alerts_open", "alerts", "kind", "subject", where="closed_at IS NULL", unique=True)
    _index("ix_alerts_open", "alerts", "id", where="closed_at IS NULL")
    _index("ix_alerts_closed_at", "alerts", "closed_at", where="closed_at IS NOT NULL")
    _table(
        "alert_deliveries",
        sa.Column("id", _BIG, sa.Identity(), nullable=False),
        sa.Column("alert_id", _BIG, nullable=False),
        sa.Column("rule", sa.Text, nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("idempotency_key", sa.Text, nullable=False),
        sa.Column("count", _BIG, nullable=False, server_default="1"),
        sa.Column("body", _JSON),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
        sa.Column("next_at", _TIME, nullable=False),
        sa.Column("sent_at", _TIME),
        sa.Column("given_up_at", _TIME),
        sa.Column("last_error", sa.Text),
        _primary_key("alert_deliveries", "id"),
        sa.UniqueConstraint("idempotency_key", name=op.f("uq_alert_deliveries_idempotency_key")),
        _one_of("alert_deliveries", "message", "open", "repeat", "close"),
        *_counts("alert_deliveries", 1, "count", most=_MAX_BIG_COUNT),
        *_counts("alert_deliveries", 0, "attempts"),
        _check("alert_deliveries", "one_end", "sent_at IS NULL OR given_up_at IS NULL"),
        *_real_times("alert_deliveries", "created_at", "next_at", "sent_at", "given_up_at"),
        sqlite_autoincrement=True,
    )
    _index("ix_alert_deliveries_alert_id", "alert_deliveries", "alert_id", "rule", "id")
    waiting = "sent_at IS NULL AND given_up_at IS NULL"
    _index("ix_alert_deliveries_waiting", "alert_deliveries", "rule", "id", where=waiting)
    _index("ix_alert_deliveries_sent", "alert_deliveries", "rule", "id", where="sent_at IS NOT NULL")
    for once in ("open", "close"):
        name, where = f"uq_alert_deliveries_{once}", f"message = '{once}'"
        _index(name, "alert_deliveries", "alert_id", "rule", where=where, unique=True)


# --- triggers -----------------------------------------------------------------------------------------------------


# What nobody but a program of ours may say of a new run: `is_ours` marks those. Said by anybody else it would be more
# than the right to trigger: a run past all gates, a claim, a schedule that stands still.
_CLIENTS_WORD = (
    "a client gives a run worker, payload, priority, due_at, scheduled_for, key, key_scope, trace_context, limit_key,"
    " batch_id, flow_id and step, nothing else"
)
_NOT_A_CLIENTS = """NOT NEW.is_ours AND (
    NEW.state <> 'pending' OR NEW.trigger <> 'manual' OR NEW.attempt <> 1 OR NEW.is_forced OR NEW.lost_in_a_row <> 0
    OR NEW.first_started_at IS NOT NULL OR NEW.cancel_requested_at IS NOT NULL OR NEW.cancel_reason IS NOT NULL
    OR NEW.progress IS NOT NULL OR NEW.output IS NOT NULL OR NEW.output_lines IS NOT NULL OR NEW.replay_of IS NOT NULL
    OR NEW.key_slot IS NOT NULL OR NEW.is_rated
)"""
_HELD_UNTIL = "9999-01-01 00:00:00"
"""The `due_at` of a step that waits for others (`HELD_UNTIL` in `model.run`)."""
_NO_SUCH_BATCH = "no such batch, or it has finished: begin another"
_HAS_STARTED = "both runs must wait and have never started: write the edges of a flow where its runs are added"


_EDGES = (("worker_dependencies", "depends_on"), ("worker_blocks", "blocks"), ("worker_limits", "limit_name"))
"""Tables of relations, and the column beside `worker`. A limit that has a worker's name raises one revision in vain."""
_SWITCHES = ("is_enabled", "paused_until", "circuit_state", "missed_from")
"""What of a worker's state decides whether it may take the fast path: a change of it raises the state's revision."""


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
    for table, other in _EDGES[:2]:
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
    path = """'$."' || replace(w.limit_key, '.', '"."') || '"'"""
    op.execute(
        f"""
        CREATE TRIGGER runs_fill_limit_key AFTER INSERT ON runs
        WHEN NEW.limit_key IS NULL AND NOT NEW.is_ours
            AND (SELECT w.limit_key FROM workers w WHERE w.name = NEW.worker) IS NOT NULL
        BEGIN
            UPDATE runs SET limit_key = (
                SELECT CASE json_type(NEW.payload, {path})
                    WHEN 'object' THEN NULL WHEN 'array' THEN NULL WHEN 'true' THEN 'true' WHEN 'false' THEN 'false'
                    ELSE nullif(substr(CAST(NEW.payload ->> ({path}) AS TEXT), 1, 200), '')
                END
                FROM workers w WHERE w.name = NEW.worker
            ) WHERE id = NEW.id;
        END
        """  # noqa: S608 - made of constants
    )
    op.execute(
        f"""
        CREATE TRIGGER runs_join_batch BEFORE INSERT ON runs
        WHEN NEW.batch_id IS NOT NULL
            AND NOT EXISTS (SELECT 1 FROM batches WHERE id = NEW.batch_id AND finished_at IS NULL)
        BEGIN
            SELECT RAISE(ABORT, '{_NO_SUCH_BATCH}');
        END
        """  # noqa: S608 - made of constants
    )
    op.execute(
        f"""
        CREATE TRIGGER run_after_refuse_started BEFORE INSERT ON run_after
        WHEN 2 > (
            SELECT count(*) FROM runs
            WHERE id IN (NEW.run_id, NEW.after_run_id) AND state = 'pending' AND first_started_at IS NULL
        )
        BEGIN
            SELECT RAISE(ABORT, '{_HAS_STARTED}');
        END
        """  # noqa: S608 - made of constants
    )
    op.execute(
        f"""
        CREATE TRIGGER run_after_wait AFTER INSERT ON run_after
        BEGIN
            UPDATE runs SET flow_id = coalesce(
                flow_id, (SELECT flow_id FROM runs WHERE id = NEW.run_id), NEW.after_run_id
            ) WHERE id = NEW.after_run_id;
            UPDATE runs SET
                due_at = '{_HELD_UNTIL}.000000', waits_since = NULL,
                flow_id = coalesce(flow_id, (SELECT flow_id FROM runs WHERE id = NEW.after_run_id))
            WHERE id = NEW.run_id;
        END
        """  # noqa: S608 - made of constants
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
    has_changed = " OR ".join(f"NEW.{column} IS NOT OLD.{column}" for column in _SWITCHES)
    op.execute(
        f"""
        CREATE TRIGGER worker_state_raises_revision AFTER UPDATE OF {", ".join(_SWITCHES)} ON worker_state
        WHEN {has_changed}
        BEGIN
            UPDATE worker_state SET revision = (revision + 1) % 4611686018427387904 WHERE worker = NEW.worker;
        END
        """  # noqa: S608 - made of constants
    )
    for table, other in _EDGES:
        for event, rows in (("INSERT", ("NEW",)), ("UPDATE", ("OLD", "NEW")), ("DELETE", ("OLD",))):
            names = ", ".join(f"{row}.worker, {row}.{other}" for row in rows)
            op.execute(
                f"""
                CREATE TRIGGER {table}_raise_revision_{event.lower()} AFTER {event} ON {table}
                BEGIN
                    UPDATE workers SET revision = (revision + 1) % 4611686018427387904 WHERE name IN ({names});
                END
                """  # noqa: S608 - made of constants
            )
    op.execute(
        """
        CREATE TRIGGER workers_refuse_delete BEFORE DELETE ON workers
        WHEN EXISTS (SELECT 1 FROM worker_state WHERE worker = OLD.name)
            OR EXISTS (SELECT 1 FROM worker_dependencies WHERE OLD.name IN (worker, depends_on))
            OR EXISTS (SELECT 1 FROM worker_blocks WHERE OLD.name IN (worker, blocks))
            OR EXISTS (SELECT 1 FROM worker_limits WHERE OLD.name = worker)
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
        CREATE FUNCTION {p}fill_run() RETURNS trigger LANGUAGE plpgsql AS $$
        DECLARE
            own_priority integer;
            place text[];
        BEGIN
            SELECT w.priority, string_to_array(w.limit_key, '.') INTO own_priority, place
            FROM {p}workers w WHERE w.name = NEW.worker;
            NEW.priority := coalesce(NEW.priority, own_priority);
            IF NEW.limit_key IS NULL AND place IS NOT NULL
                AND jsonb_typeof(NEW.payload #> place) NOT IN ('object', 'array') THEN
                NEW.limit_key := nullif(left(NEW.payload #>> place, 200), '');
            END IF;
            RETURN NEW;
        END $$
        """  # noqa: S608 - the schema's name is checked in database.py
    )
    # `waits_since` only an enqueue of ours says, which has filled the rest.
    op.execute(
        f"""
        CREATE TRIGGER runs_fill BEFORE INSERT ON {p}runs FOR EACH ROW WHEN (
            NEW.priority IS NULL OR (NEW.limit_key IS NULL AND NEW.waits_since IS NULL AND NOT NEW.is_ours)
        ) EXECUTE FUNCTION {p}fill_run()
        """
    )
    _create_postgres_batches_and_flows()
    _create_postgres_run_updates()
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
    has_changed = " OR ".join(f"NEW.{column} IS DISTINCT FROM OLD.{column}" for column in _SWITCHES)
    op.execute(
        f"""
        CREATE TRIGGER worker_state_raises_revision BEFORE UPDATE OF {", ".join(_SWITCHES)} ON {p}worker_state
        FOR EACH ROW WHEN ({has_changed}) EXECUTE FUNCTION {p}raise_revision()
        """
    )
    for table, other in _EDGES:  # an update of `workers` raises the number, whatever it writes
        op.execute(
            f"""
            CREATE FUNCTION {p}{table}_changed() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                UPDATE {p}workers SET revision = revision
                WHERE name IN (OLD.worker, OLD.{other}, NEW.worker, NEW.{other});
                RETURN NULL;
            END $$
            """  # noqa: S608 - the schema's name is checked in database.py
        )
        op.execute(
            f"""
            CREATE TRIGGER {table}_raise_revision AFTER INSERT OR UPDATE OR DELETE ON {p}{table}
            FOR EACH ROW EXECUTE FUNCTION {p}{table}_changed()
            """
        )
    _create_postgres_wakeups()


def _create_postgres_batches_and_flows() -> None:
    """SECURITY DEFINER: who may add runs may add them to a batch and to a flow, and change nothing else of either."""
    p = _p()
    definer = f'LANGUAGE plpgsql SECURITY DEFINER SET search_path = "{_schema()}", pg_temp'
    op.execute(  # FOR SHARE: it does not finish meanwhile
        f"""
        CREATE FUNCTION {p}join_batch() RETURNS trigger {definer} AS $$
        BEGIN
            PERFORM FROM {p}batches WHERE id = NEW.batch_id AND finished_at IS NULL FOR SHARE;
            IF NOT FOUND THEN
                RAISE EXCEPTION '{_NO_SUCH_BATCH}' USING ERRCODE = 'check_violation';
            END IF;
            RETURN NEW;
        END $$
        """
    )
    op.execute(
        f"""
        CREATE TRIGGER runs_join_batch BEFORE INSERT ON {p}runs
        FOR EACH ROW WHEN (NEW.batch_id IS NOT NULL) EXECUTE FUNCTION {p}join_batch()
        """
    )
    op.execute(
        f"""
        CREATE FUNCTION {p}wait_for_run() RETURNS trigger {definer} AS $$
        DECLARE
            flow bigint;
            found integer;
        BEGIN
            SELECT count(*), coalesce(min(r.flow_id), NEW.after_run_id) INTO found, flow
            FROM (
                SELECT flow_id FROM {p}runs
                WHERE id IN (NEW.run_id, NEW.after_run_id) AND state = 'pending' AND first_started_at IS NULL
                ORDER BY id FOR UPDATE
            ) r;
            IF found < 2 THEN
                RAISE EXCEPTION '{_HAS_STARTED}' USING ERRCODE = 'check_violation';
            END IF;
            UPDATE {p}runs SET flow_id = flow WHERE id = NEW.after_run_id AND flow_id IS NULL;
            UPDATE {p}runs SET due_at = '{_HELD_UNTIL}+00', waits_since = NULL, flow_id = coalesce(flow_id, flow)
            WHERE id = NEW.run_id AND (due_at < '{_HELD_UNTIL}+00' OR flow_id IS NULL);
            RETURN NEW;
        END $$
        """  # noqa: S608 - the schema's name is checked in database.py
    )
    op.execute(
        f"""
        CREATE TRIGGER run_after_wait BEFORE INSERT ON {p}run_after
        FOR EACH ROW EXECUTE FUNCTION {p}wait_for_run()
        """
    )


def _create_postgres_run_updates() -> None:
    """What follows an update of runs. AFTER: for one BEFORE trigger the server would lock each row by itself first."""
    p = _p()
    op.execute(  # the worker's own again
        f"""
        CREATE FUNCTION {p}keep_run_priority() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            UPDATE {p}runs SET priority = (SELECT priority FROM {p}workers WHERE name = NEW.worker)
            WHERE id = NEW.id AND priority IS NULL;
            RETURN NULL;
        END $$
        """  # noqa: S608 - the schema's name is checked in database.py
    )
    op.execute(
        f"""
        CREATE TRIGGER runs_keep_priority AFTER UPDATE OF priority ON {p}runs
        FOR EACH ROW WHEN (NEW.priority IS NULL) EXECUTE FUNCTION {p}keep_run_priority()
        """
    )
    op.execute(
        f"""
        CREATE FUNCTION {p}arrive_again() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            UPDATE {p}runs SET arrived = {_TRANSACTION} WHERE id = NEW.id AND arrived <> {_TRANSACTION};
            RETURN NULL;
        END $$
        """  # noqa: S608 - the schema's name is checked in database.py
    )
    op.execute(
        f"""
        CREATE TRIGGER runs_arrive_again AFTER UPDATE ON {p}runs
        FOR EACH ROW WHEN (
            NEW.state = 'pending' AND NEW.arrived = OLD.arrived AND (
                OLD.state <> 'pending' OR NEW.due_at < OLD.due_at OR NEW.worker <> OLD.worker
                OR NEW.priority IS DISTINCT FROM OLD.priority
            )
        ) EXECUTE FUNCTION {p}arrive_again()
        """
    )
    op.execute(
        f"""
        CREATE FUNCTION {p}hold_slot() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO {p}claims (worker, slot, run_id) VALUES (NEW.worker, NEW.slot, NEW.id);
            RETURN NULL;
        END $$
        """  # noqa: S608 - the schema's name is checked in database.py
    )
    op.execute(
        f"""
        CREATE TRIGGER runs_hold_slot AFTER INSERT ON {p}runs
        FOR EACH ROW WHEN (NEW.slot IS NOT NULL) EXECUTE FUNCTION {p}hold_slot()
        """
    )
    op.execute(
        f"""
        CREATE FUNCTION {p}follow_slots() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF NOT EXISTS (SELECT FROM old_rows WHERE slot IS NOT NULL) THEN  -- claims, hundreds at a time
                INSERT INTO {p}claims (worker, slot, run_id)
                SELECT worker, slot, id FROM new_rows WHERE slot IS NOT NULL;
                RETURN NULL;
            END IF;
            DELETE FROM {p}claims c USING old_rows o
            WHERE o.slot IS NOT NULL AND c.worker = o.worker AND c.slot = o.slot AND NOT EXISTS (
                SELECT FROM new_rows n WHERE n.id = o.id AND n.worker = o.worker AND n.slot = o.slot
            );
            INSERT INTO {p}claims (worker, slot, run_id)
            SELECT n.worker, n.slot, n.id FROM new_rows n
            WHERE n.slot IS NOT NULL AND NOT EXISTS (
                SELECT FROM old_rows o
                WHERE o.slot IS NOT NULL AND o.id = n.id AND o.worker = n.worker AND o.slot = n.slot
            );
            RETURN NULL;
        END $$
        """  # noqa: S608 - the schema's name is checked in database.py
    )
    op.execute(
        f"""
        CREATE TRIGGER runs_follow_slots AFTER UPDATE ON {p}runs
        REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
        FOR EACH STATEMENT EXECUTE FUNCTION {p}follow_slots()
        """
    )
    op.execute(
        f"""
        CREATE FUNCTION {p}free_slots() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            DELETE FROM {p}claims c USING old_rows o
            WHERE o.slot IS NOT NULL AND c.worker = o.worker AND c.slot = o.slot;
            RETURN NULL;
        END $$
        """  # noqa: S608 - the schema's name is checked in database.py
    )
    op.execute(
        f"""
        CREATE TRIGGER runs_free_slots AFTER DELETE ON {p}runs
        REFERENCING OLD TABLE AS old_rows
        FOR EACH STATEMENT EXECUTE FUNCTION {p}free_slots()
        """
    )


def _create_postgres_wakeups() -> None:
    """Wake the nodes at most every 5 ms: NOTIFY takes a lock on the whole server at commit (database/wakeups.py).

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


# --- views --------------------------------------------------------------------------------------------------------


def _create_views() -> None:
    p = _p()
    op.execute(_WORKER_STATUS.format(p=p, now=_now(), health=_HEALTH.format(p=p, now=_now(), **_health_words())))
    op.execute(_RUN_FAILURES.format(p=p))
    if _is_sqlite():
        day, since = "substr(finished_at, 1, 10)", "strftime('%Y-%m-%d 00:00:00.000000', 'now', '-29 days')"
    else:
        day = "to_char(finished_at AT TIME ZONE 'UTC', 'YYYY-MM-DD')"
        since = "(date_trunc('day', now() AT TIME ZONE 'UTC') - interval '29 days') AT TIME ZONE 'UTC'"
    op.execute(_RUN_STATS.format(p=p, day=day, since=since))


def _health_words() -> dict[str, str]:
    """Ages in seconds, in each database's words."""
    age = "(julianday('now') - julianday({})) * 86400.0" if _is_sqlite() else "extract(epoch FROM now() - {})"
    late = (
        "(julianday({0}.started_at) - julianday({0}.due_at)) * 86400.0"
        if _is_sqlite()
        else "extract(epoch FROM {0}.started_at - {0}.due_at)"
    )
    return {
        "run_age": age.format("r.started_at"),
        "node_age": age.format("n.heartbeat_at"),
        "due_age": age.format("due.since"),
        "run_late": late.format("r"),
        "history_late": late.format("h"),
    }


# How a worker is, in a word: the first that holds, in the order of harm. A p99 is that of its last 50 attempts, by
# nearest rank the largest of them; of fewer than five nothing is said, and a second is nobody's delay.
_HEALTH = """
    CASE
        WHEN s.is_enabled IS NULL THEN 'unknown'
        WHEN NOT s.is_enabled THEN 'disabled'
        WHEN s.paused_until > {now} THEN 'paused'
        WHEN s.consecutive_failures > 0 AND s.last_run_outcome <> 'succeeded' THEN 'failing'
        WHEN (  -- due for longer than three of its periods, and a minute, and not started
            SELECT {due_age} > 60
                AND {due_age} > 3 * coalesce(w.interval_seconds, s.reach_seconds)
            FROM (
                SELECT min(times.at) AS since
                FROM (
                    SELECT (  -- as a range and in order, as below
                        SELECT r.due_at FROM {p}runs AS r
                        WHERE r.state = 'pending' AND r.worker >= w.name AND r.worker <= w.name
                            AND r.priority >= level.p AND r.priority <= level.p
                        ORDER BY r.worker, r.priority, r.due_at, r.id LIMIT 1
                    ) AS at
                    FROM (SELECT 0 AS p UNION ALL SELECT 1 UNION ALL SELECT 2 UNION ALL SELECT 3) AS level
                    UNION ALL
                    SELECT s.next_run_at WHERE NOT EXISTS (SELECT 1 FROM {p}claims AS c WHERE c.worker = w.name)
                ) AS times
            ) AS due
        ) THEN 'stalled'
        WHEN (  -- its last start was later than each of those before it
            SELECT count(*) > 5 AND max(CASE WHEN starts.place = 1 THEN starts.late END) > 1
                AND max(CASE WHEN starts.place = 1 THEN starts.late END)
                    > max(CASE WHEN starts.place > 1 THEN starts.late END)
            FROM (
                SELECT last.late, row_number() OVER (ORDER BY last.started_at DESC, last.run_id DESC) AS place
                FROM (
                    SELECT r.started_at, r.id AS run_id, {run_late} AS late
                    FROM {p}claims AS c JOIN {p}runs AS r ON r.id = c.run_id
                    WHERE c.worker = w.name
                    UNION ALL
                    SELECT ended.started_at, ended.run_id, ended.late
                    FROM (
                        SELECT h.started_at, h.run_id, {history_late} AS late
                        FROM {p}run_history AS h
                        WHERE h.worker >= w.name AND h.worker <= w.name ORDER BY h.worker DESC, h.id DESC LIMIT 51
                    ) AS ended
                    WHERE ended.started_at IS NOT NULL
                ) AS last
            ) AS starts
            WHERE starts.place <= 51
        ) THEN 'late'
        WHEN EXISTS (  -- it runs for more than twice as long as any of those before
            SELECT 1 FROM {p}claims AS c JOIN {p}runs AS r ON r.id = c.run_id
            WHERE c.worker = w.name AND {run_age} > 1
                AND {run_age} > (
                    SELECT CASE WHEN count(took.ms) >= 5 THEN max(took.ms) * 0.002 END
                    FROM (
                        SELECT h.duration_ms AS ms FROM {p}run_history AS h
                        WHERE h.worker >= w.name AND h.worker <= w.name ORDER BY h.worker DESC, h.id DESC LIMIT 50
                    ) AS took
                )
        ) THEN 'slow'
        WHEN NOT EXISTS (
            SELECT 1 FROM {p}nodes AS n
            WHERE n.state = 'active' AND {node_age} <= n.lease_seconds + 5
                AND CASE
                    WHEN w.isolation = 'command' THEN n.allows_commands
                    ELSE EXISTS (SELECT 1 FROM {p}node_handlers AS h WHERE h.worker = w.name AND h.node_id = n.id)
                END
        ) THEN 'no_node'
        WHEN s.total_failures > 0 AND (  -- more than a tenth of its last 50 runs
            SELECT sum(CASE WHEN ends.ends_run IN ('exhausted', 'discarded') THEN 10 ELSE 0 END) > count(*)
            FROM (
                SELECT attempts.ends_run
                FROM (
                    SELECT h.id, h.ends_run FROM {p}run_history AS h
                    WHERE h.worker >= w.name AND h.worker <= w.name ORDER BY h.worker DESC, h.id DESC LIMIT 200
                ) AS attempts
                WHERE attempts.ends_run IS NOT NULL
                ORDER BY attempts.id DESC LIMIT 50
            ) AS ends
        ) THEN 'degraded'
        WHEN s.last_run_at IS NULL THEN 'unknown'
        ELSE 'healthy'
    END"""

_WORKER_STATUS = """
CREATE VIEW {p}worker_status AS
SELECT
    w.name, w.handler, w.execution_mode, w.interval_seconds, w.cron, w.timezone, w.jitter_seconds, w.timeout_seconds,
    w.max_retries, w.retry_delay_seconds, w.retry_backoff, w.retry_max_delay_seconds, w.priority,
    w.max_consecutive_failures, w.cooldown_seconds, w.max_running, w.misfire, w.isolation, w.memory_limit_mb,
    w.ping, w.limit_key, w.max_running_per_key, w.rate, w.rate_per_key, w.smooth, w.fair, w.ordered,
    w.description, w.definition_version, w.created_at, w.updated_at,
    s.is_enabled, s.disabled_by, s.disabled_actor, s.disabled_reason, s.paused_until,
    CASE WHEN s.paused_until > {now} THEN s.paused_reason END AS paused_reason,  -- a pause that is over has none
    CASE WHEN s.paused_until > {now} THEN s.paused_by END AS paused_by,
    s.circuit_state, s.circuit_opened_at, s.cooldown_current_seconds, s.probe_at, s.probe_run_id,
    s.consecutive_failures, s.next_run_at, s.last_due_at, s.last_run_at, s.last_run_outcome, s.last_success_at,
    s.last_error, s.last_duration_ms, s.last_fence, s.total_runs, s.total_failures,
    EXISTS (SELECT 1 FROM {p}claims AS c WHERE c.worker = w.name) AS is_running,
    (SELECT count(*) FROM {p}claims AS c WHERE c.worker = w.name) AS running_runs,
    (
        SELECT count(*)
        FROM (  -- as a range and in order: else PostgreSQL reads all runs where it has seen few workers wait
            SELECT 1 FROM {p}runs AS r WHERE r.state = 'pending' AND r.worker >= w.name AND r.worker <= w.name
            ORDER BY r.worker, r.priority, r.due_at, r.id LIMIT 10001
        ) AS waiting
    ) AS pending_runs,{health} AS health
FROM {p}workers AS w
LEFT JOIN {p}worker_state AS s ON s.worker = w.name
"""

_RUN_FAILURES = """
CREATE VIEW {p}run_failures AS
SELECT
    id, run_id, fence, worker, trigger, attempt, outcome, ends_run, is_forced, scheduled_for, due_at, started_at,
    finished_at, duration_ms, error_type, error, traceback, reason, payload, output, node_id, limit_key, batch_id,
    flow_id, step
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
