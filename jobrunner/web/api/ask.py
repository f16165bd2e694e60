"""One request to the API as its routes see it, and a page of rows as they answer it."""

from __future__ import annotations

import asyncio
import json
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode

from jobrunner.errors import InvalidSetting
from jobrunner.policy.hidden import masked_row, published
from jobrunner.storage.reading.hidden import read_hidden
from jobrunner.web.access import Level
from jobrunner.web.answers import rows_json

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from datetime import datetime

    from starlette.requests import Request

    from jobrunner.storage.runs.transaction import AsyncConnection
    from jobrunner.web.desk import Desk

MOST_BYTES = 8 * 1024 * 1024
"""Of a body. A payload may have 1 MiB, and white space beside it."""

MOST_PAGE_BYTES = 4 * 1024 * 1024
"""Of the text of a page, but of one row at least."""
_FIRST_ROWS = 10

_TRACE = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


class TooLarge(Exception):
    """The body has more than `MOST_BYTES`."""


@dataclass(frozen=True, slots=True)
class Ask:
    """A request: who asks (`actor`, at `level`), what is named in the path, and the fields of query or body.

    `trace` is the W3C `traceparent` that came with it.
    """

    desk: Desk
    level: Level
    actor: str
    path: Mapping[str, Any]
    fields: Mapping[str, Any]
    now: datetime
    trace: str | None = None

    async def shown(self, conn: AsyncConnection, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return rows as this one may see them: an administrator whole, others without hidden fields of payloads.

        Of a worker that is gone nobody knows what it hid, so that its payloads are hidden whole.
        """
        if self.level >= Level.ADMIN:
            return [dict(row) for row in rows]
        names = {name for row in rows if (name := _worker_of(row)) is not None}
        hidden = await read_hidden(conn, names) if names else {}
        shown = []
        for row in rows:
            name = _worker_of(row)
            shown.append(published(masked_row(row, () if name is None else hidden.get(name))))
        return shown

    def published(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return a row without a payload as this one may see it."""
        return dict(row) if self.level >= Level.ADMIN else published(row)


def _worker_of(row: Mapping[str, Any]) -> str | None:
    name = row["worker"] if "worker" in row else row.get("name")
    return None if name is None else str(name)


@dataclass(frozen=True, slots=True)
class Page:
    """Rows, and the place after which the next page begins; None: this is the last.

    `searched`: after so many rows the search was ended, so that the next page may hold what fits, too. `place_of` gives
    the place after one of the rows: then the page may end before the last where it has more than `MOST_PAGE_BYTES`.
    """

    rows: Sequence[Mapping[str, Any]]
    after: str | None = None
    searched: int | None = None
    place_of: Callable[[Mapping[str, Any]], str] | None = None


async def in_pieces(
    limit: int, read: Callable[[int, Mapping[str, Any] | None], Awaitable[Sequence[Mapping[str, Any]]]]
) -> tuple[list[Mapping[str, Any]], bool]:
    """Read rows until `limit` are there, or more text than a page may have; and say whether that ended it.

    `read` returns the next rows, at most so many, after the last that there is. A row may have megabytes, so that the
    first few say how many more are read at once.
    """
    rows: list[Mapping[str, Any]] = []
    size, piece = 0, _FIRST_ROWS
    while len(rows) < limit:
        wanted = min(piece, limit - len(rows))
        found = await read(wanted, rows[-1] if rows else None)
        rows += found
        if len(found) < wanted:
            break
        text, _ = await asyncio.to_thread(rows_json, found, math.inf)
        size += len(text)
        if size > MOST_PAGE_BYTES:
            return rows, len(rows) < limit
        piece = (MOST_PAGE_BYTES - size) * len(rows) // size + 1
    return rows, False


def trace_of(request: Request) -> str | None:
    """Return the trace that a request is part of; None where its header says none."""
    said = request.headers.get("traceparent", "")
    return said if _TRACE.fullmatch(said) else None


def next_link(request: Request, after: str) -> str:
    """Return the `Link` header of the next page: relative, so that it holds behind any prefix."""
    kept = [(name, value) for name, value in request.query_params.multi_items() if name != "after"]
    return f'<?{urlencode([*kept, ("after", after)])}>; rel="next"'


def query_of(request: Request, several: frozenset[str]) -> dict[str, Any]:
    """Return the fields of a query; those of `several` as lists. Raises `InvalidSetting` for one given twice."""
    return _gathered(request.query_params.multi_items(), several)


async def raw_body(request: Request) -> bytes:
    """Return a body as it came. Raises `TooLarge`."""
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > MOST_BYTES:
            raise TooLarge
    return bytes(raw)


async def body_of(request: Request, several: frozenset[str]) -> dict[str, Any]:
    """Return the fields of a body: a JSON object, a form, or nothing.

    Raises:
        InvalidSetting: it is neither.
        TooLarge: it is larger than any that is meant.
    """
    raw = await raw_body(request)
    if not raw.strip():
        return {}
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise InvalidSetting("the body is not UTF-8 text") from None
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/x-www-form-urlencoded" and not text.lstrip().startswith("{"):  # as curl calls any text
        return _gathered([pair for pair in parse_qsl(text, keep_blank_values=True) if pair[1]], several)
    if kind not in {"", "application/json", "application/x-www-form-urlencoded"}:
        raise InvalidSetting(f"the body is {kind}; send application/json")
    try:
        found = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidSetting(f"the body is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise InvalidSetting("the body must be a JSON object")
    return found


def _refuse_constant(name: str) -> Any:
    msg = f"{name} is no JSON value"
    raise ValueError(msg)


def _gathered(pairs: Sequence[tuple[str, str]], several: frozenset[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in several:
            found.setdefault(name, []).append(value)
        elif name in found:
            raise InvalidSetting(f"{name} is given twice; keep one")
        else:
            found[name] = value
    return found
