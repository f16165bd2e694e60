"""Middleware: what a program wraps around every attempt, as layers around the code.

A layer is `async def layer(run, call_next)`. It runs on the node's loop in a task of its own, in which the code is
started, so that context variables set before `call_next()` are seen by the code, inline and in a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from jobrunner.runtime.executors.code import came_of
from jobrunner.runtime.executors.inline import CANCEL_GRACE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from jobrunner.runtime.context import RunContext
    from jobrunner.runtime.executors.code import Code, Ended

    CallNext = Callable[[], Awaitable[Any]]
    Middleware = Callable[[RunContext, CallNext], Awaitable[Any]]


class WrappedCode:
    """Code inside its layers, the first of them outermost. It has ended when the layers have, too."""

    def __init__(
        self, layers: Sequence[Middleware], context: RunContext, start: Callable[[], Code], *, has_start: bool
    ) -> None:
        loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[Ended] = loop.create_future()
        self.started: asyncio.Future[None] | None = loop.create_future() if has_start else None
        self._layers = layers
        self._context = context
        self._start = start
        self._code: Code | None = None
        self._task = loop.create_task(self._body())
        self._task.add_done_callback(self._on_done)

    @property
    def has_returned(self) -> bool:
        """Whether the layers have, and with them the code."""
        return self._task.done()

    @property
    def can_be_killed(self) -> bool:
        """Whether the code can; layers cannot, they are cancelled."""
        return self._code is not None and not self._code.ended.done() and self._code.can_be_killed

    @property
    def grace_seconds(self) -> float:
        """The code's own."""
        return CANCEL_GRACE_SECONDS if self._code is None else self._code.grace_seconds

    async def _body(self) -> Ended:
        try:
            return await self._call(0), None
        except BaseException as error:  # noqa: BLE001 - every way out of a handler is recorded
            return None, error

    async def _call(self, place: int) -> Any:
        if place == len(self._layers):
            return await self._call_code()
        was_called = False

        async def call_next() -> Any:
            nonlocal was_called
            if was_called:
                raise RuntimeError("a middleware called call_next a second time")
            was_called = True
            return await self._call(place + 1)

        return await self._layers[place](self._context, call_next)

    async def _call_code(self) -> Any:
        self._code = code = self._start()
        if self.started is not None and code.started is not None:
            code.started.add_done_callback(self._note_started)
        while not code.ended.done():
            try:
                await asyncio.wait({code.ended})
            except asyncio.CancelledError:
                # A layer gave up waiting (a timeout of its own): it goes on when the code has ended, and not before.
                with contextlib.suppress(Exception):
                    code.ask_to_stop()
        value, error = came_of(code.ended)
        try:
            if error is not None:
                raise error
            return value
        finally:
            del error  # its traceback holds this frame, which must not hold it

    def _note_started(self, _: object) -> None:
        if self.started is not None and not self.started.done():
            self.started.set_result(None)

    def _on_done(self, task: asyncio.Task[Ended]) -> None:
        if not self.ended.done():
            self.ended.set_result(came_of(task))

    def ask_to_stop(self) -> None:
        """Ask the code to end; where none runs, cancel the layers."""
        if self._code is not None and not self._code.ended.done():
            self._code.ask_to_stop()
        else:
            self._task.cancel()

    def kill(self) -> None:
        """End the code for good."""
        if self._code is not None:
            self._code.kill()
