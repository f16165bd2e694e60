"""Answers: JSON, always; of an error one sentence, never a traceback."""

from __future__ import annotations

import json
import logging
from datetime import datetime
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from jobrunner.errors import (
    DatabaseError,
    InvalidPayload,
    InvalidSchedule,
    InvalidWorker,
    JobrunnerError,
    NotFound,
    Refused,
    SchemaError,
    UsageError,
)
from jobrunner.storage.tables.types import to_json as time_to_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

logger = logging.getLogger("jobrunner")


class Forbidden(Exception):
    """The one who asks may not do this."""


_STATUS: tuple[tuple[type[JobrunnerError], int], ...] = (
    (NotFound, 404),
    (InvalidPayload, 422),
    (InvalidWorker, 422),
    (InvalidSchedule, 422),
    (UsageError, 400),
    (DatabaseError, 503),
    (SchemaError, 503),
    (Refused, 409),
)
TRY_AGAIN = {"Retry-After": "5"}
_LONGEST_ERROR = 2000


def to_json(value: Any) -> str:
    """Write a value as JSON, as `--json` of the command line does: times as ISO 8601 in UTC."""
    return json.dumps(value, default=_plain, ensure_ascii=False, separators=(",", ":"))


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return time_to_json(value)
    msg = f"{type(value).__name__} cannot be written as JSON"
    raise TypeError(msg)


def encoded(value: Any) -> bytes:
    """Write a value as JSON, as it is sent."""
    return to_json(value).encode("utf-8", "backslashreplace")


def rows_json(rows: Sequence[Mapping[str, Any]], most_bytes: float) -> tuple[bytes, int]:
    """Return a JSON array of the first rows, at most `most_bytes` of text but at least one row; and how many."""
    texts: list[bytes] = []
    size = 0
    for row in rows:
        text = encoded(row)
        size += len(text) + 1
        if texts and size > most_bytes:
            break
        texts.append(text)
    return b"[" + b",".join(texts) + b"]", len(texts)


def answer(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a value as a JSON response; `bytes` are JSON already."""
    body = value if isinstance(value, bytes) else encoded(value)
    return Response(body, status, headers, media_type="application/json")


def error(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """Return an error as a JSON response: `{"error": "…"}`, in one line."""
    line = " ".join("".join(c if c.isprintable() else " " for c in message).split())
    shown = line if len(line) <= _LONGEST_ERROR else f"{line[:_LONGEST_ERROR]}…"  # it may name what was sent
    return answer({"error": shown}, status, headers)


def told(raised: Exception) -> tuple[int, str]:
    """Return the status and the sentence that tell what was raised; what nobody has thought of goes to the log."""
    if isinstance(raised, Forbidden):
        return 403, str(raised)
    if not isinstance(raised, JobrunnerError):
        logger.error("an HTTP request failed: a bug, or a damaged database", exc_info=raised)
        return 500, "the server failed; its log says more"
    return next((status for kind, status in _STATUS if isinstance(raised, kind)), 500), str(raised)


def failure(raised: Exception) -> Response:
    """Return the response for what a route has raised."""
    status, message = told(raised)
    return error(status, message, TRY_AGAIN if status == 503 else None)
