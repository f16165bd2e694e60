"""Rows planted past the runner, as a bare SQL shell could, and what `db verify` says of them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import sqlalchemy as sa

from jobrunner.storage.reading.findings import Scope, Violation
from jobrunner.storage.reading.verify import verify
from jobrunner.storage.tables import define as t
from tests.support.stage import T0, Stage, triggered


async def furnished(stage: Stage) -> Stage:
    """Workers `a` and `b`, two of `wide` at a time, `x` blocks `y`, `later` depends on `a`; the clock an hour on."""
    await stage.register(
        triggered("a"),
        triggered("wide", max_running=2),
        triggered("x", blocks=["y"]),
        triggered("y", max_running=3),
        triggered("later", depends_on=["a"], max_running=9),
    )
    await stage.join("n1")
    stage.after(3600)
    return stage


async def broken(stage: Stage, tolerance: float = 0.0, days: float = 30.0) -> list[Violation]:
    scope = Scope(stage.now, days, days, timedelta(seconds=tolerance))
    return [violation async for violation in verify(stage.db, scope)]


async def only(stage: Stage, promise: int, *parts: str, **how: float) -> Violation:
    """The one violation there is, which is of `promise` and says `parts`."""
    (violation,) = await broken(stage, **how)
    assert violation.promise == promise
    for part in parts:
        assert part in violation.problem
    assert violation.rows
    return violation


async def plant(stage: Stage, run_id: int, worker: str, start: float, end: float, **more: Any) -> None:
    """An attempt in history, from `start` to `end` seconds after T0, that succeeded unless said otherwise."""
    row = {
        "run_id": run_id,
        "fence": run_id * 10,
        "worker": worker,
        "trigger": "manual",
        "attempt": 1,
        "outcome": "succeeded",
        "ends_run": "succeeded",
        "is_forced": False,
        "scheduled_for": T0,
        "due_at": T0,
        "started_at": T0 + timedelta(seconds=start),
        "finished_at": T0 + timedelta(seconds=end),
        **more,
    }
    s = t.worker_state
    drawn = sa.update(s).where(s.c.worker == worker, s.c.last_fence < (row["fence"] or 0))
    async with stage.db.write() as conn:
        await conn.execute(sa.insert(t.run_history), [row])
        await conn.execute(drawn.values(last_fence=row["fence"]))


async def plant_letter(stage: Stage, run_id: int, worker: str = "a", **more: Any) -> None:
    row = {"run_id": run_id, "worker": worker, "trigger": "manual", "priority": 1, "scheduled_for": T0}
    more = {"payload": {}, "attempts": 1, "error": "no luck", "errors": [], "died_at": T0, "status": "open", **more}
    async with stage.db.write() as conn:
        await conn.execute(sa.insert(t.dead_letters), [{**row, **more}])
