"""What history says about limits: how many runs held one at once, and how many started within a rate's window. Pure.

Each judge is fed the attempts under one limit (a worker's key, a worker's rate, a limit that workers share) in the
order of their starts, those of one moment with the forced ones last. It keeps what still runs at the start it judges,
or as many starts as the rate allows, however long history is.

A forced run passes a rate, and counts in it: so only the start of one that was not forced can be one too many.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from jobrunner.policy.rates import Rate


class Begun(NamedTuple):
    """An attempt that has started; `end` is None while it runs."""

    started: datetime
    is_forced: bool
    run_id: int
    end: datetime | None = None


@dataclass(frozen=True, slots=True)
class OneTooMany:
    """A start beyond what a limit allows: when, and the runs that held the limit then, the one that started last."""

    at: datetime
    count: int
    run_ids: tuple[int, ...]


class Holders:
    """How many runs hold a limit of `most` at once. Those that only touch, give or take `tolerance`, do not overlap."""

    def __init__(self, most: int, tolerance: timedelta) -> None:
        self._most, self._tolerance = most, tolerance
        self._active: list[tuple[float, int]] = []

    def add(self, begun: Begun) -> OneTooMany | None:
        """Take the next start; say if it was one too many."""
        start = begun.started.timestamp()
        end = float("inf") if begun.end is None else (begun.end - self._tolerance).timestamp()
        if end <= start:
            return None
        while self._active and self._active[0][0] <= start:
            heappop(self._active)
        heappush(self._active, (end, begun.run_id))
        if len(self._active) <= self._most:
            return None
        return OneTooMany(begun.started, len(self._active), tuple(run_id for _, run_id in self._active))


class Starts:
    """How many attempts start within the window of a rate, which `tolerance` makes shorter."""

    def __init__(self, rate: Rate, tolerance: timedelta) -> None:
        self._count, self._window = rate.count, rate.window - tolerance
        self._last: deque[Begun] = deque(maxlen=rate.count)

    def add(self, begun: Begun) -> OneTooMany | None:
        """Take the next start; say if it was one too many."""
        while self._last and begun.started - self._last[0].started >= self._window:
            self._last.popleft()
        is_full = len(self._last) == self._count
        before = tuple(each.run_id for each in self._last) if is_full and not begun.is_forced else ()
        self._last.append(begun)
        if not before:
            return None
        return OneTooMany(begun.started, self._count + 1, (*before, begun.run_id))
