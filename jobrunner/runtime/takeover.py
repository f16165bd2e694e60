"""Taking over, at the start of a node, from processes of this host that have ended."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from jobrunner.runtime.ends import tell_ends
from jobrunner.runtime.heartbeat import LEFT_BEHIND_SECONDS
from jobrunner.runtime.identity import is_gone
from jobrunner.storage import nodes
from jobrunner.telemetry import events as e

if TYPE_CHECKING:
    from jobrunner.runtime.clock import Clock
    from jobrunner.storage.database.database import Database
    from jobrunner.storage.nodes import NodeIdentity


async def take_over(db: Database, here: NodeIdentity, clock: Clock, events: e.Events) -> None:
    """Declare lost, at once, the processes of this host that have ended, and rescue what they ran."""
    async with db.peek() as conn:
        others = await nodes.others(conn, here.id)
    for other in others:
        if not is_gone(other, here):
            continue
        async with db.write() as conn:
            reason = "its process has ended"
            declared = await nodes.declare_lost(conn, db.dialect, other, clock.now(), reason)
        if declared:
            events.emit(e.NodeLost(other.id, reason))
    now = clock.now()
    while (finished := await nodes.rescue(db, now, now - timedelta(seconds=LEFT_BEHIND_SECONDS))).written:
        tell_ends(events, finished)
