"""What enabling a worker leads to, in sentences: before somebody does it. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jobrunner.policy.words import counted, show_time

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


def after_enabling(row: Mapping[str, Any]) -> Iterator[str]:
    """Say what becomes of a worker when it is enabled, as far as the row of `read_worker` tells.

    With `next_once_enabled` in it (`storage.reading.enabled`) also when it would run.
    """
    if row["consecutive_failures"]:
        yield f"Its {counted(row['consecutive_failures'], 'failure')} in a row are forgotten."
    if row["paused_until"] is not None:
        yield "It stays paused, if its pause is not over."
    if not row.get("nodes"):
        yield "No live node has its code: nothing of it starts until one does."
    waiting = row["pending_runs"] or 0
    if waiting:
        yield f"{counted(waiting, 'run')} that {'waits' if waiting == 1 else 'wait'} may start at once."
    elif row["execution_mode"] == "scheduled":
        next_at = row.get("next_once_enabled")
        when = "" if next_at is None else f", {show_time(next_at, row['timezone'])}"
        missed = "what was missed meanwhile is told in its history"
        yield f"It runs at the next time of its schedule{when}; {missed}."
