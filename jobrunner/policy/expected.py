"""When a run that is active will end, as far as anybody can say. Pure."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from jobrunner.policy.missed import UNTIL_RESUMED

if TYPE_CHECKING:
    from datetime import datetime

    from jobrunner.model.facts import WorkerFacts

_PATIENCE = timedelta(seconds=60)


def expected_end(worker: WorkerFacts, started_at: datetime, usual: timedelta | None, now: datetime) -> datetime:
    """Return when an active run ends: after its usual time, or now, if that is over.

    One that is far beyond its usual time is taken to hang: it goes on to its timeout, without one for ever.
    """
    length = usual or timedelta()
    if now - started_at <= max(2 * length, length + _PATIENCE):
        return max(started_at + length, now)
    timeout = worker.config.timeout_seconds
    return UNTIL_RESUMED if timeout is None else max(started_at + timedelta(seconds=timeout), now)
