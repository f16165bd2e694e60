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
import inspect
import traceback
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from jobrunner.errors import Discard, InvalidPayload, RetryAfter, Snooze
from jobrunner.model.run import Outcome, OutcomeKind
from jobrunner.runtime.executors.code import came_of
from jobrunner.runtime.results import RemoteError, storable_result

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from jobrunner.runtime.clock import Clock
    from jobrunner.runtime.context import RunContext
    from jobrunner.runtime.executors.code import Code, Starter
    from jobrunner.runtime.handlers import Handler
    from jobrunner.runtime.timeouts import Timeouts
    from jobrunner.storage.claims import Claim

START_SECONDS = 60.0  # how long a process may take to be ready before its handler's time counts


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
        handler: Handler | None,
        context: RunContext,
        clock: Clock,
        launcher: Starter,
        timeouts: Timeouts,
        show_stopping: Callable[[Claim], Awaitable[None]],
    ) -> None:
        self.claim = claim
        self.context = context
        self.stop_reason: StopReason | None = None
        self.stop_detail: str | None = None
        self._handler = handler
        self._clock = clock
        self._launcher = launcher
        self._timeouts = timeouts
        self._show_stopping = show_stopping
        self.began = clock.monotonic()
        self._code: Code | None = None
        self._misfit: InvalidPayload | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._on_end: Callable[[Attempt, Outcome], None] | None = None
        self._showing: asyncio.Task[None] | None = None

    def start(self, on_end: Callable[[Attempt, Outcome], None]) -> None:
        """Start the code; `on_end` is called once, with how the attempt ended. Does not raise.

        Callbacks, not a task that waits: under load most handlers are shorter than a task takes to make.
        """
        self._on_end = on_end
        self.began = self._clock.monotonic()
        try:
            self._code = code = self._launcher.start(self.claim, self._handler, self.context, self._arguments)
        except Exception as error:  # noqa: BLE001 - a payload that does not fit, or no thread to be had
            is_misfit = error is self._misfit
            on_end(self, self._does_not_fit(error) if is_misfit else self._outcome(OutcomeKind.FAILED, error=error))
            return
        code.ended.add_done_callback(self._on_code_ended)
        if code.started is None:
            self._arm()
        else:
            self._timer = asyncio.get_running_loop().call_later(START_SECONDS, self._on_started)
            code.started.add_done_callback(self._on_started)

    def _arguments(self) -> dict[str, Any]:
        """Return what the handler is called with; asked inside the layers, so that they see what does not fit."""
        try:
            return {} if self._handler is None else self._handler.arguments(self.claim.run.payload)
        except InvalidPayload as error:
            self._misfit = error
            raise

    def _does_not_fit(self, error: BaseException) -> Outcome:
        return self._outcome(OutcomeKind.FAILED, error=error, does_not_fit=True, has_traceback=False)

    async def run(self) -> Outcome:
        """Start the code and wait for its end."""
        ended: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.start(lambda _, outcome: ended.set_result(outcome))
        return await ended

    def stop(self, reason: StopReason, detail: str | None = None) -> None:
        """Tell the code to stop; the first reason stands."""
        if self.stop_reason is None:
            self.stop_reason, self.stop_detail = reason, detail
            if self._is_started:
                self._ask_to_stop()

    @property
    def _is_started(self) -> bool:
        return self._code is not None and (self._code.started is None or self._code.started.done())

    def _on_started(self, _started: object = None) -> None:
        """Count the handler's time from here: its process is ready, or has been given long enough."""
        self._set_timer(None)
        self.began = self._clock.monotonic()
        if self._code is not None and not self._code.ended.done():
            self._arm()

    def _arm(self) -> None:
        if self.stop_reason is not None:
            self._ask_to_stop()
        else:
            self._timeouts.add(self.claim.config.timeout_seconds, self._time_out)

    def _time_out(self) -> None:
        self.stop(StopReason.TIMEOUT)

    def _set_timer(self, timer: asyncio.TimerHandle | None) -> None:
        self._timeouts.remove(self.claim.config.timeout_seconds, self._time_out)
        if self._timer is not None:
            self._timer.cancel()
        self._timer = timer

    def _ask_to_stop(self) -> None:
        code = self._code
        if code is None or code.ended.done():
            return
        self.context.request_stop()
        self._set_timer(asyncio.get_running_loop().call_later(code.grace_seconds, self._insist))
        code.ask_to_stop()

    def _insist(self) -> None:
        """End code that was asked in vain; show what cannot be ended."""
        code = self._code
        if code is None or code.ended.done():
            return
        if code.can_be_killed:
            code.kill()
        else:
            self._showing = asyncio.ensure_future(self._show_stopping(self.claim))

    def _on_code_ended(self, ended: asyncio.Future[Any]) -> None:
        self._set_timer(None)
        if self._on_end is not None:
            self._on_end(self, self._judge(*came_of(ended)))

    def _judge(self, value: Any, error: BaseException | None) -> Outcome:
        reason = self.stop_reason
        if reason is StopReason.TIMEOUT:
            seconds = self.claim.config.timeout_seconds
            late = TimeoutError(f"timed out after {seconds:g} s")
            late.__traceback__ = None if error is None else error.__traceback__
            return self._outcome(OutcomeKind.TIMED_OUT, error=late)
        if error is None and value is not None and inspect.isawaitable(value):
            _close(value)
            error = TypeError("the handler returned a coroutine that nobody awaits; make it an async def")
        if error is None:
            result, remark = storable_result(self.context.result if value is None else value)
            return self._outcome(OutcomeKind.SUCCEEDED, result=result, reason=remark or self.context.result_remark)
        if reason is StopReason.CANCEL:
            return self._outcome(OutcomeKind.CANCELLED, reason=self.stop_detail or "cancelled")
        if reason is not None:
            return self._outcome(OutcomeKind.INTERRUPTED, reason=self.stop_detail or "the node stops")
        return self._raised(error)

    def _raised(self, error: BaseException) -> Outcome:
        if error is self._misfit:
            return self._does_not_fit(error)
        if isinstance(error, Discard):
            return self._outcome(OutcomeKind.FAILED, error=error, reason=error.reason, is_discard=True)
        if isinstance(error, Snooze):
            return self._outcome(OutcomeKind.SNOOZED, reason=str(error), delay_seconds=_seconds(error.seconds))
        if isinstance(error, RetryAfter):
            return self._outcome(OutcomeKind.FAILED, error=error, delay_seconds=_seconds(error.seconds))
        rule = {} if self._handler is None else self._handler.retry.judge(error, self.claim.run.attempt)
        return self._outcome(OutcomeKind.FAILED, error=error, **rule)

    def _outcome(
        self,
        kind: OutcomeKind,
        *,
        error: BaseException | None = None,
        has_traceback: bool = True,
        **more: Any,
    ) -> Outcome:
        return Outcome(
            kind,
            self._clock.now(),
            duration_ms=max(0, round((self._clock.monotonic() - self.began) * 1000)),
            error_type=None if error is None else _kind(error),
            error=None if error is None else _message(error),
            traceback=_traceback(error) if error is not None and has_traceback else None,
            output=self.context.output.text(),
            **more,
        )


def _close(value: object) -> None:
    """Close a coroutine that never ran, so that Python does not complain that nobody awaited it."""
    if inspect.iscoroutine(value):
        value.close()


def _seconds(value: object) -> float:
    return float(value) if isinstance(value, int | float) and value == value and value > 0 else 0.0


def _kind(error: BaseException) -> str:
    return error.kind if isinstance(error, RemoteError) else type(error).__name__


def _message(error: BaseException) -> str:
    """Return what the error says; never empty, since an empty error explains nothing."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - a broken __str__ is the handler's
        text = ""
    return text if text.strip() else _kind(error)


def _traceback(error: BaseException) -> str | None:
    if isinstance(error, RemoteError):
        return error.text
    if error.__traceback__ is None and error.__cause__ is None:
        return None
    try:
        return "".join(traceback.format_exception(type(error), error, error.__traceback__))
    except Exception:  # noqa: BLE001 - a broken __str__ is the handler's
        return "".join(traceback.format_tb(error.__traceback__))
