"""Who is due in the play of the time ahead, in starting order, and who of them waits for a slot.

The starting order decides who gets a free slot. So where the first of the queue take them all, nobody behind the last
of these need be judged: with a thousand workers and five slots that is what makes the play cheap. Whoever stood before
that last one and did not start waits for something else than a slot: it is stuck, and is judged again when something
has happened that matters to it, not each time that a slot becomes free.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Set
    from datetime import datetime

    from jobrunner.model.facts import Start

Order = tuple[int, "datetime", int, str]
"""A place in starting order (`Candidate.order`); the last part is the worker."""
_JUDGED_MORE = 1
"""So many more than there are free slots are judged at first."""
_GROWS = 4


class DueQueue:
    """See the module. Changed whenever something happens to a worker."""

    def __init__(self) -> None:
        self._firsts: list[Order] = []
        self._spans: dict[str, tuple[Order, Order]] = {}
        self._open: set[str] = set()  # due, and not stuck

    def put(self, name: str, due: Iterable[Order], tied: Collection[str]) -> bool:
        """Note what of a worker is due now; those it is tied with may be judged otherwise. Say whether it is any."""
        orders = sorted(due)
        before = self._spans.pop(name, None)
        if before is not None:
            del self._firsts[bisect_left(self._firsts, before[0])]
        if orders:
            insort(self._firsts, orders[0])
            self._spans[name] = (orders[0], orders[-1])
        else:
            self._open.discard(name)
        self._open.update(each for each in tied if each in self._spans)
        return bool(orders)

    def open(self, among: Set[str] | None) -> Set[str]:
        """Return who is due and may start, as far as is known; of those, or of all."""
        return self._open if among is None else self._open & among

    def decide(
        self,
        due: Set[str],
        free: int,
        decide: Callable[[Set[str]], list[Start]],
        place: Callable[[Start], Order],
    ) -> list[Start]:
        """Decide what starts of those that are due, as if all of them were judged.

        Args:
            due: who may start; of `open`.
            free: so many slots are free.
            decide: decides among workers and all that they are related to, and starts no more than slots are free.
            place: the place of what was decided to start.
        """
        if not due or not free:
            return []
        number = free + _JUDGED_MORE
        while True:
            first = self._first(due, number)
            starts = decide(first)
            last = max(map(place, starts)) if len(starts) == free else None
            is_enough = last is not None and last <= max(self._spans[name][0] for name in first)
            if is_enough or len(first) == len(due):
                started = {start.worker for start in starts}
                self._open -= {name for name in first - started if last is None or self._spans[name][1] < last}
                return starts
            number *= _GROWS

    def _first(self, due: Set[str], number: int) -> Set[str]:
        """Return the first `number` of those that are due, in starting order."""
        if len(due) <= number:
            return set(due)
        return set(islice((order[-1] for order in self._firsts if order[-1] in due), number))
