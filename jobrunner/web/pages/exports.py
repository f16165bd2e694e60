"""History to be taken away: `/history.csv` and `/history.json`, the rows of the page without its pages.

Sent as they are read, a piece at a time. At most `MOST_ROWS` rows, and no further than one search looks; where that
ends it, the last line (of JSON the last field) says so. A cell of CSV that a spreadsheet would take for a formula gets
an apostrophe before it.
"""

from __future__ import annotations

import asyncio
import csv
import io
import json
from typing import TYPE_CHECKING, Any

from starlette.responses import StreamingResponse
from starlette.routing import Route as Path

from jobrunner.storage.tables.types import to_json as time_to_json
from jobrunner.web.access import Level
from jobrunner.web.answers import to_json
from jobrunner.web.api.ask import Ask, query_of
from jobrunner.web.api.fields import read_fields
from jobrunner.web.pages.history import QUERY, ended

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
    from datetime import datetime

    from starlette.requests import Request
    from starlette.responses import Response

    from jobrunner.web.api.ask import Page
    from jobrunner.web.desk import Desk

    Endpoint = Callable[[Request], Awaitable[Response]]
    Behind = Callable[[Level, Endpoint], Endpoint]
    Write = Callable[[Sequence[Mapping[str, Any]]], str]

MOST_ROWS = 10_000
_PIECE = 500
COLUMNS = (
    "id",
    "finished_at",
    "worker",
    "run_id",
    "attempt",
    "outcome",
    "ends_run",
    "duration_ms",
    "error_type",
    "error",
    "reason",
    "trigger",
    "scheduled_for",
    "due_at",
    "started_at",
    "occurrences",
    "node_id",
    "payload",
)
"""Of the CSV. JSON has every column."""
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def export_paths(desk: Desk, behind: Behind) -> list[Path]:
    """Return the routes, for those who may read."""
    return [
        Path("/history.csv", behind(Level.READ, lambda request: _csv(desk, request)), methods=["GET"]),
        Path("/history.json", behind(Level.READ, lambda request: _json(desk, request)), methods=["GET"]),
    ]


async def _csv(desk: Desk, request: Request) -> Response:
    taken = await _Taken.begin(desk, request)

    async def lines() -> AsyncIterator[bytes]:
        yield _encoded("\ufeff" + csv_lines([COLUMNS]))  # the mark by which spreadsheets know UTF-8
        async for rows in taken.pieces():
            text = await asyncio.to_thread(lambda rows: csv_lines([cells(row) for row in rows]), rows)
            yield _encoded(text)
        if taken.note is not None:
            yield _encoded(csv_lines([[taken.note]]))

    return _sent(lines(), "text/csv; charset=utf-8", f"history-{taken.at:%Y%m%dT%H%M%SZ}.csv")


async def _json(desk: Desk, request: Request) -> Response:
    taken = await _Taken.begin(desk, request)

    async def parts() -> AsyncIterator[bytes]:
        yield b'{"rows":['
        divider = ""
        async for rows in taken.pieces():
            if rows:
                text = await asyncio.to_thread(lambda rows: ",\n".join(to_json(row) for row in rows), rows)
                yield _encoded(divider + text)
                divider = ",\n"
        yield _encoded(f'],"note":{json.dumps(taken.note)}}}\n')

    return _sent(parts(), "application/json", f"history-{taken.at:%Y%m%dT%H%M%SZ}.json")


class _Taken:
    """What is taken away; `note` says, when all pieces were read, what was left out."""

    def __init__(self, ask: Ask, first: Page) -> None:
        self._ask = ask
        self._page = first
        self.at: datetime = ask.now
        self.note: str | None = None

    @classmethod
    async def begin(cls, desk: Desk, request: Request) -> _Taken:
        """Read the first piece, so that what cannot be asked is refused before anything is sent."""
        now = desk.now()
        fields = read_fields((QUERY,), {k: v for k, v in query_of(request, frozenset()).items() if v != ""}, now)
        ask = Ask(desk, request.state.level, request.state.actor, {}, fields, now)
        return cls(ask, await ended(ask, fields["q"], _PIECE, None))

    async def pieces(self) -> AsyncIterator[Sequence[Mapping[str, Any]]]:
        """Yield the rows, some at a time."""
        page, left = self._page, MOST_ROWS
        while True:
            yield page.rows[:left]
            left -= len(page.rows)
            if page.after is None:
                return
            if left <= 0:
                self.note = f"only the newest {MOST_ROWS:,} rows; narrow the filter for the others"
                return
            if page.searched is not None:
                self.note = f"the newest {page.searched:,} rows were searched; older ones may fit, too"
                return
            page = await ended(self._ask, self._ask.fields["q"], min(_PIECE, left), page.after)


def csv_lines(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of cells as lines of CSV (RFC 4180)."""
    written = io.StringIO(newline="")
    csv.writer(written).writerows(rows)
    return written.getvalue()


def cells(row: Mapping[str, Any]) -> list[str]:
    """Return the cells of a row of history."""
    return [harmless(_cell(row[column])) for column in COLUMNS]


def harmless(text: str) -> str:
    """Return a cell that no spreadsheet takes for a formula."""
    return f"'{text}" if text.startswith(_FORMULA) else text


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, dict | list):
        return to_json(value)
    return time_to_json(value) if hasattr(value, "tzinfo") else str(value)


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")


def _sent(body: AsyncIterator[bytes], kind: str, name: str) -> Response:
    headers = {"Content-Type": kind, "Content-Disposition": f'attachment; filename="{name}"'}
    return StreamingResponse(body, headers=headers)
