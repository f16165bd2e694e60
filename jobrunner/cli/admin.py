"""`jobrunner admin`: an operator's changes to workers and runs, and the lists that go with them."""

from __future__ import annotations

from operator import itemgetter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobrunner.cli import context
from jobrunner.cli.admin_add import add
from jobrunner.cli.admin_cancel import cancel
from jobrunner.cli.admin_limit import limit as named_limit
from jobrunner.cli.admin_switches import disable, enable, pause, resume
from jobrunner.cli.context import Access, Actor, AsJson, DatabaseUrl, Limit, Since, WorkerFilter, WorkerName
from jobrunner.cli.inputs import read_assignments, read_past
from jobrunner.cli.layout import WHOLE, Column, columns
from jobrunner.cli.output import age, note, priority, say, show_field, show_one, show_rows
from jobrunner.cli.searching import show_found
from jobrunner.errors import UsageError
from jobrunner.policy import definitions
from jobrunner.policy.deeds import tell_deed
from jobrunner.policy.filters import Filter
from jobrunner.policy.liveness import short_id
from jobrunner.policy.showing import show_health, show_schedule
from jobrunner.policy.words import counted
from jobrunner.storage.reading.nodes_heard import list_nodes
from jobrunner.storage.reading.search import search_audits
from jobrunner.storage.reading.status import read_status, read_worker
from jobrunner.storage.tables.kept_tables import AUDIT_ACTIONS
from jobrunner.storage.workers import operations

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jobrunner.storage.database.database import Database

app = typer.Typer(rich_markup_mode=None, help="Change workers and runs; every change is written to the audit log.")
app.command("add")(add)
app.command("cancel")(cancel)
app.command("limit")(named_limit)
for turn in (enable, disable, pause, resume):
    app.command(turn.__name__)(turn)


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
            return await list_nodes(conn, context.now(), is_all=True)

    everything, now = context.with_database(ctx, database_url, read), context.now()
    rows = [row for row in everything if is_all or row["state"] in {"active", "draining"}]
    shown = [
        *columns("id"),
        Column("state", "state", lambda row: row["state"] if row["silent_seconds"] is None else "silent"),
        *columns("hostname"),
        *columns("pid", importance=8),
        age("started_at", "started", now, importance=5),
        *columns("started_at", started_at="at", importance=2),
        age("heartbeat_at", "heartbeat", now, importance=7),
        *columns("heartbeat_at", heartbeat_at="at", importance=3),
        *columns("max_concurrent", importance=3),
        *columns("version", importance=2),
    ]
    show_rows(rows, shown, as_json=as_json, empty="no nodes" if is_all else "no live nodes")
    lost = sum(row["state"] == "lost" for row in everything)
    if lost and is_all and not as_json:
        newest = max((row for row in rows if row["state"] == "lost"), key=itemgetter("heartbeat_at"))
        note(f"`jobrunner history node:{short_id(newest['id'])} outcome:lost` shows what the last that was lost held")
    if lost and not is_all and not as_json:
        note(f"{counted(lost, 'node')} lost lately; --all shows {'it' if lost == 1 else 'them'}")


@app.command("audit")
def audit(
    ctx: typer.Context,
    name: Annotated[str | None, typer.Argument(metavar="[WORKER]", help="Of this worker only.")] = None,
    of: WorkerFilter = None,
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
    """Show who decided what, the newest first; in words, and with --json as it was written."""
    if name is not None and of not in {None, name}:
        raise UsageError(f"two workers are given, {name!r} and {of!r}; keep one")
    worker = of if name is None else name
    for given in action or ():
        if given not in AUDIT_ACTIONS:
            raise UsageError(f"--action: {given!r} is none of {', '.join(AUDIT_ACTIONS)}")
    narrowed: dict[str, Any] = {
        "worker": worker,
        "since": read_past("--since", since, context.now()),
        "actions": action or (),
        "actor": actor,
    }
    is_narrowed = bool(worker or since or action or actor)

    async def read(db: Database) -> None:
        await show_found(
            db,
            lambda conn, _, most, after: search_audits(conn, most, after, **narrowed),
            Filter(),
            limit,
            [
                *columns("at", "actor"),
                *columns("action", importance=3),
                *columns("worker", importance=4),
                Column("detail", "what was done", _deed, longest=WHOLE),
            ],
            "nothing decided that fits" if is_narrowed else "nothing decided yet",
            as_json=as_json,
            elsewhere="--worker looks elsewhere",
        )

    context.with_database(ctx, database_url, read)


def _deed(row: Mapping[str, Any]) -> str:
    return tell_deed(row["action"], row["detail"]).told(row["worker"])
