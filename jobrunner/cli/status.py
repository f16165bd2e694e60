"""`jobrunner status` and `runs`: how things stand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobrunner.cli import context
from jobrunner.cli.context import AsJson, DatabaseUrl, Limit, WorkerFilter
from jobrunner.cli.dead_letters import show_open
from jobrunner.cli.layout import WHOLE, Column, columns
from jobrunner.cli.output import (
    Listing,
    in_zone,
    note,
    priority,
    say,
    say_folded,
    show_json_line,
    show_one,
    show_rows,
)
from jobrunner.cli.watching import Follower, followed_line, said_lines, show_progress
from jobrunner.policy.words import counted
from jobrunner.storage.reading import explain as explaining
from jobrunner.storage.reading import status as reading
from jobrunner.storage.reading.nodes_heard import read_nodes_heard
from jobrunner.storage.reading.pages import run_pages
from jobrunner.storage.reading.standing import read_standing
from jobrunner.storage.runs.dead_letters import OpenLetters, count_open

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from jobrunner.cli.watching import Row
    from jobrunner.policy.liveness import NodesHeard
    from jobrunner.storage.database.database import Database
    from jobrunner.storage.database.dialect import Dialect
    from jobrunner.storage.runs.transaction import AsyncConnection

app = typer.Typer(rich_markup_mode=None)
_SCREENFUL = 100  # of what will fire
_MOST_WORKERS = 1000
_MOST_NAMED = 5


def show_schedule(row: Mapping[str, Any]) -> str:
    """Show what makes a worker due."""
    if row["execution_mode"] == "triggered":
        return "when triggered"
    if row["execution_mode"] == "continuous":
        return f"continuous, {row['interval_seconds']:g} s apart"
    if row["cron"] is not None:
        return f"{row['cron']} ({row['timezone']})"
    return f"every {row['interval_seconds']:g} s"


def show_switch(row: Mapping[str, Any], now: datetime) -> str:
    """Show whether a worker is enabled, in a word."""
    if row["is_enabled"] is None:
        return "no state"
    if not row["is_enabled"]:
        return "half open" if row["circuit_state"] == "half_open" else "disabled"
    paused_until = row["paused_until"]
    return "paused" if paused_until is not None and paused_until > now else "enabled"


def _progress(told: Sequence[Mapping[str, Any]]) -> str:
    return "; ".join(map(show_progress, told))


@app.command("status")
def status(
    ctx: typer.Context,
    worker: Annotated[
        str | None, typer.Argument(metavar="[WORKER]", help="Show this worker only, with all there is.")
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=1, max=10_000, help="Show so many workers, those that fail or are off first."),
    ] = None,
    as_json: AsJson = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Show the workers and how they stand, or one of them.

    Without --json it is 1,000 at most, and of more workers first those that fail or are switched off.
    """

    async def read(
        db: Database,
    ) -> tuple[list[dict[str, Any]], tuple[NodesHeard, OpenLetters, reading.Totals], dict[str, list[dict[str, Any]]]]:
        async with db.read() as conn:
            totals = await reading.read_totals(conn)
            most = limit or (totals.workers if as_json else _MOST_WORKERS)
            worst = await reading.read_worst(conn, context.now(), most) if totals.workers > most else None
            rows = await read_standing(conn, db.dialect, context.now(), worker, worst if worker is None else None)
            if worst is not None and worker is None:
                places = {name: place for place, name in enumerate(worst)}
                rows.sort(key=lambda row: places[row["name"]])
            heard, _ = await read_nodes_heard(conn, context.now())
            counts = heard, await count_open(conn), totals
            return rows, counts, await reading.read_progress(conn)

    rows, (nodes, letters, totals), told = context.with_database(ctx, database_url, read)
    if worker is not None:
        show_one(rows[0], as_json=as_json, timezone=rows[0]["timezone"])
        return
    now = context.now()
    shown = [
        *columns("name"),
        Column("schedule", "schedule", show_schedule, importance=2),
        Column("state", "state", lambda row: show_switch(row, now)),
        *columns("running_runs", running_runs="running", importance=5),
        *columns("pending_runs", pending_runs="waiting", importance=6),
        Column("next_at", "next run", lambda row: in_zone(row["next_at"], row["timezone"]), importance=8),
        Column("last_run_at", "last run", lambda row: in_zone(row["last_run_at"], row["timezone"]), importance=4),
        *columns("last_run_outcome", last_run_outcome="last", importance=7),
        *columns("consecutive_failures", consecutive_failures="streak", importance=3),
        Column("name", "progress", lambda row: _progress(told.get(row["name"], [])), longest=200),
        Column("why", "why", longest=WHOLE),
    ]
    show_rows(rows, shown, as_json=as_json, empty="no workers yet; `jobrunner run MODULE` registers those of a module")
    if not as_json:
        waiting = f"{reading.MOST_COUNTED:,}+" if totals.waiting > reading.MOST_COUNTED else f"{totals.waiting}"
        say("")
        if len(rows) < totals.workers:
            note(f"{len(rows):,} of {totals.workers:,} workers are shown, those that fail or are switched off first")
        say_folded(
            f"{counted(totals.workers, 'worker')}, {totals.running} running, {waiting} waiting; "
            f"{counted(nodes.live, 'live node')}, {show_open(letters)}"
        )
        _say_silent(nodes)


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
                *columns("due_at", due_at="due", importance=7),
                *columns("started_at", started_at="started", importance=7),
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
            _say_silent(heard)

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


def _say_silent(heard: NodesHeard) -> None:
    silent = heard.show_silent()
    if silent:
        say_folded(f"{silent}; another node, or the next to start, takes over what it ran")
