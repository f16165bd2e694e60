"""What will fire as an iCalendar file (RFC 5545), for a calendar program."""

from __future__ import annotations

from datetime import UTC, timedelta
from typing import TYPE_CHECKING, Any

from jobrunner.cli.output import say_exactly

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from datetime import datetime

_MOST_OCTETS = 75
_LENGTH = timedelta(minutes=1)  # how long a run takes is not said; an event without a length is hidden by some


def show_calendar(rows: Iterable[Mapping[str, Any]], now: datetime) -> None:
    """Print the calendar of rows of `upcoming`; those that will not fire have no time, and are left out."""
    say_exactly("".join(f"{line}\r\n" for each in calendar_lines(rows, now) for line in fold_line(each)))


def calendar_lines(rows: Iterable[Mapping[str, Any]], now: datetime) -> Iterator[str]:
    """Yield the lines of the calendar, not folded. An event keeps its UID from one export to the next."""
    yield from ("BEGIN:VCALENDAR", "VERSION:2.0", "PRODID:-//jobrunner//upcoming//EN", "CALSCALE:GREGORIAN")
    for row in rows:
        due_at = row["due_at"]
        if due_at is None:
            continue
        starts_at = row["starts_at"] or due_at
        which = f"run-{row['run_id']}" if row["run_id"] is not None else f"{due_at.astimezone(UTC):%Y%m%dT%H%M%S.%fZ}"
        yield "BEGIN:VEVENT"
        yield f"UID:{row['worker']}-{which}@jobrunner"
        yield f"DTSTAMP:{_time(now)}"
        yield f"DTSTART:{_time(starts_at)}"
        yield f"DTEND:{_time(starts_at + _LENGTH)}"
        yield f"SUMMARY:{escape(row['worker'])}"
        if row["note"]:
            yield f"DESCRIPTION:{escape(row['note'])}"
        yield "TRANSP:TRANSPARENT"
        yield "END:VEVENT"
    yield "END:VCALENDAR"


def escape(text: str) -> str:
    """Return text as a value of the type TEXT (RFC 5545, 3.3.11), without control characters."""
    for old, new in (("\\", "\\\\"), (";", "\\;"), (",", "\\,"), ("\r\n", "\\n"), ("\n", "\\n"), ("\r", "\\n")):
        text = text.replace(old, new)
    return "".join(letter for letter in text if letter.isprintable())


def fold_line(line: str) -> Iterator[str]:
    """Yield a line in pieces of at most 75 octets, no letter cut; all but the first begin with a space."""
    piece, size = "", 0
    for letter in line:
        octets = len(letter.encode())
        if size + octets > _MOST_OCTETS:
            yield piece
            piece, size = " ", 1
        piece, size = piece + letter, size + octets
    yield piece


def _time(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y%m%dT%H%M%SZ}"
