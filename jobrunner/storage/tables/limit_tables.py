"""The tables of limits that workers share, of batches, and of the edges between the runs of a flow."""

from __future__ import annotations

import sqlalchemy as sa

from jobrunner.storage.tables.constraints import counts, json_kind, json_object, on, one_of, partial_index, real_times
from jobrunner.storage.tables.metadata import NOW, metadata
from jobrunner.storage.tables.types import Big, Id, Json, UtcDateTime

limits = sa.Table(
    "limits",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("max_running", sa.Integer),
    sa.Column("rate", sa.Text),
    # What code said, and what operators set; the columns hold the two merged, as those of `workers` do.
    sa.Column("definition", Json, nullable=False, server_default="{}"),
    sa.Column("overrides", Json, nullable=False, server_default="{}"),
    sa.Column("created_at", UtcDateTime, nullable=False, server_default=NOW),
    sa.Column("updated_at", UtcDateTime, nullable=False, server_default=NOW),
    on("sqlite", "length(name) BETWEEN 1 AND 200 AND name NOT GLOB '*[^A-Za-z0-9._-]*'", "name"),
    on("postgresql", "name ~ '^[A-Za-z0-9._-]{1,200}$'", "name"),
    *counts(0, "max_running"),
    *json_kind("definition"),
    *json_kind("overrides"),
    *real_times("created_at", "updated_at"),
    sqlite_strict=True,
)

batches = sa.Table(
    "batches",
    metadata,
    sa.Column("id", Id, sa.Identity(), primary_key=True),
    # The workers that are triggered: when all members have succeeded, at the first that has not, and at the end.
    sa.Column("on_success", sa.Text),
    sa.Column("on_failure", sa.Text),
    sa.Column("on_finish", sa.Text),
    sa.Column("payload", Json, nullable=False, server_default="{}"),  # of those runs
    sa.Column("created_at", UtcDateTime, nullable=False, server_default=NOW),
    sa.Column("created_by", sa.Text),
    sa.Column("sealed_at", UtcDateTime),
    sa.Column("failed_at", UtcDateTime),
    sa.Column("finished_at", UtcDateTime),
    sa.Column("success_run_id", Big),
    sa.Column("failure_run_id", Big),
    sa.Column("finish_run_id", Big),
    sa.CheckConstraint("finished_at IS NULL OR sealed_at IS NOT NULL", name="finished"),
    *json_object("payload"),
    *real_times("created_at", "sealed_at", "failed_at", "finished_at"),
    sqlite_autoincrement=True,
    sqlite_strict=True,
)
partial_index("ix_batches_open", batches.c.id, where="finished_at IS NULL")

# Run `run_id` waits for run `after_run_id`. An edge stays when its runs have ended, so that it has no foreign key.
run_after = sa.Table(
    "run_after",
    metadata,
    sa.Column("run_id", Big, primary_key=True),
    sa.Column("after_run_id", Big, primary_key=True),
    sa.Column("if_failed", sa.Text, nullable=False, server_default="cancel"),
    one_of("if_failed", ("cancel", "run")),
    sa.CheckConstraint("run_id <> after_run_id", name="not_itself"),
    sa.Index(None, "after_run_id"),
    sqlite_strict=True,
)
