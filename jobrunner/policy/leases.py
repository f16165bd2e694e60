"""Who is lost: judged by beats that were seen to stand still, on the watcher's own monotonic clock.

No two machines' clocks are compared. A watcher that did not beat itself for two beats starts afresh: what it slept
through proves nothing about others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable

BEATS_A_LEASE = 6


class Beating(Protocol):
    """A node as the table shows it."""

    @property
    def id(self) -> str:
        """Its id."""

    @property
    def beat(self) -> int:
        """The number that it raises with each beat."""


N = TypeVar("N", bound=Beating)


class Watch:
    """Who has been seen with which beat, since when. `lease` in seconds."""

    def __init__(self, lease: float) -> None:
        self._lease = lease
        self._seen: dict[str, tuple[int, float]] = {}
        self._last_beat: float | None = None

    def beat(self, now: float) -> None:
        """Note that our own beat was written; a gap of two beats starts the watch afresh."""
        if self._last_beat is None or now - self._last_beat > 2.5 * self._lease / BEATS_A_LEASE:
            self._seen.clear()
        self._last_beat = now

    def missed(self) -> None:
        """Note that our own beat could not be written: what we did not see proves nothing."""
        self._last_beat = None

    def look(self, others: Iterable[N], before: float, after: float) -> list[N]:
        """Return the nodes that have shown the same beat for a whole lease.

        Args:
            others: the other nodes that live by their rows.
            before: the time before they were read, on our monotonic clock.
            after: the time after.
        """
        lost = []
        known = {}
        for node in others:
            beat, since = self._seen.get(node.id, (node.beat, after))
            known[node.id] = (node.beat, since if beat == node.beat else after)
            if before - known[node.id][1] >= self._lease:
                lost.append(node)
        self._seen = known
        return lost
