"""The waiting runs of one simulated worker, in starting order."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from typing import TYPE_CHECKING

from jobrunner.model.worker import JobPriority

if TYPE_CHECKING:
    from datetime import datetime

    from jobrunner.model.run import Run

_Place = tuple["datetime", int]  # due time and id
_BEHIND_ALL = 2**63


class Queue:
    """Places of waiting runs: by priority, and once more those of retries and of forced runs."""

    def __init__(self) -> None:
        self._by_priority: dict[int, list[_Place]] = {int(priority): [] for priority in JobPriority}
        self._retries: list[_Place] = []
        self._forced: list[_Place] = []
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def add(self, run: Run) -> None:
        """Let `run` wait."""
        for places in self._lists(run):
            insort(places, (run.due_at, run.id))
        self._size += 1

    def remove(self, run: Run) -> None:
        """Take out `run`, as it was added."""
        for places in self._lists(run):
            del places[bisect_left(places, (run.due_at, run.id))]
        self._size -= 1

    def has_due(self, now: datetime) -> bool:
        """Say whether any of them is due."""
        return self._size > 0 and any(places and places[0][0] <= now for places in self._by_priority.values())

    def next_due(self, now: datetime) -> datetime | None:
        """Return when the next one becomes due, after `now`."""
        if self._size == 0:
            return None
        later = (places[_due(places, now) :] for places in self._by_priority.values())
        return min((places[0][0] for places in later if places), default=None)

    def next_retry(self) -> datetime | None:
        """Return when the first of those that have failed before is due, be it past or to come."""
        return self._retries[0][0] if self._retries else None

    def first_due(self, now: datetime, most: int) -> set[int]:
        """Return the ids that the gates look at, as `storage.runs.facts` reads them.

        The first `most` due of each priority, all that are forced, and the first retry.
        """
        if self._size == 0:
            return set()
        found = {
            run_id for places in self._by_priority.values() for _, run_id in places[: min(most, _due(places, now))]
        }
        found.update(run_id for _, run_id in self._forced[: _due(self._forced, now)])
        found.update(run_id for _, run_id in self._retries[: min(1, _due(self._retries, now))])
        return found

    def all(self) -> set[int]:
        """Return the ids of all of them, due or not."""
        return {run_id for places in self._by_priority.values() for _, run_id in places}

    def _lists(self, run: Run) -> list[list[_Place]]:
        found = [self._by_priority[run.priority]]
        if run.attempt > 1:
            found.append(self._retries)
        if run.is_forced:
            found.append(self._forced)
        return found


def _due(places: list[_Place], now: datetime) -> int:
    """Return how many of `places` are due."""
    return bisect_right(places, (now, _BEHIND_ALL))
