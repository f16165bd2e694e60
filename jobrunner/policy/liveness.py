"""How long a node waits for others, and others for it. All in seconds.

A node proves that it lives by its heartbeat, and the heartbeat vouches only for a node that ticks: one whose loop is
blocked, or whose tick hangs, has its lease end like one that is gone. A tick that waits for the database is no fault of
the node's, and is cut off before it could be taken for one: that is what a node's patience is for.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

TICKS_MISSED = 3
"""After so many intervals without a tick a node is not vouched for any more."""
_SHORTEST_PATIENCE, _LONGEST_PATIENCE = 4.0, 30.0


def node_patience(lease: float) -> float:
    """Return how long the database may take to connect, or for a statement of a node's own; 12 s of a lease of 30."""
    return min(max(0.4 * lease, _SHORTEST_PATIENCE), _LONGEST_PATIENCE)


def heartbeat_patience(lease: float) -> float:
    """Return the same for a heartbeat: after a statement without an answer there is time for another in the lease."""
    return max(lease / 3, 1.0)


def longest_silence(tick_interval: float, lease: float) -> float:
    """Return for how long a node that does not tick is vouched for.

    Three intervals; where these are short, longer than a tick may wait for the database.
    """
    return max(TICKS_MISSED * tick_interval, 1.25 * node_patience(lease))


CLOCK_TOLERANCE_SECONDS = 5.0


def silent_seconds(heartbeat_at: datetime, lease: float, now: datetime) -> float | None:
    """Return for how long a node has not been heard of, if that is longer than its lease; else None.

    The node's wall clock wrote the one time and the asker's reads the other: by so much they may differ.
    """
    silent = (now - heartbeat_at).total_seconds()
    return silent if silent > lease + CLOCK_TOLERANCE_SECONDS else None


@dataclass(frozen=True, slots=True)
class NodesHeard:
    """The nodes that have not left, by id: those that take runs, that drain, and that are silent, with the seconds."""

    active: tuple[str, ...] = ()
    draining: tuple[str, ...] = ()
    silent: Mapping[str, float] = field(default_factory=dict)

    @property
    def live(self) -> int:
        """How many live."""
        return len(self.active) + len(self.draining)

    def show_silent(self) -> str | None:
        """Say who is silent, and for how long: `node f745d8d8 was last heard of 95 s ago`; None if nobody is."""
        if not self.silent:
            return None
        said = [
            f"{short_id(node_id)} was last heard of {_ago(seconds)} ago" for node_id, seconds in self.silent.items()
        ]
        return "node " + ", node ".join(said[:_MOST_NAMED]) + _more(len(said))

    def why_no_handler(self) -> str:
        """Say why no node takes the runs of a worker that none of the active ones has the handler of."""
        silent = self.show_silent()
        if self.active:
            run = "runs" if len(self.active) == 1 else "run"
            others = f"{_named(self.active)} {run} other workers only (another MODULE, or --workers)"
            return "; ".join(filter(None, [f"no live node has the handler: {others}", self._show_draining(), silent]))
        if self.draining:
            return "; ".join(filter(None, [f"no node takes runs: {self._show_draining()}", silent]))
        start = "`jobrunner run MODULE` starts one"
        return f"no node lives: {silent}; {start}" if silent else f"no node is running; {start}"

    def _show_draining(self) -> str | None:
        if not self.draining:
            return None
        return f"{_named(self.draining)} {'drains' if len(self.draining) == 1 else 'drain'}"


_MOST_NAMED = 3


def short_id(node_id: str) -> str:
    """Return as much of a node's id as people need to tell it from the others."""
    return node_id[:8]


def _named(ids: Iterable[str]) -> str:
    names = [short_id(node_id) for node_id in ids]
    return ("node " if len(names) == 1 else "nodes ") + ", ".join(names[:_MOST_NAMED]) + _more(len(names))


def _more(number: int) -> str:
    return f" and {number - _MOST_NAMED} more" if number > _MOST_NAMED else ""


def _ago(seconds: float) -> str:
    if seconds < 2 * 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 2 * 3600 else f"{seconds / 3600:.0f} h"
