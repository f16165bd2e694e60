"""A wall clock that somebody sets wrong: the system's, plus an offset that is read from a file."""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from pathlib import Path

from jobrunner.runtime.clock import SystemClock

LOOK_SECONDS = 0.2


class SteppedClock(SystemClock):
    """The system's clock, wrong by as many seconds as `path` says; without the file, right."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = timedelta(0)
        self._looked_at = -LOOK_SECONDS

    def now(self) -> datetime:
        if time.monotonic() - self._looked_at >= LOOK_SECONDS:
            self._looked_at = time.monotonic()
            self._offset = timedelta(seconds=float(self._path.read_text()) if self._path.exists() else 0.0)
        return super().now() + self._offset


def set_offset(path: Path, seconds: float) -> None:
    """Set the clock that reads `path`; a reader sees the old offset or the new one, never half of it."""
    new = path.with_suffix(".new")
    new.write_text(f"{seconds:g}")
    new.replace(path)
