"""Watching runs while they live: a line for each change, as it is seen, so that it can be read and piped."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jobrunner.cli.output import clean, show_value
from jobrunner.policy.showing import show_progress
from jobrunner.policy.words import show_time
from jobrunner.runtime.clock import SystemClock
from jobrunner.runtime.output import read_new_lines
from jobrunner.storage.reading.status import read_runs
from jobrunner.storage.records.history import newest_ids, read_history
from jobrunner.storage.runs.live import read_output

if TYPE_CHECKING:
    from jobrunner.storage.database.database import Database
    from jobrunner.storage.runs.transaction import AsyncConnection

FOLLOW_SECONDS = 0.5
_MOST_FOLLOWED = 1000
_FIRST_LINES = 10  # of a run that has said more before it was first seen

Row = Mapping[str, Any]
Show = Callable[[Row], None]
ShowLines = Callable[[Row, Sequence[str]], None]


def show_end(attempt: Mapping[str, Any]) -> str:
    """Show how an attempt ended, and why."""
    ended = attempt["ends_run"] or f"{attempt['outcome']}, to be tried again"
    reason = attempt["error"] or attempt["reason"]
    kind = f"{attempt['error_type']}: " if attempt["error_type"] and attempt["error"] else ""
    return f"{ended}: {show_value(kind + reason)}" if reason else str(ended)


class Heard:
    """What of a run's output has been told: every line once, in order, whatever is asked when."""

    def __init__(self) -> None:
        self.fence: int | None = None
        self.lines = 0

    def new_lines(self, fence: int | None, output: str | None) -> list[str]:
        """Return the lines that are new in what the attempt of that claim has said so far, or at last."""
        if fence != self.fence:
            self.fence, self.lines = fence, 0
        lines, self.lines = read_new_lines(output, self.lines)
        return [clean(line.removesuffix("\r").expandtabs()) for line in lines]


class Follower:
    """Tells of every live run, each change of one, what it says, and how each attempt ends.

    Args:
        worker: only this worker's.
        show: called with a live run's row, or an ended attempt's.
        show_lines: called with such a row and the lines that are new in its output.
    """

    def __init__(self, worker: str | None, show: Show, show_lines: ShowLines) -> None:
        self._worker = worker
        self._show = show
        self._show_lines = show_lines
        self._known: dict[int, tuple[Any, ...]] = {}
        self._heard: dict[int, Heard] = {}
        self._ended: set[int] | None = None  # of the newest rows of history, those told of

    async def follow(self, db: Database) -> None:
        """Go on until interrupted."""
        clock = SystemClock()
        while True:
            async with db.peek() as conn:
                # In this order: what has ended meanwhile is in the history, and is told from there.
                rows = await read_runs(conn, worker=self._worker, limit=_MOST_FOLLOWED, has_output=False)
                ended = await self._tell_ends(conn)
                for row in rows:
                    if row["id"] not in ended:  # else it is another's or waits again: told at the next look
                        await self._tell(conn, row)
            live = {row["id"] for row in rows}
            for known in (self._known, self._heard):
                for run_id in [run_id for run_id in known if run_id not in live]:
                    del known[run_id]
            await clock.sleep(FOLLOW_SECONDS)

    async def _tell_ends(self, conn: AsyncConnection) -> set[int]:
        """Tell of the attempts that have ended since the last look; return the ids of their runs."""
        newest = await newest_ids(conn, self._worker, _MOST_FOLLOWED)
        new = set() if self._ended is None else newest - self._ended
        self._ended = newest
        rows = await read_history(conn, ids=new, limit=_MOST_FOLLOWED) if new else []
        attempts = [row for row in reversed(rows) if row["run_id"] is not None]  # the others were missed
        for attempt in attempts:
            heard = self._heard.setdefault(attempt["run_id"], Heard())
            self._say(attempt, heard.new_lines(attempt["fence"], attempt["output"]))
            self._show(attempt)
        return {attempt["run_id"] for attempt in attempts}

    async def _tell(self, conn: AsyncConnection, row: dict[str, Any]) -> None:
        run_id = row["id"]
        seen = (row["state"], row["attempt"], row["due_at"], show_progress(row["progress"]))
        is_new = run_id not in self._known
        if self._known.get(run_id) != seen:
            self._known[run_id] = seen
            self._show(row)
        heard = self._heard.setdefault(run_id, Heard())
        lines = row["output_lines"] or 0
        if lines > (heard.lines if heard.fence == row["fence"] else 0):
            if is_new and heard.fence is None:
                heard.fence, heard.lines = row["fence"], max(0, lines - _FIRST_LINES)
            said = await read_output(conn, run_id)
            if said is not None and said[0] == row["fence"]:
                self._say(row, heard.new_lines(*said))

    def _say(self, row: Mapping[str, Any], lines: list[str]) -> None:
        if lines:
            self._show_lines(row, lines)


def said_lines(row: Row, lines: Sequence[str]) -> list[str]:
    """Show what a run has said, each line with the run it is of."""
    start = f"{show_time(SystemClock().now())}  run {row.get('run_id', row.get('id'))}  {row['worker']}  | "
    return [start + line for line in lines]


def followed_line(row: Mapping[str, Any]) -> str:
    """Show a live run, or an ended attempt, in one line."""
    if "outcome" in row:
        return f"{show_time(row['finished_at'])}  run {row['run_id']}  {row['worker']}  {show_end(row)}"
    if row["state"] == "pending":
        state = f"waits, due {show_time(row['due_at'])}"
    else:
        state = " ".join(filter(None, (str(row["state"]), clean(show_progress(row["progress"])))))
    attempt = f", attempt {row['attempt']}" if row["attempt"] > 1 else ""
    return f"{show_time(SystemClock().now())}  run {row['id']}  {row['worker']}  {state}{attempt}"
