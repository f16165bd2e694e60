"""Telling of ends that were written: of this node's own attempts, and of those it has rescued."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobrunner.telemetry import events as e

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jobrunner.storage.runs.finishes import Ended, Finished


def tell_ends(events: e.Events, finished: Finished, batch: Sequence[Ended] = ()) -> None:
    """Emit an event for each end that was written, and for each circuit that this opened.

    `batch` holds the ends as they were handed over: with the time zones of their workers, and what is traced.
    """
    zones = {item.run.claim_key: item.rules.timezone for item in batch if item.rules is not None}
    traces = {item.run.claim_key: item.trace for item in batch if item.trace is not None}
    for run, decided in finished.written:
        retry_at = None if decided.retry is None else decided.retry.due_at
        ends_run = None if decided.ends_run is None else str(decided.ends_run)
        zone, trace = zones.get(run.claim_key, "UTC"), traces.get(run.claim_key)
        events.emit(e.RunEnded(run, decided.outcome, ends_run, retry_at, zone, trace))
        if any(audit.action == "trip" for audit in decided.audits):
            events.emit(e.CircuitOpened(decided.state))
