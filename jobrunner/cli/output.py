"""What commands print: tables for people, JSON for programs.

On a terminal a table is laid out to fit its width, with short times; elsewhere it is plain text in aligned columns, so
that it can be read in a log and cut by other programs. JSON carries every column under its database name, times as
ISO 8601 in UTC; a table shows the most telling ones, and of each text its first line. What a database holds may have
been written by anybody, so control characters never reach a terminal.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TextIO

import typer

from jobrunner.cli import context
from jobrunner.cli.layout import Column, fold, lay_out, plain
from jobrunner.errors import OutputFailed
from jobrunner.model.worker import JobPriority
from jobrunner.policy.showing import NOTHING, without_controls
from jobrunner.policy.words import short_time, show_age, show_moment

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence

    from jobrunner.storage.database.database import Database
    from jobrunner.storage.runs.transaction import AsyncConnection

_NARROWEST = 20


@dataclass(frozen=True, slots=True)
class InZone:
    """A time that a table shows in UTC and, beside it, in a zone of its own."""

    moment: datetime
    timezone: str


def in_zone(moment: datetime | None, timezone: str) -> InZone | None:
    """Return a time as a table shows it for a worker of that zone."""
    return None if moment is None else InZone(moment, timezone)


def age(key: str, title: str, now: datetime, importance: int) -> Column:
    """Return the column of how far a time lies from `now`: `in 4 min`, `2 h ago`."""
    return Column(key, title, lambda row: None if row[key] is None else show_age(row[key], now), importance)


def priority(importance: int) -> Column:
    """Return the column of a priority: its name, where JSON has the number."""
    return Column("priority", "priority", lambda row: show_field("priority", row["priority"]), importance)


def show_rows(rows: Sequence[Mapping[str, Any]], shown: Sequence[Column], *, as_json: bool, empty: str) -> None:
    """Print many things: a JSON array, a table, or the sentence `empty`."""
    if as_json:
        show_json([dict(row) for row in rows])
        return
    if not rows:
        say(empty)
        return
    values = _values(rows, shown)
    if sys.stdout.isatty():
        lines, times = _drawn(shown, values, _columns())
        for line in lines:
            say(line)
        text = "\n".join(lines)
        if any(time in text for time in times):  # columns of times may have been left out
            say(_painter()(None, "times are UTC"))
    else:
        _align([column.title for column in shown], [_cells(shown, row, show_moment) for row in values])


def draw_rows(rows: Sequence[Mapping[str, Any]], shown: Sequence[Column], width: int) -> list[str]:
    """Return the lines of a table as a terminal of that width shows it; its times are UTC and do not say so."""
    return _drawn(shown, _values(rows, shown), width)[0]


def _values(rows: Sequence[Mapping[str, Any]], shown: Sequence[Column]) -> list[list[Any]]:
    return [[row.get(column.key) if column.show is None else column.show(row) for column in shown] for row in rows]


def show_one(row: Mapping[str, Any], *, as_json: bool, timezone: str = "UTC") -> None:
    """Print one thing: a JSON object, or a line for each field that has a value; long texts follow below.

    Beside each time is that of `timezone`, if it is another than UTC.
    """
    if as_json:
        show_json(dict(row))
        return
    width = max(len(key) for key in row)
    blocks = []
    for key, value in row.items():
        if value is None or value in ({}, [], ""):
            continue
        if isinstance(value, str) and "\n" in value.strip():
            blocks.append((key, value))
        else:
            shown = show_field(key, value) if key == "priority" else show_value(value, timezone)
            say_folded(shown, f"{key:<{width}}  ")
    for key, value in blocks:
        say(f"\n{key}:")
        for line in value.strip().splitlines():
            say(f"  {clean(line)}")


def show_json(value: Any) -> None:
    """Print a value as JSON."""
    say(_json(value, indent=2))


def show_json_line(value: Mapping[str, Any]) -> None:
    """Print one thing of many that come one after the other: a JSON object in a line."""
    say(_json(dict(value)))


@dataclass(frozen=True, slots=True)
class Listing:
    """A long list: its first rows for people, or all of it in pages, for a program that gave no limit.

    `first` reads at most so many rows; `pages` reads them all; `shown` and `empty` as for `show_rows`.
    """

    first: Callable[[AsyncConnection, int], Awaitable[Sequence[Mapping[str, Any]]]]
    pages: Callable[[], AsyncIterator[Sequence[Mapping[str, Any]]]]
    shown: Sequence[Column]
    empty: str
    order: str = "newest"
    screenful: int = 50

    async def show(self, db: Database, limit: int | None, *, as_json: bool) -> None:
        """Read the list and print it."""
        if as_json and limit is None:
            await show_pages(self.pages())
            return
        most = limit or self.screenful
        async with db.read() as conn:
            rows = await self.first(conn, most if as_json else most + 1)
        show_rows(rows[:most], self.shown, as_json=as_json, empty=self.empty)
        if len(rows) > most:
            note(f"the {self.order} {most}; --limit shows more")


class JsonArray:
    """A JSON array that is printed while its elements are still being read; looks as one printed at once."""

    def __init__(self) -> None:
        self._is_empty = True

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Print the next elements."""
        texts = ["  " + _json(dict(row), indent=2).replace("\n", "\n  ") for row in rows]
        if texts:
            _write(("[\n" if self._is_empty else ",\n") + ",\n".join(texts), has_end=False)
            self._is_empty = False

    def close(self) -> None:
        """End the array."""
        say("[]" if self._is_empty else "\n]")


async def show_pages(pages: AsyncIterator[Sequence[Mapping[str, Any]]]) -> None:
    """Print what comes in pages as one JSON array: never more than a page is held, however many rows there are."""
    array = JsonArray()
    async for page in pages:
        array.add(page)
    array.close()


def say(text: str) -> None:
    """Print a line."""
    _write(text)


def say_exactly(text: str) -> None:
    """Print UTF-8 text as it is, whatever the locale and whatever its ends of lines are."""
    try:
        binary = typer.get_binary_stream("stdout")
        binary.write(text.encode())
        binary.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputFailed(error.strerror or str(error)) from error


def say_folded(text: str, start: str = "") -> None:
    """Print a sentence after `start`: a line, or on a terminal as many as it needs, folded on words."""
    for line in folded(text, start, sys.stdout):
        say(line)


def folded(text: str, start: str, stream: TextIO) -> list[str]:
    """Return a sentence after `start` as `stream` shows it: a line, or on a terminal as many as it needs."""
    if not stream.isatty():
        return [start + text]
    lines = fold(text, max(_columns() - len(start), _NARROWEST))
    return [(" " * len(start) if number else start) + line for number, line in enumerate(lines)]


def _columns() -> int:
    return max(shutil.get_terminal_size().columns, _NARROWEST)


def _write(text: str, *, has_end: bool = True) -> None:
    try:
        typer.echo(text, nl=has_end)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputFailed(error.strerror or str(error)) from error


def note(text: str, start: str = "") -> None:
    """Print a sentence beside the output, on stderr: a line, or on a terminal as many as it needs."""
    with suppress(OSError):  # nobody is there to be told
        for line in folded(text, start, sys.stderr):
            typer.echo(line, err=True)


def _json(value: Any, **layout: Any) -> str:
    """Write a value as JSON, escaped where the output's encoding cannot have it as it is."""
    text = json.dumps(value, default=_plain, ensure_ascii=False, **layout)
    return text if _can_write(text) else json.dumps(value, default=_plain, **layout)


def _can_write(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode(_encoding())
    except UnicodeEncodeError:
        return False
    return True


def _encoding() -> str:
    return getattr(sys.stdout, "encoding", None) or "utf-8"


def show_value(value: Any, timezone: str = "UTC") -> str:
    """Show a value in a table's cell; of a time also that in `timezone`."""
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return show_moment(value, timezone)
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, dict | list):
        return show_document(value)
    return clean(str(value))


def show_document(value: Any) -> str:
    """Show a value as JSON, in a line."""
    return clean(json.dumps(value, default=_plain, ensure_ascii=False))


def show_field(field: str, value: Any) -> str:
    """Show the value of a field of a worker's definition, or of a run."""
    if value is None:
        return "unset"
    if field == "priority":
        return JobPriority(value).name if value in set(JobPriority) else str(value)
    return show_value(value)


def short(text: str, longest: int) -> str:
    """Return the first line of a text, cut where it is longer than that."""
    lines = text.strip().splitlines()
    line = clean(lines[0]) if lines else ""
    return line if len(line) <= longest else f"{line[: longest - 3]}..."


def clean(text: str) -> str:
    """Return text without control characters (no tab, no escape sequence) that the output's encoding can say."""
    shown = without_controls(text)
    return shown if _can_write(shown) else shown.encode(_encoding(), "backslashreplace").decode(_encoding())


def _cells(shown: Sequence[Column], values: Sequence[Any], show: Callable[[datetime, str], str]) -> list[str]:
    return [_cell(column, value, show) for column, value in zip(shown, values, strict=True)]


def _cell(column: Column, value: Any, show: Callable[[datetime, str], str]) -> str:
    if isinstance(value, InZone):
        return show(value.moment, value.timezone)
    if isinstance(value, datetime):
        return show(value, "UTC")
    text = value if isinstance(value, str) else show_value(value)
    return (clean(text) if column.longest is None else short(text, column.longest)) or NOTHING


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def _align(titles: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    table = [[title.upper() for title in titles], *cells]
    widths = [max(len(row[place]) for row in table) for place in range(len(titles))]
    for row in table:
        say("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def _drawn(shown: Sequence[Column], values: Sequence[Sequence[Any]], width: int) -> tuple[list[str], set[str]]:
    """Return the lines of a table, and the times among its cells as they are shown."""
    from rich.cells import cell_len  # noqa: PLC0415 - only a terminal needs it

    now = context.now()
    times: set[str] = set()

    def show(moment: datetime, timezone: str) -> str:
        said = short_time(moment, now, timezone)
        times.add(said)
        return said

    cells = [_cells(shown, row, show) for row in values]
    return lay_out(shown, cells, width, cell_len, _painter()), times


def _painter() -> Callable[[Column | None, str], str]:
    return plain if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" else _paint


def _paint(column: Column | None, text: str) -> str:
    if column is None:
        return typer.style(text, bold=True)
    color = _COLORS.get(text) if column.key in _STYLED else None
    return text if color is None else typer.style(text, fg=color)


_STYLED = frozenset({"state", "health", "outcome", "ends_run", "last_run_outcome", "open", "status"})
_COLORS = {
    "succeeded": "green",
    "open": "green",
    "enabled": "green",
    "running": "cyan",
    "failed": "red",
    "timed out": "red",
    "timed_out": "red",
    "lost": "red",
    "exhausted": "red",
    "shut": "red",
    "disabled": "red",
    "missed": "yellow",
    "paused": "yellow",
    "half open": "yellow",
    "no state": "red",
    "failing": "red",
    "stalled": "red",
    "late": "yellow",
    "slow": "yellow",
    "no node": "red",
    "degraded": "yellow",
    "healthy": "green",
}
