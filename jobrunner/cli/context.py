"""From the command line's options to an open database: the settings, the checks of the schema, the event loop.

The options that many commands share are here, each with its name and help written once.
"""

from __future__ import annotations

import asyncio
import getpass
import os
import socket
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from jobrunner.config import Settings
from jobrunner.errors import WorkerNotFound
from jobrunner.policy.arguments import check_actor

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from datetime import datetime
    from typing import Any

    from jobrunner.storage.database.database import Database

T = TypeVar("T")

DatabaseUrl = Annotated[
    str | None,
    typer.Option("--database-url", metavar="URL", help="The database; else JOBRUNNER_DATABASE_URL."),
]
Module = Annotated[
    str,
    typer.Argument(
        metavar="MODULE[:NAME]",
        help="A module of the current folder or Python's path, and its orchestrator, if it has several.",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Write JSON, with the names of the columns, for programs.")]
Actor = Annotated[
    str | None, typer.Option("--actor", metavar="NAME", help="Who does it, for the audit log; else user@host.")
]
Limit = Annotated[
    int | None,
    typer.Option(
        "--limit", min=1, max=1_000_000, help="Show at most so many rows; else a screenful, and with --json all."
    ),
]
WorkerName = Annotated[str, typer.Argument(metavar="WORKER", help="The worker's name.", show_default=False)]
WorkerFilter = Annotated[str | None, typer.Option("--worker", metavar="WORKER", help="Of this worker only.")]
WHEN = (
    "a time (UTC without a zone), a duration ago such as 2h, or a time of day such as 03:00: "
    "today's or the last such time, by this machine's clock in its own zone"
)
Since = Annotated[str | None, typer.Option(metavar="WHEN", help=f"Only what was since then: {WHEN}.")]
Until = Annotated[str | None, typer.Option(metavar="WHEN", help="Only what was until then, given in the same ways.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask, however many it is.")]
Reason = Annotated[str | None, typer.Option("--reason", metavar="TEXT", help="Why, for those who look later.")]


@dataclass(frozen=True, slots=True)
class Root:
    """The options given before the command."""

    database_url: str | None = None


class Access(Enum):
    """What a command does to the database, and so what it may do to its schema first."""

    ANY = "any"  # looks at the schema itself
    READ = "read"  # never writes: a schema that is not current is refused
    WRITE = "write"  # an SQLite file that is behind is upgraded by itself, a missing one is not made
    CREATE = "create"  # an SQLite file is made, too


def load_settings(ctx: typer.Context, database_url: str | None = None, **explicit: Any) -> Settings:
    """Read the settings: those of the command line, then the environment's, then the defaults."""
    return Settings.load(os.environ, database_url=given_url(ctx, database_url), **explicit)


def given_url(ctx: typer.Context, database_url: str | None) -> str | None:
    """Return the URL that was given after the command, or else before it."""
    root = ctx.find_root().obj
    before = root.database_url if isinstance(root, Root) else None
    return before if database_url is None else database_url


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end: the only place that starts an event loop."""
    return asyncio.run(work)


def with_database(
    ctx: typer.Context,
    database_url: str | None,
    work: Callable[[Database], Awaitable[T]],
    access: Access = Access.READ,
) -> T:
    """Open the database of the settings, check its schema, do `work`, close it."""
    return run_async(_with_database(load_settings(ctx, database_url), work, access))


async def _with_database(settings: Settings, work: Callable[[Database], Awaitable[T]], access: Access) -> T:
    db = open_database(settings)
    try:
        await _prepare(db, access)
        return await work(db)
    except WorkerNotFound as unknown:
        from jobrunner.storage.workers.near import with_near_name  # noqa: PLC0415 - `--help` must not wait for it

        raise await with_near_name(db, unknown) from None
    except Exception as error:
        trouble = None
        if access is not Access.ANY:
            from jobrunner.storage.schema.parts import trouble_behind  # noqa: PLC0415 - `--help` must not wait for it

            trouble = await trouble_behind(db, error)
        if trouble is None:
            raise
        raise trouble from error
    finally:
        await db.close()


def open_database(settings: Settings) -> Database:
    """Prepare to use the database of the settings; nothing is opened yet."""
    from jobrunner.storage.database.database import Database  # noqa: PLC0415 - `--help` must not wait for it

    return Database.of(settings)


async def _prepare(db: Database, access: Access) -> None:
    from jobrunner.storage.schema import revisions  # noqa: PLC0415 - `--help` must not wait for it

    if access is Access.ANY:
        return
    if db.is_sqlite and access is not Access.READ:
        state = (await revisions.status(db)).state
        may_create = access is Access.CREATE and state is revisions.SchemaState.MISSING
        if may_create or state is revisions.SchemaState.BEHIND:
            from jobrunner.storage.schema import migrate as schema  # noqa: PLC0415 - nor a trigger for Alembic

            await schema.upgrade(db)
            return
    await revisions.require_current(db)


def now() -> datetime:
    """Return the time, UTC."""
    from jobrunner.runtime.clock import SystemClock  # noqa: PLC0415 - `--help` must not wait for it

    return SystemClock().now()


def actor_of(given: str | None) -> str:
    """Return who acts: as given, else `user@host`."""
    if given is not None:
        return check_actor("--actor", given)
    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):  # no name for this user id, as in many containers
        user = str(os.getuid()) if hasattr(os, "getuid") else "unknown"
    return f"{user}@{socket.gethostname()}"
