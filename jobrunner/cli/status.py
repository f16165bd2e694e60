"""`jobrunner runs`: what runs, and what waits and why."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobrunner.cli import context
from jobrunner.cli.context import AsJson, DatabaseUrl, Limit, WorkerFilter
from jobrunner.cli.layout import WHOLE, Column, columns
from jobrunner.cli.output import (
    Listing,
    age,
    priority,
    say,
    show_json_line,
)
from jobrunner.cli.searching import Words, read_words, show_found
from jobrunner.cli.standing import say_silent
from jobrunner.cli.watching import Follower, followed_line, said_lines
from jobrunner.errors import UsageError
from jobrunner.policy.showing import show_progress
from jobrunner.storage.reading import status as reading
from jobrunner.storage.reading.nodes_heard import read_nodes_heard
from jobrunner.storage.reading.pages import run_pages
from jobrunner.storage.reading.search import search_runs
from jobrunner.storage.reading.why_waits import with_why

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jobrunner.cli.watching import Row
    from jobrunner.policy.filters import Filter
    from jobrunner.storage.database.database import Database
    from jobrunner.storage.reading.search import Found
    from jobrunner.storage.runs.transaction import AsyncConnection

app = typer.Typer(rich_markup_mode=None)


@app.command("runs")
def runs(
    ctx: typer.Context,
    words: Words = None,
    of: WorkerFilter = None,
    limit: Limit = None,
    is_following: Annotated[
        bool, typer.Option("--follow", help="Go on: a line for each change, until Ctrl-C; with --json an object each.")
    ] = False,
    as_json: AsJson = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Show the live runs: those that run, then those that wait.

    By terms it is the newest first: worker:NAME or a pattern, state:, trigger:, node:, key:, priority:, attempt: and
    payload.FIELD:.
    """
    worker, asked = read_words(words, of, "runs")
    if is_following:
        if not asked.is_empty:
            raise UsageError("--follow takes a worker, not terms; leave them out")
        _follow(ctx, database_url, worker, as_json=as_json)
        return

    now = context.now()

    async def read(db: Database) -> None:
        async with db.peek() as conn:
            heard, _ = await read_nodes_heard(conn, context.now())

        async def first(conn: AsyncConnection, most: int) -> list[dict[str, Any]]:
            rows = await reading.read_runs(conn, worker=worker, limit=most)
            return rows if as_json else await with_why(conn, db.dialect, now, rows)

        shown = [
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
            Column("limit_key", "part of", part_of, importance=4),
            *columns("node_id", node_id="node", importance=2),
            Column("progress", "progress", lambda row: show_progress(row["progress"]), longest=200),
            Column("why", "why", longest=WHOLE),
        ]
        if asked.is_empty:
            listing = Listing(first, lambda: run_pages(db, worker), shown, empty="no live runs", order="first")
            await listing.show(db, limit, as_json=as_json)
        else:

            async def search(conn: AsyncConnection, asked: Filter, most: int, after: int | None) -> Found:
                found = await search_runs(conn, asked, most, after)
                return found if as_json else replace(found, rows=await with_why(conn, db.dialect, now, found.rows))

            await show_found(db, search, asked, limit, shown, "no live run that fits", as_json=as_json)
        if not as_json:
            say_silent(heard)

    context.with_database(ctx, database_url, read)


def part_of(row: Row) -> str | None:
    """Say of a run which key of a limit it has, and which batch and flow it is of; None where there is none."""
    parts = [f"limit key {row['limit_key']}" if row["limit_key"] else ""]
    parts.append(f"batch {row['batch_id']}" if row["batch_id"] else "")
    parts.append(f"flow {row['flow_id']}" if row["flow_id"] else "")
    parts.append(f"step {row['step']}" if row["step"] else "")
    return ", ".join(filter(None, parts)) or None


def _follow(ctx: typer.Context, database_url: str | None, worker: str | None, *, as_json: bool) -> None:
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
