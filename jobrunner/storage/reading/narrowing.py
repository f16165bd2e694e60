"""What a filter of history, live runs and letters asks, as conditions, and which index finds it (`reading.search`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.errors import UsageError
from jobrunner.model.run import USES_UP_AN_ATTEMPT, OutcomeKind
from jobrunner.policy.filters import ENDS_ASKED_FOR, Filter
from jobrunner.storage.database.rowsets import same
from jobrunner.storage.tables import define as t
from jobrunner.storage.tables.matching import contains, field_text, is_one_of

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    Conditions = list[sa.ColumnElement[bool]]

WRITTEN_LATE = timedelta(hours=1)
"""So long after its time may a row be written: clocks lie apart, and ends are kept through an outage of the database.

Ids are in the order of the writes.
"""


@dataclass(frozen=True, slots=True)
class Base:
    """Rows that an index has in the order of `column`, if there is one, and of the ids.

    `conditions` on that column are ranges, and it is named in the order (see `rowsets.same`).
    """

    conditions: Conditions = field(default_factory=list)
    column: sa.ColumnElement[Any] | None = None

    def newest_first(self, key: sa.ColumnElement[int]) -> list[sa.ColumnElement[Any]]:
        """Return the order of that index, backwards."""
        return [key.desc()] if self.column is None else [self.column.desc(), key.desc()]

    def oldest_first(self, key: sa.ColumnElement[int]) -> list[sa.ColumnElement[Any]]:
        """Return the order of that index."""
        return [key] if self.column is None else [self.column, key]


def bases_of_history(asked: Filter) -> tuple[list[Base], Conditions]:
    """Return along which indexes the history that is asked for lies, and the condition that they leave."""
    kinds = _kinds(asked)
    if kinds and not set(kinds) & {str(OutcomeKind.SUCCEEDED)}:
        return [_rare(kind) for kind in kinds], []
    return [of_worker(asked, t.run_history)], [t.run_history.c.outcome.in_(kinds)] if kinds else []


def _kinds(asked: Filter) -> tuple[str, ...]:
    """Return the outcomes of attempts that may be meant; a run that ended so ends with one that uses up an attempt."""
    kinds = {each for each in asked.outcome if each not in set(map(str, ENDS_ASKED_FOR))}
    if len(kinds) < len(asked.outcome):
        kinds |= set(map(str, USES_UP_AN_ATTEMPT))
    return tuple(sorted(kinds))


def of_worker(asked: Filter, table: sa.Table) -> Base:
    """Return the rows of the one worker that is asked for; without one, all."""
    if asked.only_worker is None:
        return Base()
    return Base([same(table.c.worker, sa.literal(asked.only_worker))], table.c.worker)


def _rare(kind: str) -> Base:
    """Return the condition of an outcome in the words of its partial index: a bound value would hide it."""
    h = t.run_history
    literal = sa.literal(kind, literal_execute=True)
    return Base([h.c.outcome == literal, sa.literal_column("run_history.outcome <> 'succeeded'")])


def of_history(asked: Filter) -> Conditions:
    """Return the conditions that history alone knows, beside those on its outcomes (`bases_of_history`)."""
    h = t.run_history
    conditions: Conditions = []
    ends = [each for each in asked.outcome if each in set(map(str, ENDS_ASKED_FOR))]
    if ends:
        others = [each for each in asked.outcome if each not in ends]
        conditions.append(sa.or_(h.c.ends_run.in_(ends), h.c.outcome.in_(others)))
    if asked.node:
        conditions.append(sa.or_(*(h.c.node_id.startswith(node, autoescape=True) for node in asked.node)))
    if asked.attempt:
        conditions.append(h.c.attempt.in_(asked.attempt))
    return conditions


def of_all(asked: Filter, table: sa.Table) -> Conditions:
    """Return the conditions that all three kinds know."""
    c = table.c
    conditions = of_times(asked, table)
    if asked.only_worker is not None:
        conditions.append(same(c.worker, sa.literal(asked.only_worker)))
    elif asked.worker:
        conditions.append(is_one_of(c.worker, asked.worker))
    if asked.is_of_known:
        conditions.append(c.worker.in_(sa.select(t.workers.c.name)))
    if asked.trigger:
        conditions.append(c.trigger.in_(asked.trigger))
    if asked.error is not None:
        said: sa.ColumnElement[str] = sa.func.coalesce(c.error_type, "") + ": " + sa.func.coalesce(c.error, "")
        if "reason" in c:
            said = said + " " + sa.func.coalesce(c.reason, "")
        conditions.append(contains(said, asked.error))
    for path, value in asked.payload:
        if any('"' in step for step in path):
            raise UsageError("a field of the payload with a quote in its name cannot be filtered by")
        conditions.append(field_text(c.payload, path) == value)
    return conditions


def of_times(asked: Filter, table: sa.Table) -> Conditions:
    """Return the conditions on when rows ended, died, or were made."""
    c = table.c
    time = c["finished_at" if "finished_at" in c else "died_at" if "died_at" in c else "created_at"]
    since = [] if asked.since is None else [time >= asked.since]
    return since if asked.until is None else [*since, time <= asked.until]


async def read_span(conn: AsyncConnection, asked: Filter) -> tuple[int | None, int | None]:
    """Return the ids of history between which the times asked for lie: from the first on, below the second.

    They bound the search only: the times themselves are compared, too. Both are ids of rows outside of what is asked
    for, so far that whatever is inside was written after the one and before the other (see `WRITTEN_LATE`).
    """
    key, time = t.run_history.c.id, t.run_history.c.finished_at
    first = below = None
    if asked.since is not None:
        older = sa.select(key).where(time < asked.since - WRITTEN_LATE).order_by(time.desc()).limit(1)
        first = (await conn.execute(older)).scalar()
    if asked.until is not None:
        newer = sa.select(key).where(time > asked.until + WRITTEN_LATE).order_by(time).limit(1)
        below = (await conn.execute(newer)).scalar()
    return first, below
