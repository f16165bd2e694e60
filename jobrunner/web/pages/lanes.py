"""The lanes of `/upcoming` as a drawing: to the left of now what ran, to the right what is planned, as it was played.

Pure. A lane a worker, on one axis of time. What is told by a colour is told by a shape, too: what succeeded is low,
what failed is high; what starts later than planned has its planned time beside it; what will not start is a cross.
Marks of one kind that lie closer together than can be told apart are drawn as one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from markupsafe import Markup, escape

from jobrunner.policy.words import counted
from jobrunner.policy.zones import first_change, transition_note, zone_of, zone_or_utc
from jobrunner.web.pages.charts import line, rect, svg, text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from zoneinfo import ZoneInfo

    from jobrunner.policy.forecast import Expected
    from jobrunner.policy.upcoming import Upcoming
    from jobrunner.storage.reading.lanes import Lane

WIDTH, NAMES, ROW, HEAD = 1200.0, 190.0, 24.0, 22.0
_LONGEST_NAME = 26
_LOW, _HIGH = 10.0, 18.0
_STEPS = tuple(timedelta(minutes=minutes) for minutes in (5, 15, 30, 60, 120, 180, 360, 720, 1440, 2880))
_MOST_LABELS = 13
_FAILED = frozenset({"failed", "timed_out", "lost"})
_LATE = timedelta(seconds=1)
AHEAD = frozenset({"starts", "late", "not", "plan", "more", "held"})
"""The kinds of marks that tell of what is to come."""


@dataclass(frozen=True, slots=True)
class Mark:
    """What is drawn of one time: its `kind`, from `x` on so wide, `count` of them, and what is said of it.

    Kinds: an outcome, `running`, and those of `AHEAD`: `starts`, `late` (later than planned), `not` (it will not
    start), `plan` (not played), `more` (so it goes on), `held` (disabled or paused).
    """

    kind: str
    begins_at: datetime
    ends_at: datetime
    note: str = ""
    count: int = 1
    planned_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One lane: the worker, its marks in the order of time, and why nothing of it will fire, if so."""

    worker: str
    marks: list[Mark] = field(default_factory=list)
    standing: str | None = None


def past_marks(lane: Lane, past: datetime) -> Iterator[Mark]:
    """Yield what ran in the time shown; of what began before it the rest."""
    for span in lane.spans:
        if span.ends_at < past:
            continue
        planned = span.planned_at if span.planned_at is not None and span.planned_at >= past else None
        run = "" if span.run_id is None else f"run {span.run_id}"
        yield Mark(span.outcome, max(span.begins_at, past), span.ends_at, run, 1, planned)


def planned_mark(
    listed: Upcoming, expected: Expected, usual: timedelta | None, played_until: datetime, now: datetime
) -> Mark | None:
    """Return how a time of the listing is drawn: it starts then, later, not, or nobody knows; None without a time.

    Args:
        listed: the time.
        expected: what came of it when the time ahead was played.
        usual: how long runs of the worker usually take.
        played_until: so far it was played.
        now: the time now; what is due already is drawn there.
    """
    if listed.due_at is None:
        return None
    due, starts, length = max(listed.due_at, now), expected.starts_at, usual or timedelta()
    note = listed.note or ""
    if expected.note is not None and expected.note not in note:
        note = f"{note}; {expected.note}" if note else expected.note
    if starts is None:
        return Mark("not" if listed.due_at <= played_until else "plan", due, due + length, note)
    if starts - due > _LATE:
        return Mark("late", starts, starts + length, note, 1, due)
    return Mark("starts", due, due + length, note)


def draw(
    rows: Sequence[Row], past: datetime, now: datetime, until: datetime, zone: ZoneInfo, zones: Iterable[str] = ()
) -> Markup:
    """Draw the lanes from `past` to `until`; `zones`: those of the workers, whose clock changes are marked."""
    axis = _Axis(past, until)
    height = HEAD + ROW * max(len(rows), 1) + 6
    parts = [*_scale(axis, zone, height)]
    for place, row in enumerate(rows):
        parts += _lane(axis, row, HEAD + ROW * place)
    at = axis.x(now)
    parts.append(_stroke("now", at, HEAD - 4, at, height))
    parts.append(_words(at, HEAD - 7, "now", "middle", "now-word"))
    for change, note in changes(past, until, zones):
        at = axis.x(change)
        parts.append(_stroke("change", at, HEAD - 4, at, height, note))
        parts.append(_words(min(at + 3, WIDTH - 90), height - 4, note, "start", "change-word"))
    label = (
        f"Lanes of {counted(len(rows), 'worker')} from {_said(past, zone)} to {_said(until, zone)}; "
        "the tables below say the same"
    )
    return svg(parts, WIDTH, height, label)


def changes(start: datetime, end: datetime, zones: Iterable[str]) -> list[tuple[datetime, str]]:
    """Return when clocks change in that time, and what they do, each once."""
    by_time: dict[tuple[datetime, str], list[str]] = {}
    for name in sorted(set(zones)):
        at = first_change(zone_or_utc(name), start, end)
        if at is not None:
            note = transition_note(name, at) if _is_zone(name) else None
            by_time.setdefault((at, note or "clock changes"), []).append(name)
    return [(at, f"{note}: {', '.join(names[:3])}") for (at, note), names in sorted(by_time.items())]


def _is_zone(name: str) -> bool:
    return zone_or_utc(name).key == zone_of(name).key if name else False


def merged(marks: Sequence[Mark], least: timedelta) -> list[Mark]:
    """Return the marks in the order of time, neighbours of one kind that are less than `least` apart as one."""
    found: list[Mark] = []
    last: dict[str, int] = {}
    for mark in sorted(marks, key=lambda mark: mark.begins_at):
        place = last.get(mark.kind)
        before = None if place is None else found[place]
        if before is not None and place is not None and mark.begins_at - before.ends_at < least:
            note = before.note if before.note == mark.note else ""
            ends_at = max(before.ends_at, mark.ends_at)
            found[place] = Mark(
                mark.kind, before.begins_at, ends_at, note, before.count + mark.count, before.planned_at
            )
        else:
            last[mark.kind] = len(found)
            found.append(mark)
    return found


@dataclass(frozen=True, slots=True)
class _Axis:
    past: datetime
    until: datetime

    @property
    def scale(self) -> float:
        """Units of the drawing a second."""
        return (WIDTH - NAMES) / max((self.until - self.past).total_seconds(), 1.0)

    def x(self, moment: datetime) -> float:
        """Return where a time lies, at most at the ends."""
        return NAMES + min(max((moment - self.past).total_seconds() * self.scale, 0.0), WIDTH - NAMES)

    @property
    def pixels(self) -> timedelta:
        """As long as is not told apart."""
        return timedelta(seconds=2.5 / self.scale)


def _scale(axis: _Axis, zone: ZoneInfo, height: float) -> Iterator[str]:
    """Draw the hours, each with its time; at midnight the day."""
    length = axis.until - axis.past
    step = next((each for each in _STEPS if length / each <= _MOST_LABELS), length / _MOST_LABELS)
    local = axis.past.astimezone(zone)
    tick = local.replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=None)
    while True:
        at = tick.replace(tzinfo=zone).astimezone(UTC)
        if at > axis.until:
            return
        if at >= axis.past:
            x = axis.x(at)
            yield line(x, HEAD - 4, x, height)
            if x < WIDTH - 20:
                yield text(x + 3, 9, f"{tick:%d %b}" if tick.hour == tick.minute == 0 else f"{tick:%H:%M}")
        tick += step


def _lane(axis: _Axis, row: Row, top: float) -> Iterator[str]:
    """Draw a worker's lane: its name, and its marks."""
    middle = top + ROW / 2
    yield line(0, top + ROW, WIDTH, top + ROW)
    name = row.worker if len(row.worker) <= _LONGEST_NAME else f"{row.worker[: _LONGEST_NAME - 1]}…"
    yield _words(2, middle + 4, name, "start", "lane-name")
    if row.standing:
        said = row.standing if len(row.standing) <= 110 else f"{row.standing[:109]}…"
        yield _words(WIDTH - 6, middle + 4, said, "end", "lane-note")
    for mark in merged(row.marks, axis.pixels):
        x = axis.x(mark.begins_at)
        width = max(axis.x(mark.ends_at) - x, 3.0)
        yield from _shape(axis, mark, x, min(width, WIDTH - x if x < WIDTH else 3.0), middle)


def _shape(axis: _Axis, mark: Mark, x: float, width: float, middle: float) -> Iterator[str]:
    said = _title(mark)
    if mark.planned_at is not None and mark.kind not in {"not", "plan"}:
        planned = axis.x(mark.planned_at)
        if mark.kind == "late" or x - planned > 3:
            yield _stroke("wait", planned, middle, x, middle)
        yield _stroke("planned", planned, middle - _HIGH / 2, planned, middle + _HIGH / 2)
    if mark.kind in {"not", "missed"}:
        for turn in (5, -5):
            yield _stroke("cross", x - 5, middle - turn, x + 5, middle + turn, said)
        if width > 12:
            yield _stroke("cross", x, middle, x + width, middle)
    elif mark.kind == "held":
        yield _box("held", x, middle - _HIGH / 2, width, _HIGH, said)
    elif mark.kind in {"plan", "more"}:
        yield _box("hollow", x, middle - _LOW / 2, width, _LOW, said)
    else:
        height = _HIGH if mark.kind in _FAILED else _LOW
        kind = "pending" if mark.kind == "starts" else mark.kind
        yield rect(x, middle - height / 2, width, height, kind, said)


def _title(mark: Mark) -> str:
    words = {"starts": "starts", "late": "starts late", "not": "does not start", "plan": "planned", "more": "and so on"}
    words["held"] = "nothing starts"
    word = words.get(mark.kind, mark.kind.replace("_", " "))
    first = f"{mark.begins_at.astimezone(UTC):%m-%d %H:%M:%S} UTC"
    many = "" if mark.count == 1 else f"{mark.count} times, the first "
    return f"{word}: {many}{first}" + (f"; {mark.note}" if mark.note else "")


def _said(moment: datetime, zone: ZoneInfo) -> str:
    return f"{moment.astimezone(zone):%Y-%m-%d %H:%M %Z}"


def _stroke(kind: str, x1: float, y1: float, x2: float, y2: float, title: str | None = None) -> str:
    inside = f"<title>{escape(title)}</title>" if title else ""
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}">{inside}</line>'


def _box(kind: str, x: float, y: float, width: float, height: float, title: str) -> str:
    shape = f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}">'
    return f"{shape}<title>{escape(title)}</title></rect>"


def _words(x: float, y: float, said: str, anchor: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(said)}</text>'
