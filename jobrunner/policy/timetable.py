"""The schedules that this node has fired, so that their next firing can take the fast path.

It holds what the database is expected to say, never more: a firing is written only where the database agrees.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

from jobrunner.policy.fast_path import MOST_FIRED, Eligible, NextFiring, Planned
from jobrunner.policy.firing import fire

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from datetime import datetime

MOST_DUE = 2000
"""With more at once, passing their names costs more than it saves."""
MOST_PLANNED = 5000
"""About 2 KB each; what is not remembered goes the long way."""


class Timetable:
    """When which worker is due, as far as this node knows."""

    def __init__(self) -> None:
        self._planned: dict[str, Planned] = {}
        self._refused: set[str] = set()
        self._times: list[tuple[datetime, str]] = []  # a heap; what does not agree with `_planned` is out of date

    def learn(self, planned: Iterable[Planned]) -> None:
        """Note workers as their last firing left them."""
        for item in planned:
            at, name = item.state.next_run_at, item.config.name
            if at is not None and (name in self._planned or len(self._planned) < MOST_PLANNED):
                self._planned[name] = item
                self._refused.discard(name)
                heapq.heappush(self._times, (at, name))

    def due(self, now: datetime, free_slots: int, stuck: tuple[str, ...]) -> Eligible | None:
        """Return what to fire now, first in starting order, at most `free_slots`; None when nothing known is due.

        `stuck` are other workers to be passed by. What is due and does not fit is there without a firing.
        """
        if not self._times or self._times[0][0] > now:
            return None
        due = sorted(self._take_due(now), key=_order)
        if len(due) > MOST_DUE:
            self.learn(due)
            return None
        firings: dict[str, NextFiring] = {}
        chosen = []
        for item in due[: min(free_slots, MOST_FIRED)]:
            firing = _firing(item, now)
            if firing is None:
                del self._planned[item.config.name]
            else:
                firings[item.config.name] = firing
                chosen.append(item)
        left = due[min(free_slots, MOST_FIRED) :]
        self.learn(left)
        if not firings:
            return None
        known = [*chosen, *left]
        return Eligible(
            {item.config.name: item.config for item in known},
            {item.config.name: item.revision for item in chosen},
            stuck,
            firings,
        )

    def _take_due(self, now: datetime) -> list[Planned]:
        found = {}
        while self._times and self._times[0][0] <= now:
            at, name = heapq.heappop(self._times)
            item = self._planned.get(name)
            if item is not None and item.state.next_run_at == at:
                found[name] = item
        return list(found.values())

    def settle(self, eligible: Eligible, fired: Collection[str], *, were_all_refused: bool) -> None:
        """Note which of the firings asked for were `fired`, and forget what was refused: the long way finds out why.

        Where all were refused together, it may be for the sake of another: each is tried once more.
        """
        for name, firing in eligible.firings.items():
            if name in fired:
                self.learn([Planned(eligible.configs[name], eligible.revisions[name], firing.after)])
            elif were_all_refused and name not in self._refused:
                self._refused.add(name)
                heapq.heappush(self._times, (firing.expected, name))
            else:
                self._planned.pop(name, None)
                self._refused.discard(name)


def _order(item: Planned) -> tuple[int, datetime | None, str]:
    return (-int(item.config.priority), item.state.next_run_at, item.config.name)


def _firing(item: Planned, now: datetime) -> NextFiring | None:
    """Return the firing, or None where more has to be written than a run: times were missed, or nothing is fired."""
    expected = item.state.next_run_at
    fired = fire(item.config, item.state, now)
    if expected is None or fired.trigger is None or fired.scheduled_for is None or fired.missed:
        return None
    return NextFiring(expected, fired.scheduled_for, fired.state)
