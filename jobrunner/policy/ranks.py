"""Percentiles by nearest rank: what is told is always a value that there was. Pure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection


def nearest_rank(values: Collection[int], share: float) -> int | None:
    """Return the smallest value that at least `share` (above 0, up to 1) of the values do not exceed; None of none."""
    if not values:
        return None
    return sorted(values)[max(math.ceil(share * len(values)), 1) - 1]
