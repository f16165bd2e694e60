"""How long a node waits for others, and others for it. All in seconds.

A node proves that it lives by its heartbeat, and the heartbeat vouches only for a node that ticks: one whose loop is
blocked, or whose tick hangs, has its lease end like one that is gone. A tick that waits for the database is no fault of
the node's, and is cut off before it could be taken for one: that is what a node's patience is for.
"""

from __future__ import annotations

TICKS_MISSED = 3
"""After so many intervals without a tick a node is not vouched for any more."""
_SHORTEST_PATIENCE, _LONGEST_PATIENCE = 5.0, 30.0


def node_patience(lease: float) -> float:
    """Return how long a statement of a node's own may take: half a lease, within reason."""
    return min(max(lease / 2, _SHORTEST_PATIENCE), _LONGEST_PATIENCE)


def heartbeat_patience(lease: float) -> float:
    """Return how long a heartbeat's statement may take: after a stalled one there is time for another in the lease."""
    return lease / 3


def longest_silence(tick_interval: float, lease: float) -> float:
    """Return for how long a node that does not tick is vouched for.

    Three intervals; where these are short, a third of the lease, since a busy machine alone can take that long.
    """
    return max(TICKS_MISSED * tick_interval, lease / 3)
