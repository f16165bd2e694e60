"""The search for waits that began ahead of now (`policy.clocks`): one question that costs a few index probes.

A tick that finds nothing due asks it along with everything else, so that an idle node has no statement more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.policy.schedule import CLOCK_TOLERANCE
from jobrunner.storage.tables import define as t
from jobrunner.storage.tables.types import UtcDateTime

if TYPE_CHECKING:
    from datetime import datetime

LOOKED_THROUGH = 100
"""Waiting runs, the first that become due: with more delayed ones than that before it, a look finds a run later."""
_PENDING: sa.ColumnElement[bool] = sa.literal_column("runs.state = 'pending'")


def ahead_values(now: datetime) -> dict[str, Any]:
    """Return the parameters of everything here."""
    ahead = now + CLOCK_TOLERANCE
    return {"ahead": ahead, "ahead_epoch": ahead.timestamp()}


def _ahead() -> sa.BindParameter[datetime]:
    return sa.bindparam("ahead", type_=UtcDateTime())


def _ahead_epoch() -> sa.BindParameter[float]:
    return sa.bindparam("ahead_epoch", type_=sa.Double())


def waits_from() -> sa.ColumnElement[float]:
    """The generated column: when the waits that a worker is in began, the last of them, in seconds since 1970."""
    return sa.literal_column("worker_state.waits_from", sa.Double())


def is_worker_ahead() -> sa.ColumnElement[bool]:
    """A wait of the worker began ahead of now: for its next time, for the end of its pause, or for its probe."""
    began = waits_from()
    return sa.and_(began.is_not(None), began > _ahead_epoch())


def waiting_ahead(most: int | None) -> sa.Select[Any]:
    """Waiting runs whose wait began ahead of now, `began` being when: of the `most` that become due first, or of all.

    A trigger that was to start at once began to wait when it was made.
    """
    r = t.runs
    made = sa.case((r.c.due_at == r.c.created_at, r.c.created_at))
    began = sa.func.coalesce(r.c.waits_since, made).label("began")
    first = (
        sa.select(r.c.id, r.c.due_at, began).where(_PENDING, r.c.due_at > _ahead()).order_by(r.c.due_at).limit(most)
    ).subquery("first_waiting")
    return sa.select(first.c.id, first.c.due_at, first.c.began).where(first.c.began > _ahead())


def is_any_ahead() -> sa.ColumnElement[bool]:
    """Whether there is any wait that began ahead of now, as far as a quick look finds."""
    began = waits_from()
    # The last of an index: with EXISTS, PostgreSQL would read the table as long as it has no statistics.
    one: sa.ColumnElement[int] = sa.literal_column("1")
    last = sa.select(began).select_from(t.worker_state).where(began.is_not(None)).order_by(began.desc()).limit(one)
    is_worker = sa.func.coalesce(last.scalar_subquery(), sa.literal_column("0")) > _ahead_epoch()
    runs = waiting_ahead(LOOKED_THROUGH).subquery("ahead_runs")
    return sa.or_(is_worker, sa.exists(sa.select(one).select_from(runs)))
