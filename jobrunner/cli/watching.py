"""Watching runs while they live: a line for each change, as it is seen, so that it can be read and piped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jobrunner.cli.output import clean, show_time, show_value
from jobrunner.runtime.clock import SystemClock
from jobrunner.storage.history import read_history
from jobrunner.storage.status import read_runs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from jobrunner.storage.database import Database

FOLLOW_SECONDS = 0.5
_MOST_FOLLOWED = 1000


def show_progress(progress: Mapping[str, Any] | None) -> str:
    """Show how far a run says it is: `40 % of 10 files`."""
    if not progress:
        return ""
    fraction, message = progress.get("fraction"), str(progress.get("message") or "")
    percent = f"{fraction * 100:.0f} %" if isinstance(fraction, int | float) else ""
    return f"{percent} {message}".strip()


def show_end(attempt: Mapping[str, Any]) -> str:
    """Show how an attempt ended, and why."""
    ended = attempt["ends_run"] or f"{attempt['outcome']}, to be tried again"
    reason = attempt["error"] or attempt["reason"]
    return f"{ended}: {show_value(reason)}" if reason else str(ended)


def output_lines(attempt: Mapping[str, Any]) -> list[str]:
    """Return what an attempt said, line by line."""
    return [clean(line) for line in (attempt["output"] or "").splitlines()]


async def follow(db: Database, worker: str | None, show: Callable[[dict[str, Any]], None]) -> None:
    """Call `show` with every live run, with each change of one, and with the history row of each that ends.

    Goes on until it is interrupted.
    """
    clock = SystemClock()
    known: dict[int, tuple[Any, ...]] = {}
    while True:
        async with db.peek() as conn:
            rows = await read_runs(conn, worker=worker, limit=_MOST_FOLLOWED)
            live = {row["id"] for row in rows}
            for run_id in [run_id for run_id in known if run_id not in live]:
                del known[run_id]
                for attempt in await read_history(conn, run_id=run_id, limit=1):
                    show(attempt)
        for row in rows:
            seen = (row["state"], row["attempt"], row["due_at"], show_progress(row["progress"]))
            if known.get(row["id"]) != seen:
                known[row["id"]] = seen
                show(row)
        await clock.sleep(FOLLOW_SECONDS)


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
