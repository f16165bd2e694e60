"""Bulk operations: the same done to all runs, or all letters, that fit a filter; durable, at a rate, and stoppable.

A row of `bulk_operations` says what is to be done and how far it has come. It goes from the newest that there was when
it began to the oldest, by id; what comes later is not meant. Whoever works at it, a node or the command line, holds it
for `HOLD_SECONDS` and renews that with each batch; after a crash the next one goes on. Between a batch and the note of
it a crash may lie: the batch is then met again, and is found done. So everything is done once, and
counted as done or as left out. Everything done has its row in the audit log, as if it had been done by hand, and so
have the beginning and the end of it all.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from jobrunner.errors import BulkNotFound, DatabaseError, Refused, RunNotFound, UsageError
from jobrunner.policy.filters import Filter, parse_filter
from jobrunner.storage.reading.search import Found, search_letters, search_runs
from jobrunner.storage.records.audit import audit_row, write_audits
from jobrunner.storage.runs import cancelling
from jobrunner.storage.runs import dead_letters as letters
from jobrunner.storage.tables import define as t

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

    from jobrunner.storage.database.database import Database

MOST_COUNTED = 10_000
DEFAULT_RATE = 100.0
HOLD_SECONDS = 30.0
_KINDS = {"cancel": "runs", "replay": "letters", "discard": "letters"}
_PAGE_ROWS, _BATCH = 1000, 100
_MOST_PAGES = 20
"""So often the preview asks: of a filter that hardly anything fits, it looks through a million rows."""
LEAST_RATE, MOST_RATE = 0.01, 1_000_000.0
_SLICE_SECONDS = 5.0
_EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class Preview:
    """What an operation would be done to: how many (`MOST_COUNTED` + 1: more), and the newest few of them.

    `is_cut`: there may be more among older rows, which the preview did not look through.
    """

    action: str
    text: str
    asked: Filter
    count: int
    examples: list[dict[str, Any]]
    newest: int
    is_cut: bool = False


def read_filter(action: str, text: str, now: datetime, local: datetime | None = None) -> Filter:
    """Read the filter of an operation. Raises `UsageError` for an unknown action and for a filter that asks nothing."""
    if action not in _KINDS:
        raise UsageError(f"{action!r} is no bulk operation; there are {', '.join(_KINDS)}")
    asked = parse_filter(text, _KINDS[action], now, local)
    if asked.is_empty:
        raise UsageError(
            "a bulk operation needs a filter: say which, as worker:send-* or error:timeout; worker:* is all"
        )
    if _KINDS[action] == "letters":
        if asked.status not in {(), ("open",)}:
            raise UsageError("only open letters can be replayed or discarded; leave status: out")
        asked = replace(asked, status=("open",))
    return asked


async def preview(db: Database, action: str, text: str, now: datetime, local: datetime | None = None) -> Preview:
    """Say what an operation would be done to, and change nothing. Raises as `read_filter`."""
    asked = read_filter(action, text, now, local)
    count, after = 0, None
    examples: list[dict[str, Any]] = []
    async with db.read() as conn:
        for _ in range(_MOST_PAGES):
            found = await _search(conn, action, asked, _PAGE_ROWS, after)
            examples += found.rows[: _EXAMPLES - len(examples)]
            count += len(found.rows)
            after = found.after
            if after is None or count > MOST_COUNTED:
                break
        key = t.runs.c.id if _KINDS[action] == "runs" else t.dead_letters.c.id
        newest = (await conn.execute(sa.select(sa.func.max(key)))).scalar() or 0
    is_cut = after is not None and count <= MOST_COUNTED
    return Preview(action, text, asked, min(count, MOST_COUNTED + 1), examples, newest, is_cut)


async def _search(conn: AsyncConnection, action: str, asked: Filter, limit: int, after: int | None) -> Found:
    """Find what is meant: of a run or letter no more than a person has to see; a payload may have a mebibyte."""
    if _KINDS[action] == "runs":
        return await search_runs(conn, asked, limit, after, ("id", "worker", "state"))
    return await search_letters(conn, asked, limit, after, ("id", "worker", "error_type", "error"))


async def begin(
    db: Database, seen: Preview, now: datetime, actor: str, *, reason: str | None = None, rate: float = DEFAULT_RATE
) -> int:
    """Write an operation down, for whoever works at it next, and return its id.

    Args:
        db: the database.
        seen: what was shown to who asks; what has come since is not touched.
        now: the time now, UTC.
        actor: who asks, for the audit log.
        reason: why; of cancelled runs, history keeps it.
        rate: how many a second at most.

    Raises:
        UsageError: the rate is none.
    """
    if not LEAST_RATE <= rate <= MOST_RATE:
        raise UsageError(f"the rate is a number a second, from {LEAST_RATE:g} to {MOST_RATE:,.0f}, not {rate:g}")
    b = t.bulk_operations
    values = {
        "action": seen.action,
        "filter": seen.text,
        "reason": reason,
        "actor": actor,
        "rate": float(rate),
        "since": seen.asked.since,
        "until": seen.asked.until,
        "expected": seen.count,
        "next_id": seen.newest + 1,
        "created_at": now,
    }
    async with db.write() as conn:
        bulk_id = int((await conn.execute(sa.insert(b).values(values).returning(b.c.id))).scalar_one())
        detail = {"bulk_id": bulk_id, "action": seen.action, "filter": seen.text, "expected": seen.count}
        await write_audits(conn, [audit_row("bulk", None, detail | {"reason": reason}, now, actor)])
    return bulk_id


async def stop(db: Database, bulk_id: int, now: datetime, actor: str) -> None:
    """Stop an operation: what is done stays done. Raises `BulkNotFound`, and `Refused` if it has ended."""
    b = t.bulk_operations
    async with db.write() as conn:
        row = (await conn.execute(sa.select(b).where(b.c.id == bulk_id).with_for_update())).mappings().first()
        if row is None:
            raise BulkNotFound(bulk_id)
        if row["state"] != "running":
            raise Refused(f"bulk operation {bulk_id} is {row['state']} already")
        await _end(conn, row["id"], "stopped", now, actor, stopped_by=actor)


async def _end(conn: AsyncConnection, bulk_id: int, state: str, now: datetime, actor: str, **more: Any) -> None:
    b = t.bulk_operations
    ended = sa.update(b).where(b.c.id == bulk_id, b.c.state == "running")
    ended = ended.values(state=state, ended_at=now, holder=None, held_until=None, **more)
    row = (await conn.execute(ended.returning(b.c.done, b.c.left_out))).first()
    if row is not None:
        detail = {"bulk_id": bulk_id, "state": state, "done": row.done, "left_out": row.left_out}
        await write_audits(conn, [audit_row("bulk", None, detail, now, actor)])


async def read_operations(conn: AsyncConnection, limit: int = 50, before: int | None = None) -> list[dict[str, Any]]:
    """Return the newest operations first, at most `limit`, of those before the id `before`."""
    b = t.bulk_operations
    statement = sa.select(b).order_by(b.c.id.desc()).limit(limit)
    if before is not None:
        statement = statement.where(b.c.id < before)
    return [dict(row) for row in (await conn.execute(statement)).mappings()]


async def read_operation(conn: AsyncConnection, bulk_id: int) -> dict[str, Any]:
    """Return one operation. Raises `BulkNotFound`."""
    b = t.bulk_operations
    row = (await conn.execute(sa.select(b).where(b.c.id == bulk_id))).mappings().first()
    if row is None:
        raise BulkNotFound(bulk_id)
    return dict(row)


async def take(db: Database, holder: str, now: datetime, bulk_id: int | None = None) -> dict[str, Any] | None:
    """Take an operation that nobody works at, the oldest or the one named; None if there is none."""
    b = t.bulk_operations
    running: sa.ColumnElement[bool] = sa.literal_column("bulk_operations.state = 'running'")
    is_free = sa.or_(b.c.held_until.is_(None), b.c.held_until < now)
    free = sa.select(b.c.id).where(running, is_free).order_by(b.c.id).limit(1)
    if bulk_id is not None:
        free = free.where(b.c.id == bulk_id)
    async with db.peek() as conn:
        found = (await conn.execute(free)).scalar()
    if found is None:
        return None
    held = sa.update(b).where(b.c.id == found, running, is_free)
    held = held.values(holder=holder, held_until=now + timedelta(seconds=HOLD_SECONDS)).returning(b)
    async with db.write() as conn:
        row = (await conn.execute(held)).mappings().first()
        return None if row is None else dict(row)


async def fail(db: Database, bulk_id: int, error: str, now: datetime, actor: str) -> None:
    """End an operation that cannot go on, and note why."""
    async with db.write() as conn:
        await _end(conn, bulk_id, "failed", now, actor, last_error=error)


class BulkWorker:
    """Works at one operation that it holds (`take`) until it is done, stopped, or taken by somebody else.

    `now` gives the time, UTC; `sleep` waits so many seconds.
    """

    def __init__(
        self,
        db: Database,
        row: dict[str, Any],
        now: Callable[[], datetime],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self._db = db
        self._row = row
        self._now = now
        self._sleep = sleep
        asked = read_filter(row["action"], row["filter"], row["created_at"])
        self._asked = replace(asked, since=row["since"], until=row["until"])

    async def run(self, told: Callable[[dict[str, Any]], None] = lambda _: None) -> None:
        """Work, and hand the row to `told` after each batch.

        Raises:
            DatabaseError: the database is away; another will go on, or the same one later.
        """
        rate = self._row["rate"]
        size = max(1, min(_BATCH, int(rate)))
        while True:
            async with self._db.read() as conn:
                found = await _search(conn, self._row["action"], self._asked, size, self._row["next_id"])
            done, left_out, error = await self._do([row["id"] for row in found.rows])
            is_ours = await self._note(done, left_out, error, found.after)
            told(self._row)
            if not is_ours or found.after is None:
                return
            if not await self._wait(len(found.rows) / rate, found.after):
                return

    async def _wait(self, seconds: float, after: int) -> bool:
        """Keep to the rate, and hold the operation meanwhile; say whether it is still ours to go on with."""
        left = seconds
        while left > _SLICE_SECONDS:
            await self._sleep(_SLICE_SECONDS)
            left -= _SLICE_SECONDS
            if not await self._note(0, 0, None, after):
                return False
        await self._sleep(left)
        return True

    async def _do(self, ids: list[int]) -> tuple[int, int, str | None]:
        """Do it to these; return how many it was done to, how many were left out, and the last reason for that."""
        if self._row["action"] == "cancel":
            return await self._each(ids, "run", self._cancel)
        try:
            return await self._resolve(ids)
        except DatabaseError:
            raise
        except Exception:  # noqa: BLE001 - the worker of one is gone, say, or its row is damaged: so each by itself
            return await self._each(ids, "letter", lambda letter_id: self._resolve([letter_id]))

    async def _each(
        self, ids: list[int], what: str, do: Callable[[int], Awaitable[tuple[int, int, str | None]]]
    ) -> tuple[int, int, str | None]:
        """Do it to one after the other; of which that fails, whatever it is, are left out."""
        done, left_out, last = 0, 0, None
        for each in ids:
            try:
                one = await do(each)
            except DatabaseError:
                raise
            except Exception as error:  # noqa: BLE001 - one that cannot be read or changed must not keep the others
                one = (
                    0,
                    1,
                    f"{what} {each}: {str(error).splitlines()[0][:500] if str(error) else type(error).__name__}",
                )
            done, left_out, last = done + one[0], left_out + one[1], one[2] or last
        return done, left_out, last

    async def _resolve(self, ids: list[int]) -> tuple[int, int, str | None]:
        resolve = letters.replay if self._row["action"] == "replay" else letters.discard
        result = await resolve(self._db, letters.Chosen(among=tuple(ids)), self._now(), self._row["actor"])
        said = None
        if result.held_back:
            said = f"letter {result.held_back[-1]}: its payload cannot be read, or a waiting run has its key"
        return len(result.resolved), len(ids) - len(result.resolved), said

    async def _cancel(self, run_id: int) -> tuple[int, int, str | None]:
        try:
            await cancelling.cancel(self._db, run_id, self._now(), self._row["actor"], self._row["reason"])
        except RunNotFound:  # it has ended meanwhile
            return 0, 1, None
        return 1, 0, None

    async def _note(self, done: int, left_out: int, error: str | None, after: int | None) -> bool:
        """Note how far it has come; say whether it is still ours to go on with."""
        b, now = t.bulk_operations, self._now()
        mine = sa.update(b).where(b.c.id == self._row["id"], b.c.state == "running", b.c.holder == self._row["holder"])
        values = {
            "done": b.c.done + done,
            "left_out": b.c.left_out + left_out,
            "next_id": self._row["next_id"] if after is None else after,
            "held_until": now + timedelta(seconds=HOLD_SECONDS),
        }
        if error is not None:
            values["last_error"] = error
        async with self._db.write() as conn:
            is_ours = (await conn.execute(mine.values(values).returning(b.c.id))).first() is not None
            if is_ours and after is None:
                await _end(conn, self._row["id"], "done", now, self._row["actor"])
            self._row = await read_operation(conn, self._row["id"]) | {"holder": self._row["holder"]}
        return is_ours
