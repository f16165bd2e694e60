"""The table of bulk operations: what is done to all runs or letters that fit a filter, and how far it has come."""

from __future__ import annotations

import sqlalchemy as sa

from jobrunner.model.limits import MAX_BIG_COUNT
from jobrunner.storage.tables.constraints import counts, one_of, partial_index, real_times, seconds
from jobrunner.storage.tables.metadata import metadata
from jobrunner.storage.tables.types import Big, Id, Real, UtcDateTime

BULK_ACTIONS = ("cancel", "replay", "discard")

bulk_operations = sa.Table(
    "bulk_operations",
    metadata,
    sa.Column("id", Id, sa.Identity(), primary_key=True),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("filter", sa.Text, nullable=False),
    sa.Column("reason", sa.Text),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("rate", Real, nullable=False),  # items a second, at most
    sa.Column("state", sa.Text, nullable=False, server_default="running"),
    # The filter's times as they were read when it began: `since:2h` does not move on.
    sa.Column("since", UtcDateTime),
    sa.Column("until", UtcDateTime),
    sa.Column("expected", Big, nullable=False),  # by the preview, counted up to 10,001
    sa.Column("done", Big, nullable=False, server_default="0"),
    sa.Column("left_out", Big, nullable=False, server_default="0"),
    # Ours: it goes on below this id, from the newest that there was when it began.
    sa.Column("next_id", Big, nullable=False),
    sa.Column("last_error", sa.Text),
    sa.Column("created_at", UtcDateTime, nullable=False),
    sa.Column("ended_at", UtcDateTime),
    sa.Column("stopped_by", sa.Text),
    # Ours: the process that works at it, until then.
    sa.Column("holder", sa.Text),
    sa.Column("held_until", UtcDateTime),
    one_of("action", BULK_ACTIONS),
    one_of("state", ("running", "done", "stopped", "failed")),
    sa.CheckConstraint("(state = 'running') = (ended_at IS NULL)", name="ended"),
    *seconds("rate", above=True),
    *counts(0, "expected", "done", "left_out", "next_id", most=MAX_BIG_COUNT),
    *real_times("since", "until", "created_at", "ended_at", "held_until"),
    sqlite_autoincrement=True,
    sqlite_strict=True,
)
partial_index("ix_bulk_operations_running", bulk_operations.c.id, where="state = 'running'")
