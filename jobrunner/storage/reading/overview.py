"""How all stands, for a screen that is drawn again and again: of each kind as many rows as it has room for."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from jobrunner.storage.reading.nodes_heard import list_nodes, read_nodes_heard
from jobrunner.storage.reading.standing import read_standing
from jobrunner.storage.reading.status import Totals, read_progress, read_runs, read_totals, read_upcoming
from jobrunner.storage.reading.worst import by_harm, read_worst
from jobrunner.storage.records.history import read_history
from jobrunner.storage.runs.dead_letters import OpenLetters, count_open

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from jobrunner.policy.liveness import NodesHeard
    from jobrunner.policy.upcoming import Upcoming
    from jobrunner.storage.database.database import Database

    Row = dict[str, Any]

AHEAD = timedelta(days=1)
"""So far ahead is looked for what fires next."""


@dataclass(frozen=True, slots=True)
class Overview:
    """How all stood `at` a time: the worst workers first, what runs by its start, what ended last first."""

    at: datetime
    totals: Totals
    letters: OpenLetters
    heard: NodesHeard
    workers: list[Row]
    progress: dict[str, list[Row]]
    running: list[Row]
    ended: list[Row]
    upcoming: list[Upcoming]
    nodes: Sequence[Row]


async def read_overview(db: Database, now: datetime, most: int) -> Overview:
    """Read at most `most` rows of each kind."""
    async with db.read() as conn:
        worst = await read_worst(conn, now, most)
        workers = await read_standing(conn, db.dialect, now, names=worst.names)
        live = await read_runs(conn, limit=most, has_output=False)
        upcoming, _ = await read_upcoming(conn, now, now + AHEAD, most, has_standing=False)
        return Overview(
            at=now,
            totals=await read_totals(conn),
            letters=await count_open(conn),
            heard=(await read_nodes_heard(conn, now))[0],
            workers=sorted(workers, key=lambda row: by_harm(row["health"], row["name"])),
            progress=await read_progress(conn),
            running=[row for row in live if row["state"] != "pending"],
            ended=await read_history(conn, limit=most),
            upcoming=upcoming,
            nodes=await list_nodes(conn, now),
        )
