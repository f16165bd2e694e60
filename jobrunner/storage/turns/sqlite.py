"""SQLite's fast path: one statement a turn, and one for its answer; see `turn`."""

from __future__ import annotations

import json
import sqlite3
from typing import TYPE_CHECKING, Any

from jobrunner.policy.fast_path import most_of_a_key
from jobrunner.policy.rates import rates_of
from jobrunner.storage.records.history import storable
from jobrunner.storage.tables.types import Garbled, from_text, read_json, to_text
from jobrunner.storage.turns import sqlite_trigger
from jobrunner.storage.turns.known_starts import KnownStarts
from jobrunner.storage.turns.rules import CLAIM, claimed_run
from jobrunner.storage.turns.turn import Turned, result_json, under_one_revision

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from jobrunner.model.run import Run
    from jobrunner.model.worker import WorkerConfig
    from jobrunner.policy.fast_path import Eligible
    from jobrunner.storage.database.database import Database
    from jobrunner.storage.runs.finishes import Ended

_PAYLOAD = list(CLAIM).index("payload")
_FLAGS = [place for place, kind in enumerate(CLAIM.values()) if kind == "boolean"]
_TIMES = [place for place, kind in enumerate(CLAIM.values()) if kind == "timestamptz"]


class SqliteFastPath:
    """A turn as one visit to the write connection, which no other writer of this process uses meanwhile."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._starts = KnownStarts()
        self._prepared: sqlite3.Connection | None = None

    async def turn(
        self, node_id: str, now: datetime, free_slots: int, eligible: Eligible | None, ended: Sequence[Ended]
    ) -> Turned:
        """See `FastPath.turn`."""
        given = (node_id, to_text(now), free_slots, *_ended(ended), *_wanted(eligible, now, self._starts))
        answers: list[tuple[str, str, int, str]] = []

        def take(connection: sqlite3.Connection) -> None:
            if connection is not self._prepared:
                sqlite_trigger.prepare(connection)
                self._prepared = connection
            connection.execute(sqlite_trigger.TAKE_TURN, given)
            answers.append(connection.execute(sqlite_trigger.ANSWER).fetchone())

        try:
            await self._db.visit_writer(take)
        except sqlite3.IntegrityError:
            return Turned(has_other=True)  # someone wrote around the rules: the long way decides afresh
        written, claims, has_other, counted = answers[0]
        if eligible is not None:
            self._starts.note(eligible.configs, json.loads(counted))
        runs = tuple([_run(row, node_id) for row in _read_claims(claims)])
        return Turned(runs, frozenset(json.loads(written)), bool(has_other))

    async def close(self) -> None:
        """It has no connection of its own."""


def _read_claims(claims: str) -> list[Any]:
    """Read the answer; where it is not all UTF-8, so is the payload that has replaced characters in it."""
    rows: list[Any] = json.loads(claims, strict=False)
    if type(claims) is Garbled:
        for row in rows:
            row[_PAYLOAD] = Garbled(row[_PAYLOAD]) if "\ufffd" in row[_PAYLOAD] else row[_PAYLOAD]
    return rows


def _ended(all_ended: Sequence[Ended]) -> tuple[str, str]:
    ended, revisions = under_one_revision(all_ended)
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
    return json.dumps(rows), json.dumps(list(revisions.items()))


def _wanted(eligible: Eligible | None, now: datetime, starts: KnownStarts) -> tuple[str, str, str, str]:
    if eligible is None:
        return "[]", "[]", "[]", "[]"
    firings = [
        (name, to_text(firing.expected), to_text(firing.scheduled_for), _text(firing.after.next_run_at))
        for name, firing in eligible.firings.items()
    ]
    all_names, stuck = json.dumps([*eligible.configs, *eligible.stuck]), json.dumps(eligible.stuck)
    runs, schedules = (stuck, all_names) if firings else (all_names, stuck)
    configs, revisions = eligible.configs, eligible.revisions
    wanted = [_with_limits(configs[name], revision, now, starts) for name, revision in revisions.items()]
    return json.dumps(wanted), runs, schedules, json.dumps(firings)


def _with_limits(config: WorkerConfig, revision: int, now: datetime, starts: KnownStarts) -> tuple[Any, ...]:
    rate = rates_of(config)[0]
    plain = config.name, revision, most_of_a_key(config)
    return (
        plain
        if rate is None
        else (
            *plain,
            rate.count,
            to_text(now - rate.window),
            *starts.of(config),
            to_text(now + rate.window),
        )
    )


def _text(moment: datetime | None) -> str | None:
    return None if moment is None else to_text(moment)


def _run(row: list[Any], node_id: str) -> Run:
    for place in _TIMES:
        row[place] = from_text(row[place])
    row[_PAYLOAD] = read_json(row[_PAYLOAD])
    for place in _FLAGS:
        row[place] = bool(row[place])
    return claimed_run(row, node_id)
