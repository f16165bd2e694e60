"""Enqueueing: a trigger becomes a waiting run. One INSERT; no row is updated that others update.

A `key` is unique among the worker's runs that have not started (scope `waiting`), or that have not ended (scope
`live`); two partial unique indexes hold this against every race, and a duplicate answers with the run already there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.errors import Refused, WorkerNotFound
from jobrunner.storage import tables as t
from jobrunner.storage.rows import to_json
from jobrunner.storage.rowsets import built_once
from jobrunner.storage.types import Json, UtcDateTime

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

    from jobrunner.storage.dialect import Dialect

_TRIES = 5


@dataclass(frozen=True, slots=True)
class Request:
    """A trigger. `payload` None: the worker's own; `priority` None: the worker's; `due_at` None: now."""

    worker: str
    payload: dict[str, Any] | None = None
    due_at: datetime | None = None
    key: str | None = None
    key_scope: str = "waiting"
    priority: int | None = None
    is_forced: bool = False
    trigger: str = "manual"
    replay_of: int | None = None


@built_once
def insert_statement(dialect: Dialect) -> Any:
    """Build the INSERT ... SELECT that adds one run with its worker's defaults; no row for an unknown worker."""
    w, r = t.workers, t.runs
    values: dict[str, sa.ColumnElement[Any]] = {
        "worker": w.c.name,
        "trigger": sa.bindparam("trigger", type_=sa.Text()),
        "priority": sa.func.coalesce(sa.bindparam("priority", type_=sa.Integer()), w.c.priority),
        "scheduled_for": sa.bindparam("due_at", type_=UtcDateTime()),
        "due_at": sa.bindparam("due_at", type_=UtcDateTime()),
        "payload": sa.func.coalesce(sa.bindparam("payload", type_=Json), w.c.payload),
        "key": sa.bindparam("key", type_=sa.Text()),
        "key_scope": sa.bindparam("key_scope", type_=sa.Text()),
        "is_forced": sa.bindparam("is_forced", type_=sa.Boolean()),
        "replay_of": sa.bindparam("replay_of", type_=sa.BigInteger()),
        "created_at": sa.bindparam("now", type_=UtcDateTime()),
    }
    source = sa.select(*values.values()).where(w.c.name == sa.bindparam("worker", type_=sa.Text()))
    return dialect.insert(r).from_select(list(values), source).on_conflict_do_nothing().returning(r.c.id)


def _parameters(request: Request, now: datetime) -> dict[str, Any]:
    return {
        "worker": request.worker,
        "trigger": request.trigger,
        "priority": request.priority,
        "due_at": request.due_at or now,
        "payload": request.payload,
        "key": request.key,
        "key_scope": request.key_scope,
        "is_forced": request.is_forced,
        "replay_of": request.replay_of,
        "now": now,
    }


def same_key(request: Request) -> sa.Select[Any]:
    """Build the search for the run that already holds the request's key."""
    r = t.runs
    found = sa.select(r.c.id).where(r.c.worker == request.worker, r.c.key == request.key).order_by(r.c.id)
    if request.key_scope == "waiting":
        found = found.where(sa.or_(r.c.first_started_at.is_(None), r.c.key_scope == "live"))
    return found


async def enqueue(conn: AsyncConnection, dialect: Dialect, request: Request, now: datetime) -> int:
    """Add a waiting run in the caller's transaction and return its id, or the id of the run that has its key.

    Raises:
        WorkerNotFound: the database knows no such worker.
    """
    for _ in range(_TRIES):
        if request.key is not None:
            existing = (await conn.execute(same_key(request))).scalars().first()
            if existing is not None:
                return int(existing)
        inserted = (await conn.execute(insert_statement(dialect), _parameters(request, now))).scalars().all()
        if inserted:
            return int(inserted[0])
        known = await conn.execute(sa.select(t.workers.c.name).where(t.workers.c.name == request.worker))
        if known.first() is None:
            raise WorkerNotFound(request.worker)
    raise Refused(f"the run with key {request.key!r} comes and goes faster than it can be read; try again")


_CHUNK = 5000


async def enqueue_many(
    conn: AsyncConnection, dialect: Dialect, requests: Sequence[Request], now: datetime
) -> list[int]:
    """Add waiting runs without keys, in order, in few statements; return their ids.

    Raises:
        WorkerNotFound: the database knows one of the workers not; none is to be committed.
    """
    run_ids: list[int] = []
    for start in range(0, len(requests), _CHUNK):
        chunk = requests[start : start + _CHUNK]
        rows = [{**_bulk_row(request, now), "n": number} for number, request in enumerate(chunk)]
        inserted = (await conn.execute(_insert_many(dialect), {"many": to_json(rows), "now": now})).scalars().all()
        if len(inserted) != len(chunk):
            await _refuse_unknown(conn, chunk)
        run_ids += sorted(inserted)
    return run_ids


@built_once
def _insert_many(dialect: Dialect) -> Any:
    w, r = t.workers, t.runs
    given = dialect.rows(
        "many", n=sa.Integer(), worker=sa.Text(), priority=sa.Integer(), due_at=UtcDateTime(), payload=Json
    )
    values: dict[str, sa.ColumnElement[Any]] = {
        "worker": w.c.name,
        "priority": sa.func.coalesce(given.c.priority, w.c.priority),
        "scheduled_for": given.c.due_at,
        "due_at": given.c.due_at,
        "payload": sa.func.coalesce(given.c.payload, w.c.payload),
        "created_at": sa.bindparam("now", type_=UtcDateTime()),
    }
    source = sa.select(*values.values()).join_from(given, w, w.c.name == given.c.worker).order_by(given.c.n)
    return sa.insert(r).from_select(list(values), source).returning(r.c.id)


def _bulk_row(request: Request, now: datetime) -> dict[str, Any]:
    return {
        "worker": request.worker,
        "priority": request.priority,
        "due_at": request.due_at or now,
        "payload": request.payload,
    }


async def _refuse_unknown(conn: AsyncConnection, requests: Sequence[Request]) -> None:
    names = {request.worker for request in requests}
    known = set((await conn.execute(sa.select(t.workers.c.name).where(t.workers.c.name.in_(names)))).scalars())
    raise WorkerNotFound(min(names - known, default=min(names)))
