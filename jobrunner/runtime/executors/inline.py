"""Inline: a coroutine function on the node's event loop. Stopped by cancelling it, which it may ignore."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobrunner.runtime.executors.code import Ended

CANCEL_GRACE_SECONDS = 1.0


class InlineCode:
    """An asyncio task."""

    started: asyncio.Future[None] | None = None
    can_be_killed = False
    grace_seconds = CANCEL_GRACE_SECONDS

    def __init__(self, function: Callable[..., Any], positional: tuple[Any, ...], arguments: dict[str, Any]) -> None:
        loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[Ended] = loop.create_future()
        self._task = loop.create_task(self._body(function, positional, arguments))
        self._task.add_done_callback(self._on_done)

    async def _body(
        self, function: Callable[..., Any], positional: tuple[Any, ...], arguments: dict[str, Any]
    ) -> Ended:
        """Run the function; whatever it raises, `SystemExit` too, is its attempt's and not the node's."""
        try:
            return await function(*positional, **arguments), None
        except BaseException as error:  # noqa: BLE001 - every way out of a handler is recorded
            return None, error

    def _on_done(self, task: asyncio.Task[Ended]) -> None:
        if not self.ended.done():
            # A task cancelled before its first step never ran `_body`, which else catches everything.
            self.ended.set_result((None, asyncio.CancelledError()) if task.cancelled() else task.result())

    def ask_to_stop(self) -> None:
        """Cancel the task."""
        self._task.cancel()

    def kill(self) -> None:
        """There is no way."""
