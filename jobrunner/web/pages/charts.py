"""Charts as SVG, made here: they need no script, print, and have a text beside them for who does not see them. Pure.

Each shape's colour comes from its class, so that it follows light and dark, and no attribute holds a style.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from markupsafe import Markup, escape

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from jobrunner.storage.reading.minutes import Minute

_ORDER = ("succeeded", "retried", "cancelled", "discarded", "snoozed", "missed", "failed", "timed_out", "lost")
_WIDTH, _HEIGHT, _FOOT = 720, 120, 16


def svg(parts: Iterable[str], width: float, height: float, label: str) -> Markup:
    """Return a drawing of that size; `label` says in words what it shows."""
    inner = Markup("").join(Markup(part) for part in parts)  # noqa: S704 - each part is made in this room, and escaped
    head = Markup('<svg class="chart" viewBox="0 0 {:g} {:g}" role="img" aria-label="{}">').format(width, height, label)
    return head + inner + Markup("</svg>")


def rect(x: float, y: float, width: float, height: float, kind: str, title: str | None = None) -> str:
    """Return a filled box; `kind` is the state that gives its colour, `title` what is said on pointing at it."""
    shape = f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.5):.1f}" height="{max(height, 0.5):.1f}"'
    inside = f"<title>{escape(title)}</title>" if title else ""
    return f'{shape} class="fill-{escape(kind)}">{inside}</rect>'


def text(x: float, y: float, said: str, anchor: str = "start") -> str:
    """Return a text at a place."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(said)}</text>'


def line(x1: float, y1: float, x2: float, y2: float) -> str:
    """Return a line of an axis."""
    return f'<line class="axis" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def minutes_chart(minutes: Sequence[Minute]) -> Markup:
    """Return attempts that ended, a bar for each minute, by outcome."""
    most = max((sum(minute.counts.values()) for minute in minutes), default=0)
    step, room = _WIDTH / max(len(minutes), 1), _HEIGHT - _FOOT
    parts = [line(0, room, _WIDTH, room)]
    for place, minute in enumerate(minutes):
        if not minute.is_known:
            parts.append(
                rect(place * step + 1, 0, step - 2, room, "unknown", f"{minute.at:%H:%M} UTC: not counted yet")
            )
            continue
        top = float(room)
        said = ", ".join(f"{number:,} {kind}" for kind, number in sorted(minute.counts.items())) or "nothing ended"
        for kind in sorted(minute.counts, key=_place):
            height = room * minute.counts[kind] / max(most, 1)
            top -= height
            parts.append(rect(place * step + 1, top, step - 2, height, kind, f"{minute.at:%H:%M} UTC: {said}"))
    parts += [text(at * step + 1, _HEIGHT - 3, f"{minutes[at].at:%H:%M}") for at in range(0, len(minutes), 15)]
    parts.append(text(_WIDTH, _HEIGHT - 3, "now", "end"))
    parts.append(text(2, 11, f"{most:,} a minute"))
    total = sum(sum(minute.counts.values()) for minute in minutes)
    return svg(parts, _WIDTH, _HEIGHT, f"Attempts that ended in each minute of the last hour, UTC: {total:,} in all")


def _place(kind: str) -> int:
    return _ORDER.index(kind) if kind in _ORDER else len(_ORDER)
