"""`jobrunner runs`, `explain` and `upcoming`: what runs, what waits and why, what comes."""

from __future__ import annotations

import dataclasses
import sys
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobrunner.cli import context
from jobrunner.cli.context import AsJson, DatabaseUrl, Limit, WorkerFilter, WorkerName
from jobrunner.cli.inputs import read_duration
from jobrunner.cli.layout import WHOLE, Column, columns
from jobrunner.cli.output import (
    Listing,
    age,
    note,
    priority,
    say,
    say_folded,
    show_json,
    show_json_line,
    show_rows,
    show_value,
)
from jobrunner.cli.standing import say_silent
from jobrunner.cli.watching import Follower, followed_line, said_lines, show_progress
from jobrunner.policy.upcoming import MOST_COUNTED
from jobrunner.policy.zones import zone_or_utc
from jobrunner.storage.reading import explain as explaining
from jobrunner.storage.reading import status as reading
from jobrunner.storage.reading.nodes_heard import read_nodes_heard
from jobrunner.storage.reading.pages import run_pages, upcoming_pages
from jobrunner.storage.reading.soon import read_few

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
    from datetime import datetime

    from jobrunner.cli.watching import Row
    from jobrunner.policy.upcoming import Few
    from jobrunner.storage.database.database import Database
    from jobrunner.storage.database.dialect import Dialect
    from jobrunner.storage.runs.transaction import AsyncConnection

app = typer.Typer(rich_markup_mode=None)
_SCREENFUL = 100  # of what will fire
_MOST_NAMED = 5


@app.command("runs")
def runs(
    ctx: typer.Context,
    worker: WorkerFilter = None,
    limit: Limit = None,
    is_following: Annotated[
        bool, typer.Option("--follow", help="Go on: a line for each change, until Ctrl-C; with --json an object each.")
    ] = False,
    as_json: AsJson = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Show the live runs: those that run, then those that wait."""
    if is_following:

        def show(row: Row) -> None:
            if as_json:
                show_json_line(row)
            else:
                say(followed_line(row))

        def show_lines(row: Row, lines: Sequence[str]) -> None:
            if as_json:
                show_json_line({"run_id": row.get("run_id", row.get("id")), "worker": row["worker"], "lines": lines})
            else:
                say("\n".join(said_lines(row, lines)))

        async def watch(db: Database) -> None:
            await Follower(worker, show, show_lines).follow(db)

        context.with_database(ctx, database_url, watch)
        return

    now = context.now()

    async def read(db: Database) -> None:
        async with db.peek() as conn:
            heard, _ = await read_nodes_heard(conn, context.now())

        async def first(conn: AsyncConnection, most: int) -> list[dict[str, Any]]:
            rows = await reading.read_runs(conn, worker=worker, limit=most)
            return rows if as_json else await _with_why(conn, db.dialect, rows)

        listing = Listing(
            first,
            lambda: run_pages(db, worker),
            [
                *columns("id", "worker"),
                Column("state", "state", lambda row: row["state"] + ", silent" * (row["node_id"] in heard.silent)),
                *columns("trigger", importance=3),
                priority(importance=3),
                *columns("attempt", importance=5),
                age("due_at", "due", now, importance=8),
                *columns("due_at", due_at="at", importance=6),
                age("started_at", "started", now, importance=8),
                *columns("started_at", started_at="at", importance=6),
                *columns("key", importance=4),
                *columns("node_id", node_id="node", importance=2),
                Column("progress", "progress", lambda row: show_progress(row["progress"]), longest=200),
                Column("why", "why", longest=WHOLE),
            ],
            empty="no live runs",
            order="first",
        )
        await listing.show(db, limit, as_json=as_json)
        if not as_json:
            say_silent(heard)

    context.with_database(ctx, database_url, read)


async def _with_why(conn: AsyncConnection, dialect: Dialect, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add to live runs why they wait although their time has come: what the gates of their worker say."""
    now = context.now()
    due = {row["id"]: row["worker"] for row in rows if _is_held_up(row, now)}
    why = await explaining.why_due_waits(conn, dialect, now, sorted(set(due.values()))) if due else {}
    return [{**row, "why": why.get(due.get(row["id"], ""))} for row in rows]


def _is_held_up(row: Mapping[str, Any], now: datetime) -> bool:
    """Say whether a run's time has come while it waits; what is forced passes most gates."""
    return row["state"] == "pending" and row["due_at"] <= now and not row["is_forced"]


@app.command("explain")
def explain(
    ctx: typer.Context,
    worker: WorkerName,
    as_json: AsJson = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Show every gate a worker's run must pass, open or shut, and why.

    The run is the one that would start first, also if it waits for its time. What matters most is said first: what
    stays shut until somebody does something, then what opens by itself.
    """

    async def read(db: Database) -> dict[str, Any]:
        return await explaining.explain(db, worker, context.now())

    found = context.with_database(ctx, database_url, read)
    if as_json:
        show_json(found)
        return
    candidate = found["candidate"]
    what = "its next run" if candidate is None or candidate["run_id"] is None else f"run {candidate['run_id']}"
    if found["starts"]:
        say_folded(f"{worker}: {what} can start now, on node {found['node_id'][:8]}")
    else:
        say_folded(f"{worker}: {what} does not start now: {show_value(found['why'])}")
    say("")
    shown = [
        *columns("gate"),
        Column("open", "is", lambda row: "open" if row["open"] else "shut"),
        Column("reason", "reason", longest=WHOLE),
    ]
    show_rows(found["gates"], shown, as_json=False, empty="")


@app.command("upcoming")
def upcoming(
    ctx: typer.Context,
    worker: Annotated[str | None, typer.Argument(metavar="[WORKER]", help="Of this worker only.")] = None,
    horizon: Annotated[str, typer.Option("--for", metavar="DURATION", help="How far to look ahead.")] = "24h",
    limit: Limit = None,
    as_json: AsJson = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Show what will fire, in the order of time.

    On a terminal that is the next three times of each worker, unless one is named or --limit is given. Days on which
    the clock of a worker's time zone changes are marked, and workers that are disabled or paused.
    """
    seconds = read_duration("--for", horizon) or 0.0
    now = context.now()
    until = now + timedelta(seconds=seconds)

    async def first(conn: AsyncConnection, most: int) -> list[dict[str, Any]]:
        found, _ = await reading.read_upcoming(conn, now, until, most, worker)
        return [dataclasses.asdict(row) for row in found]

    shown = [
        *columns("due_at", due_at="due"),
        age("due_at", "when", now, importance=7),
        *columns("worker"),
        Column("timezone", "local time", _local_time, importance=8),
        Column("note", "note", longest=WHOLE),
    ]
    empty = f"nothing fires in the next {horizon}"

    async def read(db: Database) -> None:
        if worker is not None:
            async with db.peek() as conn:
                await reading.require_workers(conn, db.dialect, [worker])

        async def pages() -> AsyncIterator[list[dict[str, Any]]]:
            async for page in upcoming_pages(db, now, until, worker):
                yield [dataclasses.asdict(row) for row in page]

        if worker is None and limit is None and not as_json and sys.stdout.isatty():
            async with db.read() as conn:
                few = await read_few(conn, now, until, _SCREENFUL)
            show_rows(list(map(dataclasses.asdict, few.rows)), shown, as_json=False, empty=empty)
            for line in _more(few):
                note(line)
            return
        listing = Listing(first, pages, shown, empty, order="first", screenful=_SCREENFUL)
        await listing.show(db, limit, as_json=as_json)

    context.with_database(ctx, database_url, read)


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


def _local_time(row: Mapping[str, Any]) -> datetime | None:
    zone = zone_or_utc(row["timezone"])
    return None if row["due_at"] is None or row["timezone"] == "UTC" else row["due_at"].astimezone(zone)
