"""A step of a flow, a run that waits for others: as a program describes it, and what it is told of the others."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datetime import datetime, timedelta

CANCEL, RUN = "cancel", "run"
"""What becomes of a step when one before it has not succeeded."""


@dataclass(frozen=True, slots=True)
class Step:
    """See `jobrunner.step`, which makes it."""

    worker: str
    payload: dict[str, Any] | None = None
    name: str = ""
    after: tuple[str, ...] = ()
    if_failed: str = CANCEL
    priority: int | str | None = None
    at: datetime | None = None
    delay: float | timedelta | str | None = None


@dataclass(frozen=True, slots=True)
class Before:
    """What a step is told of those before it, by name: what those that succeeded returned, and how each ended."""

    results: dict[str, Any] = field(default_factory=dict)
    outcomes: dict[str, str] = field(default_factory=dict)
