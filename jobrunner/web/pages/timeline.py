"""A run's attempts on a line of time: how long it waited, ran, and waited to be tried again. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jobrunner.policy.showing import show_duration
from jobrunner.web.pages.charts import line, rect, svg, text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from markupsafe import Markup

_WIDTH, _HEIGHT, _TOP, _FLOOR = 720.0, 46.0, 14.0, 40.0
_THIN = 6.0


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of time; `kind` gives its colour, `said` what it was, `number` the attempt's; None: it waited."""

    start: datetime
    end: datetime
    kind: str
    said: str
    number: int | None = None


def spans_of(story: Mapping[str, Any], now: datetime) -> list[Span]:
    """Return what a run has done, in order of time: it waits from when it is due, and runs until it ends."""
    found: list[Span] = []
    last: datetime | None = story["created_at"]
    for row in story["attempts"]:
        last = _wait(found, last, row["due_at"], row["started_at"] or row["finished_at"])
        if row["started_at"] is not None:
            said = f"attempt {row['attempt']}: {row['outcome']}, {show_duration(row['duration_ms'])}"
            end = max(row["finished_at"], row["started_at"])
            found.append(Span(row["started_at"], end, row["outcome"], said, row["attempt"]))
            last = end
    if story["state"] == "pending":
        _wait(found, last, story["due_at"], max(now, story["due_at"]))
    elif story["state"] in {"running", "stopping"} and story["started_at"] is not None:
        _wait(found, last, story["due_at"], story["started_at"])
        said = f"attempt {story['attempt']}: {story['state']}"
        found.append(Span(story["started_at"], max(now, story["started_at"]), "running", said, story["attempt"]))
    return found


def _wait(found: list[Span], last: datetime | None, due: datetime | None, until: datetime) -> datetime:
    """Add what lies before a start: the delay until it was due, and how long it waited for its turn then."""
    due = until if due is None else min(due, until)
    is_retry = any(span.number is not None for span in found)
    begin = due if last is None else last
    if due > begin:
        said = "waits to be tried again" if is_retry else "waits for its time"
        found.append(Span(begin, due, "delay", f"{said}, {_took(begin, due)}"))
    begin = max(begin, due)
    if until > begin:
        found.append(Span(begin, until, "pending", f"due, waits for its turn, {_took(begin, until)}"))
    return until


def _took(start: datetime, end: datetime) -> str:
    return show_duration(round((end - start).total_seconds() * 1000))


def timeline(spans: Sequence[Span]) -> Markup | None:
    """Return the drawing; None where there is nothing to draw."""
    if not spans:
        return None
    first, last = spans[0].start, max(span.end for span in spans)
    whole = max((last - first).total_seconds(), 0.001)
    middle = (_TOP + _FLOOR) / 2
    parts = [line(0, middle, _WIDTH, middle)]
    free = 0.0
    for span in spans:
        x = min((span.start - first).total_seconds() / whole * _WIDTH, _WIDTH - 3)
        width = max((span.end - span.start).total_seconds() / whole * _WIDTH, 3.0 if span.number is not None else 0.5)
        if span.number is None:
            parts.append(rect(x, middle - _THIN / 2, width, _THIN, span.kind, span.said))
            continue
        parts.append(rect(x, _TOP, min(width, _WIDTH - x), _FLOOR - _TOP, span.kind, span.said))
        if x >= free:
            parts.append(text(min(x, _WIDTH - 12), _TOP - 3, str(span.number)))
            free = x + 20
    tried = sum(span.number is not None for span in spans)
    return svg(parts, _WIDTH, _HEIGHT, f"The run's {tried} attempts in the order of time; the table says the same")
