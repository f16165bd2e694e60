"""A named limit: what workers that name it may do together."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LimitConfig:
    """A limit as code or an operator gives it: at most so many active runs of all workers that name it, and a rate.

    None: it does not limit that. Validate with `policy.named_limits.check_limit`.
    """

    name: str
    max_running: int | None = None
    rate: str | None = None
