"""`jobrunner history`: what ended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobrunner.cli import context
from jobrunner.cli.context import LARGEST_ID, AsJson, DatabaseUrl, Limit
from jobrunner.cli.inputs import read_since
from jobrunner.cli.output import Column, columns, note, show_duration, show_rows
from jobrunner.errors import UsageError
from jobrunner.model.run import OutcomeKind
from jobrunner.storage.history import read_history
from jobrunner.storage.status import require_trace

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jobrunner.storage.database import Database

app = typer.Typer(rich_markup_mode=None)


@app.command("history")
def history(
    ctx: typer.Context,
    worker: Annotated[str | None, typer.Argument(metavar="[WORKER]", help="Of this worker only.")] = None,
    outcome: Annotated[
        str | None, typer.Option(metavar="OUTCOME", help=f"Only what ended so: {', '.join(OutcomeKind)}.")
    ] = None,
    since: Annotated[
        str | None, typer.Option(metavar="WHEN", help="Only what ended since: a time, or a duration ago such as 2h.")
    ] = None,
    run_id: Annotated[int | None, typer.Option("--run", min=1, max=LARGEST_ID, help="Of this run only.")] = None,
    limit: Limit = 50,
    as_json: AsJson = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Show what ended, the newest first."""
    if outcome is not None and outcome not in list(OutcomeKind):
        raise UsageError(f"--outcome: {outcome!r} is none of {', '.join(OutcomeKind)}")
    after = read_since("--since", since, context.now())

    async def read(db: Database) -> list[dict[str, Any]]:
        async with db.read() as conn:
            if worker is not None:
                await require_trace(conn, worker)
            return await read_history(conn, worker=worker, outcome=outcome, since=after, run_id=run_id, limit=limit)

    rows = context.with_database(ctx, database_url, read)
    shown = [
        *columns("id", "run_id", "worker", "attempt", "outcome", "ends_run", "finished_at", run_id="run"),
        Column("duration_ms", "took", lambda row: show_duration(row["duration_ms"])),
        Column("error", "error or reason", _why),
    ]
    show_rows(rows, shown, as_json=as_json, empty="no history that fits")
    if len(rows) == limit and not as_json:
        note(f"the newest {limit}; --limit shows more")


def _why(row: Mapping[str, Any]) -> str:
    if row["occurrences"] is not None:
        return f"{row['occurrences']} times: {row['reason']}"
    if row["error"]:
        return f"{row['error_type']}: {row['error']}" if row["error_type"] else str(row["error"])
    return row["reason"] or ""
