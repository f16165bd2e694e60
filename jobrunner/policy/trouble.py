"""Since when a worker is in trouble: what broke first. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime


@dataclass(frozen=True, slots=True)
class Traces:
    """What history, audit log and nodes tell of a worker; None: they do not."""

    switched_at: datetime | None = None
    """It was switched off last: disabled, paused, or its circuit opened."""
    streak_at: datetime | None = None
    """The first failed attempt since its last success, or since it was enabled."""
    failed_at: datetime | None = None
    """The first of its newest failed attempts."""
    left_at: datetime | None = None
    """The last node that may have had its code was heard of last; if there was none, the worker was made."""


NOTHING_KNOWN = Traces()


def since_when(row: Mapping[str, Any], traces: Traces, now: datetime) -> datetime | None:
    """Return since when a worker is in the trouble that its health names; None: nobody knows, or it is in none.

    A worker that its circuit has disabled has been in trouble since the first failure that led to that.

    Args:
        row: of `read_standing`.
        traces: what else is known of it.
        now: the time now; a clock that went back may have left later times.
    """
    moment: datetime | None
    match row["health"]:
        case "disabled":
            tripped_at = traces.streak_at or row["circuit_opened_at"]
            moment = (tripped_at if row["disabled_by"] == "circuit" else None) or traces.switched_at
        case "paused":
            moment = traces.switched_at
        case "failing":
            moment = traces.streak_at or row["last_success_at"]
        case "stalled":
            moment = row["next_at"]
        case "late" | "slow":
            moment = row["last_run_at"]
        case "no_node":
            moment = traces.left_at
        case "degraded":
            moment = traces.failed_at
        case _:
            moment = None
    return moment if moment is not None and moment <= now else None
