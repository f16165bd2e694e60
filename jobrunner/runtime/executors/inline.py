"""Inline: a coroutine function on the node's event loop. Stopped by cancelling it, which it may ignore."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

from jobrunner.runtime.forks import leave_if_forked

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from jobrunner.runtime.executors.code import Ended

CANCEL_GRACE_SECONDS = 1.0


class InlineCode:
    """An asyncio task."""

    started: asyncio.Future[None] | None = None
    can_be_killed = False
    grace_seconds = CANCEL_GRACE_SECONDS

    def __init__(
        self, worker: str, function: Callable[..., Any], positional: tuple[Any, ...], arguments: dict[str, Any]
    ) -> None:
        self.ended: asyncio.Future[Ended] = asyncio.get_running_loop().create_task(
            _body(worker, function, positional, arguments)
        )

    @property
    def has_returned(self) -> bool:
        """Whether the task is done."""
        return self.ended.done()

    def ask_to_stop(self) -> None:
        """Cancel the task."""
        self.ended.cancel()

    def kill(self) -> None:
        """There is no way."""


def worker_in(frame: FrameType | None) -> str | None:
    """Return the worker whose code a thread is in, by its innermost frame; None if it is in no such code."""
    while frame is not None:
        if frame.f_code is _body.__code__:
            return str(frame.f_locals["worker"])
        frame = frame.f_back
    return None


async def _body(
    worker: str,  # noqa: ARG001 - `worker_in` reads it
    function: Callable[..., Any],
    positional: tuple[Any, ...],
    arguments: dict[str, Any],
) -> Ended:
    """Run the function; whatever it raises, `SystemExit` too, is its attempt's and not the node's."""
    me = os.getpid()
    ended: Ended
    try:
        ended = await function(*positional, **arguments), None
    except BaseException as error:  # noqa: BLE001 - every way out of a handler is recorded
        ended = None, error
    leave_if_forked(me, ended[1])
    return ended
