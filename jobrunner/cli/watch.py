"""`jobrunner watch`: how all stands, again and again. On a terminal drawn in place, elsewhere block after block.

The terminal's other screen is drawn on, so that all that was there before is there again at the end.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobrunner.cli import context
from jobrunner.cli.context import AsJson, DatabaseUrl
from jobrunner.cli.inputs import read_duration
from jobrunner.cli.layout import Column, columns
from jobrunner.cli.output import age, clean, draw_rows, say, short, show_json_line, show_rows
from jobrunner.cli.standing import show_totals, standing_columns
from jobrunner.cli.watching import show_end
from jobrunner.errors import DatabaseError, UsageError
from jobrunner.policy.showing import show_duration, show_progress
from jobrunner.policy.words import show_time
from jobrunner.storage.reading.overview import Overview, read_overview

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime

    from jobrunner.storage.database.database import Database

    Row = Mapping[str, Any]

app = typer.Typer(rich_markup_mode=None)
_SHORTEST = 0.1  # seconds
_ROWS_OF_A_BLOCK = 10
_FEWEST_LINES = 3  # of a part: its title and a row, with what stands below the row
_MOST_LINES = 11  # of each part but the first
_SIGNALS = (signal.SIGTERM, signal.SIGWINCH)


@app.command("watch")
def watch(
    ctx: typer.Context,
    every: Annotated[str, typer.Option(metavar="DURATION", help="How often to look.")] = "2s",
    as_json: AsJson = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Show how all stands, again and again: what is wrong, runs, has ended, fires next.

    Until Ctrl-C, which leaves the terminal as it was. Where the output is no terminal each look is a block of text, and
    with --json an object in a line.
    """
    seconds = read_duration("--every", every) or 0.0
    if seconds < _SHORTEST:
        raise UsageError(f"--every: a look every {_SHORTEST:g} s is the most there may be")
    is_drawn = sys.stdout.isatty() and os.environ.get("TERM") != "dumb" and not as_json

    async def work(db: Database) -> None:
        bounded = db.bounded()
        try:
            if is_drawn:
                await _draw_on(bounded, seconds)
            else:
                await _print_on(bounded, seconds, as_json=as_json)
        finally:
            await bounded.close()

    context.with_database(ctx, database_url, work)


async def _print_on(db: Database, seconds: float, *, as_json: bool) -> None:
    """Print a block for each look, until interrupted."""
    with _woken() as woken:
        while not woken.is_ended:
            try:
                seen = await read_overview(db, context.now(), _ROWS_OF_A_BLOCK)
            except DatabaseError as error:
                say(f"{show_time(context.now())}: {clean(str(error))}")
            else:
                if as_json:
                    show_json_line(dataclasses.asdict(seen))
                else:
                    _print_block(seen)
            await woken.sleep(seconds)


def _print_block(seen: Overview) -> None:
    say(f"{show_time(seen.at)}: {show_totals(seen.totals, seen.heard, seen.letters)}")
    for part in _parts(seen, width=None):
        if part.rows:
            say(f"\n{part.title}:")
            show_rows(part.rows, part.shown, as_json=False, empty="")
    say("")


async def _draw_on(db: Database, seconds: float) -> None:
    """Draw on the terminal until interrupted."""
    from rich.console import Console, Group  # noqa: PLC0415 - only a terminal needs it
    from rich.live import Live  # noqa: PLC0415 - as above
    from rich.text import Text  # noqa: PLC0415 - as above

    console = Console()
    seen = await read_overview(db, context.now(), console.height)
    trouble = None
    with _woken() as woken, Live(console=console, screen=True, auto_refresh=False) as live:
        while not woken.is_ended:
            lines = draw(seen, context.now(), console.width, console.height, trouble)
            texts = [Text.from_ansi(line, no_wrap=True, overflow="crop") for line in lines]
            live.update(Group(*texts), refresh=True)
            await woken.sleep(seconds)
            try:
                seen, trouble = await read_overview(db, context.now(), console.height), None
            except DatabaseError as error:
                trouble = clean(str(error))


def draw(seen: Overview, now: datetime, width: int, height: int, trouble: str | None = None) -> list[str]:
    """Return what the screen shows: at most `height` lines; `trouble` is why nothing newer was read."""
    head = f"{seen.at:%H:%M:%S} UTC  {show_totals(seen.totals, seen.heard, seen.letters)}"
    lines = [short(head, width)]
    if trouble is not None:
        old = f"{(now - seen.at).total_seconds():.0f} s old"
        lines.append(short(f"{old}: {trouble}", width))
    foot = "times are UTC; Ctrl-C ends it"
    tables = [draw_rows(part.rows, part.shown, width) if part.rows else [] for part in _parts(seen, width)]
    room = height - len(lines) - 1
    wanted = [min(len(table), _MOST_LINES) if place else len(table) for place, table in enumerate(tables)]
    for table, taken in zip(tables, _share(wanted, room), strict=True):
        if taken:
            lines += ["", *table[: taken - 1]]
    return [*lines[: height - 1], foot][:height]


def _share(wanted: Sequence[int], room: int) -> list[int]:
    """Share lines among the parts: two fifths for the first, a little for each for which it suffices, then the rest.

    Each that gets any gets one more for the empty line before it.
    """
    taken = [0] * len(wanted)
    for place, lines in enumerate(wanted):
        least = min(lines, _FEWEST_LINES if place else max(_FEWEST_LINES, room * 2 // 5)) + 1
        if lines and least <= room:
            taken[place], room = least, room - least
    for place, lines in enumerate(wanted):
        if taken[place]:
            more = min(lines + 1 - taken[place], room if place else max(room // 2, room - sum(wanted[1:])))
            taken[place], room = taken[place] + more, room - more
    if taken and taken[0]:
        taken[0] += min(room, wanted[0] + 1 - taken[0])
    return taken


@dataclasses.dataclass(frozen=True, slots=True)
class _Part:
    """A table of the screen."""

    title: str
    rows: Sequence[Row]
    shown: Sequence[Column]


def _parts(seen: Overview, width: int | None) -> list[_Part]:
    """Return the tables, the most important first; texts have a line each, if there is a `width`."""
    longest = 200 if width is None else max(width - len("    progress: "), 20)
    workers = [
        dataclasses.replace(column, longest=longest) if column.longest is not None else column
        for column in standing_columns(seen.progress, seen.at)
    ]
    running = [
        *columns("id", id="running"),
        *columns("worker"),
        *columns("attempt", importance=4),
        age("started_at", "started", seen.at, importance=8),
        Column("progress", "progress", lambda row: show_progress(row["progress"]), longest=longest),
    ]
    ended = [
        *columns("run_id", run_id="ended"),
        *columns("worker"),
        age("finished_at", "when", seen.at, importance=8),
        Column("duration_ms", "took", lambda row: show_duration(row["duration_ms"]), importance=4),
        Column("outcome", "how", show_end, longest=longest),
    ]
    upcoming = [
        *columns("due_at", due_at="next"),
        age("due_at", "when", seen.at, importance=8),
        *columns("worker"),
        Column("note", "note", longest=longest),
    ]
    nodes = [
        Column("id", "node", lambda row: row["id"][:8]),
        Column("state", "state", lambda row: row["state"] if row["silent_seconds"] is None else "silent"),
        *columns("hostname"),
        *columns("pid", importance=8),
        age("heartbeat_at", "heard", seen.at, importance=7),
    ]
    return [
        _Part("workers", seen.workers, workers),
        _Part("running", seen.running, running),
        _Part("ended", seen.ended, ended),
        _Part("next", [dataclasses.asdict(each) for each in seen.upcoming], upcoming),
        _Part("nodes", seen.nodes, nodes),
    ]


class _Woken:
    """A sleep that ends when the terminal changes its size, or when the program is to end."""

    def __init__(self) -> None:
        self.is_ended = False
        self._changed = asyncio.Event()

    def note(self, number: signal.Signals) -> None:
        """Take note of a signal."""
        self.is_ended |= number is signal.SIGTERM
        self._changed.set()

    async def sleep(self, seconds: float) -> None:
        """Sleep for so long, or less."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        self._changed.clear()


@contextmanager
def _woken() -> Iterator[_Woken]:
    """Listen to the signals; Ctrl-C ends the program by itself."""
    woken, loop = _Woken(), asyncio.get_running_loop()
    heard: list[signal.Signals] = []
    with suppress(NotImplementedError, RuntimeError, ValueError):  # not in the main thread, or no such signal here
        for number in _SIGNALS:
            loop.add_signal_handler(number, woken.note, number)
            heard.append(number)
    try:
        yield woken
    finally:
        for number in heard:
            loop.remove_signal_handler(number)
