"""A step of a flow, as a program describes it: a run that waits for others of the same flow."""

from __future__ import annotations

from dataclasses import dataclass
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
