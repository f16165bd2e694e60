"""Thread: a function in a thread of its own. It cannot be stopped from outside; `run.should_stop` asks it to."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
from typing import TYPE_CHECKING, Any

from jobrunner.runtime.executors.code import start_thread
from jobrunner.runtime.forks import leave_if_forked

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobrunner.runtime.executors.code import Ended

STOP_GRACE_SECONDS = 1.0


class ThreadCode:
    """A daemon thread. Raises `NotStarted` if there is none to be had."""

    started: asyncio.Future[None] | None = None
    can_be_killed = False
    grace_seconds = STOP_GRACE_SECONDS

    def __init__(
        self, name: str, function: Callable[..., Any], positional: tuple[Any, ...], arguments: dict[str, Any]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[Ended] = self._loop.create_future()
        self.has_returned = False
        context = contextvars.copy_context()

        def body() -> None:
            outcome: Ended
            me = os.getpid()
            try:
                outcome = (context.run(function, *positional, **arguments), None)
            except BaseException as error:  # noqa: BLE001 - every way out of a handler is recorded
                outcome = (None, error)
            leave_if_forked(me, outcome[1])
            self.has_returned = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(self._settle, outcome)
            del outcome  # an error's traceback holds this frame, which must not hold the error

        start_thread(body, name)

    def _settle(self, outcome: Ended) -> None:
        if not self.ended.done():
            self.ended.set_result(outcome)

    def ask_to_stop(self) -> None:
        """Only `run.should_stop` tells it, which the attempt has set."""

    def kill(self) -> None:
        """There is no way."""
