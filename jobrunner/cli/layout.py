"""How a table fits into a terminal. Pure: columns, cells and a width in, lines out.

Names, ids, numbers and times are never cut or folded. Columns are taken into the row by importance, as long as there is
room; of those for which there is none, the ones that must be seen stand below the row, each with its title, and the
others are left out, as are columns in which nothing is said. Texts (why, an error, a payload) get the room that is
left: such a column stands in the row if it fits there, or if half of the width is free for it, else below. Texts are
folded on words.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Measure = Callable[[str], int]

ALWAYS = 9
NOTHING = "-"
WHOLE = 1_000_000  # no text of a database is longer
ERROR = 150
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
            lines.append(_join(parts, in_row.values(), painted, measure))
        for place in below:
            if row[place] != NOTHING:
                said = f"{shown[place].title}: {row[place]}"
                is_text = shown[place].longest is not None
                parts = fold(said, width - len(_INDENT), measure) if is_text else [said]
                lines += [_INDENT + part for part in parts]
    return lines


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
