"""The look: finding incidents that last, and those that are over, some workers at a time.

Any node looks, each few seconds. It reads in some parts, each a snapshot, without a lock; a part that fails leaves its
facts unknown, and the others are judged all the same. Then it writes what `policy.alerts` decides in one transaction
that begins by proving that no other node has looked meanwhile: the rule that comes first by name holds the time of the
last look, and only who finds there what it has read may change it. Who does not has looked in vain.

Each look takes the next workers in the order of names, as many as can be read in a quarter of a second, those with an
open incident, and those that are suspected; each node remembers what it suspects itself. Where a look ended stands in
the same row, so that the looks of all nodes together go round.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import sqlalchemy as sa

from jobrunner.errors import is_outage
from jobrunner.model.alerts import AlertKind, AlertRule, Happened, Incident, MessageKind, Told
from jobrunner.policy.alerts import (
    OF_HEALTH,
    Cleared,
    Closed,
    Decided,
    Facts,
    Seen,
    decide,
    recovered,
    summary_of,
    wants,
)
from jobrunner.storage.database.rowsets import same
from jobrunner.storage.reading.status import worker_status
from jobrunner.storage.records.alerts import message_row, open_incident, read_rules, write_messages
from jobrunner.storage.tables import define as t
from jobrunner.storage.tables.alert_tables import IS_OPEN
from jobrunner.storage.tables.kept_tables import LETTER_IS_OPEN

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

    from jobrunner.policy.alerts import Place
    from jobrunner.storage.database.database import Database

T = TypeVar("T")
_FIRST_PAGE, _LEAST_PAGE, _LARGEST_PAGE = 200, 20, 5000
_LONG_SECONDS, _SHORT_SECONDS = 0.25, 0.05
_MOST_INCIDENTS = 500
_MOST_LETTERS = 100  # of a worker: so many may stand out of the order of their times
_MOST_SUSPECTED = 5000
_NOBODY: tuple[dict[str, Seen], frozenset[str]] = {}, frozenset()
_OPEN: sa.ColumnElement[bool] = sa.literal_column(IS_OPEN)
_LASTING = OF_HEALTH | {AlertKind.BACKLOG}


@dataclass(frozen=True, slots=True)
class _Last:
    """The look before: when, how far it went, and the rule in which that stands."""

    rule: str
    at: datetime | None
    to: str


class Look:
    """Looks with one database; see the module.

    It remembers how many workers it can read, which incidents, and what it suspects. `on_trouble` is told of a part of
    a look that failed while the database can be used.
    """

    def __init__(
        self,
        db: Database,
        interval_seconds: float,
        calm_seconds: float,
        sure_seconds: float,
        on_trouble: Callable[[Exception], None],
    ) -> None:
        self._db = db
        self._interval = interval_seconds
        self._calm = calm_seconds
        self._sure = sure_seconds
        self._on_trouble = on_trouble
        self._page = _FIRST_PAGE
        self._after_incident = 0
        self._suspected: Mapping[Place, datetime] = {}

    def forget(self) -> None:
        """Suspect nothing any more: what was seen before an outage of the database says nothing about what is."""
        self._suspected = {}

    async def look(self, now: datetime) -> bool:
        """Look, unless a node has just done so; say whether there is any rule."""
        async with self._db.peek() as conn:
            last = await _read_last(conn)
        if last is None:
            return False
        if last.at is not None and abs(now - last.at) < timedelta(seconds=self._interval * 0.9):
            return True
        async with self._db.read() as conn:
            rules = await read_rules(conn)
            incidents = await self._incidents(conn)
        # Each part sees what is at least as new as the incidents: one that has happened again since is not closed.
        unseen: tuple[dict[str, Seen], str] = {}, last.to
        workers, to = await self._part(lambda conn: self._workers(conn, rules, last.to), unseen)
        named = {each.worker for each in incidents if each.worker is not None} - workers.keys()
        more, gone = await self._part(lambda conn: _named(conn, rules, named), _NOBODY)
        workers |= more
        facts = Facts(
            workers,
            gone,
            await self._part(lambda conn: _resolved(conn, incidents), frozenset()),
            await self._part(lambda conn: _live(conn, incidents), frozenset()),
            self._suspected,
            await self._part(lambda conn: _known(conn, workers), frozenset()),
        )
        decided = decide(rules, incidents, facts, now, self._calm, self._sure)
        async with self._db.write() as conn:
            is_first = await _is_first(conn, last, now, to)
            if is_first and not decided.is_nothing:
                await _write(self._db, conn, rules, incidents, decided, now)
        self._suspect(decided, workers, is_written=is_first)
        return True

    async def _part(self, read: Callable[[AsyncConnection], Awaitable[T]], unknown: T) -> T:
        """Return what `read` does, or `unknown` if it fails while the database can be used."""
        try:
            async with self._db.read() as conn:
                return await read(conn)
        except Exception as error:
            if is_outage(error):
                raise
            self._on_trouble(error)
            return unknown

    def _suspect(self, decided: Decided, seen: Collection[str], *, is_written: bool) -> None:
        """Keep what was suspected of workers that were not seen now, and what was not written."""
        opened = set() if is_written else {(kind, each.worker) for kind, each in decided.opened}
        kept = {p: since for p, since in self._suspected.items() if p[1] not in seen or p in opened}
        self._suspected = dict(islice((kept | dict(decided.suspected)).items(), _MOST_SUSPECTED))

    async def _incidents(self, conn: AsyncConnection) -> list[Incident]:
        """Return the next open incidents by id, beginning anew after the last."""
        a = t.alerts
        statement = sa.select(a).where(_OPEN, a.c.id > self._after_incident).order_by(a.c.id).limit(_MOST_INCIDENTS)
        rows = (await conn.execute(statement)).all()
        self._after_incident = rows[-1].id if len(rows) == _MOST_INCIDENTS else 0
        told = await _read_told(conn, [row.id for row in rows])
        return [
            Incident(
                row.id,
                AlertKind(row.kind),
                row.subject,
                row.worker,
                row.opened_at,
                row.last_at,
                row._mapping[a.c.count],
                row.clear_since,
                told.get(row.id, {}),
            )
            for row in rows
        ]

    async def _workers(
        self, conn: AsyncConnection, rules: Sequence[AlertRule], after: str
    ) -> tuple[dict[str, Seen], str]:
        """Return how the suspected workers are and the next ones, if any rule asks for it, and the name to go on from.

        At the end of all that name is empty.
        """
        if not any(rule.kinds & _LASTING for rule in rules):
            return {}, ""
        v = worker_status()
        began, count = time.monotonic(), 0
        try:
            names = [name for _, name in sorted(self._suspected, key=self._suspected.__getitem__)]
            held = list(dict.fromkeys(names))[: self._page]
            seen = await _read_seen(conn, _seen(rules).where(v.c.name.in_(held))) if held else {}
            most = max(self._page - len(held), _LEAST_PAGE)
            page = await _read_seen(conn, _seen(rules).where(v.c.name > after).order_by(v.c.name).limit(most))
            count = len(seen) + len(page)
        finally:  # one that was given up for the time it took is followed by a smaller one
            self._fit_page(time.monotonic() - began, count)
        return seen | page, list(page)[-1] if len(page) == most else ""

    def _fit_page(self, seconds: float, count: int) -> None:
        if seconds > _LONG_SECONDS:
            self._page = max(self._page // 2, _LEAST_PAGE)
        elif seconds < _SHORT_SECONDS and count >= self._page:
            self._page = min(self._page * 2, _LARGEST_PAGE)


async def _read_last(conn: AsyncConnection) -> _Last | None:
    r = t.alert_rules
    row = (await conn.execute(sa.select(r.c.name, r.c.looked_at, r.c.looked_to).order_by(r.c.name).limit(1))).first()
    return None if row is None else _Last(*row)


async def _is_first(conn: AsyncConnection, last: _Last, now: datetime, to: str) -> bool:
    """Note this look; say whether no other was noted since the one before was read."""
    r = t.alert_rules
    same = r.c.looked_at.is_(None) if last.at is None else r.c.looked_at == last.at
    noted = sa.update(r).where(r.c.name == last.rule, same).values(looked_at=now, looked_to=to).returning(r.c.name)
    return (await conn.execute(noted)).first() is not None


def _seen(rules: Sequence[AlertRule]) -> sa.Select[Any]:
    """Select how workers are; how many runs wait is counted only where a rule asks."""
    v = worker_status()
    counts = any(AlertKind.BACKLOG in rule.kinds for rule in rules)
    return sa.select(
        v.c.name,
        v.c.health,
        v.c.pending_runs if counts else sa.literal_column("0").label("pending_runs"),
        v.c.disabled_by,
        v.c.circuit_state,
        v.c.consecutive_failures,
        v.c.last_error,
    )


def _seen_of(row: Any) -> Seen:
    name, health, waiting, disabled_by, circuit, failures, error = row
    return Seen(name, health, waiting or 0, disabled_by, circuit or "closed", failures or 0, error)


async def _read_seen(conn: AsyncConnection, statement: sa.Select[Any]) -> dict[str, Seen]:
    return {each.worker: each for each in map(_seen_of, await conn.execute(statement))}


async def _named(
    conn: AsyncConnection, rules: Sequence[AlertRule], names: Collection[str]
) -> tuple[dict[str, Seen], frozenset[str]]:
    """Return how the workers of incidents are, and which of them are gone."""
    if not names:
        return _NOBODY
    found = await _read_seen(conn, _seen(rules).where(worker_status().c.name.in_(sorted(names))))
    return found, frozenset(names - found.keys())


async def _known(conn: AsyncConnection, names: Collection[str]) -> frozenset[Place]:
    """Return the open incidents of workers that last."""
    a = t.alerts
    found = sa.select(a.c.kind, a.c.subject).where(_OPEN, a.c.kind.in_(sorted(_LASTING)))
    rows = await conn.execute(found.where(a.c.subject.in_(sorted(names)))) if names else ()
    return frozenset((AlertKind(row.kind), row.subject) for row in rows)


async def _resolved(conn: AsyncConnection, incidents: Sequence[Incident]) -> frozenset[int]:
    """Return which incidents have no open dead letter that came since they began.

    Only the newest open letters of a worker are asked: they are in the order of the writes, nearly that of the times.
    """
    d, a = t.dead_letters, t.alerts
    ids = [incident.id for incident in incidents if incident.kind is AlertKind.DEAD_LETTER]
    if not ids:
        return frozenset()
    newest = (
        sa.select(d.c.died_at)
        .where(sa.literal_column(LETTER_IS_OPEN), same(d.c.worker, a.c.worker))
        .order_by(d.c.worker.desc(), d.c.id.desc())
        .limit(_MOST_LETTERS)
        .correlate(a)
        .subquery()
    )
    is_open = sa.exists().where(newest.c.died_at >= a.c.opened_at).correlate(a)
    rows = await conn.execute(sa.select(a.c.id).where(a.c.id.in_(ids), sa.not_(is_open)))
    return frozenset(rows.scalars())


async def _live(conn: AsyncConnection, incidents: Sequence[Incident]) -> frozenset[str]:
    """Return which hosts that have lost a node have a live one."""
    n = t.nodes
    hosts = {incident.subject for incident in incidents if incident.kind is AlertKind.NODE_LOST}
    if not hosts:
        return frozenset()
    live: sa.ColumnElement[bool] = sa.literal_column("nodes.state IN ('active', 'draining')")
    rows = await conn.execute(sa.select(n.c.hostname).where(live, n.c.hostname.in_(sorted(hosts))).distinct())
    return frozenset(rows.scalars())


async def _read_told(conn: AsyncConnection, ids: Sequence[int]) -> dict[int, dict[str, Told]]:
    """Return the last message of each incident and rule."""
    d = t.alert_deliveries
    if not ids:
        return {}
    last = sa.select(sa.func.max(d.c.id)).where(d.c.alert_id.in_(list(ids))).group_by(d.c.alert_id, d.c.rule).subquery()
    statement = sa.select(d.c.alert_id, d.c.rule, d.c.created_at, d.c.count, d.c.sent_at, d.c.given_up_at)
    found: dict[int, dict[str, Told]] = {}
    for row in await conn.execute(statement.where(d.c.id.in_(sa.select(last)))):
        is_waiting = row.sent_at is None and row.given_up_at is None
        found.setdefault(row.alert_id, {})[row.rule] = Told(row.created_at, row._mapping[d.c.count], is_waiting)
    return found


async def _write(
    db: Database,
    conn: AsyncConnection,
    rules: Sequence[AlertRule],
    incidents: Sequence[Incident],
    decided: Decided,
    now: datetime,
) -> None:
    rows = [message_row(each.alert_id, each.rule, each.kind, each.count, now) for each in decided.messages]
    for kind, seen in sorted(decided.opened, key=lambda each: (each[1].worker, each[0])):
        what = Happened(kind, seen.worker, seen.worker, now, summary_of(kind, seen))
        alert_id = await open_incident(conn, db.dialect, what)
        if alert_id is not None:
            told = [r.name for r in rules if wants(r, kind, seen.worker) and _is_enough(r, kind, seen)]
            rows += [message_row(alert_id, rule, MessageKind.OPEN, 1, now) for rule in told]
    known = {incident.id: incident for incident in incidents}
    changes: list[Cleared | Closed] = [*decided.cleared, *decided.closed]
    there = {rule.name for rule in rules}
    # In the order in which ends of runs count in the same incidents: else each might wait for the other.
    for change in sorted(changes, key=lambda change: (known[change.alert_id].subject, known[change.alert_id].kind)):
        incident = known[change.alert_id]
        if await _change(conn, incident, change, now):
            told = [rule for rule in incident.told if rule in there]
            rows += [message_row(incident.id, rule, MessageKind.CLOSE, incident.count, now) for rule in told]
    await write_messages(conn, db.dialect, rows)


async def _change(conn: AsyncConnection, incident: Incident, change: Cleared | Closed, now: datetime) -> bool:
    """Write what becomes of an open incident; say whether it is closed now."""
    a = t.alerts
    mine = a.c.id == incident.id, _OPEN
    if isinstance(change, Cleared):
        await conn.execute(sa.update(a).where(*mine).values(clear_since=change.since))
        return False
    lasted = (now - incident.opened_at).total_seconds()
    values = {"closed_at": now, "recovered": recovered(incident.kind, incident.worker, lasted, change.summary)}
    unchanged = a.c.last_at == change.last_at, a.c.count == incident.count  # else it has happened again since
    closed = await conn.execute(sa.update(a).where(*mine, *unchanged).values(**values).returning(a.c.id))
    return closed.first() is not None


def _is_enough(rule: AlertRule, kind: AlertKind, seen: Seen) -> bool:
    return kind is not AlertKind.BACKLOG or seen.waiting_runs >= rule.backlog_runs
