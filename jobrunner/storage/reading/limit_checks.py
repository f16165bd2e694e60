"""What `db verify` checks of limits, promise 3: of a key, of a rate, and of limits that workers share.

The database sorts the attempts under each limit by their starts, along the indexes that the gates read, and
`policy.limit_sweep` judges them one by one: what is kept is what ran at once, or what one window holds. Of each limit,
and each key, the first start that was one too many is told. Only what started since the definitions involved last
changed is judged. Workers without a limit cost nothing.
"""

from __future__ import annotations

from collections import defaultdict, deque
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.policy.limit_sweep import Begun, Holders, OneTooMany, Starts
from jobrunner.policy.rates import Rate, rate_of
from jobrunner.storage.reading.findings import Scope, Violation, stream
from jobrunner.storage.tables import define as t
from jobrunner.storage.tables.claims import is_active

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

    Found = AsyncIterator[tuple[datetime, Violation]]

_SHOWN_ROWS = 10
_RATED: sa.ColumnElement[bool] = sa.literal_column("run_history.is_rated")
_KEYED: sa.ColumnElement[bool] = sa.literal_column("run_history.limit_key IS NOT NULL")
_ACTIVE: sa.ColumnElement[bool] = is_active()
_BY_START = (t.run_history.c.started_at, t.run_history.c.is_forced, t.run_history.c.id)


class _Judge:
    """The judges of one limit: how many run at once, how many start in a window, or both."""

    def __init__(self, what: str, most: int | None, rate: Rate | None, said: str | None, scope: Scope) -> None:
        self._what, self._most, self._said = what, most, said
        self._holders = None if most is None else Holders(most, scope.tolerance)
        self._starts = None if rate is None else Starts(rate, scope.tolerance)

    def add(self, begun: Begun) -> list[tuple[datetime, Violation]]:
        """Take the next start; return what is wrong with it, of either kind the first time only."""
        found = []
        held = None if self._holders is None else self._holders.add(begun)
        if held is not None:
            self._holders = None
            problem = f"{self._what}: {held.count} runs at once at {held.at}, the most is {self._most}"
            found.append((held.at, Violation(3, problem, _rows(held))))
        started = None if self._starts is None else self._starts.add(begun)
        if started is not None:
            self._starts = None
            problem = (
                f"{self._what}: run {begun.run_id} started at {started.at}, more than its rate {self._said} allows"
            )
            found.append((started.at, Violation(3, problem, _rows(started))))
        return found


async def check_limits(conn: AsyncConnection, scope: Scope) -> Found:
    """Promise 3: no limit was ever passed. Yield when one was, and what was wrong."""
    active = await _active(conn)
    w = t.workers.c
    is_limited = sa.or_(w.limit_key.is_not(None), w.rate.is_not(None))
    columns = (w.name, w.limit_key, w.max_running_per_key, w.ordered, w.rate, w.rate_per_key, w.smooth, w.updated_at)
    for row in (await conn.execute(sa.select(*columns).where(is_limited).order_by(w.name))).all():
        async for found in _worker(conn, scope, row, active[row.name]):
            yield found
        async for found in _keys(conn, scope, row, active[row.name]):
            yield found
    n = t.limits.c
    limits = sa.select(n.name, n.max_running, n.rate, n.updated_at).order_by(n.name)
    for limit in (await conn.execute(limits)).all():
        async for found in _shared(conn, scope, limit, active):
            yield found


async def _worker(conn: AsyncConnection, scope: Scope, row: Any, active: list[Any]) -> Found:
    rate = rate_of(row.rate, smooth=row.smooth)
    if rate is None:
        return
    h = t.run_history.c
    begun = _begun().where(h.worker == row.name, _RATED, h.started_at >= row.updated_at).order_by(*_BY_START)
    now: dict[str | None, list[Begun]] = {None: [_of(each) for each in active if each.started_at >= row.updated_at]}

    def judge(_key: str | None) -> _Judge:
        return _Judge(row.name, None, rate, _said(row.rate, row.smooth), scope)

    async for found in _judged(conn, begun, now, judge):
        yield found


async def _keys(conn: AsyncConnection, scope: Scope, row: Any, active: list[Any]) -> Found:
    most = 1 if row.ordered else row.max_running_per_key
    rate = rate_of(row.rate_per_key, smooth=row.smooth)
    if row.limit_key is None or (most is None and rate is None):
        return
    h = t.run_history.c
    begun = _begun(h.limit_key).where(h.worker == row.name, _KEYED, h.started_at >= row.updated_at)
    now: defaultdict[str | None, list[Begun]] = defaultdict(list)
    for each in active:
        if each.limit_key is not None and each.started_at >= row.updated_at:
            now[each.limit_key].append(_of(each))

    def judge(key: str | None) -> _Judge:
        what = f"{row.name}, key {row.limit_key}={key}"
        return _Judge(what, most, rate, _said(row.rate_per_key, row.smooth), scope)

    async for found in _judged(conn, begun.order_by(h.limit_key, *_BY_START), now, judge):
        yield found


async def _shared(conn: AsyncConnection, scope: Scope, row: Any, active: Mapping[str, list[Any]]) -> Found:
    rate = rate_of(row.rate)
    if rate is None and row.max_running is None:
        return
    h, w, wl = t.run_history, t.workers, t.worker_limits
    sharing = sa.select(w.c.name, w.c.updated_at).join(wl, wl.c.worker == w.c.name).where(wl.c.limit_name == row.name)
    since = {name: max(updated_at, row.updated_at) for name, updated_at in (await conn.execute(sharing)).all()}
    begun = (
        _begun()
        .select_from(wl.join(w, w.c.name == wl.c.worker).join(h, h.c.worker == wl.c.worker))
        .where(wl.c.limit_name == row.name, h.c.started_at >= w.c.updated_at, h.c.started_at >= row.updated_at)
    )
    if row.rate is not None:  # all that started under it since are in the index
        begun = begun.where(_RATED)
    now: dict[str | None, list[Begun]] = {
        None: [_of(each) for name in since for each in active[name] if each.started_at >= since[name]]
    }

    def judge(_key: str | None) -> _Judge:
        return _Judge(f"limit {row.name}", row.max_running, rate, row.rate, scope)

    async for found in _judged(conn, begun.order_by(*_BY_START), now, judge):
        yield found


async def _judged(
    conn: AsyncConnection,
    ended: sa.Select[Any],
    now: Mapping[str | None, list[Begun]],
    judge: Callable[[str | None], _Judge],
) -> Found:
    """Judge what has ended and what runs now, a key at a time."""
    current: tuple[str | None, _Judge] | None = None
    async for key, begun in _in_order(conn, ended, now):
        if current is None or current[0] != key:
            current = key, judge(key)
        for found in current[1].add(begun):
            yield found


async def _in_order(
    conn: AsyncConnection, ended: sa.Select[Any], now: Mapping[str | None, list[Begun]]
) -> AsyncIterator[tuple[str | None, Begun]]:
    """Lay what runs now between what has ended: all of a key together, in the order of their starts."""
    running = {key: deque(sorted(each, key=_place)) for key, each in now.items()}
    last: str | None = None
    async for row in stream(conn, ended):
        if row.key != last:
            for left in running.pop(last, ()):
                yield last, left
            last = row.key
        begun = Begun(row.started_at, row.is_forced, row.run_id, row.finished_at)
        own = running.get(last)
        while own and _place(own[0]) < _place(begun):
            yield last, own.popleft()
        yield last, begun
    for key in sorted(running, key=lambda key: key != last):
        for left in running[key]:
            yield key, left


def _begun(key: sa.ColumnElement[Any] | None = None) -> sa.Select[Any]:
    h = t.run_history.c
    key = sa.null() if key is None else key
    return sa.select(key.label("key"), h.started_at, h.is_forced, h.run_id, h.finished_at)


async def _active(conn: AsyncConnection) -> defaultdict[str, list[Any]]:
    """Read what runs now, by worker: no more than there are slots."""
    r = t.runs.c
    found: defaultdict[str, list[Any]] = defaultdict(list)
    for row in await conn.execute(sa.select(r.worker, r.id, r.started_at, r.is_forced, r.limit_key).where(_ACTIVE)):
        found[row.worker].append(row)
    return found


def _of(row: Any) -> Begun:
    return Begun(row.started_at, bool(row.is_forced), row.id)


def _place(begun: Begun) -> tuple[datetime, bool]:
    return begun.started, begun.is_forced


def _said(rate: str | None, smooth: bool) -> str | None:
    return f"{rate}, evenly," if smooth else rate


def _rows(found: OneTooMany) -> tuple[str, ...]:
    return tuple(f"run_history.run_id={run_id}" for run_id in found.run_ids[-_SHOWN_ROWS:])
