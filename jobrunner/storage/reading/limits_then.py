"""Reading what limits that workers share held at a moment that is past.

Who held one is told by the slots that were taken then. Who names it, and what it allows, are those of now: whether it
was changed since is said.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import sqlalchemy as sa

from jobrunner.model.facts import ActiveRun, LimitFacts, Window
from jobrunner.policy.past_limits import window_at
from jobrunner.policy.rates import Rate, rate_of
from jobrunner.storage.tables import define as t
from jobrunner.storage.tables.claims import is_active
from jobrunner.storage.tables.types import UtcDateTime

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

    from jobrunner.storage.reading.recorded import Held

_MOST_SHARING = 1000
_RATED: sa.ColumnElement[bool] = sa.literal_column("run_history.is_rated")
_names, _history = t.worker_limits, t.run_history
_OF_LIMIT = _names.c.limit_name == sa.bindparam("limit", type_=sa.Text())
_at, _since = sa.bindparam("at", type_=UtcDateTime()), sa.bindparam("since", type_=UtcDateTime())
_SHARING = sa.select(_names.c.worker).where(_OF_LIMIT).order_by(_names.c.worker).limit(_MOST_SHARING)
_ENDED = (
    sa.select(_history.c.started_at)
    .select_from(_names.join(_history, _history.c.worker == _names.c.worker))
    .where(_OF_LIMIT, _RATED, _history.c.started_at > _since, _history.c.started_at <= _at)
    .order_by(_history.c.started_at.desc())
    .limit(sa.bindparam("most", type_=sa.Integer()))
)
_RUNNING = sa.select(t.runs.c.worker, t.runs.c.started_at).where(is_active(), t.runs.c.started_at <= _at)


@dataclass(slots=True)
class LimitsThen:
    """The limits as they were, as far as is known, and when those were changed that have been since."""

    limits: dict[str, LimitFacts] = field(default_factory=dict)
    changed: dict[str, datetime] = field(default_factory=dict)


async def read_limits_then(
    conn: AsyncConnection, limits: Mapping[str, LimitFacts], at: datetime, held: Sequence[Held]
) -> LimitsThen:
    """Read what `limits`, given as they are now, held at `at`; `held` are the slots that were taken then."""
    found = LimitsThen()
    for name, limit in limits.items():
        sharing = set((await conn.execute(_SHARING, {"limit": name})).scalars())
        mine = sorted(
            (each for each in held if each.worker in sharing), key=lambda each: (each.started_at, each.run_id)
        )
        active = tuple(ActiveRun(each.run_id, each.worker, 0, each.node_id, each.started_at) for each in mine)
        rate = rate_of(limit.rate)
        window = Window() if rate is None else await _window(conn, name, rate, at, sharing)
        found.limits[name] = replace(limit, active=active, window=window)
        changed_at = sa.select(t.limits.c.updated_at).where(t.limits.c.name == name, t.limits.c.updated_at > at)
        moment: datetime | None = (await conn.execute(changed_at)).scalar()
        if moment is not None:
            found.changed[name] = moment
    return found


async def _window(conn: AsyncConnection, name: str, rate: Rate, at: datetime, sharing: set[str]) -> Window:
    asked = {"limit": name, "since": at - rate.window, "at": at, "most": rate.count}
    starts = list((await conn.execute(_ENDED, asked)).scalars())
    running = await conn.execute(_RUNNING, {"at": at})
    return window_at(rate, [*starts, *(row.started_at for row in running if row.worker in sharing)], at)
