"""How a node is, for those who ask from another thread: without its loop, without its database, at any moment."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobrunner.policy.liveness import TICKS_MISSED, longest_silence

if TYPE_CHECKING:
    from jobrunner.runtime.orchestrator import WorkerOrchestrator

ANSWER_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Vitals:
    """How a node is. All in seconds, but for the slots.

    `silence` is how long ago its loop was last seen to go round. Up to `patience` (three intervals) that is nothing;
    up to `longest_silence` it may be a tick that waits for the database, if the loop answers.
    """

    node_id: str
    is_draining: bool
    silence: float
    patience: float
    longest_silence: float
    slots: int
    held: int


def vitals_of(orchestrator: WorkerOrchestrator) -> Vitals | None:
    """Return how the orchestrator's node is; None while it has none."""
    node, settings = orchestrator._node, orchestrator.settings
    if node is None:
        return None
    return Vitals(
        node_id=node.identity.id,
        is_draining=node._is_stopping,
        silence=max(orchestrator.clock.monotonic() - node._ticker.came_round_at, 0.0),
        patience=TICKS_MISSED * settings.tick_interval,
        longest_silence=longest_silence(settings.tick_interval, settings.lease),
        slots=settings.max_concurrent,
        held=len(node.held),
    )


async def ticks(orchestrator: WorkerOrchestrator, vitals: Vitals) -> bool:
    """Say whether the node ticks: it went round within its patience, or waits for the database and its loop answers.

    The database is not asked. The answer takes half a second at most.
    """
    if vitals.silence <= vitals.patience:
        return True
    return vitals.silence <= vitals.longest_silence and await _loop_answers(orchestrator)


async def _loop_answers(orchestrator: WorkerOrchestrator) -> bool:
    node, here = orchestrator._node, asyncio.get_running_loop()
    if node is None or node.loop is here:
        return True
    answered = asyncio.Event()
    with suppress(RuntimeError):  # one of the loops is closed
        node.loop.call_soon_threadsafe(lambda: here.call_soon_threadsafe(answered.set))
        with suppress(TimeoutError):
            async with asyncio.timeout(ANSWER_SECONDS):
                await answered.wait()
    return answered.is_set()
