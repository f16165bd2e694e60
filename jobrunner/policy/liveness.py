"""How long a node waits for others, and others for it. All in seconds.

A node proves that it lives by its heartbeat, and the heartbeat vouches only for a node that ticks: one whose loop is
blocked, or whose tick hangs, has its lease end like one that is gone. A tick that waits for the database is no fault of
the node's, and is cut off before it could be taken for one: that is what a node's patience is for.
"""

from __future__ import annotations

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
