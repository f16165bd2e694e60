"""PostgreSQL's fast path: one call of a function a turn, on a connection of its own; see `turn`."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import asyncpg

from jobrunner.errors import FastPathRefused
from jobrunner.policy.fast_path import most_of_a_key
from jobrunner.policy.rates import rates_of
from jobrunner.storage.database import postgres_driver
from jobrunner.storage.records.history import storable
from jobrunner.storage.tables.types import read_json
from jobrunner.storage.turns import postgres_function
from jobrunner.storage.turns.known_starts import KnownStarts
from jobrunner.storage.turns.rules import CLAIM, claimed_run
from jobrunner.storage.turns.turn import LOOK_AGAIN_SECONDS, Turned, result_json, under_one_revision

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import timedelta

    from jobrunner.model.run import Run
    from jobrunner.model.worker import WorkerConfig
    from jobrunner.policy.fast_path import Eligible
    from jobrunner.storage.database.database import Database
    from jobrunner.storage.runs.finishes import Ended

_TURN = postgres_function.call()
_PAYLOAD = 1 + list(CLAIM).index("payload")


class PostgresFastPath:
    """The function `take_turn`, on a connection of its own: no pool, no SQLAlchemy, one round trip a turn."""

    def __init__(self, db: Database, *, asks_time: bool = False) -> None:
        self._db = db
        self._asks_time = asks_time
        self._definition = postgres_function.definition(db.schema_prefix)
        self._connection: Any = None
        self._heads = _Heads()
        self._starts = KnownStarts()

    async def turn(
        self, node_id: str, now: datetime, free_slots: int, eligible: Eligible | None, ended: Sequence[Ended]
    ) -> Turned:
        """See `FastPath.turn`."""
        names = list(eligible.configs) if eligible is not None else []
        firings = [] if eligible is None else list(eligible.firings.values())
        ended, revisions = under_one_revision(ended)
        is_looking = self._heads.look_is_due(names, now)
        after_dues, after_ids = self._heads.of(names)
        limits = _Limits.of([] if eligible is None else list(eligible.configs.values()), self._starts)
        given = {
            "this_node": node_id,
            "at": now,
            "free": free_slots,
            "names": names,
            "revisions": [] if eligible is None else list(eligible.revisions.values()),
            "stuck": [] if eligible is None else eligible.stuck,
            "f_expected": [firing.expected for firing in firings],
            "f_due": [firing.scheduled_for for firing in firings],
            "f_next": [firing.after.next_run_at for firing in firings],
            "e_ids": [item.run.id for item in ended],
            "e_fences": [item.run.fence for item in ended],
            "e_workers": list(revisions),
            "e_revisions": list(revisions.values()),
            "e_finished": [item.outcome.finished_at for item in ended],
            "e_ms": [item.outcome.duration_ms for item in ended],
            "e_results": _unless_empty(result_json(item.outcome.result) for item in ended),
            "e_reasons": _unless_empty(storable(item.outcome.reason) for item in ended),
            "e_outputs": _unless_empty(storable(item.outcome.output) for item in ended),
            "after_dues": after_dues,
            "after_ids": after_ids,
            "is_looking": is_looking,
            "since": self._heads.since,
            "key_limits": limits.keys,
            "rate_counts": limits.counts,
            "rate_windows": limits.windows,
            "rate_known": limits.known,
            "rate_lasts": limits.lasts,
            "asks_time": self._asks_time,
        }
        arguments = tuple(given[name] for name in postgres_function.ARGUMENTS)
        try:
            answer = _by_kind(await self._fetch(arguments))
        except asyncpg.UniqueViolationError:
            return Turned(has_other=True)  # someone wrote around the locks: the long way decides afresh
        for row in answer["seen"]:
            self._heads.looked(names, now, *json.loads(row[_PAYLOAD]))
        for row in answer["counted"]:
            self._starts.note({} if eligible is None else eligible.configs, json.loads(row[_PAYLOAD]))
        turned = _turned(answer, node_id)
        in_order = [run for run in turned.runs if run.worker not in limits.keyed] if limits.keyed else turned.runs
        self._heads.note(in_order, is_full=len(turned.runs) >= free_slots + len(turned.written))
        return turned

    async def _fetch(self, arguments: tuple[Any, ...]) -> list[Any]:
        try:
            if self._connection is None or self._connection.is_closed():
                self._connection = await self._connect()
            try:
                rows: list[Any] = await self._connection.fetch(_TURN, *arguments)
            except (asyncpg.UndefinedFunctionError, asyncpg.InvalidSchemaNameError):
                rows = await self._fetch_anew(arguments)
        except (asyncpg.UniqueViolationError, FastPathRefused):
            raise
        except Exception as error:
            failure = self._db.dialect.failure(error, self._db.shown_url)
            await self.close()
            if failure is None:
                raise
            raise failure from error
        return rows

    async def _fetch_anew(self, arguments: tuple[Any, ...]) -> list[Any]:
        """Somebody took the session's function away (DISCARD): make it again, once."""
        await self.close()
        self._connection = await self._connect()
        try:
            rows: list[Any] = await self._connection.fetch(_TURN, *arguments)
        except (asyncpg.UndefinedFunctionError, asyncpg.InvalidSchemaNameError) as error:
            hint = "behind a transaction-pooling proxy set JOBRUNNER_POOLER=transaction"
            raise FastPathRefused(f"{error}; {hint}") from error
        return rows

    async def _connect(self) -> Any:
        connection = await postgres_driver.connect(self._db.url, patience=self._db.patience)
        try:
            await connection.execute(self._definition)
        except asyncpg.InsufficientPrivilegeError as error:
            connection.terminate()
            raise FastPathRefused(str(error)) from error
        except BaseException:
            connection.terminate()
            raise
        return connection

    async def close(self) -> None:
        """Close the connection at once: nothing is under way that would be waited for."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()


@dataclass(frozen=True, slots=True)
class _Limits:
    """What a turn is told of its workers' limits: lists beside the workers, empty where none of them has any.

    `keyed`: workers of which a turn passes by runs whose key is full, so that it reads their queue from its beginning.
    """

    keys: list[int | None]
    counts: list[int | None]
    windows: list[timedelta | None]
    known: list[int | None]
    lasts: list[int | None]
    keyed: frozenset[str]

    @classmethod
    def of(cls, configs: Sequence[WorkerConfig], starts: KnownStarts) -> _Limits:
        if all(config.rate is None and config.limit_key is None for config in configs):
            return _NO_LIMITS
        rates = [rates_of(config)[0] for config in configs]
        return cls(
            [most_of_a_key(config) for config in configs],
            [None if rate is None else rate.count for rate in rates],
            [None if rate is None else rate.window for rate in rates],
            [starts.of(config)[0] for config in configs],
            [starts.of(config)[1] for config in configs],
            frozenset(config.name for config in configs if most_of_a_key(config) is not None),
        )


_NO_LIMITS = _Limits([], [], [], [], [], frozenset())


class _Heads:
    """How far this node has come in its workers' queues: the last run claimed of each worker and priority.

    A queue's index begins with the entries of all runs that are gone, until the server vacuums, and it cannot as long
    as a snapshot is held anywhere: a turn that began there would step over each of them. So a turn begins where the
    last one has ended. What came before that place meanwhile (a transaction that was long under way, a run given back)
    a look finds by the transactions that were not over at the look before; see `turn` for when.

    What comes later is due later than the place, as long as the clock goes forward. When it has gone back, a run may
    come to be due before the place and still after now, which no look would note: then no place is known any more.
    """

    def __init__(self) -> None:
        self._heads: dict[tuple[str, int], tuple[datetime, int]] = {}
        self._looked_at: datetime | None = None
        self._now: datetime | None = None
        self._was_full = False
        self.since: str | None = None
        """The snapshot of the last look, as PostgreSQL writes it."""

    def look_is_due(self, names: Sequence[str], now: datetime) -> bool:
        """Say whether the next turn, for `names`, is to look; of whom it does not ask, nothing stays known."""
        if self._now is not None and now < self._now:
            self._heads = {}
        self._now = now
        if not names:
            return False
        seconds = math.inf if self._looked_at is None else (now - self._looked_at).total_seconds()
        if self._was_full and 0 <= seconds < LOOK_AGAIN_SECONDS:
            return False
        asked = set(names)
        self._heads = {key: place for key, place in self._heads.items() if key[0] in asked}
        return True

    def of(self, names: Sequence[str]) -> tuple[list[datetime | None], list[int | None]]:
        """Return `due_at` and id of the last runs claimed, four a name by priority; nothing, if all is to be read."""
        if not self._heads:
            return [], []
        heads = [self._heads.get((name, priority), (None, None)) for name in names for priority in range(4)]
        return [head[0] for head in heads], [head[1] for head in heads]

    def looked(
        self, names: Sequence[str], now: datetime, since: str, places: list[int] | None, dues: list[str] | None
    ) -> None:
        """Note what a look has answered: its snapshot, and at which places of `of` the node goes on from where."""
        self._looked_at, self.since = now, since
        for place, due in zip(places or (), dues or (), strict=True):
            worker, priority = divmod(place - 1, 4)
            self._heads[names[worker], priority] = (datetime.fromisoformat(due), 0)

    def note(self, runs: Iterable[Run], *, is_full: bool) -> None:
        """Note claims, given in any order, and whether they took all slots that were free."""
        self._was_full = is_full
        for run in runs:
            key, place = (run.worker, run.priority), (run.due_at, run.id)
            if key not in self._heads or self._heads[key] < place:
                self._heads[key] = place


def _unless_empty(texts: Iterable[str | None]) -> list[str | None]:
    """Return the texts, or nothing where there is none: the driver looks at each, and UNNEST fills up with NULL."""
    found = list(texts)
    return found if any(text is not None for text in found) else []


def _by_kind(rows: list[Any]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {kind: [] for kind in ("claim", "ended", "other", "seen", "locked", "all", "counted")}
    for row in rows:
        found[row[0]].append(row)
    return found


def _turned(answer: dict[str, list[Any]], node_id: str) -> Turned:
    next_due_at = [json.loads(row[_PAYLOAD]) for row in answer["all"] if row[_PAYLOAD] is not None]
    return Turned(
        runs=tuple([_run(row, node_id) for row in answer["claim"]]),
        written=frozenset(run_id for row in answer["ended"] for run_id in json.loads(row[_PAYLOAD])),
        has_other=bool(answer["other"]),
        has_locked=bool(answer["locked"]),
        is_all=bool(answer["all"]),
        next_due_at=datetime.fromisoformat(next_due_at[0]) if next_due_at else None,
    )


def _run(row: Any, node_id: str) -> Run:
    values = list(row)[1:]
    values[_PAYLOAD - 1] = read_json(row[_PAYLOAD])
    return claimed_run(values, node_id)
