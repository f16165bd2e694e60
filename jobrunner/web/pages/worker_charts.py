"""What the pages of workers draw: strips of outcomes, the grid of runs, durations by day, neighbours. Pure.

A drawing's links are left out of the order of the Tab key: the table or list beside it has the same ones.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from markupsafe import Markup, escape

from jobrunner.policy.showing import show_duration
from jobrunner.policy.words import counted
from jobrunner.web.pages.charts import line, rect, svg, text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from jobrunner.storage.reading.days import Days
    from jobrunner.storage.reading.grid import GridRun, Tried
    from jobrunner.storage.reading.neighbours import Neighbour, Neighbours
    from jobrunner.storage.reading.strips import Strip

    Link = Callable[[str], str]

_BAD = frozenset({"failed", "timed_out", "lost"})
_CALM = frozenset({"succeeded", "cancelled", "discarded", "snoozed", "missed", "running", "pending"})
_STEP, _STRIP_HEIGHT = 6, 22
_WIDTH, _DAYS_WIDTH = 600, 500
_GRID_HEIGHT, _FOOT = 150, 16
_MOST_STACKED = 8
_DAY_ROOM, _COUNT_ROOM = 100, 24
_BOX_WIDTH, _BOX_HEIGHT, _BOX_GAP = 176, 24, 6
_LONGEST_NAME = 22


def kind_of(outcome: str) -> str:
    """Return the state that gives an outcome its colour."""
    if outcome in _BAD or outcome in _CALM:
        return outcome
    return {"exhausted": "failed", "stopping": "running"}.get(outcome, "other")


def strip_chart(strip: Strip) -> Markup:
    """Return the last ends of a worker, the newest at the right: what failed is higher than all else."""
    most = max((end.duration_ms or 0 for end in strip.ends), default=0)
    parts = []
    for place, end in enumerate(strip.ends):
        share = 1.0 if end.outcome in _BAD else 0.3 + 0.45 * _share(end.duration_ms, most)
        height = _STRIP_HEIGHT * share
        said = f"{_words(end.outcome)}, {end.finished_at:%Y-%m-%d %H:%M:%S} UTC"
        said += "" if end.duration_ms is None else f", {show_duration(end.duration_ms)}"
        parts.append(rect(place * _STEP, _STRIP_HEIGHT - height, _STEP - 1, height, kind_of(end.outcome), said))
    return _strip(parts, _strip_label(strip))


def _strip(parts: Iterable[str], label: str) -> Markup:
    made = str(svg(parts, 20 * _STEP, _STRIP_HEIGHT, label))
    return Markup(made.replace('class="chart"', 'class="strip"', 1))  # noqa: S704 - of the drawing itself


def _strip_label(strip: Strip) -> str:
    if not strip.ends:
        return "nothing has ended yet"
    kinds: dict[str, int] = {}
    for end in strip.ends:
        kinds[_words(end.outcome)] = kinds.get(_words(end.outcome), 0) + 1
    told = ", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items(), key=lambda pair: -pair[1]))
    return f"The last {len(strip.ends)}: {told}; the newest {_words(strip.ends[-1].outcome)}"


_LABELS_WIDTH = 150
"""The words under the newest run and those under the oldest need so much."""


def grid_chart(runs: Sequence[GridRun], link: Link) -> Markup:
    """Return the runs as columns, the newest at the right; each attempt a box, as high as it took long (log scale)."""
    most = max((_took(each) for run in runs for each in run.attempts), default=0)
    tallest = max((_column_height(run, most) for run in runs), default=1.0)
    room = _GRID_HEIGHT - _FOOT
    scale = min(room / max(tallest, 1.0), 2.5)
    step = _WIDTH / 50
    first = _WIDTH - step * len(runs)
    parts = [line(0, room, _WIDTH, room)]
    for place, run in enumerate(runs):
        left, top = first + place * step, float(room)
        if run.run_id is None:
            said = f"{counted(run.occurrences or 1, 'time')} missed, the last {run.at:%Y-%m-%d %H:%M:%S} UTC"
            parts.append(rect(left + 1, room - 5, step - 3, 5, "missed", said))
            continue
        boxes = []
        for tried in run.attempts[-_MOST_STACKED:]:
            height = _height(tried, most) * scale
            top -= height
            said = f"run {run.run_id}, attempt {tried.number}: {_tried(tried)}; the run is {_words(run.state)}"
            boxes.append(rect(left + 1, top + 1, step - 3, height - 1, kind_of(tried.outcome), said))
        parts.append(_linked(link(f"runs/{run.run_id}"), f"run {run.run_id}, {_words(run.state)}", boxes))
    parts.append(text(_WIDTH, _GRID_HEIGHT - 3, "newest", "end"))
    if first < _WIDTH - _LABELS_WIDTH:
        parts.append(text(max(first, 0) + 1, _GRID_HEIGHT - 3, f"{runs[0].at:%m-%d %H:%M} UTC"))
    if most:
        parts.append(text(2, 11, f"longest {show_duration(most)}"))
    return _group(parts, _WIDTH, _GRID_HEIGHT, f"The last {counted(len(runs), 'run')}; the table below has the same")


def _took(tried: Tried) -> int:
    return tried.duration_ms or 0


def _height(tried: Tried, most: int) -> float:
    return 8.0 + 40.0 * _share(tried.duration_ms, most)


def _column_height(run: GridRun, most: int) -> float:
    return sum(_height(each, most) for each in run.attempts[-_MOST_STACKED:])


def _share(duration_ms: int | None, most: int) -> float:
    """Return how a duration compares with the longest, from 0 to 1, on a log scale."""
    return math.log1p(duration_ms) / math.log1p(most) if duration_ms and most else 0.0


def _tried(tried: Tried) -> str:
    took = "" if tried.duration_ms is None else f" after {show_duration(tried.duration_ms)}"
    return f"{_words(tried.outcome)}{took}"


def _words(outcome: str) -> str:
    return outcome.replace("_", " ")


def days_chart(days: Days) -> Markup:
    """Return a day a pair of bars, p50 and p95 of what succeeded, and below them how many ended, and how."""
    shown, step = days.days, _DAYS_WIDTH / max(len(days.days), 1)
    longest = max((day.p95_ms or 0 for day in shown), default=0)
    most = max((day.ended for day in shown), default=0)
    foot = 14 + _DAY_ROOM + _COUNT_ROOM
    parts = [line(0, 14 + _DAY_ROOM, _DAYS_WIDTH, 14 + _DAY_ROOM), line(0, foot, _DAYS_WIDTH, foot)]
    for place, day in enumerate(shown):
        left = place * step + 4
        said = f"{day.date:%Y-%m-%d}: {day.succeeded:,} succeeded, {day.failed:,} failed, {day.others:,} others"
        if day.p95_ms is not None and day.p50_ms is not None:
            said += f"; p50 {show_duration(day.p50_ms)}, p95 {show_duration(day.p95_ms)}"
            for at, value, kind in ((0.0, day.p50_ms, "p50"), (0.42, day.p95_ms, "p95")):
                height = _DAY_ROOM * value / max(longest, 1)
                parts.append(rect(left + at * step, 14 + _DAY_ROOM - height, step * 0.4, height, kind, said))
        top = float(foot)
        for number, kind in ((day.succeeded, "succeeded"), (day.others, "other"), (day.failed, "failed")):
            height = max((_COUNT_ROOM - 3) * number / max(most, 1), 2.0) if number else 0.0
            top -= height
            if number:
                parts.append(rect(left, top, step * 0.82, height, kind, said))
        parts.append(text(left, foot + 13, f"{day.date:%m-%d}"))
    parts.append(text(2, 11, f"longest p95 {show_duration(longest)}, most in a day {most:,}"))
    return svg(parts, _DAYS_WIDTH, foot + _FOOT, "Durations and ends by day; the table below has the same")


def neighbours_chart(name: str, found: Neighbours, link: Link) -> Markup:
    """Return the worker in the middle: left whom it depends on, right who depends on it, below whom it blocks."""
    beside = [*found.blocks, *(each for each in found.blocked_by if each not in found.blocks)]
    rows = max(len(found.depends_on), len(found.needed_by), 1)
    pitch = _BOX_HEIGHT + _BOX_GAP
    left, middle, right = 0.0, (_WIDTH - _BOX_WIDTH) / 2, float(_WIDTH - _BOX_WIDTH)
    head = 18.0
    center = head + rows * pitch / 2 - _BOX_GAP / 2
    parts = []
    for column, title, each_of in (
        (left, "depends on", found.depends_on),
        (right, "needed by", found.needed_by),
    ):
        if each_of:
            parts.append(text(column, 12, title))
        offset = center - (len(each_of) * pitch - _BOX_GAP) / 2
        for place, each in enumerate(each_of):
            y = offset + place * pitch
            ends = (left + _BOX_WIDTH, middle) if column == left else (middle + _BOX_WIDTH, right)
            ys = (y + _BOX_HEIGHT / 2, center) if column == left else (center, y + _BOX_HEIGHT / 2)
            parts += [_arrow(ends[0], ys[0], ends[1], ys[1]), _box(column, y, each, link)]
    parts += [
        _frame(middle, center - _BOX_HEIGHT / 2, "box self"),
        text(middle + _BOX_WIDTH / 2, center + 4, _short(name), "middle"),
    ]
    bottom = head + rows * pitch
    if beside:
        parts.append(line(middle + _BOX_WIDTH / 2, center + _BOX_HEIGHT / 2, middle + _BOX_WIDTH / 2, bottom + 10))
        parts.append(text(middle + _BOX_WIDTH / 2 + 6, bottom + 8, "never at the same time as"))
        for place, each in enumerate(beside):
            x = (left, middle, right)[(place + 1) % 3]
            parts.append(_box(x, bottom + 14 + (place // 3) * pitch, each, link))
        bottom += 14 + -(-len(beside) // 3) * pitch
    return _group(parts, _WIDTH, bottom, f"Neighbours of {name}; the list below has the same")


def _box(x: float, y: float, each: Neighbour, link: Link) -> str:
    said = f"{each.name}: {_words(each.health)}"
    mark = rect(x + 4, y + 4, 6, _BOX_HEIGHT - 8, _of_health(each.health))
    parts = [_frame(x, y, "box", said), mark, text(x + 16, y + 16, _short(each.name))]
    return _linked(link(f"workers/{each.name}"), said, parts)


def _frame(x: float, y: float, kind: str, title: str = "") -> str:
    shape = f'<rect x="{x:g}" y="{y:g}" width="{_BOX_WIDTH}" height="{_BOX_HEIGHT}" rx="4" class="{kind}">'
    return f"{shape}<title>{escape(title)}</title></rect>" if title else f"{shape}</rect>"


def _of_health(health: str) -> str:
    if health in {"disabled", "failing", "stalled"}:
        return "failed"
    return {"healthy": "succeeded", "unknown": "unknown"}.get(health, "late")


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"


def _arrow(x1: float, y1: float, x2: float, y2: float) -> str:
    head = f"{x2 - 6:g},{y2 - 4:g} {x2:g},{y2:g} {x2 - 6:g},{y2 + 4:g}"
    return line(x1, y1, x2, y2) + f'<polyline class="axis" fill="none" points="{head}"/>'


def _linked(place: str, said: str, parts: Iterable[str]) -> str:
    return f'<a href="{escape(place)}" tabindex="-1"><title>{escape(said)}</title>{"".join(parts)}</a>'


def _group(parts: Iterable[str], width: float, height: float, label: str) -> Markup:
    """Return a drawing with links in it: a picture could have none."""
    made = str(svg(parts, width, height, label))
    return Markup(made.replace('role="img"', 'role="group"', 1))  # noqa: S704 - of the drawing itself
