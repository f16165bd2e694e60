"""Whether each fence of a worker was drawn once, and none beyond the last: seen along history, newest first.

A fence is the next number of its worker, and each claim leaves one row, so that from the newest row back nearly every
row has the number before the last one's. What is kept of a worker is how far down it has come, and the gaps above that:
claims that ended out of order, whose rows are still to come, or that were pruned. Memory grows with the gaps, up to a
limit; beyond it the oldest knowledge is forgotten, and what falls there is not judged.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

_GAPS_AT_MOST = 10_000  # of one worker


@dataclass(frozen=True, slots=True)
class DrawnTwice:
    """Two claims of a worker that have the same fence."""

    worker: str
    fence: int


@dataclass(frozen=True, slots=True)
class NotDrawn:
    """A claim whose fence lies beyond the last one that its worker has drawn: it would be drawn again."""

    worker: str
    fence: int
    last: int


FenceFault = DrawnTwice | NotDrawn


class _Gaps:
    """The fences between the lowest seen and the highest that have not been seen."""

    __slots__ = ("_highs", "_lows", "_sure_below")

    def __init__(self) -> None:
        self._highs: list[int] = []  # negated, so that they ascend
        self._lows: list[int] = []
        self._sure_below: int | None = None

    def open(self, low: int, high: int) -> None:
        """Note that `low` to `high`, below all that was seen, were passed over."""
        self._highs.append(-high)
        self._lows.append(low)
        if len(self._lows) > _GAPS_AT_MOST:
            half = _GAPS_AT_MOST // 2
            self._sure_below = self._lows[half - 1]
            del self._highs[:half], self._lows[:half]

    def fill(self, fence: int) -> bool:
        """Note that `fence` was seen; say whether it may have been, that is whether it was not seen before."""
        place = bisect_right(self._highs, -fence) - 1
        if place < 0 or self._lows[place] > fence:
            return self._sure_below is not None and fence >= self._sure_below
        low, high = self._lows[place], -self._highs[place]
        parts = [(a, b) for a, b in ((fence + 1, high), (low, fence - 1)) if a <= b]
        self._highs[place : place + 1] = [-b for _, b in parts]
        self._lows[place : place + 1] = [a for a, _ in parts]
        return True


class Fences:
    """The walk. `drawn`: the last fence that each worker has drawn."""

    def __init__(self, drawn: Mapping[str, int]) -> None:
        self._drawn = drawn
        self._lowest: dict[str, int] = {}
        self._gaps: dict[str, _Gaps] = {}

    def add(self, rows: Iterable[Sequence[Any]]) -> Iterator[FenceFault]:
        """Take the next claims: worker, start, end, id, fence (None for what never started)."""
        lowest = self._lowest
        for worker, _, _, _, fence in rows:
            if fence is None:
                continue
            low = lowest.get(worker)
            if low is not None and fence == low - 1:
                lowest[worker] = fence
            else:
                yield from self._add(worker, fence, low)

    def _add(self, worker: str, fence: int, low: int | None) -> Iterator[FenceFault]:
        last = self._drawn.get(worker)
        if last is not None and fence > last:
            yield NotDrawn(worker, fence, last)
        if low is None:  # what lies above may be still running, or pruned
            low = max(fence, last or 0) + 1
        gaps = self._gaps.setdefault(worker, _Gaps())
        if fence < low:
            self._lowest[worker] = fence
            if fence < low - 1:
                gaps.open(fence + 1, low - 1)
        elif not gaps.fill(fence):
            yield DrawnTwice(worker, fence)
