"""PostgreSQL's short way through a tick: `storage.flow` says what a turn does. One call of a function there."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import asyncpg

from jobrunner.model.run import Run, RunState, Trigger
from jobrunner.storage import postgres_driver
from jobrunner.storage.flow import LOOK_AGAIN_SECONDS, Turned, result_json
from jobrunner.storage.history import storable
from jobrunner.storage.types import read_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from jobrunner.storage.database import Database
    from jobrunner.storage.finishes import Ended
    from jobrunner.storage.flow import Plain

_TURN = (
    "SELECT * FROM {p}take_turn($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15::text[]::jsonb[],"
    " $16, $17, $18, $19)"
)
_RUNNING = RunState.RUNNING
_TRIGGERS = {str(trigger): trigger for trigger in Trigger}


class PostgresFlow:
    """The function `take_turn`, on a connection of its own: no pool, no SQLAlchemy, one round trip a turn."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._sql = _TURN.format(p=db.schema_prefix)
        self._connection: Any = None
        self._heads = _Heads()

    async def turn(
        self, node_id: str, now: datetime, free_slots: int, plain: Plain | None, ended: Sequence[Ended]
    ) -> Turned:
        """See `Flow.turn`."""
        names = list(plain.configs) if plain is not None else []
        firings = [] if plain is None else list(plain.firings.values())
        arguments = (
            node_id,
            now,
            free_slots,
            names,
            [] if plain is None else list(plain.revisions.values()),
            [] if plain is None else plain.stuck,
            [firing.expected for firing in firings],
            [firing.scheduled_for for firing in firings],
            [firing.after.next_run_at for firing in firings],
            [item.run.id for item in ended],
            [item.run.fence for item in ended],
            sorted({item.run.worker for item in ended}),
            [item.outcome.finished_at for item in ended],
            [item.outcome.duration_ms for item in ended],
            _unless_empty(result_json(item.outcome.result) for item in ended),
            _unless_empty(storable(item.outcome.reason) for item in ended),
            _unless_empty(storable(item.outcome.output) for item in ended),
            *self._heads.of(names, now),
        )
        try:
            turned = _turned(await self._fetch(arguments), node_id)
        except asyncpg.UniqueViolationError:
            return Turned(has_other=True)  # someone wrote around the locks: the long way decides afresh
        self._heads.note(turned.runs)
        return turned

    async def _fetch(self, arguments: tuple[Any, ...]) -> list[Any]:
        try:
            if self._connection is None or self._connection.is_closed():
                self._connection = await postgres_driver.connect(self._db.url, patience=self._db.patience)
            rows: list[Any] = await self._connection.fetch(self._sql, *arguments)
        except asyncpg.UniqueViolationError:
            raise
        except Exception as error:
            failure = self._db.dialect.failure(error, self._db.shown_url)
            await self.close()
            if failure is None:
                raise
            raise failure from error
        return rows

    async def close(self) -> None:
        """Close the connection at once: nothing is under way that would be waited for."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()


class _Heads:
    """How far this node has come in its workers' queues: the last run claimed of each worker and priority.

    Where a long queue is worked off, its index begins with the entries of all runs that are gone, until the server
    vacuums: a turn that began there would step over each of them. So it begins where the last one has ended, but for
    one in `LOOK_AGAIN_SECONDS`: what was put before that place meanwhile starts so much later at most.
    """

    def __init__(self) -> None:
        self._heads: dict[tuple[str, int], tuple[datetime, int]] = {}
        self._since: datetime | None = None

    def of(self, names: Sequence[str], now: datetime) -> tuple[list[datetime | None], list[int | None]]:
        """Return `due_at` and id of the last runs claimed, four a name by priority; nothing, if all is to be read."""
        if self._since is None or not 0 <= (now - self._since).total_seconds() < LOOK_AGAIN_SECONDS:
            self._since = now
            self._heads.clear()
        if not self._heads:
            return [], []
        heads = [self._heads.get((name, priority), (None, None)) for name in names for priority in range(4)]
        return [head[0] for head in heads], [head[1] for head in heads]

    def note(self, runs: Iterable[Run]) -> None:
        """Note claims, given in any order."""
        for run in runs:
            key, place = (run.worker, run.priority), (run.due_at, run.id)
            if key not in self._heads or self._heads[key] < place:
                self._heads[key] = place


def _unless_empty(texts: Iterable[str | None]) -> list[str | None]:
    """Return the texts, or nothing where there is none: the driver looks at each, and UNNEST fills up with NULL."""
    found = list(texts)
    return found if any(text is not None for text in found) else []


def _turned(rows: list[Any], node_id: str) -> Turned:
    by_kind: dict[str, list[Any]] = {"claim": [], "ended": [], "other": []}
    for row in rows:
        by_kind[row[0]].append(row)
    return Turned(
        runs=tuple(_run(row, node_id) for row in by_kind["claim"]),
        written=frozenset(run_id for row in by_kind["ended"] for run_id in json.loads(row[7])),
        has_other=bool(by_kind["other"]),
    )


def _run(row: Any, node_id: str) -> Run:
    return Run(
        row[1],
        row[2],
        _TRIGGERS[row[3]],
        _RUNNING,
        row[4],
        row[5],
        row[6],
        read_json(row[7]),
        row[8],
        row[9],
        row[10],
        row[11],
        row[12],
        node_id,
        row[13],
        row[14],
        row[15],
        None,
        row[16],
    )
