"""SQLite's short way through a tick: `storage.flow` says what a turn does. One statement, and one for its answer."""

from __future__ import annotations

import json
import sqlite3
from typing import TYPE_CHECKING, Any

from jobrunner.model.run import Run, RunState, Trigger
from jobrunner.storage import sqlite_turn
from jobrunner.storage.flow import Turned, result_json
from jobrunner.storage.history import storable
from jobrunner.storage.types import Garbled, from_text, read_json, to_text

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from jobrunner.storage.database import Database
    from jobrunner.storage.finishes import Ended
    from jobrunner.storage.flow import Plain

_TRIGGERS = {str(trigger): trigger for trigger in Trigger}
_RUNNING = RunState.RUNNING


class SqliteFlow:
    """A turn as one visit to the write connection, which no other writer of this process uses meanwhile."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._prepared: sqlite3.Connection | None = None

    async def turn(
        self, node_id: str, now: datetime, free_slots: int, plain: Plain | None, ended: Sequence[Ended]
    ) -> Turned:
        """See `Flow.turn`."""
        given = (node_id, to_text(now), free_slots, *_ended(ended), *_wanted(plain))
        answers: list[tuple[str, str, int]] = []

        def take(connection: sqlite3.Connection) -> None:
            if connection is not self._prepared:
                sqlite_turn.prepare(connection)
                self._prepared = connection
            connection.execute(sqlite_turn.TAKE_TURN, given)
            answers.append(connection.execute(sqlite_turn.ANSWER).fetchone())

        try:
            await self._db.visit_writer(take)
        except sqlite3.IntegrityError:
            return Turned(has_other=True)  # someone wrote around the rules: the long way decides afresh
        written, claims, has_other = answers[0]
        runs = tuple([_run(row, node_id) for row in _read_claims(claims)])
        return Turned(runs, frozenset(json.loads(written)), bool(has_other))

    async def close(self) -> None:
        """It has no connection of its own."""


def _read_claims(claims: str) -> list[Any]:
    """Read the answer; where it is not all UTF-8, so is the payload that has replaced characters in it."""
    rows: list[Any] = json.loads(claims, strict=False)
    if type(claims) is Garbled:
        for row in rows:
            row[6] = Garbled(row[6]) if "\ufffd" in row[6] else row[6]
    return rows


def _ended(ended: Sequence[Ended]) -> tuple[str, str]:
    rows = [
        (
            item.run.id,
            item.run.fence,
            to_text(item.outcome.finished_at),
            item.outcome.duration_ms,
            result_json(item.outcome.result),
            storable(item.outcome.reason),
            storable(item.outcome.output),
        )
        for item in ended
    ]
    return json.dumps(rows), json.dumps(list({item.run.worker for item in ended}))


def _wanted(plain: Plain | None) -> tuple[str, str, str, str]:
    if plain is None:
        return "[]", "[]", "[]", "[]"
    firings = [
        (name, to_text(firing.expected), to_text(firing.scheduled_for), _text(firing.after.next_run_at))
        for name, firing in plain.firings.items()
    ]
    all_names, stuck = json.dumps([*plain.configs, *plain.stuck]), json.dumps(plain.stuck)
    runs, schedules = (stuck, all_names) if firings else (all_names, stuck)
    return json.dumps(list(plain.revisions.items())), runs, schedules, json.dumps(firings)


def _text(moment: datetime | None) -> str | None:
    return None if moment is None else to_text(moment)


def _run(row: list[Any], node_id: str) -> Run:
    return Run(
        row[0],
        row[1],
        _TRIGGERS[row[2]],
        _RUNNING,
        row[3],
        from_text(row[4]),
        from_text(row[5]),
        read_json(row[6]),
        row[7],
        row[8],
        bool(row[9]),
        row[10],
        row[11],
        node_id,
        from_text(row[12]),
        from_text(row[13]),
        row[14],
        None,
        from_text(row[15]),
    )
