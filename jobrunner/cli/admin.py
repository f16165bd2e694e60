"""`jobrunner admin`: an operator's changes to workers and runs, and the lists that go with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobrunner.cli import context
from jobrunner.cli.admin_add import add
from jobrunner.cli.context import LARGEST_ID, Access, Actor, AsJson, DatabaseUrl, Limit, WorkerFilter, WorkerName
from jobrunner.cli.inputs import read_assignments, read_duration, read_time
from jobrunner.cli.output import Column, Listing, columns, priority, say, show_field, show_one, show_rows
from jobrunner.cli.status import show_schedule, show_switch
from jobrunner.errors import UsageError
from jobrunner.policy.switches import end_of_pause, show_end_of_pause
from jobrunner.storage import operations
from jobrunner.storage.audit import read_audits
from jobrunner.storage.nodes import list_nodes
from jobrunner.storage.pages import audit_pages
from jobrunner.storage.status import read_status, read_worker, require_workers

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from datetime import datetime

    from jobrunner.storage.database import Database

app = typer.Typer(rich_markup_mode=None, help="Change workers and runs; every change is written to the audit log.")
app.command("add")(add)

WorkerNames = Annotated[list[str], typer.Argument(metavar="WORKER...", help="The workers' names.", show_default=False)]
Reason = Annotated[str | None, typer.Option("--reason", metavar="TEXT", help="Why, for those who look later.")]


def _each(
    ctx: typer.Context,
    database_url: str | None,
    names: Sequence[str],
    change: Callable[[Database, str], Awaitable[Any]],
    said: str,
) -> None:
    """Change each worker in a transaction of its own; if one of the names is unknown, none."""
    distinct = list(dict.fromkeys(names))

    async def work(db: Database) -> None:
        async with db.peek() as conn:
            await require_workers(conn, db.dialect, distinct)
        for name in distinct:
            await change(db, name)
            say(f"{said} {name}")

    context.with_database(ctx, database_url, work, Access.WRITE)


@app.command("enable")
def enable(ctx: typer.Context, names: WorkerNames, actor: Actor = None, database_url: DatabaseUrl = None) -> None:
    """Enable workers: zero the failure streak, close the circuit."""
    who = context.actor_of(actor)
    _each(ctx, database_url, names, lambda db, name: operations.enable(db, name, context.now(), who), "enabled")


@app.command("disable")
def disable(
    ctx: typer.Context,
    names: WorkerNames,
    reason: Reason = None,
    actor: Actor = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Disable workers: nothing of them starts until they are enabled; what runs may end."""
    who = context.actor_of(actor)

    async def change(db: Database, name: str) -> None:
        await operations.disable(db, name, context.now(), who, reason)

    _each(ctx, database_url, names, change, "disabled")


@app.command("pause")
def pause(
    ctx: typer.Context,
    names: WorkerNames,
    duration: Annotated[str | None, typer.Option("--for", metavar="DURATION", help="So long, such as 2h.")] = None,
    until: Annotated[str | None, typer.Option(metavar="TIME", help="Until then: ISO 8601, UTC without a zone.")] = None,
    reason: Reason = None,
    actor: Actor = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Pause workers; without --for and --until, until they are resumed."""
    who, end = context.actor_of(actor), _pause_end(duration, until, context.now())

    async def change(db: Database, name: str) -> None:
        await operations.pause(db, name, context.now(), who, end, reason, is_length=duration is not None)

    _each(ctx, database_url, names, change, f"paused {show_end_of_pause(end)}:")


def _pause_end(duration: str | None, until: str | None, now: datetime) -> datetime:
    if duration is not None and until is not None:
        raise UsageError("--for and --until are both given; keep one")
    return end_of_pause(now, read_duration("--for", duration), read_time("--until", until))


@app.command("resume")
def resume(ctx: typer.Context, names: WorkerNames, actor: Actor = None, database_url: DatabaseUrl = None) -> None:
    """End the pause of workers now."""
    who = context.actor_of(actor)
    _each(ctx, database_url, names, lambda db, name: operations.resume(db, name, context.now(), who), "resumed")


@app.command("set")
def set_values(
    ctx: typer.Context,
    worker: WorkerName,
    assignments: Annotated[
        list[str], typer.Argument(metavar="FIELD=VALUE...", help="Such as interval_seconds=30.", show_default=False)
    ],
    actor: Actor = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Set fields of a worker's definition over what its code says; a deploy does not undo it."""
    who, values = context.actor_of(actor), read_assignments(worker, assignments)

    async def work(db: Database) -> None:
        config = await operations.set_values(db, worker, values, context.now(), who)
        for field in values:
            say(f"{worker}: {field} is {show_field(field, getattr(config, field))}")

    context.with_database(ctx, database_url, work, Access.WRITE)


@app.command("unset")
def unset_values(
    ctx: typer.Context,
    worker: WorkerName,
    fields: Annotated[
        list[str], typer.Argument(metavar="FIELD...", help="Such as interval_seconds.", show_default=False)
    ],
    actor: Actor = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Take back what was set: the fields are again as the worker's code says."""
    who, distinct = context.actor_of(actor), list(dict.fromkeys(fields))

    async def work(db: Database) -> None:
        config = await operations.unset_values(db, worker, distinct, context.now(), who)
        for field in distinct:
            say(f"{worker}: {field} is {show_field(field, getattr(config, field))} again")

    context.with_database(ctx, database_url, work, Access.WRITE)


@app.command("remove")
def remove(ctx: typer.Context, worker: WorkerName, actor: Actor = None, database_url: DatabaseUrl = None) -> None:
    """Remove a worker's definition; its history and dead letters stay."""
    who = context.actor_of(actor)

    async def work(db: Database) -> None:
        await operations.remove(db, worker, context.now(), who)
        say(f"removed {worker}")

    context.with_database(ctx, database_url, work, Access.WRITE)


@app.command("cancel")
def cancel(
    ctx: typer.Context,
    run: Annotated[int, typer.Argument(metavar="RUN", help="The run's id.", min=1, max=LARGEST_ID, show_default=False)],
    reason: Reason = None,
    actor: Actor = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Cancel a run: one that waits ends at once, one that runs is told to stop."""
    who = context.actor_of(actor)

    async def work(db: Database) -> None:
        state = await operations.cancel(db, run, context.now(), who, reason)
        say(f"cancelled run {run}" if state == "pending" else f"told run {run} to stop")

    context.with_database(ctx, database_url, work, Access.WRITE)


@app.command("list")
def list_workers(ctx: typer.Context, as_json: AsJson = False, database_url: DatabaseUrl = None) -> None:
    """List the workers and their definitions."""

    async def read(db: Database) -> list[dict[str, Any]]:
        async with db.read() as conn:
            return await read_status(conn)

    rows, now = context.with_database(ctx, database_url, read), context.now()
    shown = [
        *columns("name"),
        Column("schedule", "schedule", show_schedule),
        Column("state", "state", lambda row: show_switch(row, now)),
        priority(),
        *columns("max_running", "timeout_seconds", "max_retries", "isolation", "description"),
    ]
    show_rows(rows, shown, as_json=as_json, empty="no workers yet; `jobrunner run MODULE` registers those of a module")


@app.command("show")
def show(ctx: typer.Context, worker: WorkerName, as_json: AsJson = False, database_url: DatabaseUrl = None) -> None:
    """Show all there is about a worker: its state, and its definition in both layers."""

    async def read(db: Database) -> dict[str, Any]:
        async with db.read() as conn:
            return await read_worker(conn, worker)

    show_one(context.with_database(ctx, database_url, read), as_json=as_json)


@app.command("nodes")
def nodes(
    ctx: typer.Context,
    is_all: Annotated[bool, typer.Option("--all", help="Also those that have stopped or were lost.")] = False,
    as_json: AsJson = False,
    database_url: DatabaseUrl = None,
) -> None:
    """List the nodes: the processes that run workers."""

    async def read(db: Database) -> Sequence[dict[str, Any]]:
        async with db.read() as conn:
            return await list_nodes(conn, is_all=is_all)

    rows = context.with_database(ctx, database_url, read)
    shown = [
        Column("id", "id", lambda row: row["id"][:8]),
        *columns("hostname", "pid", "state", "started_at", "heartbeat_at", "max_concurrent", "version"),
    ]
    show_rows(rows, shown, as_json=as_json, empty="no nodes" if is_all else "no live nodes")


@app.command("audit")
def audit(
    ctx: typer.Context,
    worker: WorkerFilter = None,
    limit: Limit = None,
    as_json: AsJson = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Show who decided what, the newest first."""

    async def read(db: Database) -> None:
        listing = Listing(
            lambda conn, most: read_audits(conn, worker, most),
            lambda: audit_pages(db, worker),
            columns("at", "actor", "action", "worker", "detail"),
            empty="nothing decided yet",
        )
        await listing.show(db, limit, as_json=as_json)

    context.with_database(ctx, database_url, read)
