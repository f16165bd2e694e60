"""What is old enough to be pruned. Pure: a row and the limits in, a yes or no out.

Failures are kept longer than the rest: they are what people look for. A row counts as a failure by how its attempt
ended, or by how it ended its run.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from jobrunner.model.run import USES_UP_AN_ATTEMPT, EndsRun

AUDIT_DAYS = 365.0
NODE_DAYS = 1.0
FAILED_ENDS = frozenset({EndsRun.EXHAUSTED, EndsRun.DISCARDED})
_BEGINNING = datetime(1, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Limits:
    """What ended before these times may go: the moments, in UTC, by kind of row."""

    history: datetime
    failures: datetime
    letters: datetime
    nodes: datetime
    audit: datetime

    @property
    def newest(self) -> datetime:
        """No history row from here on may go, whatever its kind."""
        return max(self.history, self.failures)


def limits(now: datetime, history_days: float, failure_days: float) -> Limits:
    """Return the limits for keeping history `history_days`, and failures and resolved letters `failure_days`."""
    return Limits(
        history=_before(now, history_days),
        failures=_before(now, failure_days),
        letters=_before(now, failure_days),
        nodes=_before(now, NODE_DAYS),
        audit=_before(now, AUDIT_DAYS),
    )


def may_go(outcome: str, ends_run: str | None, finished_at: datetime, limit: Limits) -> bool:
    """Say whether a history row is old enough for its kind."""
    is_failure = outcome in USES_UP_AN_ATTEMPT or ends_run in FAILED_ENDS
    return finished_at < (limit.failures if is_failure else limit.history)


def _before(now: datetime, days: float) -> datetime:
    try:
        return now - timedelta(days=days)
    except OverflowError:
        return _BEGINNING
