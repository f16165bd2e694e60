"""Reading what was recorded of some workers around a moment: attempts, missed times, decisions.

Of each worker the `WINDOW_ROWS` rows of history before the moment and those after it, found by id: the rows of a
worker lie nearly in the order of their ends. Beside them its live runs and its newest `_MOST_DECISIONS` switches.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.model.past import Passed, Past, Spell, Switch
from jobrunner.model.run import EndsRun, OutcomeKind, Trigger
from jobrunner.policy.past_states import SWITCHES, config_at
from jobrunner.storage.database.rowsets import built_once, same
from jobrunner.storage.runs.fact_statements import PRIORITIES
from jobrunner.storage.tables import define as t
from jobrunner.storage.tables.claims import is_active
from jobrunner.storage.tables.rows import names_json
from jobrunner.storage.tables.types import UtcDateTime

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

    from jobrunner.model.facts import WorkerFacts
    from jobrunner.storage.database.dialect import Dialect

WINDOW_ROWS = 300
OTHERS_ROWS = 2000
"""So many attempts of all workers, those that ended first after the moment, are looked at for the slots they held."""
_MOST_DECISIONS = 500
_MOST_WAITING = 100  # of each priority
_OUT_OF_ORDER = 100  # rows by which the order of ids and that of ends may differ
_HISTORY = (
    "id",
    "run_id",
    "trigger",
    "attempt",
    "is_forced",
    "scheduled_for",
    "due_at",
    "started_at",
    "node_id",
    "fence",
    "finished_at",
    "outcome",
    "ends_run",
    "error_type",
    "error",
    "reason",
    "duration_ms",
    "limit_key",
    "is_rated",
    "occurrences",
)
_LIVE = (
    "id",
    "worker",
    "trigger",
    "attempt",
    "is_forced",
    "scheduled_for",
    "due_at",
    "started_at",
    "node_id",
    "fence",
    "priority",
    "created_at",
    "first_started_at",
    "limit_key",
)


@dataclass(frozen=True, slots=True)
class Held:
    """A slot of a node that was taken at the moment; whose run it was."""

    run_id: int
    node_id: str
    worker: str
    started_at: datetime


@dataclass(slots=True)
class Recorded:
    """What was recorded around a moment.

    `held` are the slots that were taken then; `known_id` is the highest id of a run that there was by then; `oldest` is
    the first end that history still has, None if nothing was pruned. `cut` are workers of which history has more after
    the moment than was read, `since` those of which it has more before it, with when the first end was that was read,
    and `changed` those whose definition was changed since, with when. `held_until`: what
    ended later than that, and held a slot, is not in `held`.
    """

    pasts: dict[str, Past] = field(default_factory=dict)
    held: list[Held] = field(default_factory=list)
    known_id: int = 0
    oldest: datetime | None = None
    cut: list[str] = field(default_factory=list)
    since: dict[str, datetime] = field(default_factory=dict)
    changed: dict[str, datetime] = field(default_factory=dict)
    held_until: datetime | None = None


@dataclass(frozen=True)
class _Statements:
    live: sa.Select[Any]
    active: sa.Select[Any]
    born: sa.Select[Any]
    oldest: sa.Select[Any]
    others: sa.Select[Any]
    ended: sa.Select[Any]
    before: sa.Select[Any]
    after: sa.Select[Any]
    switches: sa.Select[Any]


@built_once
def _statements(dialect: Dialect) -> _Statements:
    r, h, w, a = t.runs, t.run_history, t.workers, t.audit_log
    given = dialect.rows("names", name=sa.Text())
    live = [r.c[name] for name in _LIVE]
    moment = sa.bindparam("at", type_=UtcDateTime())
    pivot = sa.bindparam("pivot", type_=sa.BigInteger())
    name = sa.bindparam("name", type_=sa.Text())
    mine = sa.select(*(h.c[column] for column in _HISTORY)).where(same(h.c.worker, name))
    others = (h.c.id, h.c.run_id, h.c.worker, h.c.node_id, h.c.started_at, h.c.finished_at)
    return _Statements(
        live=dialect.first_waiting("names", _number(_MOST_WAITING), PRIORITIES, live, is_due=None),
        active=sa.select(*live).where(is_active()),
        born=sa.select(w.c.name, w.c.created_at, w.c.updated_at).where(w.c.name.in_(sa.select(given.c.name))),
        oldest=sa.select(h.c.finished_at, sa.select(sa.func.min(h.c.id)).scalar_subquery().label("first_id"))
        .order_by(h.c.finished_at)
        .limit(_number(1)),
        others=sa.select(*others).where(h.c.finished_at > moment).order_by(h.c.finished_at).limit(_number(OTHERS_ROWS)),
        ended=sa.select(h.c.run_id)
        .where(h.c.finished_at <= moment)
        .order_by(h.c.finished_at.desc())
        .limit(_number(_OUT_OF_ORDER)),
        before=mine.where(h.c.id < pivot).order_by(h.c.worker.desc(), h.c.id.desc()).limit(_number(WINDOW_ROWS)),
        after=mine.where(h.c.id >= pivot).order_by(h.c.worker, h.c.id).limit(_number(WINDOW_ROWS)),
        switches=sa.select(a.c.at, a.c.action, a.c.actor, a.c.detail)
        .where(same(a.c.worker, name))
        .order_by(a.c.worker.desc(), a.c.id.desc())
        .limit(_number(_MOST_DECISIONS)),
    )


def _number(number: int) -> sa.ColumnElement[int]:
    return sa.literal_column(str(number))


async def read_recorded(
    conn: AsyncConnection, dialect: Dialect, at: datetime, now: datetime, workers: Mapping[str, WorkerFacts]
) -> Recorded:
    """Read what was recorded around `at` of `workers`, given as they are now."""
    found = Recorded()
    prepared, names = _statements(dialect), names_json(workers)
    live = await _read_live(conn, prepared, at, now, names, found)
    pivot = await _read_others(conn, prepared, at, found)
    oldest = (await conn.execute(prepared.oldest)).first()
    if oldest is not None and oldest.first_id > 1:  # the first row ever is gone: history was pruned
        found.oldest = oldest.finished_at
    for name, created_at, updated_at in await conn.execute(prepared.born, {"names": names}):
        spells, passed = await _read_history(conn, prepared, name, pivot, found)
        switches = await _read_switches(conn, prepared, name)
        if updated_at > at:
            found.changed[name] = updated_at
        config = config_at(workers[name].config, [each for each in switches if each.at > at])
        runs = _by_run([*spells, *live[name]])
        past = Past(config, created_at, runs, tuple(passed), tuple(reversed(switches)), workers[name].counterparts)
        found.pasts[name] = past
        started = [each.run_id for each in spells if each.has_started(at)]
        found.known_id = max([found.known_id, *started])
    return found


def _by_run(spells: list[Spell]) -> dict[int, tuple[Spell, ...]]:
    """Return the attempts by run, each run's in their order: by fence, what has not started last."""
    runs: defaultdict[int, dict[int | None, Spell]] = defaultdict(dict)
    for spell in spells:
        runs[spell.run_id][spell.fence] = spell
    last = 2**63
    return {
        run_id: tuple(sorted(each.values(), key=lambda spell: last if spell.fence is None else spell.fence))
        for run_id, each in runs.items()
    }


async def _read_live(
    conn: AsyncConnection, prepared: _Statements, at: datetime, now: datetime, names: str, found: Recorded
) -> defaultdict[str, list[Spell]]:
    runs: defaultdict[str, list[Spell]] = defaultdict(list)
    waiting = (await conn.execute(prepared.live, {"names": names, "now": now})).all()
    active = (await conn.execute(prepared.active)).all()
    for row in (*waiting, *active):
        spell = Spell(
            row.id,
            Trigger(row.trigger),
            row.attempt,
            bool(row.is_forced),
            row.scheduled_for,
            row.due_at,
            row.started_at,
            row.node_id,
            row.fence,
            priority=row.priority,
            created_at=row.created_at,
            first_started_at=row.first_started_at,
            limit_key=row.limit_key,
        )
        runs[row.worker].append(spell)
        if row.created_at <= at:
            found.known_id = max(found.known_id, row.id)
        if spell.has_started(at):
            found.held.append(Held(row.id, row.node_id, row.worker, row.started_at))
    return runs


async def _read_others(conn: AsyncConnection, prepared: _Statements, at: datetime, found: Recorded) -> int:
    """Read which slots were taken by attempts that have ended since; return from which id on history is later."""
    rows = (await conn.execute(prepared.others, {"at": at})).all()
    for row in rows:
        if row.started_at is not None and row.started_at <= at:
            found.known_id = max(found.known_id, row.run_id)
            found.held.append(Held(row.run_id, row.node_id, row.worker, row.started_at))
    ended = (await conn.execute(prepared.ended, {"at": at})).scalars()
    found.known_id = max([found.known_id, *(run_id for run_id in ended if run_id is not None)])
    if len(rows) == OTHERS_ROWS:
        found.held_until = rows[-1].finished_at
    return min((row.id for row in rows[:_OUT_OF_ORDER]), default=2**62)


async def _read_history(
    conn: AsyncConnection, prepared: _Statements, name: str, pivot: int, found: Recorded
) -> tuple[list[Spell], list[Passed]]:
    asked = {"name": name, "pivot": pivot}
    earlier = (await conn.execute(prepared.before, asked)).all()
    later = (await conn.execute(prepared.after, asked)).all()
    if len(later) == WINDOW_ROWS:
        found.cut.append(name)
    if len(earlier) == WINDOW_ROWS:
        found.since[name] = earlier[-1].finished_at
    spells, passed = [], []
    for row in (*reversed(earlier), *later):
        if row.run_id is None:
            missed = Passed(row.scheduled_for, row.due_at, row.finished_at, row.occurrences, row.reason or "")
            passed.append(missed)
        else:
            spells.append(_spell(row))
    return spells, passed


def _spell(row: Any) -> Spell:
    return Spell(
        row.run_id,
        Trigger(row.trigger),
        row.attempt or 1,
        bool(row.is_forced),
        row.scheduled_for or row.due_at or row.finished_at,
        row.due_at or row.finished_at,
        row.started_at,
        row.node_id,
        row.fence,
        row.finished_at,
        OutcomeKind(row.outcome),
        None if row.ends_run is None else EndsRun(row.ends_run),
        row.error_type,
        row.error,
        row.reason,
        row.duration_ms,
        limit_key=row.limit_key,
        is_rated=bool(row.is_rated),
    )


async def _read_switches(conn: AsyncConnection, prepared: _Statements, name: str) -> list[Switch]:
    """Read the newest decisions on a worker, the newest first."""
    newest = (await conn.execute(prepared.switches, {"name": name})).all()
    return [
        Switch(row.at, row.action, row.actor, row.detail if isinstance(row.detail, dict) else {})
        for row in newest
        if row.action in SWITCHES
    ]
