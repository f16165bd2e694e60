"""How a table fits into a terminal. Pure: columns, cells and a width in, lines out.

Names, ids, numbers and times are never cut or folded. A name that is so long that its column would cost others theirs
ends its line; what follows it in the row stands on the next one. Columns are taken into the row by importance, as long
as there is room; of those for which there is none, the ones that must be seen stand below the row, each with its title,
and the others are left out, as are columns in which nothing is said. Texts (why, an error, a payload) get the room that
is left: such a column stands in the row if it fits there, or if half of the width is free for it, else below. Texts are
folded on words.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jobrunner.policy.showing import NOTHING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Measure = Callable[[str], int]

ALWAYS = 9

WHOLE = 1_000_000  # no text of a database is longer
ERROR = 150
_NAMES = frozenset({"name", "worker", "actor", "hostname"})
_LONG_NAME = 20
_GAP = "  "
_INDENT = "    "


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table: the row's key, its title, and how a value is shown (else by its type)."""

    key: str
    title: str
    show: Callable[[Mapping[str, Any]], Any] | None = None
    importance: int = ALWAYS
    """`ALWAYS`, or less: where the terminal is too narrow, the column of the least importance is left out first."""
    longest: int | None = None
    """Of a text: its first line is shown, of at most so many characters. None: a name, an id, a number or a time."""

    @property
    def is_name(self) -> bool:
        """Whether its values are as long as somebody has made them."""
        return self.key in _NAMES and self.longest is None


def columns(*keys: str, importance: int = ALWAYS, **titles: str) -> list[Column]:
    """Return plain columns: each key is its own title, with spaces, unless `titles` says otherwise."""
    return [Column(key, titles.get(key, key.replace("_", " ")), importance=importance) for key in keys]


def plain(_column: Column | None, text: str) -> str:
    """Return a text as it is, without colours."""
    return text


def lay_out(
    shown: Sequence[Column],
    cells: Sequence[Sequence[str]],
    width: int,
    measure: Measure = len,
    paint: Callable[[Column | None, str], str] = plain,
) -> list[str]:
    """Return the lines of a table, none wider than `width` unless a single name is.

    `measure` says how many places of a terminal a text takes; `paint` colours a cell of a column, or (None) a title.
    """
    widths = [
        max(map(measure, (*column.title.split(), *(row[place] for row in cells)))) for place, column in enumerate(shown)
    ]
    in_row, below = _plan(shown, cells, widths, width)
    if _leaves_out(shown, cells, in_row):
        widths = [
            _usual_width(column, [row[place] for row in cells], _LONG_NAME, measure)
            if column.is_name
            else widths[place]
            for place, column in enumerate(shown)
        ]
        in_row, below = _plan(shown, cells, widths, width)
    titles = [fold(shown[place].title.upper(), room, measure) for place, room in in_row.items()]
    highest = max(map(len, titles), default=0)
    lines = []
    for number in range(highest):
        above = [number - highest + len(title) for title in titles]  # titles stand on the last line
        words = [title[at] if at >= 0 else "" for at, title in zip(above, titles, strict=True)]
        lines.append(_join(words, in_row.values(), [paint(None, word) for word in words], measure))
    for row in cells:
        folded = [
            [row[place]] if shown[place].longest is None else fold(row[place], room, measure)
            for place, room in in_row.items()
        ]
        for number in range(max(map(len, folded), default=0)):
            parts = [part[number] if number < len(part) else "" for part in folded]
            painted = [paint(shown[place], part) for place, part in zip(in_row, parts, strict=True)]
            lines += _broken(parts, list(in_row.values()), painted, width, measure)
        for place in below:
            if row[place] != NOTHING:
                said = f"{shown[place].title}: {row[place]}"
                is_text = shown[place].longest is not None
                parts = fold(said, width - len(_INDENT), measure) if is_text else [said]
                lines += [_INDENT + part for part in parts]
    return lines


def _leaves_out(shown: Sequence[Column], cells: Sequence[Sequence[str]], in_row: Mapping[int, int]) -> bool:
    """Say whether a column that says something, and is no text, has no room in the row."""
    return any(
        column.longest is None and place not in in_row and any(row[place] != NOTHING for row in cells)
        for place, column in enumerate(shown)
    )


def _usual_width(column: Column, values: Sequence[str], longest: int, measure: Measure) -> int:
    """Return the width of a column of names without those that are longer than that."""
    usual = [size for size in map(measure, values) if size <= longest]
    return max([*map(measure, column.title.split()), *usual])


def _plan(
    shown: Sequence[Column], cells: Sequence[Sequence[str]], widths: Sequence[int], width: int
) -> tuple[dict[int, int], list[int]]:
    """Decide which columns stand in the row, each with its width, and which below it; by their places, in order."""
    room = width + len(_GAP)
    in_row: dict[int, int] = {}
    below: list[int] = []
    order = sorted(range(len(shown)), key=lambda place: (shown[place].longest is not None, -shown[place].importance))
    for place in order:
        column = shown[place]
        may_go = column.importance < ALWAYS or column.longest is not None
        if may_go and all(row[place] == NOTHING for row in cells):
            continue
        free = room - len(_GAP)
        if widths[place] <= free or (column.longest is not None and free >= width / 2):
            in_row[place] = min(widths[place], free)
            room = free - in_row[place]
        elif column.importance >= ALWAYS:
            below.append(place)
    return dict(sorted(in_row.items())), sorted(below)


def _join(parts: Sequence[str], widths: Any, painted: Sequence[str], measure: Measure) -> str:
    """Put the parts of a line side by side; nothing follows the last."""
    line, blank = "", ""
    for part, width, shown in zip(parts, widths, painted, strict=True):
        if part:
            line, blank = line + blank + shown, ""
        blank += " " * (width - measure(part)) + _GAP
    return line


def _broken(
    parts: Sequence[str], widths: Sequence[int], painted: Sequence[str], width: int, measure: Measure
) -> list[str]:
    """Put the parts of a row side by side, in a line more for each part that is wider than its column."""
    lines: list[str] = []
    rest, seen = list(parts), 0  # what is said already is blank in the next line
    for place, part in enumerate(parts):
        if measure(part) <= widths[place]:
            continue
        before = sum(room + len(_GAP) for room in widths[:place])
        is_alone = before + measure(part) > width
        said = [*rest[: place + (not is_alone)], *[""] * (len(parts) - place - (not is_alone))]
        if any(said):
            lines.append(_join(said, widths, painted, measure))
        if is_alone:
            lines.append(painted[place])
        seen = place + 1
        rest[:seen] = [""] * seen
    if seen == 0 or any(rest):
        lines.append(_join(rest, widths, painted, measure))
    return lines


def fold(text: str, width: int, measure: Measure = len) -> list[str]:
    """Return the text in lines of at most `width`, folded on words; only a word that is wider than that is broken."""
    lines = [""]
    for word in text.split():
        rest = word
        joined = f"{lines[-1]} {rest}" if lines[-1] else rest
        if measure(joined) <= width:
            lines[-1] = joined
            continue
        while measure(rest) > width:
            taken = next(size for size in range(len(rest), 0, -1) if size == 1 or measure(rest[:size]) <= width)
            lines.append(rest[:taken])
            rest = rest[taken:]
        if rest:
            lines.append(rest)
    return lines[1:] if len(lines) > 1 and not lines[0] else lines
