"""`jobrunner explain`: why something does not start, did not start, or that it does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobrunner.cli import context
from jobrunner.cli.context import AsJson, DatabaseUrl
from jobrunner.cli.inputs import read_past
from jobrunner.cli.layout import WHOLE, Column, columns
from jobrunner.cli.output import say, say_folded, show_json, show_rows, show_value
from jobrunner.errors import UsageError
from jobrunner.policy.arguments import LARGEST_ID
from jobrunner.policy.enabling import after_enabling
from jobrunner.policy.liveness import short_id
from jobrunner.policy.showing import show_duration
from jobrunner.policy.words import first_line, show_time
from jobrunner.storage.reading import explain as explaining
from jobrunner.storage.reading.enabled import with_next_once_enabled
from jobrunner.storage.reading.explain_run import explain_run
from jobrunner.storage.reading.past import explain_at
from jobrunner.storage.reading.status import read_worker

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime

    from jobrunner.storage.database.database import Database

app = typer.Typer(rich_markup_mode=None)


@app.command("explain")
def explain(
    ctx: typer.Context,
    worker: Annotated[
        str | None, typer.Argument(metavar="[WORKER]", help="The worker's name.", show_default=False)
    ] = None,
    at: Annotated[
        str | None,
        typer.Option("--at", metavar="WHEN", help=f"As it was then, from history and audit log: {context.WHEN}."),
    ] = None,
    run_id: Annotated[
        int | None, typer.Option("--run", min=1, max=LARGEST_ID, help="Of this run: why it waits, or how it ended.")
    ] = None,
    as_json: AsJson = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Show every gate a worker's run must pass, open or shut, and why.

    The run is the one that would start first, also if it waits for its time. What matters most is said first: what
    stays shut until somebody does something, then what opens by itself.
    """
    if run_id is not None:
        if worker is not None or at is not None:
            raise UsageError("--run names the run, and is given alone: `jobrunner explain --run 812`")
        _show_run(ctx, run_id, as_json=as_json, database_url=database_url)
        return
    if worker is None:
        raise UsageError("missing argument 'WORKER', or a run with --run; see `jobrunner explain --help`")
    now = context.now()
    moment = read_past("--at", at, now)

    async def read(db: Database) -> tuple[dict[str, Any], dict[str, Any] | None]:
        if moment is not None:
            return await explain_at(db, worker, moment, now), None
        found = await explaining.explain(db, worker, now)
        async with db.peek() as conn:
            return found, with_next_once_enabled(await read_worker(conn, worker), now)

    found, row = context.with_database(ctx, database_url, read)
    if as_json:
        show_json(found)
        return
    for line in _lines(worker, found, moment):
        say_folded(line)
    say("")
    _show_gates(found["gates"])
    if row is not None and not row["is_enabled"]:
        say_folded(" ".join(after_enabling(row)), "once enabled: ")
    for sentence in found.get("assumed", ()):
        say_folded(sentence, "assumed: ")


def _lines(worker: str, found: Mapping[str, Any], moment: datetime | None) -> Iterator[str]:
    """Say in sentences what runs, whether more starts, and of a past moment what came of it."""
    for run in found["running"]:
        ran = "ran" if moment else "runs"
        yield f"{worker}: run {run['run_id']} {ran} since {_since(run)}"
    candidate = found["candidate"]
    what = "its next run" if candidate is None or candidate["run_id"] is None else f"run {candidate['run_id']}"
    if moment is None:
        if found["starts"]:
            yield f"{worker}: {what} can start now, on node {short_id(found['node_id'])}"
        else:
            yield f"{worker}: {what} does not start now: {show_value(found['why'])}"
        return
    at = show_time(moment)
    if found["starts"]:
        where = "" if found["node_id"] is None else f", on node {short_id(found['node_id'])}"
        yield f"{worker}: {what} could start at {at}{where}"
    else:
        yield from _not_then(worker, what, at, found)
    if found["served"] is not None:
        yield f"its time then: {show_value(found['served']['said'])}"
    following = found["next_start"]
    if following is not None and following["run_id"] != (found["served"] or {}).get("run_id"):
        yield f"the next to start: {show_value(following['said'])}"


def _not_then(worker: str, what: str, at: str, found: Mapping[str, Any]) -> Iterator[str]:
    """Say why nothing started then: that it was not due comes before that no node lived."""
    shut = {gate["gate"]: gate["reason"] for gate in found["gates"] if not gate["open"]}
    if "due" not in shut or found["why"] != shut.get("handler"):
        yield f"{worker}: {what} did not start at {at}: {show_value(found['why'])}"
        return
    yield f"{worker} was not due at {at}: {show_value(shut['due'])}"
    yield f"and had it been due: {show_value(found['why'])}"


def _since(run: Mapping[str, Any]) -> str:
    return f"{show_time(run['started_at'])}, on node {short_id(run['node_id'])}"


def _show_gates(gates: Sequence[Mapping[str, Any]]) -> None:
    shown = [
        *columns("gate"),
        Column("open", "is", lambda row: "open" if row["open"] else "shut"),
        Column("reason", "reason", longest=WHOLE),
    ]
    show_rows(gates, shown, as_json=False, empty="")


def _show_run(ctx: typer.Context, run_id: int, *, as_json: bool, database_url: str | None) -> None:
    async def read(db: Database) -> dict[str, Any]:
        return await explain_run(db, run_id, context.now())

    found = context.with_database(ctx, database_url, read)
    if as_json:
        show_json(found)
        return
    say_folded(f"run {run_id} of {found['worker']} {_how(found)}")
    for attempt in found["attempts"]:
        say_folded(_attempt(attempt))
    if found["gates"]:
        say("")
        _show_gates(found["gates"])


def _how(found: Mapping[str, Any]) -> str:
    """Say how a run stands."""
    why = show_value(first_line(found["why"])) if found["why"] else ""
    if found["finished_at"] is not None:
        said = f"ended {found['state']} at {show_time(found['finished_at'])}"
    elif found["state"] == "pending":
        waits = f"waits for attempt {found['attempt']}" if found["attempt"] > 1 else "waits"
        return f"{waits}, and does not start now: {why}" if why else f"{waits}, and can start now"
    else:
        is_told = found["state"] == "stopping"
        said = f"{'is told to stop, and runs' if is_told else 'runs'} since {_since(found)}"
    return f"{said}: {why}" if why else said


def _attempt(row: Mapping[str, Any]) -> str:
    """Say how an attempt ended, in a line."""
    said = f"attempt {row['attempt']}: {str(row['outcome']).replace('_', ' ')}"
    if row["started_at"] is None:
        said += f" at {show_time(row['finished_at'])}, before it had started"
    else:
        said += f", started {show_time(row['started_at'])}, took {show_duration(row['duration_ms'])}"
        said += f", on node {short_id(row['node_id'])}" if row["node_id"] else ""
    why = row["error"] or row["reason"]
    if not why:
        return said
    named = f"{row['error_type']}: {why}" if row["error"] and row["error_type"] else why
    return f"{said}: {show_value(first_line(named))}"
