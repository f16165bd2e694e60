"""SQLite's short way through a tick: `storage.flow` says what a turn does. One visit to the write connection's thread.

Every statement gives one row or none. A thread that steps through rows lets go of Python's interpreter lock at each
and must win it back from the event loop; packed into one JSON text, a hundred rows cost what one does.
"""

from __future__ import annotations

import json
import sqlite3
from typing import TYPE_CHECKING, Any

from jobrunner.model.run import Run, RunState, Trigger
from jobrunner.storage.flow import Turned, result_json
from jobrunner.storage.history import storable
from jobrunner.storage.types import from_text, to_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime

    from jobrunner.storage.database import Database
    from jobrunner.storage.finishes import Ended
    from jobrunner.storage.flow import Firing, Plain

# Workers whose ends are never sure: a circuit's probe, a loop.
_UNSURE = """
SELECT json_group_array(s.worker) FROM worker_state s JOIN workers w ON w.name = s.worker
WHERE s.worker IN (SELECT value FROM json_each(?))
    AND (s.circuit_state = 'half_open' OR w.execution_mode = 'continuous')
"""
_KEEP = """
INSERT INTO run_history (
    run_id, fence, worker, trigger, attempt, outcome, ends_run, is_forced, scheduled_for, due_at, started_at,
    finished_at, duration_ms, reason, payload, result, output, node_id
)
SELECT
    r.id, r.fence, r.worker, r.trigger, r.attempt, 'succeeded', 'succeeded', r.is_forced, r.scheduled_for, r.due_at,
    r.started_at, e.value ->> 2, e.value ->> 3, e.value ->> 5, r.payload, e.value ->> 4, e.value ->> 6, r.node_id
FROM json_each(?) e CROSS JOIN runs r ON r.id = e.value ->> 0 AND r.fence = e.value ->> 1
"""
_DELETE = "DELETE FROM runs WHERE id IN (SELECT e.value ->> 0 FROM json_each(?) e)"
_COUNT = """
UPDATE worker_state SET
    consecutive_failures = 0, last_run_outcome = 'succeeded', last_error = NULL, last_success_at = e.value ->> 1,
    last_duration_ms = coalesce(e.value ->> 2, last_duration_ms), total_runs = total_runs + (e.value ->> 3),
    last_ended_at = max(coalesce(last_ended_at, ''), e.value ->> 4)
FROM json_each(?) e WHERE worker = e.value ->> 0
"""
_PLAIN = """
SELECT json_group_array(json_array(s.worker, s.last_fence, s.last_ended_at, w.max_running, (
    SELECT json_group_array(r.slot) FROM runs r WHERE r.worker = s.worker AND r.slot IS NOT NULL
)))
FROM json_each(?) g
CROSS JOIN worker_state s ON s.worker = g.value ->> 0
CROSS JOIN workers w ON w.name = s.worker AND w.revision = g.value ->> 1
WHERE s.is_enabled AND s.paused_until IS NULL AND s.circuit_state = 'closed'
    AND NOT EXISTS (SELECT 1 FROM worker_dependencies d WHERE d.worker = s.worker)
    AND NOT EXISTS (SELECT 1 FROM worker_blocks b WHERE b.worker = s.worker)
    AND NOT EXISTS (SELECT 1 FROM worker_blocks b WHERE b.blocks = s.worker)
    AND NOT EXISTS (SELECT 1 FROM nodes n WHERE n.id = ? AND n.state IN ('lost', 'stopped'))
"""
_FIRST_DUE = "\n    OR ".join(
    f"(SELECT r.due_at FROM runs r WHERE r.state = 'pending' AND r.worker = waiting.name AND r.priority = {priority}"  # noqa: S608 - made of constants
    " ORDER BY r.due_at LIMIT 1) <= :now"
    for priority in range(4)
)
_OTHER = f"""
WITH RECURSIVE waiting (name) AS (
    SELECT min(worker) FROM runs WHERE state = 'pending'
    UNION ALL
    SELECT (SELECT min(r.worker) FROM runs r WHERE r.state = 'pending' AND r.worker > waiting.name)
    FROM waiting WHERE waiting.name IS NOT NULL
)
SELECT EXISTS (
    SELECT 1 FROM waiting
    WHERE name IS NOT NULL AND name NOT IN (SELECT value FROM json_each(:runs)) AND ({_FIRST_DUE})
) OR EXISTS (
    SELECT 1 FROM worker_state s
    WHERE s.next_run_at IS NOT NULL AND s.next_run_at <= :now
        AND s.worker NOT IN (SELECT value FROM json_each(:schedules))
)
"""  # noqa: S608 - made of constants
_RUN = (
    "id, worker, trigger, priority, scheduled_for, due_at, payload, key, attempt, is_forced, first_started_at,"
    " lost_in_a_row, created_at"
)
_BY_PRIORITY = "\nUNION ALL ".join(
    f"SELECT * FROM (SELECT {_RUN} FROM runs WHERE state = 'pending' AND worker = :worker AND priority = {priority}"  # noqa: S608 - made of constants
    " AND due_at <= :now ORDER BY due_at, id LIMIT :most)"
    for priority in (3, 2, 1, 0)
)
_FIRST = f"SELECT json_group_array(json_array({_RUN})) FROM ({_BY_PRIORITY})"  # noqa: S608 - made of constants
_CLAIM = """
UPDATE runs SET
    state = 'running', slot = e.value ->> 1, fence = e.value ->> 2, node_id = ?, started_at = e.value ->> 3,
    first_started_at = coalesce(first_started_at, e.value ->> 3)
FROM json_each(?) e WHERE runs.id = e.value ->> 0 AND runs.state = 'pending'
"""
_FENCE = """
UPDATE worker_state SET last_fence = e.value ->> 1, last_run_at = coalesce(e.value ->> 2, last_run_at)
FROM json_each(?) e WHERE worker = e.value ->> 0
"""
_IDLE = """
SELECT json_group_array(json_array(s.worker, s.last_fence, s.last_ended_at))
FROM json_each(?) g CROSS JOIN worker_state s ON s.worker = g.value ->> 0 AND s.next_run_at = g.value ->> 1
WHERE NOT EXISTS (SELECT 1 FROM runs r WHERE r.worker = s.worker AND r.state = 'pending')
    AND NOT EXISTS (SELECT 1 FROM runs r WHERE r.worker = s.worker AND r.slot IS NOT NULL)
"""
_FIRE = """
INSERT INTO runs (
    worker, trigger, state, priority, scheduled_for, due_at, payload, slot, fence, node_id, started_at,
    first_started_at, created_at
)
SELECT
    w.name, 'schedule', 'running', w.priority, e.value ->> 1, e.value ->> 1, w.payload, 0, e.value ->> 3, :node,
    e.value ->> 4, e.value ->> 4, :now
FROM json_each(:fired) e CROSS JOIN workers w ON w.name = e.value ->> 0
"""
_PLAN = """
UPDATE worker_state SET
    last_due_at = e.value ->> 1, next_run_at = e.value ->> 2, last_fence = e.value ->> 3, last_run_at = e.value ->> 4
FROM json_each(?) e WHERE worker = e.value ->> 0
"""
_FIRED = f"""
SELECT json_group_array(json_array({_RUN}, slot, fence, started_at))
FROM runs WHERE worker IN (SELECT e.value ->> 0 FROM json_each(?) e) AND slot = 0
"""  # noqa: S608 - made of constants
_TRIGGERS = {str(trigger): trigger for trigger in Trigger}
_RUNNING = RunState.RUNNING


class SqliteFlow:
    """A turn as one visit to the write connection, which no other writer of this process uses meanwhile."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def turn(
        self, node_id: str, now: datetime, free_slots: int, plain: Plain | None, ended: Sequence[Ended]
    ) -> Turned:
        """See `Flow.turn`."""
        turn = _Turn(node_id, now, free_slots, plain, ended)
        try:
            await self._db.visit_writer(turn.take)
        except sqlite3.IntegrityError:
            return Turned(has_other=True)  # someone wrote around the rules: the long way decides afresh
        return turn.turned()

    async def close(self) -> None:
        """It has no connection of its own."""


class _Turn:
    """One turn; `take` runs in the connection's thread."""

    def __init__(
        self, node_id: str, now: datetime, free_slots: int, plain: Plain | None, ended: Sequence[Ended]
    ) -> None:
        self._node_id = node_id
        self._now = to_text(now)
        self._free = free_slots
        self._plain = plain
        self._ended = sorted(ended, key=lambda item: item.run.id)
        self._written: list[Ended] = []
        self._claims: list[tuple[list[Any], int, int, str]] = []
        self._rows: list[Any] = []
        self._has_other = False

    def turned(self) -> Turned:
        """Return what was done."""
        runs = tuple(_run(*claim, self._node_id) for claim in self._claims)
        return Turned(runs, frozenset(item.run.id for item in self._written), self._has_other)

    def take(self, connection: sqlite3.Connection) -> None:
        """Do it, in one transaction."""
        connection.execute("BEGIN IMMEDIATE")
        try:
            if self._ended:
                self._end(connection)
            if self._plain is not None and self._free > 0 and self._is_plain(connection, self._plain):
                if self._plain.firings:
                    self._fire(connection, self._plain.firings)
                else:
                    self._claim(connection)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def _end(self, connection: sqlite3.Connection) -> None:
        names = sorted({item.run.worker for item in self._ended})
        unsure = set(_one(connection, _UNSURE, (json.dumps(names),)))
        sure = [item for item in self._ended if item.run.worker not in unsure]
        if not sure:
            return
        ends = json.dumps([_end_row(item) for item in sure])
        connection.execute("SAVEPOINT ends")
        kept = connection.execute(_KEEP, (ends,)).rowcount
        if kept != len(sure) or connection.execute(_DELETE, (ends,)).rowcount != kept:
            # Some are no longer ours. The long way finds out which.
            connection.execute("ROLLBACK TO ends")
            return
        connection.execute("RELEASE ends")
        connection.execute(_COUNT, (json.dumps(list(_counts(sure))),))
        self._written = sure
        self._free += kept

    def _is_plain(self, connection: sqlite3.Connection, plain: Plain) -> bool:
        """Look whether the workers still are, and whether nothing else is due."""
        given = json.dumps(list(plain.revisions.items()))
        self._rows = _one(connection, _PLAIN, (given, self._node_id))
        all_names, stuck = json.dumps([*plain.configs, *plain.stuck]), json.dumps(plain.stuck)
        runs, schedules = (stuck, all_names) if plain.firings else (all_names, stuck)
        passed_by = {"now": self._now, "runs": runs, "schedules": schedules}
        self._has_other = len(self._rows) < len(plain.revisions) or bool(
            connection.execute(_OTHER, passed_by).fetchone()[0]
        )
        return not self._has_other

    def _fire(self, connection: sqlite3.Connection, firings: Mapping[str, Firing]) -> None:
        expected = json.dumps([(name, to_text(firing.expected)) for name, firing in firings.items()])
        fired = []
        for name, last_fence, last_ended_at in _one(connection, _IDLE, (expected,)):
            firing = firings[name]
            next_run_at = firing.after.next_run_at
            fired.append(
                (
                    name,
                    to_text(firing.scheduled_for),
                    None if next_run_at is None else to_text(next_run_at),
                    last_fence + 1,
                    max(self._now, last_ended_at or ""),
                )
            )
        if not fired:
            return
        given = json.dumps(fired)
        connection.execute(_FIRE, {"fired": given, "node": self._node_id, "now": self._now})
        connection.execute(_PLAN, (given,))
        self._claims = [(row[:-3], *row[-3:]) for row in _one(connection, _FIRED, (given,))]

    def _claim(self, connection: sqlite3.Connection) -> None:
        rooms = {row[0]: _Room(*row) for row in self._rows}
        found: list[list[Any]] = []
        for name, room in rooms.items():
            if room.left > 0:
                most = min(room.left, self._free)
                found += _one(connection, _FIRST, {"worker": name, "now": self._now, "most": most})
        found.sort(key=_order)
        for run in found:
            room = rooms[run[1]]
            if room.left > 0 and len(self._claims) < self._free:
                self._claims.append((run, *room.take(self._now, is_new=run[10] is None)))
        if not self._claims:
            return
        claims = json.dumps([(run[0], slot, fence, at) for run, slot, fence, at in self._claims])
        connection.execute(_CLAIM, (self._node_id, claims))
        fences = json.dumps([room.state for room in rooms.values() if room.is_used])
        connection.execute(_FENCE, (fences,))


class _Room:
    """How many more runs of a worker may start, in which slots, under which fences."""

    def __init__(self, worker: str, last_fence: int, last_ended_at: str | None, most: int, taken: str) -> None:
        self._worker = worker
        self._fence = last_fence
        self._ended_at = last_ended_at or ""
        self._taken = set(json.loads(taken) if isinstance(taken, str) else taken)
        self._slot = 0
        self._run_at: str | None = None
        self.left = most - len(self._taken)
        self.is_used = False

    def take(self, now: str, *, is_new: bool) -> tuple[int, int, str]:
        """Give the lowest free slot, the next fence and the time of the start."""
        while self._slot in self._taken:
            self._slot += 1
        self._taken.add(self._slot)
        self._fence += 1
        self.left -= 1
        self.is_used = True
        at = max(now, self._ended_at)
        if is_new:
            self._run_at = at
        return self._slot, self._fence, at

    @property
    def state(self) -> tuple[str, int, str | None]:
        """What the worker's state becomes: its last fence, and `last_run_at` if a run has begun."""
        return self._worker, self._fence, self._run_at


def _one(connection: sqlite3.Connection, sql: str, parameters: Any) -> list[Any]:
    found: list[Any] = json.loads(connection.execute(sql, parameters).fetchone()[0])
    return found


def _order(run: list[Any]) -> tuple[int, str, int]:
    return (-run[3], run[5], run[0])


def _end_row(item: Ended) -> tuple[Any, ...]:
    outcome = item.outcome
    return (
        item.run.id,
        item.run.fence,
        to_text(outcome.finished_at),
        outcome.duration_ms,
        result_json(outcome.result),
        storable(outcome.reason),
        storable(outcome.output),
    )


def _counts(ended: Sequence[Ended]) -> Iterator[tuple[Any, ...]]:
    """Yield, a worker each: the last success, its duration, how many, and the latest end."""
    by_worker: dict[str, list[Ended]] = {}
    for item in ended:
        by_worker.setdefault(item.run.worker, []).append(item)
    for name, items in by_worker.items():
        last = items[-1].outcome
        latest = max(item.outcome.finished_at for item in items)
        yield name, to_text(last.finished_at), last.duration_ms, len(items), to_text(latest)


def _run(row: list[Any], slot: int, fence: int, at: str, node_id: str) -> Run:
    started_at = from_text(at)
    return Run(
        row[0],
        row[1],
        _TRIGGERS[row[2]],
        _RUNNING,
        row[3],
        from_text(row[4]),
        from_text(row[5]),
        json.loads(row[6]),
        row[7],
        row[8],
        bool(row[9]),
        slot,
        fence,
        node_id,
        started_at,
        started_at if row[10] is None else from_text(row[10]),
        row[11],
        None,
        from_text(row[12]),
    )
