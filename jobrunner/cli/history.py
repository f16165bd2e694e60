"""`jobrunner history`: what ended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobrunner.cli import context
from jobrunner.cli.by_day import show_days
from jobrunner.cli.context import AsJson, DatabaseUrl, Limit, Since, Until, WorkerFilter
from jobrunner.cli.inputs import read_span
from jobrunner.cli.layout import ERROR, WHOLE, Column, columns
from jobrunner.cli.output import Listing, age, short
from jobrunner.cli.searching import Words, read_words, show_found
from jobrunner.cli.slower import show_slower
from jobrunner.errors import UsageError
from jobrunner.policy.arguments import LARGEST_ID
from jobrunner.policy.filters import OUTCOMES, Filter
from jobrunner.policy.showing import show_duration, show_times_missed
from jobrunner.storage.reading.oldest import search_oldest
from jobrunner.storage.reading.pages import history_pages
from jobrunner.storage.reading.search import search_history
from jobrunner.storage.reading.status import require_trace
from jobrunner.storage.records.history import read_history

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from jobrunner.storage.database.database import Database

app = typer.Typer(rich_markup_mode=None)
_EMPTY = "no history that fits"


@app.command("history")
def history(
    ctx: typer.Context,
    words: Words = None,
    of: WorkerFilter = None,
    outcome: Annotated[
        list[str] | None,
        typer.Option(metavar="OUTCOME", help=f"Only what ended so: {', '.join(OUTCOMES)}; may be given several times."),
    ] = None,
    since: Since = None,
    until: Until = None,
    run_id: Annotated[int | None, typer.Option("--run", min=1, max=LARGEST_ID, help="Of this run only.")] = None,
    is_oldest_first: Annotated[
        bool, typer.Option("--oldest-first", help="From the old end: what ended first at the top.")
    ] = False,
    is_by_day: Annotated[
        bool,
        typer.Option(
            "--by-day",
            help="Of a worker: how many ended on each day, and how long they took; --limit says how many days.",
        ),
    ] = False,
    is_slower_only: Annotated[
        bool,
        typer.Option("--slower", help="Of all workers: whose runs take longer than before --since (7 days ago)."),
    ] = False,
    limit: Limit = None,
    as_json: AsJson = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Show what ended, the newest first.

    Terms say what is meant: worker:NAME or a pattern, outcome:, since:, until:, run:, trigger:, node:, attempt:, error:
    (a part of the error or reason) and payload.FIELD:. All must hold; outcome:failed,lost means either.
    """
    outcome = [kind for each in outcome or () for kind in each.split(",")]
    for kind in outcome:
        if kind not in OUTCOMES:
            raise UsageError(f"--outcome: {kind!r} is none of {', '.join(OUTCOMES)}")
    worker, asked = read_words(words, of, "history", outcome=outcome or None, since=since, until=until, run=run_id)
    first, last = read_span(since, until, context.now())
    narrowed: dict[str, Any] = {
        "worker": worker,
        "outcome": outcome or None,
        "since": first,
        "until": last,
        "run_id": run_id,
    }

    meant = _as_filter(**narrowed) if asked.is_empty else asked
    _refuse_mixed(meant, is_by_day=is_by_day, is_slower_only=is_slower_only, is_oldest_first=is_oldest_first)

    async def read(db: Database) -> None:
        if worker is not None:
            async with db.peek() as conn:
                await require_trace(conn, worker)
        if is_slower_only:
            await show_slower(db, meant.worker, meant.since, limit, as_json=as_json)
        elif is_by_day:
            await show_days(db, meant.worker[0], limit, as_json=as_json)
        else:
            await attempts(db)

    async def attempts(db: Database) -> None:
        shown = [
            *columns("id", importance=3),
            *columns("run_id", "worker", run_id="run"),
            *columns("attempt", importance=5),
            *columns("outcome"),
            *columns("ends_run", importance=6),
            age("finished_at", "finished", context.now(), importance=8),
            *columns("finished_at", finished_at="at", importance=7),
            Column("duration_ms", "took", lambda row: show_duration(row["duration_ms"]), importance=4),
            Column("error", "why", _why, longest=WHOLE),
        ]
        if is_oldest_first:
            await show_found(db, search_oldest, meant, limit, shown, _EMPTY, as_json=as_json, order="oldest")
            return
        if not asked.is_empty:
            await show_found(db, search_history, asked, limit, shown, _EMPTY, as_json=as_json)
            return
        listing = Listing(
            lambda conn, most: read_history(conn, **narrowed, limit=most),
            lambda: history_pages(db, **narrowed),
            shown,
            empty=_EMPTY,
        )
        await listing.show(db, limit, as_json=as_json)

    context.with_database(ctx, database_url, read)


def _refuse_mixed(meant: Filter, *, is_by_day: bool, is_slower_only: bool, is_oldest_first: bool) -> None:
    """Refuse what a form of the answer cannot be narrowed by."""
    if is_by_day and (meant != Filter(worker=meant.worker) or meant.only_worker is None):
        raise UsageError("--by-day is of one worker and nothing else, such as `jobrunner history fetch-data --by-day`")
    if is_slower_only and meant != Filter(worker=meant.worker, since=meant.since):
        raise UsageError("--slower takes workers and --since, and nothing else")
    if is_by_day + is_slower_only + is_oldest_first > 1:
        raise UsageError("--by-day, --slower and --oldest-first are three forms of the answer; keep one")


def _as_filter(
    *,
    worker: str | None,
    outcome: list[str] | None,
    since: datetime | None,
    until: datetime | None,
    run_id: int | None,
) -> Filter:
    return Filter(
        worker=() if worker is None else (worker,),
        outcome=tuple(outcome or ()),
        since=since,
        until=until,
        run=() if run_id is None else (run_id,),
    )


def _why(row: Mapping[str, Any]) -> str:
    """Show why times were missed, or an attempt ended so: a reason whole, of an error the beginning."""
    if row["occurrences"] is not None:
        return f"{show_times_missed(row)}: {row['reason']}"
    if row["error"]:
        return short(f"{row['error_type']}: {row['error']}" if row["error_type"] else str(row["error"]), ERROR)
    return row["reason"] or ""
