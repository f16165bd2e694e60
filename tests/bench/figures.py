"""What a measurement is worth: medians with spread, a row with its target; as table, Markdown and JSON."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

COLUMNS = ("case", "target", "figure", "peer", "ratio", "ok?")


def percentile(values: Iterable[float], percent: float) -> float:
    """The value that `percent` % of the values do not exceed (nearest rank); NaN of nothing."""
    ordered = sorted(values)
    if not ordered:
        return math.nan
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


@dataclass(frozen=True)
class Figure:
    """One quantity, measured once or more."""

    name: str
    unit: str
    samples: tuple[float, ...]

    @property
    def value(self) -> float:
        return median(self.samples) if self.samples else math.nan

    def __str__(self) -> str:
        if not self.samples:
            return f"{self.name}: not measured"
        text = f"{number(self.value)} {self.unit}".strip()
        if len(self.samples) > 1:
            text += f" ({number(min(self.samples))} to {number(max(self.samples))})"
        return text


@dataclass(frozen=True)
class Row:
    """A line of the table. `is_ok` None: nothing was promised; `why` says what was left out, and what for."""

    case: str
    target: str
    figure: str
    peer: str = ""
    ratio: float | None = None
    is_ok: bool | None = None
    why: str = ""
    raw: dict[str, Any] = field(default_factory=dict)

    def cells(self) -> tuple[str, ...]:
        verdict = {True: "yes", False: "below", None: ""}[self.is_ok]
        ratio = "" if self.ratio is None else f"{self.ratio:.2f}"
        figure = f"{self.figure} [{self.why}]" if self.why else self.figure
        return (self.case, self.target, figure, self.peer, ratio, verdict)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def number(value: float) -> str:
    """Three digits that matter, thousands apart."""
    if math.isnan(value):
        return "-"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def is_at_most(value: float, limit: float) -> bool:
    """Say whether a target is kept; what could not be measured keeps none."""
    return not math.isnan(value) and value <= limit


def is_at_least(value: float, limit: float) -> bool:
    return not math.isnan(value) and value >= limit


def ratio(ours: Figure, other: Figure | None) -> float | None:
    """How many times the other; None when there is nothing to compare with."""
    if other is None or not other.samples or not ours.samples or not other.value:
        return None
    return ours.value / other.value


def show(rows: Sequence[Row], console: Console) -> None:
    table = Table(*COLUMNS, show_lines=True)
    for row in rows:
        colour = {True: "green", False: "red", None: ""}[row.is_ok]
        table.add_row(*row.cells(), style=colour)
    console.print(table)


def markdown(rows: Sequence[Row]) -> str:
    """The table as docs/bench.md has it."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    lines += ["| " + " | ".join(cell.replace("|", "/") for cell in row.cells()) + " |" for row in rows]
    return "\n".join(lines)
