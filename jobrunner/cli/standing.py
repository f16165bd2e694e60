"""`jobrunner status`: how each worker stands, the worst first."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobrunner.cli import context
from jobrunner.cli.context import AsJson, DatabaseUrl
from jobrunner.cli.dead_letters import show_open
from jobrunner.cli.layout import WHOLE, Column, columns
from jobrunner.cli.output import age, in_zone, note, say, say_folded, show_one, show_rows
from jobrunner.errors import UsageError
from jobrunner.policy.filters import TROUBLE, Filter, matches, parse_filter
from jobrunner.policy.showing import show_health, show_progress, show_schedule
from jobrunner.policy.words import counted
from jobrunner.storage.reading import status as reading
from jobrunner.storage.reading.nodes_heard import read_nodes_heard
from jobrunner.storage.reading.standing import read_standing
from jobrunner.storage.reading.traces import read_told, with_since
from jobrunner.storage.reading.worst import by_harm, count_health, read_worst
from jobrunner.storage.runs.dead_letters import OpenLetters, count_open

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from jobrunner.policy.liveness import NodesHeard
    from jobrunner.storage.database.database import Database

app = typer.Typer(rich_markup_mode=None)
_MOST_WORKERS, _SCREENFUL = 1000, 25
_MOST_SORTED = 1000
"""Of so many workers in trouble, the worst, it is read since when, to sort them by that."""


def standing_columns(told: Mapping[str, Sequence[Mapping[str, Any]]], now: datetime) -> list[Column]:
    """Return the columns that show workers; `told` is what their runs say of their progress."""

    def progress(row: Mapping[str, Any]) -> str:
        return "; ".join(map(show_progress, told.get(row["name"], ())))

    return [
        *columns("name"),
        Column("health", "health", show_health),
        Column("schedule", "schedule", show_schedule, importance=1),
        *columns("running_runs", running_runs="running", importance=5),
        *columns("pending_runs", pending_runs="waiting", importance=5),
        age("next_at", "next run", now, importance=8),
        Column("next_at", "at", lambda row: in_zone(row["next_at"], row["timezone"]), importance=3),
        age("last_run_at", "last run", now, importance=7),
        Column("last_run_at", "at", lambda row: in_zone(row["last_run_at"], row["timezone"]), importance=1),
        *columns("last_run_outcome", last_run_outcome="last", importance=6),
        *columns("consecutive_failures", consecutive_failures="streak", importance=4),
        Column("name", "progress", progress, longest=200),
        Column("why", "why", longest=WHOLE),
    ]


def _columns(told: Mapping[str, Sequence[Mapping[str, Any]]], now: datetime) -> list[Column]:
    name, health, schedule, *others = standing_columns(told, now)
    at = Column("since", "at", lambda row: in_zone(row["since"], row["timezone"]), importance=2)
    return [name, health, schedule, age("since", "since", now, importance=8), at, *others]


@app.command("status")
def status(
    ctx: typer.Context,
    terms: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[WORKER | TERM...]",
            help="One worker, with all there is; or those that fit terms such as health:failing, worker:send-* or "
            "mode:scheduled.",
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, max=10_000, help="Show so many workers, the worst first.")
    ] = None,
    is_oldest_first: Annotated[
        bool, typer.Option("--oldest-first", help="Only those in trouble, what broke first at the top.")
    ] = False,
    as_json: AsJson = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Show the workers and how they stand, the worst first, or one of them.

    On a terminal it is the 25 worst unless --limit is given, elsewhere 1,000 at most, and with --json all. The worst
    are those that are disabled, then those that are paused, failing, stalled, late, slow, without a node, degraded,
    healthy, and last those of which nothing is known. `since` is when the trouble began: of one that fails or that its
    circuit has disabled, its first failure since the last success.
    """
    worker, wanted = _wanted(terms or (), context.now())
    if worker is not None:
        if is_oldest_first:
            raise UsageError(f"--oldest-first sorts several workers; leave out {worker!r} or the option")
        row = context.with_database(ctx, database_url, lambda db: _read_one(db, worker))
        show_one(row, as_json=as_json, timezone=row["timezone"])
        return
    if is_oldest_first and not wanted.health:
        wanted = replace(wanted, health=TROUBLE)
    asked = _Asked(wanted, limit, is_oldest_first, as_json)
    _show_all(context.with_database(ctx, database_url, lambda db: _read(db, asked)), asked)


def _wanted(given: Sequence[str], now: datetime) -> tuple[str | None, Filter]:
    """Return the worker that is named, or the filter that terms make: a worker's name has no colon."""
    names = [each for each in given if ":" not in each]
    if len(names) == 1 and len(given) == 1:
        return names[0], Filter()
    if names:
        raise UsageError(
            f"{names[-1]!r} stands beside other words; name one worker alone, or several as worker:a,b or worker:send-*"
        )
    return None, parse_filter(" ".join(given), "workers", now)


async def _read_one(db: Database, worker: str) -> dict[str, Any]:
    async with db.read() as conn:
        return (await read_told(conn, db.dialect, context.now(), worker))[0]


@dataclass(frozen=True, slots=True)
class _Asked:
    """Which workers are asked for, how many of them at most, and in which order."""

    wanted: Filter
    limit: int | None
    is_oldest_first: bool
    as_json: bool

    @property
    def order(self) -> str:
        return "what broke first at the top" if self.is_oldest_first else "the worst first"

    def key(self, row: Mapping[str, Any]) -> tuple[Any, ...]:
        """Return what the rows are sorted by."""
        by_worst = by_harm(row["health"], row["name"])
        if not self.is_oldest_first:
            return by_worst
        since = row["since"]
        return (since is None, *([] if since is None else [since]), by_worst)


class _All:
    """What is read for the list."""

    def __init__(self, rows: list[dict[str, Any]], totals: reading.Totals, asked: int | None, cut: bool) -> None:
        self.rows = rows
        self.totals = totals
        self.asked = asked
        self.is_cut = cut
        self.nodes: NodesHeard
        self.letters: OpenLetters
        self.told: dict[str, list[dict[str, Any]]]
        self.health: dict[str, int] = {}


async def _read(db: Database, asked: _Asked) -> _All:
    now, wanted = context.now(), asked.wanted
    async with db.read() as conn:
        totals = await reading.read_totals(conn)
        screenful = _SCREENFUL if sys.stdout.isatty() else _MOST_WORKERS
        most = asked.limit or (totals.workers if asked.as_json else screenful)
        names, were_asked = None, None
        if totals.workers > most:
            worst = await read_worst(conn, now, max(most, _MOST_SORTED) if asked.is_oldest_first else most, wanted)
            names, were_asked = worst.names, worst.asked
        rows = await read_standing(conn, db.dialect, now, names=names)
        rows = await with_since(conn, db.dialect, now, [row for row in rows if _fits(row, wanted)])
        is_cut = names is not None and (len(names) >= most or len(rows) > most)
        everything = _All(sorted(rows, key=asked.key)[:most], totals, were_asked, is_cut)
        everything.nodes, _ = await read_nodes_heard(conn, now)
        everything.letters = await count_open(conn)
        everything.told = await reading.read_progress(conn)
        if not asked.as_json and totals.workers <= _MOST_WORKERS:
            everything.health = await count_health(conn)
    return everything


def _fits(row: Mapping[str, Any], wanted: Filter) -> bool:
    return (
        (not wanted.worker or matches(row["name"], wanted.worker))
        and (not wanted.health or row["health"] in wanted.health)
        and (not wanted.mode or row["execution_mode"] in wanted.mode)
    )


def _show_all(found: _All, asked: _Asked) -> None:
    empty = "no workers yet; `jobrunner run MODULE` registers those of a module"
    if not asked.wanted.is_empty:
        empty = "no worker fits"
    if asked.is_oldest_first and asked.wanted == Filter(health=TROUBLE):
        empty = "no worker is in trouble"
    show_rows(found.rows, _columns(found.told, context.now()), as_json=asked.as_json, empty=empty)
    if asked.as_json:
        return
    say("")
    totals = found.totals
    if found.is_cut:
        note(f"{len(found.rows):,} of {totals.workers:,} workers are shown, {asked.order}; --limit shows more")
    elif found.asked is not None:
        note(f"{found.asked:,} workers were asked how they are, in the order of names; others may fit, too")
    trouble = [f"{found.health[each]} {each.replace('_', ' ')}" for each in TROUBLE if found.health.get(each)]
    if trouble:
        say_folded(f"in trouble: {', '.join(trouble)}")
    say_folded(show_totals(totals, found.nodes, found.letters))
    if not found.nodes.live and totals.workers:
        note("no node lives; `jobrunner run MODULE` starts one")
    say_silent(found.nodes)


def show_totals(totals: reading.Totals, nodes: NodesHeard, letters: OpenLetters) -> str:
    """Show how much there is of everything, in a line."""
    waiting = f"{reading.MOST_COUNTED:,}+" if totals.waiting > reading.MOST_COUNTED else f"{totals.waiting}"
    return (
        f"{counted(totals.workers, 'worker')}, {totals.running} running, {waiting} waiting; "
        f"{counted(nodes.live, 'live node')}, {show_open(letters)}"
    )


def say_silent(nodes: NodesHeard) -> None:
    """Print which nodes were not heard of for long, if there are any."""
    silent = nodes.show_silent()
    if silent:
        say_folded(f"{silent}; another node, or the next to start, takes over what it ran")
