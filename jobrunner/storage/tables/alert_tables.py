"""The tables of alerts: who is told of what, what there is to tell, and the messages on their way.

Columns marked "ours" serve the program; the others are for who asks by SQL, too.
"""

from __future__ import annotations

import sqlalchemy as sa

from jobrunner.model.alerts import AlertKind, MessageKind
from jobrunner.model.limits import MAX_BIG_COUNT
from jobrunner.storage.tables.constraints import counts, json_kind, on, one_of, partial_index, real_times, seconds
from jobrunner.storage.tables.metadata import NOW, metadata
from jobrunner.storage.tables.types import Big, Id, Json, Real, UtcDateTime

alert_rules = sa.Table(
    "alert_rules",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("kinds", Json, nullable=False),
    sa.Column("workers", sa.Text, nullable=False, server_default="*"),
    sa.Column("channel", Json, nullable=False),
    sa.Column("repeat_seconds", Real, nullable=False, server_default="3600"),
    sa.Column("backlog_runs", sa.Integer, nullable=False, server_default="1000"),
    sa.Column("created_by", sa.Text, nullable=False),
    sa.Column("created_at", UtcDateTime, nullable=False, server_default=NOW),
    # Ours: of the rule that comes first by name, when a node last looked for incidents, and how far among the workers.
    sa.Column("looked_at", UtcDateTime),
    sa.Column("looked_to", sa.Text, nullable=False, server_default=""),
    # Ours: the node that sends this rule's messages now. While that node lives, no other does.
    sa.Column("sender", sa.Text),
    on("sqlite", "length(name) BETWEEN 1 AND 200 AND name NOT GLOB '*[^A-Za-z0-9._-]*'", "name"),
    on("postgresql", "name ~ '^[A-Za-z0-9._-]{1,200}$'", "name"),
    *json_kind("kinds", "array"),
    *json_kind("channel"),
    *seconds("repeat_seconds", above=True),
    *counts(1, "backlog_runs"),
    *real_times("created_at", "looked_at"),
    sqlite_strict=True,
)

alerts = sa.Table(
    "alerts",
    metadata,
    sa.Column("id", Id, sa.Identity(), primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("worker", sa.Text),
    # What it is about: the worker, or of `node_lost` the host.
    sa.Column("subject", sa.Text, nullable=False),
    sa.Column("opened_at", UtcDateTime, nullable=False),
    sa.Column("last_at", UtcDateTime, nullable=False),
    sa.Column("closed_at", UtcDateTime),
    sa.Column("count", Big, nullable=False, server_default="1"),
    sa.Column("summary", sa.Text, nullable=False),
    sa.Column("recovered", sa.Text),
    sa.Column("detail", Json, nullable=False, server_default="{}"),
    # Ours: since when its cause is gone. It closes when that has lasted.
    sa.Column("clear_since", UtcDateTime),
    one_of("kind", AlertKind),
    *counts(1, "count", most=MAX_BIG_COUNT),
    *json_kind("detail"),
    *real_times("opened_at", "last_at", "closed_at", "clear_since"),
    sa.Index("ix_alerts_worker", "worker", "id"),
    sqlite_autoincrement=True,
    sqlite_strict=True,
)
IS_OPEN = "closed_at IS NULL"
partial_index("uq_alerts_open", alerts.c.kind, alerts.c.subject, where=IS_OPEN, unique=True)
partial_index("ix_alerts_open", alerts.c.id, where=IS_OPEN)
partial_index("ix_alerts_closed_at", alerts.c.closed_at, where="closed_at IS NOT NULL")

alert_deliveries = sa.Table(
    "alert_deliveries",
    metadata,
    sa.Column("id", Id, sa.Identity(), primary_key=True),
    sa.Column("alert_id", Big, nullable=False),
    sa.Column("rule", sa.Text, nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    # What the receiver tells a message by that comes twice.
    sa.Column("idempotency_key", sa.Text, nullable=False, unique=True),
    sa.Column("count", Big, nullable=False, server_default="1"),
    # What is sent, made at the first try and the same at every other.
    sa.Column("body", Json),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
    sa.Column("next_at", UtcDateTime, nullable=False),
    sa.Column("sent_at", UtcDateTime),
    sa.Column("given_up_at", UtcDateTime),
    sa.Column("last_error", sa.Text),
    one_of("message", [kind for kind in MessageKind if kind is not MessageKind.TEST]),
    *counts(1, "count", most=MAX_BIG_COUNT),
    *counts(0, "attempts"),
    sa.CheckConstraint("sent_at IS NULL OR given_up_at IS NULL", name="one_end"),
    *real_times("created_at", "next_at", "sent_at", "given_up_at"),
    sa.Index("ix_alert_deliveries_alert_id", "alert_id", "rule", "id"),
    sqlite_autoincrement=True,
    sqlite_strict=True,
)
IS_WAITING = "sent_at IS NULL AND given_up_at IS NULL"
partial_index("ix_alert_deliveries_waiting", alert_deliveries.c.rule, alert_deliveries.c.id, where=IS_WAITING)
IS_SENT = "alert_deliveries.sent_at IS NOT NULL"
partial_index("ix_alert_deliveries_sent", alert_deliveries.c.rule, alert_deliveries.c.id, where="sent_at IS NOT NULL")
for _once in (MessageKind.OPEN, MessageKind.CLOSE):
    partial_index(
        f"uq_alert_deliveries_{_once}",
        alert_deliveries.c.alert_id,
        alert_deliveries.c.rule,
        where=f"message = '{_once}'",
        unique=True,
    )
