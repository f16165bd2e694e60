"""What the table of runs may show, judged after every commit; it knows only what it has seen, and plain SQL."""

from __future__ import annotations

import sqlite3
from collections import Counter, defaultdict

_ACTIVE = "SELECT id, fence, worker, node_id, is_forced FROM runs WHERE state <> 'pending'"
_STATE = "SELECT state FROM nodes WHERE id = ?"


class Violation(AssertionError):
    """What should never be, was."""


class TableJudge:
    """Limits, blocks, fences that only grow; nothing disabled is claimed, and nothing by a node that is gone."""

    def __init__(self, limits: dict[str, int], blocks: tuple[tuple[str, str], ...]) -> None:
        self._limits = limits
        self._blocks = blocks
        self._seen: set[tuple[int, int, str, str, int]] = set()
        self._fences: defaultdict[str, int] = defaultdict(int)
        self.disabled: set[str] = set()

    def look(self, driver: sqlite3.Connection, when: float) -> None:
        """Judge the table as it is now, against what it was."""
        found = set(driver.execute(_ACTIVE).fetchall())
        if found == self._seen:
            return
        active = Counter(name for _, _, name, *_ in found)
        for name, count in active.items():
            if count > self._limits[name]:
                raise Violation(f"{count} runs of {name} at {when:.3f}")
        for one, other in self._blocks:
            if active[one] and active[other]:
                raise Violation(f"{one} and {other} at {when:.3f}")
        for run_id, fence, name, node_id, is_forced in sorted(found - self._seen):
            (state,) = driver.execute(_STATE, (node_id,)).fetchone() or ("unknown",)
            if name in self.disabled and not is_forced:
                raise Violation(f"run {run_id} of {name} was claimed at {when:.3f} while it was disabled")
            self._look_at_claim(f"run {run_id} of {name} was claimed at {when:.3f}", fence, name, state)
        for _, fence, name, *_ in found:
            self._fences[name] = max(self._fences[name], fence)
        self._seen = found

    def _look_at_claim(self, what: str, fence: int, name: str, state: str) -> None:
        if fence <= self._fences[name]:
            raise Violation(f"{what} with an old fence, {fence}")
        if state not in {"active", "draining"}:
            raise Violation(f"{what} by a node that is {state}")
