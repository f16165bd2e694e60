"""One attempt: running a handler's code, and ending it.

An attempt ends when its code has ended, never before: what cannot be stopped keeps its slot, its blocks and its row
(`stopping`) until it stops by itself. Why it was told to stop decides the outcome:

- it was not: `succeeded`, or what it raised;
- its time was up: `timed_out`, whatever the code did with the cancellation;
- an operator cancelled it: `cancelled`, unless it had succeeded all the same;
- the node drains or fences itself: `interrupted`, unless it had succeeded all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import json
import threading
import traceback
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from jobrunner.errors import Discard, InvalidPayload, RetryAfter, Snooze
from jobrunner.model.run import Outcome, OutcomeKind
from jobrunner.model.worker import Isolation

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from jobrunner.runtime.clock import Clock
    from jobrunner.runtime.context import RunContext
    from jobrunner.runtime.handlers import Handler
    from jobrunner.storage.claims import Claim

CANCEL_GRACE_SECONDS = 1.0  # how long code may take to end once told to, before its run shows as `stopping`
MAX_RESULT_BYTES = 64 * 1024


class StopReason(StrEnum):
    """Why an attempt was told to stop."""

    TIMEOUT = "timeout"
    CANCEL = "cancel"
    DRAIN = "drain"
    LOST = "lost"


class Attempt:
    """Runs one claim's code to its end."""

    def __init__(
        self,
        claim: Claim,
        handler: Handler,
        context: RunContext,
        clock: Clock,
        show_stopping: Callable[[Claim], Awaitable[None]],
    ) -> None:
        self.claim = claim
        self.context = context
        self.stop_reason: StopReason | None = None
        self.stop_detail: str | None = None
        self._handler = handler
        self._clock = clock
        self._show_stopping = show_stopping
        self._told = asyncio.Event()

    def stop(self, reason: StopReason, detail: str | None = None) -> None:
        """Tell the code to stop; the first reason stands."""
        if self.stop_reason is None:
            self.stop_reason, self.stop_detail = reason, detail
            self._told.set()

    async def run(self) -> Outcome:
        """Run the code and return how the attempt ended; does not raise."""
        began = self._clock.monotonic()
        try:
            arguments = self._handler.arguments(self.claim.run.payload)
            code = self._start(arguments)
        except InvalidPayload as error:
            return self._outcome(began, OutcomeKind.FAILED, error=error, does_not_fit=True, has_traceback=False)
        except Exception as error:  # noqa: BLE001 - a validator of the handler's own, or no thread to be had
            return self._outcome(began, OutcomeKind.FAILED, error=error)
        await self._watch(code)
        # A task cancelled before its first step never ran `_inline`, which else catches everything.
        value, raised = (None, asyncio.CancelledError()) if code.cancelled() else code.result()
        return self._judge(began, value, raised)

    def _start(self, arguments: dict[str, Any]) -> asyncio.Future[tuple[Any, BaseException | None]]:
        positional = (self.context,) if self._handler.takes_run else ()
        if self.claim.config.isolation is Isolation.THREAD or not self._handler.is_async:
            return _in_thread(self._handler.function, positional, arguments, self.claim.run.worker)
        return asyncio.ensure_future(_inline(self._handler.function, positional, arguments))

    async def _watch(self, code: asyncio.Future[tuple[Any, BaseException | None]]) -> None:
        """Wait for the code to end, telling it to stop when its time is up or someone asks."""
        told = asyncio.ensure_future(self._told.wait())
        try:
            timeout = self.claim.config.timeout_seconds
            both: set[asyncio.Future[Any]] = {code, told}
            await asyncio.wait(both, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if code.done():
                return
            self.stop(StopReason.TIMEOUT)
            self.context.request_stop()
            if isinstance(code, asyncio.Task):
                code.cancel()
            await asyncio.wait({code}, timeout=CANCEL_GRACE_SECONDS)
            if not code.done():
                await self._show_stopping(self.claim)
                await asyncio.wait({code})
        finally:
            told.cancel()

    def _judge(self, began: float, value: Any, error: BaseException | None) -> Outcome:
        reason = self.stop_reason
        if reason is StopReason.TIMEOUT:
            seconds = self.claim.config.timeout_seconds
            late = TimeoutError(f"timed out after {seconds:g} s")
            late.__traceback__ = None if error is None else error.__traceback__
            return self._outcome(began, OutcomeKind.TIMED_OUT, error=late)
        if error is None and inspect.isawaitable(value):
            _close(value)
            error = TypeError("the handler returned a coroutine that nobody awaits; make it an async def")
        if error is None:
            result, remark = _storable_result(value)
            return self._outcome(began, OutcomeKind.SUCCEEDED, result=result, reason=remark)
        if reason is StopReason.CANCEL:
            return self._outcome(began, OutcomeKind.CANCELLED, reason=self.stop_detail or "cancelled")
        if reason is not None:
            return self._outcome(began, OutcomeKind.INTERRUPTED, reason=self.stop_detail or "the node stops")
        return self._raised(began, error)

    def _raised(self, began: float, error: BaseException) -> Outcome:
        if isinstance(error, Discard):
            return self._outcome(began, OutcomeKind.FAILED, error=error, reason=error.reason, is_discard=True)
        if isinstance(error, Snooze):
            return self._outcome(began, OutcomeKind.SNOOZED, reason=str(error), delay_seconds=_seconds(error.seconds))
        if isinstance(error, RetryAfter):
            return self._outcome(began, OutcomeKind.FAILED, error=error, delay_seconds=_seconds(error.seconds))
        return self._outcome(began, OutcomeKind.FAILED, error=error)

    def _outcome(
        self,
        began: float,
        kind: OutcomeKind,
        *,
        error: BaseException | None = None,
        has_traceback: bool = True,
        **more: Any,
    ) -> Outcome:
        return Outcome(
            kind,
            self._clock.now(),
            duration_ms=max(0, round((self._clock.monotonic() - began) * 1000)),
            error_type=None if error is None else type(error).__name__,
            error=None if error is None else _message(error),
            traceback=_traceback(error) if error is not None and has_traceback else None,
            output=self.context.output.text(),
            **more,
        )


async def _inline(
    function: Callable[..., Any], positional: tuple[Any, ...], arguments: dict[str, Any]
) -> tuple[Any, BaseException | None]:
    """Run a coroutine function; whatever it raises, `SystemExit` too, is its attempt's and not the node's."""
    try:
        return await function(*positional, **arguments), None
    except BaseException as error:  # noqa: BLE001 - every way out of a handler is recorded
        return None, error


def _in_thread(
    function: Callable[..., Any], positional: tuple[Any, ...], arguments: dict[str, Any], name: str
) -> asyncio.Future[tuple[Any, BaseException | None]]:
    """Run a function in a thread of its own: a daemon, so that code which never ends cannot hold the process."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[tuple[Any, BaseException | None]] = loop.create_future()
    context = contextvars.copy_context()

    def settle(outcome: tuple[Any, BaseException | None]) -> None:
        if not future.done():
            future.set_result(outcome)

    def body() -> None:
        outcome: tuple[Any, BaseException | None]
        try:
            outcome = (context.run(function, *positional, **arguments), None)
        except BaseException as error:  # noqa: BLE001 - every way out of a handler is recorded
            outcome = (None, error)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits for this any more
            loop.call_soon_threadsafe(settle, outcome)

    threading.Thread(target=body, name=f"jobrunner:{name}", daemon=True).start()
    return future


def _close(value: object) -> None:
    """Close a coroutine that never ran, so that Python does not complain that nobody awaited it."""
    if inspect.iscoroutine(value):
        value.close()


def _seconds(value: object) -> float:
    return float(value) if isinstance(value, int | float) and value == value and value > 0 else 0.0


def _message(error: BaseException) -> str:
    """Return what the error says; never empty, since an empty error explains nothing."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - a broken __str__ is the handler's
        text = ""
    return text if text.strip() else type(error).__name__


def _traceback(error: BaseException) -> str | None:
    if error.__traceback__ is None and error.__cause__ is None:
        return None
    try:
        return "".join(traceback.format_exception(type(error), error, error.__traceback__))
    except Exception:  # noqa: BLE001 - a broken __str__ is the handler's
        return "".join(traceback.format_tb(error.__traceback__))


def _storable_result(value: Any) -> tuple[Any, str | None]:
    """Return the result if JSON can say it in 64 KiB; else None and the reason. Never fails the attempt."""
    if value is None:
        return None, None
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False)
        size = len(text.encode())  # a lone surrogate fails here
    except (TypeError, ValueError, RecursionError) as error:
        return None, f"its result is not kept, since it is no JSON: {str(error)[:200]}"
    if size > MAX_RESULT_BYTES:
        return None, f"its result is not kept, since it is {size:,} bytes; the most is {MAX_RESULT_BYTES:,}"
    if "\\u0000" in text:
        return None, "its result is not kept, since it holds a character that a database cannot store"
    return json.loads(text), None
