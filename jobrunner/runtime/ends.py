"""Telling of ends that were written: of this node's own attempts, and of those it has rescued."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobrunner.policy.words import show_time
from jobrunner.telemetry import events as e

if TYPE_CHECKING:
    from jobrunner.storage.finishes import Finished


def tell_ends(events: e.Events, finished: Finished) -> None:
    """Emit an event for each end that was written, and for each circuit that this opened."""
    for run, decided in finished.written:
        retry_at = None if decided.retry is None else show_time(decided.retry.due_at)
        ends_run = None if decided.ends_run is None else str(decided.ends_run)
        events.emit(e.RunEnded(run, decided.outcome, ends_run, retry_at))
        if any(audit.action == "trip" for audit in decided.audits):
            events.emit(e.CircuitOpened(decided.state))
