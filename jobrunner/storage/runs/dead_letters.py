"""Dead letters: what is kept of runs whose attempts are used up. Listing, replaying, discarding.

A letter is resolved once: every write is guarded by `status = 'open'`, and a letter that somebody else resolved first
is refused. A replay inserts the new run and closes the letter in one transaction, so that neither exists without the
other; the two point at each other (`dead_letters.replay_run_id`, `runs.replay_of`). The new run is the letter's
occurrence again: same worker, key, priority and `scheduled_for`, due now.

Letters named by id are resolved all or none. All letters of a worker are taken in the order of their ids, in batches
of one transaction each, up to the newest letter there was at the beginning: a replay that dies again at once is not
replayed again.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.errors import DeadLetterNotFound, Refused, WorkerNotFound
from jobrunner.model.run import Trigger
from jobrunner.model.unreadable import UNREADABLE
from jobrunner.policy.definitions import check_payload
from jobrunner.storage.records.audit import audit_row, write_audits
from jobrunner.storage.tables import define as t
from jobrunner.storage.tables.rows import to_json
from jobrunner.storage.tables.types import Json, UtcDateTime
from jobrunner.storage.workers.payloads import refuse_misfit
from jobrunner.storage.workers.relations import existing_names

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

    from jobrunner.storage.database.database import Database
    from jobrunner.storage.database.dialect import Dialect

BATCH = 500
MOST_COUNTED = 10_000
_OPEN: sa.ColumnElement[bool] = sa.literal_column("dead_letters.status = 'open'")
_FIRING = (str(Trigger.SCHEDULE), str(Trigger.CONTINUOUS))


@dataclass(frozen=True, slots=True)
class Resolved:
    """What became of one letter: replayed as `run_id`, or (with None) discarded, or only looked at (dry run)."""

    letter_id: int
    worker: str
    run_id: int | None = None


@dataclass(frozen=True, slots=True)
class Resolution:
    """The letters resolved, and those left open: another waiting run has their key, or their payload is unreadable."""

    resolved: tuple[Resolved, ...] = ()
    held_back: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which letters: those of `ids`, or the open ones of `worker`, or those of `among` that are still open; give one.

    Of `ids` each must be open, and none is replayed if one cannot be; of the others, what cannot be stays open.
    """

    ids: tuple[int, ...] = ()
    worker: str | None = None
    among: tuple[int, ...] = ()


async def list_letters(
    conn: AsyncConnection,
    *,
    worker: str | None = None,
    status: str | None = "open",
    limit: int = 50,
    before_id: int | None = None,
) -> list[dict[str, Any]]:
    """Return the newest letters first (of those before `before_id`), at most `limit`; `status` None: of every one."""
    d = t.dead_letters
    statement = sa.select(d).order_by(d.c.id.desc()).limit(limit)
    if worker is not None:
        statement = statement.where(d.c.worker == worker)
    if status is not None:
        statement = statement.where(d.c.status == status)
    if before_id is not None:
        statement = statement.where(d.c.id < before_id)
    return [dict(row) for row in (await conn.execute(statement)).mappings()]


async def read_letter(conn: AsyncConnection, letter_id: int) -> dict[str, Any]:
    """Return one letter. Raises `DeadLetterNotFound`."""
    d = t.dead_letters
    row = (await conn.execute(sa.select(d).where(d.c.id == letter_id))).mappings().first()
    if row is None:
        raise DeadLetterNotFound(letter_id)
    return dict(row)


@dataclass(frozen=True, slots=True)
class OpenLetters:
    """How many letters are open: `firings` of schedules and loops; `triggered`, with a payload of their own.

    `is_capped`: `MOST_COUNTED` were counted, and there are more of either kind.
    """

    firings: int
    triggered: int
    is_capped: bool = False


async def count_open(conn: AsyncConnection, worker: str | None = None) -> OpenLetters:
    """Count the open letters, of all workers or of one, up to `MOST_COUNTED`."""
    d = t.dead_letters
    some = sa.select(d.c.trigger).where(_OPEN).limit(MOST_COUNTED + 1)
    if worker is not None:
        some = some.where(d.c.worker == worker)
    trigger = some.subquery().c.trigger
    counts = (sa.func.count().filter(trigger.in_(_FIRING)), sa.func.count())
    firings, found = (await conn.execute(sa.select(*counts))).one()
    firings = min(firings, MOST_COUNTED)
    return OpenLetters(firings, min(found, MOST_COUNTED) - firings, found > MOST_COUNTED)


async def latest_firing(conn: AsyncConnection, worker: str) -> int | None:
    """Return the id of the open letter of a worker's latest firing, if there is one."""
    d = t.dead_letters
    statement = sa.select(d.c.id).where(_OPEN, d.c.worker == worker, d.c.trigger.in_(_FIRING))
    latest = statement.order_by(d.c.scheduled_for.desc(), d.c.id.desc()).limit(1)
    found: int | None = (await conn.execute(latest)).scalar()
    return found


async def find_letter(conn: AsyncConnection, run_id: int) -> int | None:
    """Return the id of the letter that a run has left, if it has."""
    d = t.dead_letters
    found: int | None = (await conn.execute(sa.select(d.c.id).where(d.c.run_id == run_id))).scalar()
    return found


async def replay(
    db: Database,
    chosen: Chosen,
    now: datetime,
    actor: str,
    *,
    payload: dict[str, Any] | None = None,
    dry_run: bool = False,
) -> Resolution:
    """Make a new run of each chosen letter and close the letter.

    Args:
        db: the database.
        chosen: which letters.
        now: when the new runs are due, UTC.
        actor: who asks, for `resolved_by` and the audit log.
        payload: takes the place of the letters' own payloads; None keeps them.
        dry_run: change nothing, return what would be replayed.

    Raises:
        DeadLetterNotFound: no such letter; nothing was changed.
        WorkerNotFound: the worker is known neither to the database nor to any letter.
        Refused: a letter is not open any more, its worker is gone, or a waiting run has its key.
        InvalidPayload: the payload is no JSON object, too large, or none that the worker's handler takes.
    """
    if payload is not None:
        check_payload(payload)
        for worker in await _workers_of(db, chosen):
            await refuse_misfit(db, worker, payload)
    resolved: list[Resolved] = []
    held_back: list[int] = []

    async def replay_batch(conn: AsyncConnection, letters: Sequence[Any]) -> None:
        if dry_run:
            resolved.extend(Resolved(row.id, row.worker) for row in letters)
            return
        unreadable = [row.id for row in letters if payload is None and row.error_type == UNREADABLE]
        if unreadable and chosen.ids:
            raise Refused(
                f"letter {unreadable[0]} has no payload that can be read; replay it with a payload of its own"
            )
        held_back.extend(unreadable)
        letters = [row for row in letters if row.id not in unreadable]
        runs = await _insert_runs(conn, db.dialect, [row.id for row in letters], payload, now)
        missing = [row for row in letters if row.id not in runs]
        if missing and chosen.ids:
            raise Refused(
                f"letter {missing[0].id} cannot be replayed: another waiting run of {missing[0].worker!r} has its key "
                f"{missing[0].key!r}; let that run start, or discard the letter"
            )
        done = [Resolved(row.id, row.worker, runs[row.id]) for row in letters if row.id in runs]
        await _close(conn, db.dialect, done, "replayed", now, actor)
        is_edited = payload is not None
        details = [{"letter_id": item.letter_id, "run_id": item.run_id, "is_edited": is_edited} for item in done]
        audits = [audit_row("replay", done[n].worker, detail, now, actor) for n, detail in enumerate(details)]
        await write_audits(conn, audits)
        resolved.extend(done)
        held_back.extend(row.id for row in missing)

    await _each_batch(db, chosen, replay_batch, needs_worker=True, dry_run=dry_run)
    return Resolution(tuple(resolved), tuple(held_back))


async def _workers_of(db: Database, chosen: Chosen) -> Sequence[str]:
    """Return the workers of the chosen letters."""
    if chosen.worker is not None:
        return [chosen.worker]
    d, given = t.dead_letters, db.dialect.rows("ids", id=sa.BigInteger())
    theirs = sa.select(d.c.worker).where(d.c.id.in_(sa.select(given.c.id))).distinct().order_by(d.c.worker)
    ids = to_json({"id": number} for number in (*chosen.ids, *chosen.among))
    async with db.peek() as conn:
        return (await conn.execute(theirs, {"ids": ids})).scalars().all()


async def discard(db: Database, chosen: Chosen, now: datetime, actor: str, *, dry_run: bool = False) -> Resolution:
    """Close the chosen letters without running anything. Raises as `replay`; a worker that is gone is fine."""
    resolved: list[Resolved] = []

    async def discard_batch(conn: AsyncConnection, letters: Sequence[Any]) -> None:
        done = [Resolved(row.id, row.worker) for row in letters]
        if not dry_run:
            await _close(conn, db.dialect, done, "discarded", now, actor)
            audits = [audit_row("discard", i.worker, {"letter_id": i.letter_id}, now, actor) for i in done]
            await write_audits(conn, audits)
        resolved.extend(done)

    await _each_batch(db, chosen, discard_batch, needs_worker=False, dry_run=dry_run)
    return Resolution(tuple(resolved))


async def _each_batch(
    db: Database,
    chosen: Chosen,
    resolve: Callable[[AsyncConnection, Sequence[Any]], Coroutine[Any, Any, None]],
    *,
    needs_worker: bool,
    dry_run: bool,
) -> None:
    """Lock the chosen letters batch by batch, check them, and hand them to `resolve` in the same transaction."""
    if chosen.ids:
        async with db.read() if dry_run else db.write() as conn:
            letters = await _named_letters(conn, db.dialect, chosen.ids, lock=not dry_run)
            if needs_worker:
                await _refuse_gone_workers(conn, db.dialect, letters)
            await resolve(conn, letters)
        return
    async for batch in _batches(db, chosen):
        async with db.read() if dry_run else db.write() as conn:
            letters = await _lock_letters(conn, db.dialect, batch, lock=not dry_run)
            letters = [row for row in letters if row.status == "open"]  # somebody else may have been faster
            if needs_worker:
                await _refuse_gone_workers(conn, db.dialect, letters)
            await resolve(conn, letters)


async def _batches(db: Database, chosen: Chosen) -> AsyncIterator[Sequence[int]]:
    if chosen.worker is not None:
        async for batch in _open_letters(db, chosen.worker):
            yield batch
    for place in range(0, len(chosen.among), BATCH):
        yield chosen.among[place : place + BATCH]


async def _named_letters(conn: AsyncConnection, dialect: Dialect, ids: Sequence[int], *, lock: bool) -> Sequence[Any]:
    letters = await _lock_letters(conn, dialect, ids, lock=lock)
    found = {row.id for row in letters}
    for letter_id in ids:
        if letter_id not in found:
            raise DeadLetterNotFound(letter_id)
    for row in letters:
        if row.status != "open":
            as_run = "" if row.replay_run_id is None else f" as run {row.replay_run_id}"
            raise Refused(f"letter {row.id} is already {row.status}{as_run}; `jobrunner dead-letters show {row.id}`")
    return letters


async def _lock_letters(conn: AsyncConnection, dialect: Dialect, ids: Sequence[int], *, lock: bool) -> Sequence[Any]:
    """Read letters in the order of ids; with `lock`, whoever else resolves them waits, and then finds them closed."""
    d = t.dead_letters
    given = dialect.rows("ids", id=sa.BigInteger())
    statement = (
        sa.select(d.c.id, d.c.worker, d.c.key, d.c.status, d.c.replay_run_id, d.c.error_type)
        .where(d.c.id.in_(sa.select(given.c.id)))
        .order_by(d.c.id)
    )
    if lock:
        statement = statement.with_for_update(of=d)
    return (await conn.execute(statement, {"ids": to_json({"id": number} for number in ids)})).all()


async def _open_letters(db: Database, worker: str) -> AsyncIterator[Sequence[int]]:
    """Yield the ids of the worker's open letters, batch by batch, none newer than the newest at the beginning."""
    d = t.dead_letters
    async with db.peek() as conn:
        newest = (await conn.execute(sa.select(sa.func.max(d.c.id)).where(d.c.worker == worker))).scalar()
        if newest is None and not await existing_names(conn, db.dialect, [worker]):
            raise WorkerNotFound(worker)
    page = sa.select(d.c.id).where(d.c.worker == worker, d.c.id <= (newest or 0))
    page = page.where(_OPEN).order_by(d.c.id).limit(BATCH)
    after_id = 0
    while True:
        async with db.peek() as conn:
            ids = (await conn.execute(page.where(d.c.id > after_id))).scalars().all()
        if not ids:
            return
        yield ids
        after_id = ids[-1]


async def _refuse_gone_workers(conn: AsyncConnection, dialect: Dialect, letters: Sequence[Any]) -> None:
    known = await existing_names(conn, dialect, {row.worker for row in letters})
    for row in letters:
        if row.worker not in known:
            raise Refused(
                f"letter {row.id} cannot be replayed: its worker {row.worker!r} is not in the database any more; "
                "start a node that has it, or discard the letter"
            )


@functools.cache
def _insert_statement(dialect: Dialect) -> Any:
    """Build the INSERT ... SELECT that makes a run of each letter; none where a waiting run has the letter's key."""
    d, r = t.dead_letters, t.runs
    given = dialect.rows("ids", id=sa.BigInteger())
    now = sa.bindparam("now", type_=UtcDateTime())
    values: dict[str, sa.ColumnElement[Any]] = {
        "worker": d.c.worker,
        "trigger": sa.literal_column("'replay'"),
        "priority": d.c.priority,
        "scheduled_for": d.c.scheduled_for,
        "due_at": now,
        "payload": sa.func.coalesce(sa.bindparam("payload", type_=Json), d.c.payload),
        "key": d.c.key,
        "replay_of": d.c.id,
        "created_at": now,
        "is_ours": sa.true(),
    }
    source = sa.select(*values.values()).where(d.c.id.in_(sa.select(given.c.id)), _OPEN).order_by(d.c.id)
    insert = dialect.insert(r).from_select(list(values), source).on_conflict_do_nothing()
    return insert.returning(r.c.replay_of, r.c.id)


async def _insert_runs(
    conn: AsyncConnection, dialect: Dialect, ids: Sequence[int], payload: dict[str, Any] | None, now: datetime
) -> dict[int, int]:
    parameters = {"ids": to_json({"id": number} for number in ids), "payload": payload, "now": now}
    rows = (await conn.execute(_insert_statement(dialect), parameters)).all()
    return {row.replay_of: row.id for row in rows}


@functools.cache
def _close_statement(dialect: Dialect) -> Any:
    d = t.dead_letters
    given = dialect.rows("letters", id=sa.BigInteger(), run_id=sa.BigInteger())
    return (
        sa.update(d)
        .where(d.c.id == given.c.id, _OPEN)
        .values(
            status=sa.bindparam("new_status", type_=sa.Text()),
            replay_run_id=given.c.run_id,
            resolved_at=sa.bindparam("now", type_=UtcDateTime()),
            resolved_by=sa.bindparam("actor", type_=sa.Text()),
        )
        .returning(d.c.id)
    )


async def _close(
    conn: AsyncConnection, dialect: Dialect, done: Sequence[Resolved], status: str, now: datetime, actor: str
) -> None:
    letters = to_json({"id": item.letter_id, "run_id": item.run_id} for item in done)
    parameters = {"letters": letters, "new_status": status, "now": now, "actor": actor}
    closed = set((await conn.execute(_close_statement(dialect), parameters)).scalars())
    for item in done:
        if item.letter_id not in closed:  # cannot be, the rows are locked; the guard is the last word all the same
            raise Refused(f"letter {item.letter_id} is not open any more; nothing was changed")
