"""The search for waits that began ahead of now (`policy.clocks`): one question that costs a few index probes.

A tick that finds nothing due asks it along with everything else, so that an idle node has no statement more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.policy.schedule import CLOCK_TOLERANCE
from jobrunner.storage import tables as t
from jobrunner.storage.types import UtcDateTime

if TYPE_CHECKING:
    from datetime import datetime

    from jobrunner.storage.dialect import Dialect

LOOKED_THROUGH = 100
"""Waiting runs, the first that become due: with more delayed ones than that before it, a look finds a run later."""
_PENDING: sa.ColumnElement[bool] = sa.literal_column("runs.state = 'pending'")


def ahead_values(now: datetime) -> dict[str, Any]:
    """Return the parameters of everything here."""
    ahead = now + CLOCK_TOLERANCE
    return {"ahead": ahead, "ahead_epoch": ahead.timestamp()}


def _ahead() -> sa.BindParameter[datetime]:
    return sa.bindparam("ahead", type_=UtcDateTime())


def planned_from() -> sa.ColumnElement[float]:
    """The generated column: when the next time was planned at the earliest, in seconds since 1970."""
    return sa.literal_column("worker_state.planned_from", sa.Double())


def is_planned_ahead() -> sa.ColumnElement[bool]:
    """The next time lies further ahead than its reach allows."""
    planned = planned_from()
    return sa.and_(planned.is_not(None), planned > sa.bindparam("ahead_epoch", type_=sa.Double()))


def is_paused_ahead() -> sa.ColumnElement[bool]:
    """A pause of a given length began ahead of now."""
    s = t.worker_state
    return sa.and_(s.c.paused_until.is_not(None), s.c.paused_until > _ahead(), s.c.paused_at > _ahead())


def is_probed_ahead(dialect: Dialect) -> sa.ColumnElement[bool]:
    """A probe waits longer than its cooldown is."""
    s = t.worker_state
    wait = dialect.epoch(s.c.probe_at) - dialect.epoch(_ahead())
    cooldown = sa.func.coalesce(s.c.cooldown_current_seconds, sa.literal_column("0.0"))
    return sa.and_(s.c.probe_at.is_not(None), s.c.probe_at > _ahead(), wait > cooldown)


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


def is_any_ahead(dialect: Dialect) -> sa.ColumnElement[bool]:
    """Whether there is any wait that began ahead of now, as far as a quick look finds."""
    s = t.worker_state
    one: sa.ColumnElement[int] = sa.literal_column("1")
    found = [is_planned_ahead(), is_paused_ahead(), is_probed_ahead(dialect)]
    states = [sa.exists(sa.select(one).select_from(s).where(condition)) for condition in found]
    runs = waiting_ahead(LOOKED_THROUGH).subquery("ahead_runs")
    return sa.or_(*states, sa.exists(sa.select(one).select_from(runs)))
