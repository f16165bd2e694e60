"""`jobrunner admin`: an operator's changes to workers and runs, and the lists that go with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobrunner.cli import context
from jobrunner.cli.admin_add import add
from jobrunner.cli.admin_cancel import cancel
from jobrunner.cli.context import Access, Actor, AsJson, DatabaseUrl, Limit, Reason, Since, WorkerFilter, WorkerName
from jobrunner.cli.inputs import read_assignments, read_duration, read_past, read_time, require_one
from jobrunner.cli.layout import Column, columns
from jobrunner.cli.output import Listing, priority, say, show_field, show_one, show_rows
from jobrunner.cli.standing import show_health, show_schedule
from jobrunner.errors import UsageError
from jobrunner.policy import definitions
from jobrunner.policy.missed import show_end_of_pause
from jobrunner.policy.switches import end_of_pause
from jobrunner.storage.nodes import list_nodes
from jobrunner.storage.reading.pages import audit_pages
from jobrunner.storage.reading.status import all_names, read_status, read_worker, require_workers
from jobrunner.storage.records.audit import read_audits
from jobrunner.storage.tables.kept_tables import AUDIT_ACTIONS
from jobrunner.storage.workers import operations

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from datetime import datetime

    from jobrunner.storage.database.database import Database

app = typer.Typer(rich_markup_mode=None, help="Change workers and runs; every change is written to the audit log.")
app.command("add")(add)
app.command("cancel")(cancel)

WorkerNames = Annotated[list[str] | None, typer.Argument(metavar="[WORKER]...", help="The workers' names.")]
All = Annotated[bool, typer.Option("--all", help="Every worker there is.")]


def _each(
    ctx: typer.Context,
    database_url: str | None,
    names: Sequence[str] | None,
    is_all: bool,
    change: Callable[[Database, str], Awaitable[Any]],
    said: str,
) -> None:
    """Change each worker in a transaction of its own; if one of the names is unknown, none."""
    require_one(bool(names), is_all, "give the names of workers, or --all for every one")

    async def work(db: Database) -> None:
        distinct = list(dict.fromkeys(names or ()))
        async with db.peek() as conn:
            if is_all:
                distinct = await all_names(conn)
            await require_workers(conn, db.dialect, distinct)
        if not distinct:
            say("there is no worker")
        for name in distinct:
            await change(db, name)
            say(f"{said} {name}")

    context.with_database(ctx, database_url, work, Access.WRITE)


@app.command("enable")
def enable(
    ctx: typer.Context,
    names: WorkerNames = None,
    is_all: All = False,
    actor: Actor = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Enable workers: zero the failure streak, close the circuit."""
    who = context.actor_of(actor)
    _each(ctx, database_url, names, is_all, lambda db, name: operations.enable(db, name, context.now(), who), "enabled")


@app.command("disable")
def disable(
    ctx: typer.Context,
    names: WorkerNames = None,
    is_all: All = False,
    reason: Reason = None,
    actor: Actor = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Disable workers: nothing of them starts until they are enabled; what runs may end.

    One that an operator has disabled before keeps its reason, unless another is given.
    """
    who = context.actor_of(actor)

    async def change(db: Database, name: str) -> None:
        await operations.disable(db, name, context.now(), who, reason)

    _each(ctx, database_url, names, is_all, change, "disabled")


@app.command("pause")
def pause(
    ctx: typer.Context,
    names: WorkerNames = None,
    is_all: All = False,
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

    _each(ctx, database_url, names, is_all, change, f"paused {show_end_of_pause(end)}:")


def _pause_end(duration: str | None, until: str | None, now: datetime) -> datetime:
    if duration is not None and until is not None:
        raise UsageError("--for and --until are both given; keep one")
    return end_of_pause(now, read_duration("--for", duration), read_time("--until", until))


@app.command("resume")
def resume(
    ctx: typer.Context,
    names: WorkerNames = None,
    is_all: All = False,
    actor: Actor = None,
    database_url: DatabaseUrl = None,
) -> None:
    """End the pause of workers now."""
    who = context.actor_of(actor)
    _each(ctx, database_url, names, is_all, lambda db, name: operations.resume(db, name, context.now(), who), "resumed")


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
        changed = await operations.set_values(db, worker, values, context.now(), who)
        for field in values:
            say(f"{worker}: {field} is {show_field(field, getattr(changed.after, field))}{_replaced(changed, field)}")

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
        changed = await operations.unset_values(db, worker, distinct, context.now(), who)
        for field in distinct:
            said = f"{show_field(field, getattr(changed.after, field))} again{_replaced(changed, field)}"
            say(f"{worker}: {field} is {said}")

    context.with_database(ctx, database_url, work, Access.WRITE)


def _replaced(changed: operations.Redefined, field: str) -> str:
    """Say which other field a field has taken the place of, or has given it back to."""
    _, *others = definitions.with_replaced(changed.before, changed.after, [field])
    if not others or field not in {"interval_seconds", "cron"}:
        return ""
    (other,) = others
    before, after = getattr(changed.before, other), getattr(changed.after, other)
    if after is None:
        return f", instead of {other} {show_field(other, before)}"
    return f"; {other} is {show_field(other, after)}"


@app.command("remove")
def remove(ctx: typer.Context, worker: WorkerName, actor: Actor = None, database_url: DatabaseUrl = None) -> None:
    """Remove a worker's definition; its history and dead letters stay."""
    who = context.actor_of(actor)

    async def work(db: Database) -> None:
        await operations.remove(db, worker, context.now(), who)
        say(f"removed {worker}")

    context.with_database(ctx, database_url, work, Access.WRITE)


@app.command("list")
def list_workers(ctx: typer.Context, as_json: AsJson = False, database_url: DatabaseUrl = None) -> None:
    """List the workers and their definitions."""

    async def read(db: Database) -> list[dict[str, Any]]:
        async with db.read() as conn:
            return await read_status(conn)

    rows = context.with_database(ctx, database_url, read)
    shown = [
        *columns("name"),
        Column("schedule", "schedule", show_schedule, importance=7),
        Column("health", "health", show_health),
        priority(importance=5),
        *columns("max_running", "timeout_seconds", "max_retries", importance=4),
        *columns("isolation", importance=3),
        Column("description", "description", importance=2, longest=150),
    ]
    show_rows(rows, shown, as_json=as_json, empty="no workers yet; `jobrunner run MODULE` registers those of a module")


@app.command("show")
def show(ctx: typer.Context, worker: WorkerName, as_json: AsJson = False, database_url: DatabaseUrl = None) -> None:
    """Show all there is about a worker: its state, and its definition in both layers."""

    async def read(db: Database) -> dict[str, Any]:
        async with db.read() as conn:
            return await read_worker(conn, worker)

    found = context.with_database(ctx, database_url, read)
    show_one(found, as_json=as_json, timezone=found["timezone"])


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
            return await list_nodes(conn, context.now(), is_all=is_all)

    rows = context.with_database(ctx, database_url, read)
    shown = [
        *columns("id"),
        Column("state", "state", lambda row: row["state"] if row["silent_seconds"] is None else "silent"),
        *columns("hostname"),
        *columns("pid", importance=8),
        *columns("started_at", started_at="started", importance=5),
        *columns("heartbeat_at", heartbeat_at="heartbeat", importance=7),
        *columns("max_concurrent", importance=3),
        *columns("version", importance=2),
    ]
    show_rows(rows, shown, as_json=as_json, empty="no nodes" if is_all else "no live nodes")


@app.command("audit")
def audit(
    ctx: typer.Context,
    worker: WorkerFilter = None,
    since: Since = None,
    action: Annotated[
        list[str] | None,
        typer.Option(metavar="ACTION", help=f"Only these: {', '.join(AUDIT_ACTIONS)}; may be given several times."),
    ] = None,
    actor: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only what this one decided: user@host, or the user.")
    ] = None,
    limit: Limit = None,
    as_json: AsJson = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Show who decided what, the newest first."""
    for given in action or ():
        if given not in AUDIT_ACTIONS:
            raise UsageError(f"--action: {given!r} is none of {', '.join(AUDIT_ACTIONS)}")
    narrowed: dict[str, Any] = {
        "since": read_past("--since", since, context.now()),
        "actions": action or (),
        "actor": actor,
    }
    is_narrowed = bool(worker or since or action or actor)

    async def read(db: Database) -> None:
        listing = Listing(
            lambda conn, most: read_audits(conn, worker, most, **narrowed),
            lambda: audit_pages(db, worker, **narrowed),
            [*columns("at", "actor", "action", "worker"), Column("detail", "detail", longest=300)],
            empty="nothing decided that fits" if is_narrowed else "nothing decided yet",
        )
        await listing.show(db, limit, as_json=as_json)

    context.with_database(ctx, database_url, read)
