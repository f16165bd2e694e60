"""`jobrunner upcoming`: what will fire, and when it will really start."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobrunner.cli import context
from jobrunner.cli.calendar import show_calendar
from jobrunner.cli.context import AsJson, DatabaseUrl, Limit
from jobrunner.cli.inputs import read_duration
from jobrunner.cli.layout import WHOLE, Column, columns
from jobrunner.cli.output import Listing, age, note, show_rows
from jobrunner.errors import UsageError
from jobrunner.policy.upcoming import MOST_COUNTED
from jobrunner.policy.zones import zone_or_utc
from jobrunner.storage.reading import status as reading
from jobrunner.storage.reading.forecasts import read_ahead
from jobrunner.storage.reading.nodes_heard import read_nodes_heard
from jobrunner.storage.reading.pages import upcoming_pages
from jobrunner.storage.reading.soon import read_few

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Iterator, Mapping
    from datetime import datetime

    from jobrunner.policy.upcoming import Few, Upcoming
    from jobrunner.storage.database.database import Database
    from jobrunner.storage.reading.forecasts import Ahead
    from jobrunner.storage.runs.transaction import AsyncConnection

app = typer.Typer(rich_markup_mode=None)
_SCREENFUL = 100  # of what will fire
_MOST_NAMED = 5
_MOST_EVENTS = 10_000


@app.command("upcoming")
def upcoming(
    ctx: typer.Context,
    worker: Annotated[str | None, typer.Argument(metavar="[WORKER]", help="Of this worker only.")] = None,
    horizon: Annotated[str, typer.Option("--for", metavar="DURATION", help="How far to look ahead.")] = "24h",
    is_late_only: Annotated[
        bool, typer.Option("--late", help="Only what will start later than it is due, or not at all, and why.")
    ] = False,
    limit: Limit = None,
    as_calendar: Annotated[
        bool, typer.Option("--ics", help="Write an iCalendar file, for a calendar, to standard output.")
    ] = False,
    as_json: AsJson = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Show what will fire, in the order of time.

    On a terminal that is the next three times of each worker, unless one is named or --limit is given. Days on which
    the clock of a worker's time zone changes are marked, and workers that are disabled or paused. When each will start
    is found by playing the time ahead: with dependencies, blocks, limits, and as long as runs usually take.
    """
    if as_calendar and (as_json or is_late_only):
        raise UsageError(f"--ics and {'--json' if as_json else '--late'} are two forms of the same; keep one")
    seconds = read_duration("--for", horizon) or 0.0
    now = context.now()
    asked = _Asked(worker, horizon, now, now + timedelta(seconds=seconds), limit)

    async def read(db: Database) -> None:
        if worker is not None:
            async with db.peek() as conn:
                await reading.require_workers(conn, db.dialect, [worker])
        async with db.read() as conn:
            rows = None if is_late_only else limit
            ahead = await read_ahead(conn, db.dialect, now, asked.until, worker, rows)
            heard, _ = await read_nodes_heard(conn, now)
        if as_calendar:
            async with db.read() as conn:
                show_calendar(await asked.first(conn, limit or _MOST_EVENTS, ahead), now)
            return
        await asked.show(db, ahead, is_late_only=is_late_only, as_json=as_json)
        if not heard.active and not as_json:
            note(f"{heard.why_no_handler()}: until then nothing starts; the times of starts take one to start now")
        for said in (ahead.cut, None if as_json else ahead.loops):
            if said is not None:
                note(said)

    context.with_database(ctx, database_url, read)


@dataclass(frozen=True, slots=True)
class _Asked:
    """What was asked for, and the rows that answer it."""

    worker: str | None
    horizon: str
    now: datetime
    until: datetime
    limit: int | None

    @property
    def shown(self) -> list[Column]:
        return [
            *columns("due_at", due_at="due"),
            age("due_at", "when", self.now, importance=7),
            *columns("worker"),
            Column("timezone", "local time", _local_time, importance=8),
            Column("starts_at", "starts", _late_start, importance=6),
            Column("note", "note", longest=WHOLE),
        ]

    @property
    def empty(self) -> str:
        return f"nothing fires in the next {self.horizon}"

    async def first(self, conn: AsyncConnection, most: int, ahead: Ahead) -> list[dict[str, Any]]:
        found, _ = await reading.read_upcoming(conn, self.now, self.until, most, self.worker, ahead.forecast.begins)
        return [ahead.row(row) for row in found]

    async def show(self, db: Database, ahead: Ahead, *, is_late_only: bool, as_json: bool) -> None:
        if is_late_only:
            await self.show_late(db, ahead, as_json=as_json)
        elif self.worker is None and self.limit is None and not as_json and sys.stdout.isatty():
            await self.show_few(db, ahead)
        else:
            await self.show_all(db, ahead, as_json=as_json)

    async def show_few(self, db: Database, ahead: Ahead) -> None:
        async with db.read() as conn:
            few = await read_few(conn, self.now, self.until, _SCREENFUL, ahead.forecast.begins)
        show_rows([ahead.row(row) for row in few.rows], self.shown, as_json=False, empty=self.empty)
        for line in _more(few):
            note(line)

    async def show_late(self, db: Database, ahead: Ahead, *, as_json: bool) -> None:
        """Print what will be late: the first so many, and with JSON all, of the first `_MOST_EVENTS` that are due."""
        most = self.limit or (_MOST_EVENTS if as_json else _SCREENFUL)
        late: list[Upcoming] = []
        looked_at = 0
        async for page in upcoming_pages(db, self.now, self.until, self.worker, ahead.forecast.begins):
            late += [each for each in page if ahead.is_late(each)]
            looked_at += len(page)
            if len(late) > most or looked_at >= _MOST_EVENTS:
                break
        empty = f"nothing of the next {self.horizon} will be late"
        show_rows([ahead.row(each) for each in late[:most]], self.shown, as_json=as_json, empty=empty)
        if len(late) > most:
            note(f"the first {most}; --limit shows more")
        elif looked_at >= _MOST_EVENTS:
            note(f"looked through the first {looked_at:,} times; a worker's name or a shorter --for looks at fewer")

    async def show_all(self, db: Database, ahead: Ahead, *, as_json: bool) -> None:
        async def pages() -> AsyncIterator[list[dict[str, Any]]]:
            async for page in upcoming_pages(db, self.now, self.until, self.worker, ahead.forecast.begins):
                yield [ahead.row(row) for row in page]

        def first(conn: AsyncConnection, most: int) -> Awaitable[list[dict[str, Any]]]:
            return self.first(conn, most, ahead)

        listing = Listing(first, pages, self.shown, self.empty, order="first", screenful=_SCREENFUL)
        await listing.show(db, self.limit, as_json=as_json)


def _more(few: Few) -> Iterator[str]:
    """Say what of a few next times of each worker is not shown."""
    said = [
        f"more than {MOST_COUNTED} more of {name}" if count > MOST_COUNTED else f"{count} more of {name}"
        for name, count in few.more.items()
    ]
    if len(said) > _MOST_NAMED:
        said = [*said[:_MOST_NAMED], f"more of {len(said) - _MOST_NAMED} others"]
    if said:
        yield f"and {', '.join(said)}; `jobrunner upcoming WORKER` or --limit shows them"
    if few.is_cut:
        yield f"the first {_SCREENFUL}; --limit shows more"


def _late_start(row: Mapping[str, Any]) -> datetime | None:
    """Return when a firing starts, where that is not when it is due."""
    starts_at: datetime | None = row["starts_at"]
    return None if starts_at == row["due_at"] else starts_at


def _local_time(row: Mapping[str, Any]) -> datetime | None:
    zone = zone_or_utc(row["timezone"])
    return None if row["due_at"] is None or row["timezone"] == "UTC" else row["due_at"].astimezone(zone)
