"""What commands print: tables for people, JSON for programs.

On a terminal a table is drawn by Rich; elsewhere it is plain text in aligned columns, so that it can be read in a log
and cut by other programs. JSON carries every column under its database name, times as ISO 8601 in UTC; a table shows
the most telling ones, and of each text its first line. What a database holds may have been written by anybody, so
control characters never reach a terminal.
"""

from __future__ import annotations

import json
import shutil
import sys
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import typer

from jobrunner.errors import OutputFailed
from jobrunner.model.worker import JobPriority
from jobrunner.policy.words import show_time

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence

    from jobrunner.storage.database import Database
    from jobrunner.storage.transaction import AsyncConnection

_WIDEST = 80
_NARROW = 23  # a time's width: a cell up to this is never broken
_NOTHING = "-"


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table: the row's key, its title, and how a value is shown (else by its type)."""

    key: str
    title: str
    show: Callable[[Mapping[str, Any]], str] | None = None
    is_whole: bool = False
    """Whether a text is shown to its end; else its first line, cut where it is too wide."""


def columns(*keys: str, **titles: str) -> list[Column]:
    """Return plain columns: each key is its own title, with spaces, unless `titles` says otherwise."""
    return [Column(key, titles.get(key, key.replace("_", " "))) for key in keys]


def priority() -> Column:
    """Return the column of a priority: its name, where JSON has the number."""
    return Column("priority", "priority", lambda row: show_field("priority", row["priority"]))


def show_rows(rows: Sequence[Mapping[str, Any]], shown: Sequence[Column], *, as_json: bool, empty: str) -> None:
    """Print many things: a JSON array, a table, or the sentence `empty`."""
    if as_json:
        show_json([dict(row) for row in rows])
        return
    if not rows:
        say(empty)
        return
    cells = [[_cell(row, column) for column in shown] for row in rows]
    titles = [column.title for column in shown]
    if sys.stdout.isatty():
        _draw(shown, cells)
    else:
        _align(titles, cells)


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
            say(f"{key:<{width}}  {show_value(value, timezone)}")
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


def _write(text: str, *, has_end: bool = True) -> None:
    try:
        typer.echo(text, nl=has_end)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputFailed(error.strerror or str(error)) from error


def note(text: str) -> None:
    """Print a line beside the output, on stderr."""
    with suppress(OSError):  # nobody is there to be told
        typer.echo(text, err=True)


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
        return _NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return show_time(value, timezone)
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, dict | list):
        return clean(json.dumps(value, default=_plain, ensure_ascii=False))
    return clean(str(value))


def show_field(field: str, value: Any) -> str:
    """Show the value of a field of a worker's definition, or of a run."""
    if value is None:
        return "unset"
    if field == "priority":
        return JobPriority(value).name if value in set(JobPriority) else str(value)
    return show_value(value)


def show_duration(milliseconds: int | None) -> str:
    """Show a duration with the unit that fits it."""
    if milliseconds is None:
        return _NOTHING
    return f"{milliseconds} ms" if milliseconds < 1000 else f"{milliseconds / 1000:.1f} s"


def short(text: str) -> str:
    """Return the first line of a text, cut where it is too wide for a cell."""
    lines = text.strip().splitlines()
    line = clean(lines[0]) if lines else ""
    return line if len(line) <= _WIDEST else f"{line[: _WIDEST - 3]}..."


def clean(text: str) -> str:
    """Return text without control characters (no tab, no escape sequence) that the output's encoding can say."""
    shown = text if text.isprintable() else "".join(c if c.isprintable() else _escaped(c) for c in text)
    return shown if _can_write(shown) else shown.encode(_encoding(), "backslashreplace").decode(_encoding())


def _escaped(character: str) -> str:
    return (
        character.encode("ascii", "backslashreplace").decode() if ord(character) > 127 else f"\\x{ord(character):02x}"
    )


def _cell(row: Mapping[str, Any], column: Column) -> str:
    text = show_value(row.get(column.key)) if column.show is None else column.show(row)
    return (clean(text) if column.is_whole else short(text)) or _NOTHING


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def _align(titles: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    table = [[title.upper() for title in titles], *cells]
    widths = [max(len(row[place]) for row in table) for place in range(len(titles))]
    for row in table:
        say("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def _draw(shown: Sequence[Column], cells: Sequence[Sequence[str]]) -> None:
    from rich.box import SIMPLE_HEAD  # noqa: PLC0415 - only a terminal needs it
    from rich.console import Console  # noqa: PLC0415 - only a terminal needs it
    from rich.table import Table  # noqa: PLC0415 - only a terminal needs it
    from rich.text import Text  # noqa: PLC0415 - only a terminal needs it

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for place, column in enumerate(shown):
        is_narrow = max(len(row[place]) for row in cells) <= _NARROW
        table.add_column(Text(column.title), overflow="fold", no_wrap=is_narrow)
    for row in cells:
        # Text: what users wrote is not read as markup
        table.add_row(*(Text(cell, _style(column, cell)) for column, cell in zip(shown, row, strict=True)))
    Console(width=max(shutil.get_terminal_size().columns, 60)).print(table)


def _style(column: Column, cell: str) -> str:
    return _STYLES.get(cell, "") if column.key in _STYLED else ""


_STYLED = frozenset({"state", "outcome", "ends_run", "last_run_outcome", "open", "status"})
_STYLES = {
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
}
