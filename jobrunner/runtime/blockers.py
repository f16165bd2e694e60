"""Which code blocks a node's loop: the question of whoever sees, from another thread, that the node does not tick."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from jobrunner.model.worker import Isolation

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Mapping

    from jobrunner.model.run import ClaimKey
    from jobrunner.runtime.attempt import Attempt

ANSWER_SECONDS = 0.5


def blockers(loop: asyncio.AbstractEventLoop, held: Mapping[ClaimKey, Attempt]) -> list[str]:
    """Name the workers whose code runs in `loop`, if that does not answer within half a second."""
    answered = threading.Event()
    with suppress(RuntimeError):  # the loop is closed
        loop.call_soon_threadsafe(answered.set)
    if answered.wait(ANSWER_SECONDS):
        return []
    claims = [attempt.claim for attempt in dict(held).values()]
    return sorted({claim.run.worker for claim in claims if claim.config.isolation is Isolation.INLINE})
