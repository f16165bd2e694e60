"""Whether runs take longer than they did: their median now, and before. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobrunner.policy.ranks import nearest_rank

if TYPE_CHECKING:
    from collections.abc import Collection

FEWEST = 5
"""Fewer runs, before or now, say nothing."""
LEAST_RATIO = 1.5
LEAST_MS = 100
"""Shorter is no difference that anybody cares for, in milliseconds."""


@dataclass(frozen=True, slots=True)
class Slower:
    """A worker whose runs take longer: the percentiles before and now, in milliseconds, and how many times p50 is."""

    worker: str
    p50_before: int
    p50_now: int
    p95_before: int
    p95_now: int

    @property
    def ratio(self) -> float:
        """How many times as long its median run takes."""
        return self.p50_now / max(self.p50_before, 1)


def judge(worker: str, before: Collection[int], now: Collection[int]) -> Slower | None:
    """Compare how long runs took, in milliseconds; None where they do not take longer for certain.

    That is half as long again, and so long that nine of ten took less before: lengths that vary much are no news.
    """
    if min(len(before), len(now)) < FEWEST:
        return None
    p50_before, p95_before, p50_now, p95_now = (
        nearest_rank(lengths, share) or 0 for lengths in (before, now) for share in (0.5, 0.95)
    )
    found = Slower(worker, p50_before, p50_now, p95_before, p95_now)
    is_longer = found.ratio >= LEAST_RATIO and p50_now - p50_before >= LEAST_MS
    return found if is_longer and p50_now > (nearest_rank(before, 0.9) or 0) else None
