"""`jobrunner db`: the schema, pruning, and the promises checked on live data."""

from __future__ import annotations

import dataclasses
import sys
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobrunner.cli import context
from jobrunner.cli.context import Access, Actor, AsJson, DatabaseUrl
from jobrunner.cli.output import JsonArray, clean, note, say, show_json
from jobrunner.errors import SchemaError, UsageError
from jobrunner.policy.durations import parse_duration
from jobrunner.policy.words import counted
from jobrunner.runtime.clock import SystemClock
from jobrunner.storage.reading.findings import Scope
from jobrunner.storage.reading.verify import verify as verify_promises
from jobrunner.storage.runs.retention import prune as prune_old
from jobrunner.storage.schema import migrate as schema
from jobrunner.storage.schema import revisions
from jobrunner.storage.schema.grants import Purpose, grants

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from jobrunner.storage.database.database import Database

_MOST_VIOLATIONS = 1000
_PROGRESS_SECONDS = 5.0

app = typer.Typer(rich_markup_mode=None, help="Upgrade and check the schema, prune what is old, verify the promises.")


@app.command("upgrade")
def upgrade(
    ctx: typer.Context,
    revision: Annotated[str, typer.Argument(metavar="[REVISION]", help="Up to this revision.")] = "head",
    actor: Actor = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Create the schema, or bring it up to date; safe to run anywhere at any time."""
    who = context.actor_of(actor)
    before, after = _without_check(ctx, database_url, lambda db: schema.upgrade(db, revision, actor=who))
    if before == after:
        say(f"the schema is at {_shown(after)} already")
    else:
        say(f"upgraded the schema from {_shown(before)} to {_shown(after)}")


@app.command("grants")
def show_grants(
    ctx: typer.Context,
    role: Annotated[str, typer.Option("--role", metavar="NAME", help="The PostgreSQL role.", show_default=False)],
    purpose: Annotated[
        Purpose,
        typer.Option("--for", help="What the role is for; operate reads too, a node does all.", show_default=False),
    ],
    database_url: DatabaseUrl = None,
) -> None:
    """Print the GRANT statements that a role needs, for the owner of the schema to run; nothing is changed."""
    settings = context.load_settings(ctx, database_url)
    db = context.open_database(settings)
    if db.is_sqlite:
        raise UsageError("SQLite has no roles: who may write the file and its folder may do everything")
    for statement in grants(db.url.database or db.url.username or "", settings.schema, role, purpose):
        say(statement)


@app.command("downgrade")
def downgrade(
    ctx: typer.Context,
    revision: Annotated[
        str,
        typer.Argument(metavar="REVISION", help="Back to this revision; base removes everything.", show_default=False),
    ],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask; needed where there is data and no terminal.")] = False,
    actor: Actor = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Take the schema back to an older revision; what only newer ones can hold is lost."""
    who = context.actor_of(actor)
    if not yes:
        if sys.stdin is not None and sys.stdin.isatty():
            typer.confirm(f"Take the schema back to {revision}? What newer revisions hold is lost", abort=True)
        elif _without_check(ctx, database_url, schema.holds_data):
            raise UsageError(
                f"taking the schema back to {revision} deletes data, and there is nobody to ask; pass --yes"
            )
    before, after = _without_check(ctx, database_url, lambda db: schema.downgrade(db, revision, actor=who))
    say(f"took the schema back from {_shown(before)} to {_shown(after)}")


@app.command("current")
def current(ctx: typer.Context, as_json: AsJson = False, database_url: DatabaseUrl = None) -> None:
    """Show the schema's revision and whether this jobrunner can use it; exit 4 if it cannot."""
    found = _without_check(ctx, database_url, revisions.status)
    if as_json:
        show_json({"state": str(found.state), "current": found.current, "head": found.head})
    else:
        say(f"{found.current or 'none'} ({found.state}; this version needs {found.head})")
    if found.state is not revisions.SchemaState.CURRENT:
        raise typer.Exit(SchemaError.exit_code)


@app.command("check")
def check(ctx: typer.Context, as_json: AsJson = False, database_url: DatabaseUrl = None) -> None:
    """Compare the database with what this jobrunner expects; exit 1 if they differ."""
    differences = context.with_database(ctx, database_url, schema.check)
    if as_json:
        show_json([{"difference": line} for line in differences])
    else:
        for line in differences or ["the database is as expected"]:
            say(line)
    if differences:
        raise typer.Exit(1)


@app.command("prune")
def prune(
    ctx: typer.Context,
    history_days: Annotated[
        float | None, typer.Option(min=0, help="Keep history so long; else JOBRUNNER_HISTORY_DAYS, 30.")
    ] = None,
    failure_days: Annotated[
        float | None,
        typer.Option(min=0, help="Keep failures and resolved dead letters so long; else JOBRUNNER_FAILURE_DAYS, 90."),
    ] = None,
    as_json: AsJson = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Delete what is older than it is to be kept; open dead letters and live runs are never touched."""
    settings = context.load_settings(ctx, database_url, history_days=history_days, failure_days=failure_days)

    async def work(db: Database) -> dict[str, Any]:
        pruned = await prune_old(db, context.now(), settings.history_days, settings.failure_days, SystemClock().sleep)
        return dataclasses.asdict(pruned)

    pruned = context.with_database(ctx, database_url, work, Access.WRITE)
    is_complete = pruned["is_complete"]
    if as_json:
        show_json(pruned)
    else:
        counts = (f"{count} of {table}" for table, count in pruned.items() if table != "is_complete")
        say(f"deleted {', '.join(counts)}")
    if not is_complete:
        note("another process is pruning, so this one has stopped")


def _without_check(ctx: typer.Context, database_url: str | None, work: Callable[[Database], Awaitable[Any]]) -> Any:
    """Use the database whatever the state of its schema."""
    return context.with_database(ctx, database_url, work, Access.ANY)


def _shown(status: revisions.SchemaStatus) -> str:
    return status.current or "nothing"


def _progress() -> Callable[[int], None]:
    """Say every few seconds how far a long check is, to people only."""
    due = time.monotonic() + _PROGRESS_SECONDS

    def progress(done: int) -> None:
        nonlocal due
        if sys.stderr.isatty() and time.monotonic() >= due:
            note(f"{done:,} rows of history read")
            due = time.monotonic() + _PROGRESS_SECONDS

    return progress


@app.command("verify")
def verify(
    ctx: typer.Context,
    tolerance: Annotated[
        str, typer.Option("--tolerance", help="By how much two intervals may touch, where clocks differ.")
    ] = "0",
    as_json: AsJson = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Check the promises (nothing lost, one owner, never together, order, streaks) on the data there is."""
    seconds = parse_duration(tolerance)
    settings = context.load_settings(ctx, database_url)

    doubts = 0

    def doubt() -> None:
        nonlocal doubts
        doubts += 1

    async def work(db: Database) -> int:
        scope = Scope(context.now(), settings.history_days, settings.failure_days, timedelta(seconds=seconds))
        found, array = 0, JsonArray()
        async for violation in verify_promises(db, scope, _progress(), SystemClock().sleep, doubt):
            found += 1
            if as_json:
                array.add([dataclasses.asdict(violation)])
            else:
                say(clean(f"promise {violation.promise}: {violation.problem} ({', '.join(violation.rows)})"))
                if found >= _MOST_VIOLATIONS:
                    break
        if as_json:
            array.close()
        return found

    found = context.with_database(ctx, database_url, work, Access.READ)
    if doubts:
        note(f"not judged: {counted(doubts, 'start')} at times when a node's clock was set (`admin audit` says when)")
    if found:
        more = "at least " if not as_json and found >= _MOST_VIOLATIONS else ""
        note(f"{more}{counted(found, 'violation')} found")
        raise typer.Exit(1)
    note("no violation found")
