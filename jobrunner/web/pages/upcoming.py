"""The hours to come, lane by lane, beside the hours that were: what fires, when it starts, and why not earlier."""

from __future__ import annotations

import asyncio
import shlex
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from jobrunner.errors import InvalidSetting
from jobrunner.policy.forecast import Expected
from jobrunner.policy.zones import zone_of, zone_or_utc
from jobrunner.storage.reading.forecasts import read_to_play
from jobrunner.storage.reading.lanes import MOST_LANES, read_lanes, read_planned
from jobrunner.storage.reading.nodes_heard import read_nodes_heard
from jobrunner.storage.reading.status import read_upcoming, require_workers
from jobrunner.web.api import fields as f
from jobrunner.web.api import reads
from jobrunner.web.api.fields import Field
from jobrunner.web.pages.lanes import AHEAD, Mark, Row, changes, draw, past_marks, planned_mark
from jobrunner.web.pages.narrowed import narrowed
from jobrunner.web.pages.page import Shown
from jobrunner.web.pages.render import query

if TYPE_CHECKING:
    from datetime import datetime
    from zoneinfo import ZoneInfo

    from jobrunner.policy.upcoming import Upcoming
    from jobrunner.storage.reading.forecasts import Ahead
    from jobrunner.storage.reading.lanes import Lane, Planned
    from jobrunner.web.api.ask import Ask

FIELDS = (
    Field("worker", f.TEXT, "of this worker only"),
    Field("for", f.LENGTH, "how far to look ahead, such as 24h", 86400.0),
    Field("from", f.PAST, "since when to show what ran: a time, or so long ago, such as 6h"),
    Field("after", f.TEXT, "the place where the page before ended"),
)
_LONGEST = timedelta(days=7)
_PAST = timedelta(hours=6)
_MOST_ROWS = 50
_PLAYED_ROWS = 60  # schedules, and as many rows of the listing; at least `_MOST_ROWS` and `MOST_LANES`
_MOST_PLAYED, _LESS_A_LANE = 1500, 30  # a start takes 80 µs, and a page should take no longer than 200 ms
_SQL = "SELECT name, next_run_at, health FROM worker_status WHERE next_run_at IS NOT NULL ORDER BY next_run_at"
SPANS = (("1 h", "1h"), ("3 h", "3h"), ("12 h", "12h"), ("24 h", None), ("3 d", "3d"), ("7 d", "7d"))
"""How far ahead one looks most often, as it is shown and as it is asked for."""


@dataclass(frozen=True, slots=True)
class _Read:
    """All that was read."""

    planned: Planned
    lanes: dict[str, Lane]
    ahead: Ahead
    usual: dict[str, timedelta]
    first: list[Upcoming]
    has_more: bool
    why_none: str | None


async def read(ask: Ask) -> Shown:
    """Read the lanes, and a page of the times to come as the API gives it."""
    worker, length = ask.fields["worker"], ask.fields["for"]
    until = ask.now + timedelta(seconds=length)
    past = ask.fields["from"] or ask.now - _PAST
    if not timedelta() < until - ask.now <= _LONGEST or ask.now - past > _LONGEST or past > ask.now:
        raise InvalidSetting("at most 7 days are shown, ahead and back; give `for` and `from` less")
    facts = await (_first_page(ask, past, until) if ask.fields["after"] is None else _later_page(ask))
    facts |= {"worker": worker, "spans": SPANS, "until": until, "past": past}
    words = f" {shlex.quote(worker)}" if worker else ""
    commands = (f"jobrunner upcoming{words} --for {shlex.quote(show_span(length))}",)
    api = query(**{"worker": worker, "for": None if length == 86400.0 else show_span(length)})
    return Shown(facts, "Upcoming", commands, f"api/upcoming{api}", _SQL)


async def _later_page(ask: Ask) -> dict[str, Any]:
    """Return the facts of a page of times beyond the first: it has no lanes."""
    given = {name: ask.fields[name] for name in ("worker", "for", "after")}
    page = await reads.upcoming(narrowed(ask, limit=_MOST_ROWS, **given))
    return {"rows": page.rows, "after": page.after, "drawing": None, "why_none": None}


async def _first_page(ask: Ask, past: datetime, until: datetime) -> dict[str, Any]:
    """Return the facts of the lanes, and of the first times."""
    found = await _read(ask, past, until)
    rows = await asyncio.to_thread(
        lambda: [_row(name, found, past, until, ask.now) for name in found.planned.times]
    )  # thousands of marks, and others wait for the loop
    zones = {each.timezone for times in found.planned.times.values() for each in times}
    zone = axis_zone(ask.fields["tz"], zones)
    played_until = found.ahead.forecast.until
    return {
        "rows": [found.ahead.row(each) for each in found.first],
        "after": reads.upcoming_after(ask.now, _MOST_ROWS) if found.has_more else None,
        "lanes": [_words(row, found, ask.now) for row in rows],
        "drawing": await asyncio.to_thread(draw, rows, past, ask.now, until, zone, zones) if rows else None,
        "zone": zone.key,
        "is_own_zone": ask.fields["tz"] == "utc" or (ask.fields["tz"] == "worker" and zones == {zone.key}),
        "changes": changes(past, until, zones),
        "is_cut": found.planned.is_cut and ask.fields["worker"] is None,
        "most": MOST_LANES,
        "played_until": None if played_until >= until else played_until,
        "why_none": found.why_none,
    }


async def _read(ask: Ask, past: datetime, until: datetime) -> _Read:
    worker = ask.fields["worker"]
    async with ask.desk.database() as db, db.read() as conn:
        if worker is not None:
            await require_workers(conn, db.dialect, [worker])
        planned = await read_planned(conn, ask.now, until, worker)
        names = {*planned.times, *(() if worker is None else (worker,))}
        planned.times.update({name: [] for name in names - planned.times.keys()})
        lanes = await read_lanes(conn, db.dialect, ask.now, past, names)
        to_play = replace(
            await read_to_play(conn, db.dialect, ask.now, until, worker, _PLAYED_ROWS),
            starts=_MOST_PLAYED - _LESS_A_LANE * len(names),
        )
        first, has_more = await read_upcoming(conn, ask.now, until, _MOST_ROWS, worker)
        heard, _ = await read_nodes_heard(conn, ask.now)
    ahead = await asyncio.to_thread(to_play.play)
    why_none = None if heard.active else heard.why_no_handler()
    return _Read(planned, lanes, ahead, dict(to_play.usual), first, has_more, why_none)


def axis_zone(tz: str, zones: set[str]) -> ZoneInfo:
    """Return the zone of the axis: the workers' own, if that is asked for and they share one; else UTC."""
    return zone_or_utc(next(iter(zones))) if tz == "worker" and len(zones) == 1 else zone_of("UTC")


def show_span(seconds: float) -> str:
    """Return a length of time as it is typed: `24h`, `90m`, `45s`."""
    sizes = ((3600, "h"), (60, "m"))
    return next((f"{seconds / size:.0f}{unit}" for size, unit in sizes if seconds % size == 0), f"{seconds:g}s")


def _row(name: str, found: _Read, past: datetime, until: datetime, now: datetime) -> Row:
    """Return a worker's lane: what ran, what is planned, and what goes on like that."""
    lane = found.lanes.get(name)
    marks = [] if lane is None else list(past_marks(lane, past))
    if name in found.planned.held:
        marks.append(Mark("held", now, min(found.planned.held[name] or until, until), "disabled or paused"))
    usual = found.usual.get(name)
    times = found.planned.times[name]
    standing = next((each.note for each in times if each.due_at is None), None)
    forecast = found.ahead.forecast
    for each in times:
        expected = Expected() if each.due_at is None else forecast.of(name, each.due_at, each.run_id)
        mark = planned_mark(each, expected, usual, forecast.until, now)
        if mark is not None:
            marks.append(mark)
    if name in found.planned.has_more and times[-1].due_at is not None:
        marks.append(Mark("more", times[-1].due_at, until, "so it goes on"))
    return Row(name, marks, standing)


def _words(row: Row, found: _Read, now: datetime) -> dict[str, Any]:
    """Return what a lane shows, in words."""
    ended: dict[str, int] = {}
    for mark in row.marks:
        if mark.begins_at <= now and mark.kind not in AHEAD:
            ended[mark.kind] = ended.get(mark.kind, 0) + 1
    ahead = [mark for mark in row.marks if mark.kind in {"starts", "late", "not", "plan"}]
    counts = {kind: sum(mark.kind == kind for mark in ahead) for kind in ("starts", "late", "not", "plan")}
    lane = found.lanes.get(row.worker)
    usual = found.usual.get(row.worker)
    times = found.planned.times[row.worker]
    return {
        "worker": row.worker,
        "zone": times[0].timezone if times else "UTC",
        "ended": sorted(ended.items()),
        "is_more_past": lane is not None and lane.cut_at is not None,
        "next": min((mark for mark in ahead if mark.kind != "not"), key=lambda mark: mark.begins_at, default=None),
        "counts": counts,
        "has_more": row.worker in found.planned.has_more,
        "usual": None if usual is None else round(usual.total_seconds() * 1000),
        "note": row.standing or next((mark.note for mark in ahead if mark.note), None),
    }
