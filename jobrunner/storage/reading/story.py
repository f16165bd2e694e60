"""All there is about one run, live or ended, in one answer: for `jobrunner show`, HTTP and the console.

A run has no row of its own once it has ended: what it was stands in its attempts' rows, and if it was given up, in its
dead letter. A letter that was replayed leads to the run that came of it, and that run leads back to the letter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.errors import RunNotFound
from jobrunner.policy.liveness import silent_seconds
from jobrunner.storage.reading.explain import why_waits
from jobrunner.storage.reading.status import read_live
from jobrunner.storage.records.history import read_history
from jobrunner.storage.tables import define as t

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

    from jobrunner.storage.database.database import Database

    Row = dict[str, Any]

MOST_ATTEMPTS_SHOWN = 50
_OF_BOTH = (
    "worker",
    "trigger",
    "attempt",
    "is_forced",
    "scheduled_for",
    "due_at",
    "started_at",
    "payload",
    "node_id",
    "trace_context",
    "limit_key",
    "batch_id",
    "flow_id",
    "step",
)
_OF_LIVE = ("priority", "key", "created_at", "progress", "cancel_requested_at", "cancel_reason", "output")
_OF_ENDED = ("finished_at", "result")


async def read_story(
    db: Database, run_id: int, now: datetime, most: int = MOST_ATTEMPTS_SHOWN, *, says_why: bool = True
) -> Row:
    """Return all there is about a run.

    Returns:
        `id`; `state`, that of a live run or how it ended (`run_history.ends_run`); of `runs` and `run_history` the
        columns that tell of the run, None where nothing is known any more; `timezone`, its worker's; `why` it waits,
        where it does; `attempts`, rows of `run_history` from the first on, the last `most` of them, and
        `has_more_attempts`; `nodes`, host and process id of each node they were on; `letter`, its row of
        `dead_letters`; `replay`, the run that the letter was replayed as (`run_id`, `state`, and its `letter_id`, if
        that one was given up, too); `replay_of`, the letter that this run replays (`letter_id`, `run_id`, `worker`).

    Raises:
        RunNotFound: there is no such run, or its history was pruned.
    """
    async with db.read() as conn:
        live = await read_live(conn, run_id)  # before the history: a run is in one of the two at any time
        newest = await read_history(conn, run_id=run_id, limit=most + 1)
        attempts = newest[:most][::-1]
        if live is None and (not attempts or attempts[-1]["ends_run"] is None):
            raise RunNotFound(run_id, is_live=False)
        letter = await _letter(conn, t.dead_letters.c.run_id == run_id)
        story = _of_itself(run_id, live, attempts, letter)
        w = t.workers
        story["timezone"] = (
            await conn.execute(sa.select(w.c.timezone).where(w.c.name == story["worker"]))
        ).scalar() or "UTC"
        story["why"] = None
        story["attempts"] = attempts
        story["has_more_attempts"] = len(newest) > most
        story["nodes"] = await _nodes(conn, {row["node_id"] for row in (story, *attempts)} - {None}, now)
        story["letter"] = letter
        story["replay"] = await _replay(conn, letter)
        story["replay_of"] = await _replayed_letter(conn, run_id, live) if story["trigger"] == "replay" else None
    if says_why and story["state"] == "pending":
        story["why"] = await why_waits(db, run_id, now)
    return story


def _of_itself(
    run_id: int, live: Mapping[str, Any] | None, attempts: Sequence[Row], letter: Mapping[str, Any] | None
) -> Row:
    story: Row = {"id": run_id}
    if live is not None:
        story["state"] = live["state"]
        story |= {name: live[name] for name in (*_OF_BOTH, *_OF_LIVE)}
        if live["state"] == "pending":
            story["output"] = None  # what is there is the last attempt's
        return story | dict.fromkeys(_OF_ENDED)
    last = attempts[-1]
    story["state"] = last["ends_run"]
    story |= {name: last[name] for name in _OF_BOTH} | dict.fromkeys(_OF_LIVE)
    if letter is not None:
        story |= {"priority": letter["priority"], "key": letter["key"]}
    return story | {name: last[name] for name in _OF_ENDED}


async def _letter(conn: AsyncConnection, condition: sa.ColumnElement[bool]) -> Row | None:
    row = (await conn.execute(sa.select(t.dead_letters).where(condition))).mappings().first()
    return None if row is None else dict(row)


async def _replay(conn: AsyncConnection, letter: Mapping[str, Any] | None) -> Row | None:
    """Return what became of the run that a letter was replayed as; its `state` is None if its history was pruned."""
    if letter is None or letter["replay_run_id"] is None:
        return None
    run_id = letter["replay_run_id"]
    live = (await conn.execute(sa.select(t.runs.c.state).where(t.runs.c.id == run_id))).scalar()
    h, d = t.run_history, t.dead_letters
    ended = sa.select(h.c.ends_run).where(h.c.run_id == run_id, h.c.ends_run.is_not(None))
    state = live or (await conn.execute(ended)).scalar()
    letter_id = (await conn.execute(sa.select(d.c.id).where(d.c.run_id == run_id))).scalar()
    return {"run_id": run_id, "state": state, "letter_id": letter_id}


async def _replayed_letter(conn: AsyncConnection, run_id: int, live: Mapping[str, Any] | None) -> Row | None:
    """Return the letter that a run replays; None if it was pruned."""
    d = t.dead_letters
    # The condition of the index, in so many words: a bound value alone does not say that there is one.
    condition = sa.and_(d.c.replay_run_id == run_id, sa.literal_column("dead_letters.replay_run_id IS NOT NULL"))
    if live is not None and live["replay_of"] is not None:
        condition = d.c.id == live["replay_of"]
    letter = await _letter(conn, condition)
    return None if letter is None else {"letter_id": letter["id"], **{k: letter[k] for k in ("run_id", "worker")}}


async def _nodes(conn: AsyncConnection, ids: set[str], now: datetime) -> Row:
    """Return host and process id of nodes, those that have not been pruned, and of a silent one for how long it is."""
    n = t.nodes
    columns = (n.c.id, n.c.hostname, n.c.pid, n.c.state, n.c.heartbeat_at, n.c.lease_seconds)
    found = await conn.execute(sa.select(*columns).where(n.c.id.in_(ids)))
    nodes = {}
    for row in found:
        has_left = row.state in {"lost", "stopped"}
        silent = None if has_left else silent_seconds(row.heartbeat_at, row.lease_seconds, now)
        nodes[row.id] = {"hostname": row.hostname, "pid": row.pid, "silent_seconds": silent}
    return nodes
