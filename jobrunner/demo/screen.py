"""What is seen while the demo runs: on a terminal a live table, elsewhere a plain line for each event."""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from jobrunner.model.run import OutcomeKind
from jobrunner.telemetry import events as e

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from rich.console import Console

STATUS = """
SELECT name, execution_mode, is_enabled, running_runs, pending_runs, last_run_outcome, consecutive_failures,
       total_runs, total_failures, last_error, disabled_reason
FROM worker_status ORDER BY name
"""
_STYLES = {
    "succeeded": "green",
    "failed": "red",
    "timed out": "red",
    "running": "bold cyan",
    "waiting": "yellow",
    "disabled": "bold red",
    "said": "bold",
}
_COLUMNS = {"worker": 13, "mode": 10, "now": 9, "last": 9, "runs": 4, "failed": 6, "streak": 6}
_ROOM_FOR_WHY = 110
_ROWS_AROUND_EVENTS = 16  # the workers, the heads and the lines between


class Screen(Protocol):
    """Where the demo shows itself."""

    def event(self, seconds: float, event: e.Event) -> None:
        """Show something that happened in the node."""

    def say(self, seconds: float, text: str) -> None:
        """Show what the demo itself does."""

    def show(self, seconds: float) -> None:
        """Bring what is seen up to date."""

    def close(self) -> None:
        """Leave the terminal as it was."""


def open_screen(console: Console, path: Path, seconds: float, read: Callable[[], list[dict[str, Any]]]) -> Screen:
    """Open the screen that fits: `read` gives the rows of STATUS."""
    return LiveScreen(console, path, seconds, read) if console.is_terminal else PlainScreen(console)


def _described(event: e.Event) -> tuple[str, str, str] | None:
    """Return (worker, what, details) of an event that is worth a line."""
    if isinstance(event, e.CircuitOpened):
        return event.state.worker, "disabled", f"by its circuit: {event.state.disabled_reason}"
    if not isinstance(event, e.RunEnded):
        return None
    outcome = event.outcome
    what = str(outcome.kind).replace("_", " ")
    details = f"run {event.run.id}"
    if event.run.attempt > 1 or outcome.kind is not OutcomeKind.SUCCEEDED:
        details += f", attempt {event.run.attempt}"
    if outcome.error:
        details += f": {outcome.error.splitlines()[0]}"
    if event.ends_run in {"exhausted", "discarded"}:
        details += f" ({event.ends_run}: a dead letter)"
    elif event.retry_at is not None:
        details += " (to be tried again)"
    return event.run.worker, what, details


def _line(seconds: float, worker: str, what: str, details: str) -> Text:
    line = Text(f"{seconds:5.1f} s  {worker:<13}  ", no_wrap=True, overflow="ellipsis")
    line.append(f"{what:<9}", _STYLES.get(what, ""))
    return line.append(f"  {details}")


class PlainScreen:
    """A line for each event, readable in a log."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def event(self, seconds: float, event: e.Event) -> None:
        """Print a line, if the event is worth one."""
        described = _described(event)
        if described is not None:
            self._print(_line(seconds, *described))

    def say(self, seconds: float, text: str) -> None:
        """Print a line."""
        self._print(_line(seconds, "the demo", "", text))

    def show(self, seconds: float) -> None:
        """Do nothing: what was printed stays."""

    def close(self) -> None:
        """Do nothing."""

    def _print(self, line: Text) -> None:
        self._console.out(line.plain.rstrip(), highlight=False)


class LiveScreen:
    """A table of the workers, read from the database, and the last events below it."""

    def __init__(self, console: Console, path: Path, seconds: float, read: Callable[[], list[dict[str, Any]]]) -> None:
        self._path = path
        self._seconds = seconds
        self._read = read
        self._console = console
        self._lines: deque[Text] = deque(maxlen=max(3, min(14, console.height - _ROWS_AROUND_EVENTS)))
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._live.start()

    def event(self, seconds: float, event: e.Event) -> None:
        """Keep a line, if the event is worth one."""
        described = _described(event)
        if described is not None:
            self._lines.append(_line(seconds, *described))

    def say(self, seconds: float, text: str) -> None:
        """Keep a line."""
        self._lines.append(_line(seconds, "the demo", "", text))

    def show(self, seconds: float) -> None:
        """Draw anew."""
        is_endless = math.isinf(self._seconds)
        of_all = "" if is_endless else f"of {self._seconds:.0f} "
        head = Text(f"jobrunner demo, {seconds:.0f} {of_all}s, on {self._path}", style="bold")
        foot = Text("Ctrl-C ends it" if is_endless else "Ctrl-C ends it early", style="dim")
        self._live.update(
            Group(
                head, _table(self._read(), has_room=self._console.width >= _ROOM_FOR_WHY), *self._lines, Text(), foot
            ),
            refresh=True,
        )

    def close(self) -> None:
        """Clear the view and give the cursor back."""
        self._live.stop()


def _table(rows: Sequence[Mapping[str, Any]], *, has_room: bool) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for title, width in _COLUMNS.items():
        table.add_column(title, min_width=width, justify="right" if title in {"runs", "failed", "streak"} else "left")
    if has_room:
        table.add_column("why", no_wrap=True, overflow="ellipsis", ratio=1)
    for row in rows:
        now, last = _now(row), (row["last_run_outcome"] or "-").replace("_", " ")
        cells = [Text(row["name"]), Text(row["execution_mode"], "dim"), Text(now, _STYLES.get(now, "dim"))]
        cells.append(Text(last, _STYLES.get(last, "dim")))
        cells += [Text(str(row[key])) for key in ("total_runs", "total_failures", "consecutive_failures")]
        if has_room:
            cells.append(Text(row["disabled_reason"] or row["last_error"] or "", "dim"))
        table.add_row(*cells)
    return table


def _now(row: Mapping[str, Any]) -> str:
    if not row["is_enabled"]:
        return "disabled"
    if row["running_runs"]:
        return "running" if row["running_runs"] == 1 else f"{row['running_runs']} running"
    return "waiting" if row["pending_runs"] else "-"
