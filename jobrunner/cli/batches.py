"""`jobrunner batches`: runs that are counted together, and how far they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobrunner.cli import context
from jobrunner.cli.context import AsJson, DatabaseUrl, Limit
from jobrunner.cli.layout import WHOLE, Column, columns
from jobrunner.cli.output import age, show_one, show_rows
from jobrunner.errors import UsageError
from jobrunner.policy.arguments import LARGEST_ID
from jobrunner.storage.reading.groups import MOST_COUNTED, list_batches, read_batch

if TYPE_CHECKING:
    from jobrunner.storage.database.database import Database

app = typer.Typer(rich_markup_mode=None)


@app.command("batches")
def batches(
    ctx: typer.Context,
    batch_id: Annotated[
        int | None,
        typer.Argument(metavar="BATCH", help="Only this one, whole.", min=1, max=LARGEST_ID, show_default=False),
    ] = None,
    limit: Limit = None,
    as_json: AsJson = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Show the batches: how many members are live, and what they call."""
    if batch_id is not None:
        if limit is not None:
            raise UsageError("--limit is for the list; leave it out, or the batch")
        show_one(context.with_database(ctx, database_url, lambda db: _read_one(db, batch_id)), as_json=as_json)
        return

    async def read(db: Database) -> list[dict[str, Any]]:
        async with db.peek() as conn:
            return await list_batches(conn, limit or 50)

    shown = [
        *columns("id", "state"),
        Column("live", "live", lambda row: _many(row["live"])),
        Column("ended", "ended", lambda row: _many(row["ended"])),
        *columns("on_success", "on_failure", "on_finish", importance=5),
        age("created_at", "begun", context.now(), importance=8),
        *columns("created_at", created_at="at", importance=7),
        Column("why", "why", longest=WHOLE),
    ]
    show_rows(context.with_database(ctx, database_url, read), shown, as_json=as_json, empty="no batches")


async def _read_one(db: Database, batch_id: int) -> dict[str, Any]:
    async with db.peek() as conn:
        return await read_batch(conn, batch_id)


def _many(count: int) -> str:
    return f"more than {MOST_COUNTED:,}" if count > MOST_COUNTED else str(count)
