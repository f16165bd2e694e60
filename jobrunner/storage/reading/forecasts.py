"""Reading what the play of the time ahead needs (`policy.forecast`), and playing it.

Bounded: the `MOST_WORKERS` schedules that fire next, with all they are related to; at most as many that share a limit
with these; of what waits the first runs; of each worker's history the newest `_NEWEST` rows, for how long its runs
usually take.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from statistics import median
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.model.facts import Candidate
from jobrunner.model.run import OutcomeKind
from jobrunner.policy.durations import show_seconds
from jobrunner.policy.forecast import LATE, MOST_PLAYED, Forecast, play
from jobrunner.storage.database.rowsets import built_once
from jobrunner.storage.reading.nodes_heard import read_nodes_heard
from jobrunner.storage.reading.status import read_schedules
from jobrunner.storage.runs import facts as reading
from jobrunner.storage.tables import define as t
from jobrunner.storage.tables.rows import names_json

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

    from jobrunner.model.facts import LimitFacts, WorkerFacts
    from jobrunner.policy.upcoming import Upcoming
    from jobrunner.storage.database.dialect import Dialect

MOST_WORKERS = 1000
_MOST_PLANNED = 1000
_MOST_LOOPS = 5
_NEWEST, _COUNTED = 50, 20
_MANY_SLOTS = 2**31
_STARTS_A_ROW = 2  # what the listing does not show is played, too
_PENDING: sa.ColumnElement[bool] = sa.literal_column("runs.state = 'pending'")


@dataclass(frozen=True, slots=True)
class Ahead:
    """The time ahead as it was played; `cut` says where and why it was not played to its end, `loops` what loops."""

    forecast: Forecast
    cut: str | None
    loops: str | None

    def row(self, listed: Upcoming) -> dict[str, Any]:
        """Return a row of the listing with `starts_at`, when it will start, and in its note why not earlier."""
        found = asdict(listed)
        if listed.due_at is None:
            return {**found, "starts_at": None}
        expected = self.forecast.of(listed.worker, listed.due_at, listed.run_id)
        is_said = expected.note is not None and expected.note not in (listed.note or "")
        said = "; ".join(filter(None, [listed.note, expected.note if is_said else None])) or None
        return {**found, "note": said, "starts_at": expected.starts_at}

    def is_late(self, listed: Upcoming) -> bool:
        """Say whether a time is listed that will start later than it is due, by a second or more, or not at all."""
        if listed.due_at is None:
            return False
        expected = self.forecast.of(listed.worker, listed.due_at, listed.run_id)
        if expected.starts_at is None:
            return expected.note is not None
        return expected.starts_at - listed.due_at >= LATE


@built_once
def _durations(dialect: Dialect) -> sa.Select[Any]:
    h = t.run_history
    return dialect.newest_ends("names", [h.c.worker, h.c.id, h.c.outcome, h.c.duration_ms], _NEWEST)


async def read_usual(conn: AsyncConnection, dialect: Dialect, names: Collection[str]) -> dict[str, timedelta]:
    """Return how long the runs of workers usually take: the median of the newest 20 successes, where there are any."""
    lengths: defaultdict[str, dict[int, int]] = defaultdict(dict)
    succeeded = str(OutcomeKind.SUCCEEDED)
    for worker, row_id, outcome, duration_ms in await conn.execute(_durations(dialect), {"names": names_json(names)}):
        if outcome == succeeded and duration_ms is not None:
            lengths[worker][row_id] = duration_ms
    return {
        name: timedelta(milliseconds=median(found[run_id] for run_id in sorted(found)[-_COUNTED:]))
        for name, found in lengths.items()
    }


@dataclass(frozen=True, slots=True)
class ToPlay:
    """All that was read for a play: after that it needs no connection any more."""

    workers: Mapping[str, WorkerFacts]
    limits: Mapping[str, LimitFacts]
    usual: Mapping[str, timedelta]
    slots: int
    now: datetime
    until: datetime
    starts: int
    is_whole: bool
    has_more: bool
    loops: str | None

    def play(self) -> Ahead:
        """Play it: up to a second of computing, of which an event loop that answers others should be kept free."""
        forecast = play(self.workers, self.usual, self.slots, self.now, self.until, self.starts, self.limits)
        cut = None
        if self.has_more:
            cut = (
                f"of more than {MOST_WORKERS:,} schedules those that fire next were played; of others no start is said"
            )
        elif self.is_whole and forecast.until < self.until:
            cut = "so much starts that the time was not played to its end; after that no start is said"
        return Ahead(forecast, cut, self.loops)


async def read_ahead(
    conn: AsyncConnection,
    dialect: Dialect,
    now: datetime,
    until: datetime,
    worker: str | None = None,
    rows: int | None = None,
) -> Ahead:
    """Play the time from `now` to `until`; of `worker` and what it is related to, if it is given.

    With `rows` only as far as the first so many rows of the listing need it; then nothing is said to be cut.
    """
    return (await read_to_play(conn, dialect, now, until, worker, rows)).play()


async def read_to_play(
    conn: AsyncConnection,
    dialect: Dialect,
    now: datetime,
    until: datetime,
    worker: str | None = None,
    rows: int | None = None,
    most_played: int = MOST_PLAYED,
) -> ToPlay:
    """Read what `read_ahead` plays, of which there shall be at most `most_played` starts."""
    most = MOST_WORKERS if rows is None else min(rows, MOST_WORKERS)
    schedules = await read_schedules(conn, worker, most=most + 1)
    names = {config.name for config, _ in schedules[:most]}
    planned = await _read_planned(conn, now, until, worker)
    _, rooms = await read_nodes_heard(conn, now)
    free = sum(room.free_slots for room in rooms)
    names |= planned.keys()
    names |= await _read_sharing(conn, dialect, names)
    around, _ = await reading.read_around(
        conn, dialect, now, names, reading.Here(handlers=None), min(max(free, 1), _MOST_PLANNED)
    )
    workers = {name: _with_planned(each, planned.get(name, [])) for name, each in around.workers.items()}
    if not rooms:  # without a node nothing starts at all; it is played as if one were there
        workers = {name: replace(each, has_handler=True, has_handler_elsewhere=True) for name, each in workers.items()}
    is_whole = rows is None
    return ToPlay(
        workers,
        around.limits,
        await read_usual(conn, dialect, workers),
        free + sum(len(each.active) for each in workers.values()) if rooms else _MANY_SLOTS,
        now,
        until,
        most_played if rows is None else min(_STARTS_A_ROW * rows, most_played),
        is_whole,
        is_whole and len(schedules) > MOST_WORKERS,
        await _read_loops(conn, dialect) if is_whole and worker is None else None,
    )


@built_once
def _sharing(dialect: Dialect) -> sa.Select[Any]:
    """The workers that share a limit with :names, or with one of those that do, and so on."""
    given, wl, other = dialect.rows("names", name=sa.Text()), t.worker_limits, t.worker_limits.alias()
    found = sa.select(wl.c.limit_name).where(wl.c.worker.in_(sa.select(given.c.name))).cte("found", recursive=True)
    further = found.join(wl, wl.c.limit_name == found.c.limit_name).join(other, other.c.worker == wl.c.worker)
    found = found.union(sa.select(other.c.limit_name).select_from(further))
    sharing = sa.select(wl.c.worker).where(wl.c.limit_name.in_(sa.select(found.c.limit_name)))
    return sharing.distinct().limit(MOST_WORKERS)


async def _read_sharing(conn: AsyncConnection, dialect: Dialect, names: Collection[str]) -> set[str]:
    rows = await conn.execute(_sharing(dialect), {"names": names_json(names)})
    return set(rows.scalars())


async def _read_planned(
    conn: AsyncConnection, now: datetime, until: datetime, worker: str | None
) -> dict[str, list[Candidate]]:
    """Read the runs that wait for a time up to `until`, the first of them by worker."""
    r = t.runs
    columns = [r.c.worker, r.c.id, r.c.priority, r.c.due_at, r.c.attempt, r.c.is_forced, r.c.first_started_at]
    later = sa.select(*columns, r.c.limit_key).where(_PENDING, r.c.due_at > now, r.c.due_at <= until)
    if worker is not None:
        later = later.where(r.c.worker == worker)
    found: defaultdict[str, list[Candidate]] = defaultdict(list)
    for row in await conn.execute(later.order_by(r.c.due_at).limit(_MOST_PLANNED)):
        has_started = row.first_started_at is not None
        run = Candidate(*row[:5], bool(row.is_forced), has_started, row.limit_key)
        found[row.worker].append(run)
    return dict(found)


def _with_planned(worker: WorkerFacts, planned: list[Candidate]) -> WorkerFacts:
    known = {run.id for run in worker.waiting}
    return replace(worker, waiting=(*worker.waiting, *(run for run in planned if run.id not in known)))


async def _read_loops(conn: AsyncConnection, dialect: Dialect) -> str | None:
    """Say in a line what loops, how long a turn usually takes, and how far apart they are; None without any."""
    w = t.workers
    loops = sa.select(w.c.name, w.c.interval_seconds).where(w.c.execution_mode == "continuous").order_by(w.c.name)
    rows = (await conn.execute(loops.limit(_MOST_LOOPS + 1))).all()
    if not rows:
        return None
    usual = await read_usual(conn, dialect, [row.name for row in rows])
    said = [_show_loop(row.name, row.interval_seconds, usual) for row in rows[:_MOST_LOOPS]]
    more = " and others" if len(rows) > _MOST_LOOPS else ""
    return f"not listed, since they loop: {', '.join(said)}{more}"


def _show_loop(name: str, pause: float | None, usual: Mapping[str, timedelta]) -> str:
    length = usual.get(name)
    took = "" if length is None else f"usually {show_seconds(length.total_seconds())}, "
    return f"{name} ({took}{show_seconds(pause or 0.0)} apart)"
