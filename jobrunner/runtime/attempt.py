"""One attempt: running a handler's code, and ending it.

An attempt ends when its code has ended, never before: what cannot be stopped keeps its slot, its blocks and its row
(`stopping`) until it stops by itself. Why it was told to stop decides the outcome, whatever the code then returned
(that is kept as the result) or raised:

- it was not: `succeeded`, or what it raised;
- its time was up: `timed_out`;
- an operator cancelled it: `cancelled`;
- the node drains or fences itself: `interrupted`.

Code that has returned is no longer told: a request that comes between the return and the attempt's end changes nothing.
Code that the node could not start (no thread, process or descriptor to spare) is `interrupted`, too.

What a handler returns or raises are its own objects: asking them may raise anything. Whatever judging an end raises is
the attempt's error, so that every attempt ends.
"""

from __future__ import annotations

import asyncio
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from jobrunner.errors import Discard, InvalidPayload, Snooze
from jobrunner.model.run import Outcome, OutcomeKind
from jobrunner.runtime.context import RunContext
from jobrunner.runtime.executors.code import NotStarted, came_of
from jobrunner.runtime.raised import (
    kind_of,
    message_of,
    reason_of,
    signal_in,
    traceback_of,
    wanted_seconds,
    where_of,
)
from jobrunner.runtime.results import never_begun, storable_result

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from jobrunner.runtime.clock import Clock
    from jobrunner.runtime.context import RunContext
    from jobrunner.runtime.executors.code import Code, Ended, Starter
    from jobrunner.runtime.handlers import Handler
    from jobrunner.runtime.timeouts import Timeouts
    from jobrunner.storage.runs.claims import Claim
    from jobrunner.telemetry.tracing import Processing, TraceIds

START_SECONDS = 60.0  # how long a process may take to be ready before its handler's time counts
INSIST_SECONDS = 1.0  # when to try again to kill what could not be


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
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`tell` is called with what an operator should know of an attempt that goes on."""
        self.claim = claim
        self.context = context
        self.output = context.output  # kept here, too: the handler has the context in its hands
        self.tracing: Processing | None = None  # from the start of its code
        self.stop_reason: StopReason | None = None
        self.stop_detail: str | None = None
        self._handler = handler
        self._clock = clock
        self._launcher = launcher
        self._timeouts = timeouts
        self._show_stopping = show_stopping
        self._tell: Callable[[str], None] | None = tell
        self.was_not_started = False
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
        except BaseException as error:  # noqa: BLE001 - a payload that does not fit, or no thread to be had
            on_end(self, self._judged((None, error)))
            return
        code.ended.add_done_callback(self._on_code_ended)
        if code.started is None:
            self._arm()
        else:
            self._timer = asyncio.get_running_loop().call_later(START_SECONDS, self._on_started)
            code.started.add_done_callback(self._on_started)

    def stopped_before(self) -> Outcome | None:
        """Return how the attempt ends if it was told to stop before its code was started."""
        return None if self.stop_reason is None else self._judged((None, asyncio.CancelledError()))

    def _arguments(self) -> dict[str, Any]:
        """Return what the handler is called with; asked inside the layers, so that they see what does not fit."""
        try:
            return {} if self._handler is None else self._handler.arguments(self.claim.run.payload)
        except InvalidPayload as error:
            self._misfit = error
            raise

    @property
    def trace(self) -> TraceIds | None:
        """The trace that the attempt belongs to, if it has been started and there is one."""
        return None if self.tracing is None else self.tracing.ids

    async def run(self) -> Outcome:
        """Start the code and wait for its end."""
        ended: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.start(lambda _, outcome: ended.set_result(outcome))
        return await ended

    def stop(self, reason: StopReason, detail: str | None = None) -> None:
        """Tell the code to stop; the first reason stands. Code that has returned is not told any more."""
        has_returned = self._code is not None and self._code.has_returned
        if self.stop_reason is None and not has_returned:
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
        RunContext.request_stop(self.context)  # whatever its code may have put in that name's place
        self._set_timer(asyncio.get_running_loop().call_later(code.grace_seconds, self._insist))
        self._succeeds(code.ask_to_stop)

    def _insist(self) -> None:
        """End code that was asked in vain; show what cannot be ended."""
        code = self._code
        if code is None or code.ended.done():
            return
        if not code.can_be_killed:
            self._showing = asyncio.ensure_future(self._show_stopping(self.claim))
        elif not self._succeeds(code.kill):
            self._set_timer(asyncio.get_running_loop().call_later(INSIST_SECONDS, self._insist))

    def _succeeds(self, stop: Callable[[], None]) -> bool:
        """Stop the code; say whether that could be done. What goes wrong is told once: the code runs on meanwhile."""
        try:
            stop()
        except Exception as error:  # noqa: BLE001 - a descriptor to look at its processes with, say
            tell, self._tell = self._tell, None
            if tell is not None:
                run = self.claim.run
                tell(f"{run.worker}: run {run.id} could not be stopped yet: {kind_of(error)}: {message_of(error)}")
            return False
        return True

    def _on_code_ended(self, ended: asyncio.Future[Any]) -> None:
        self._set_timer(None)
        if self._on_end is not None:
            self._on_end(self, self._judged(came_of(ended)))

    def _judged(self, came: Ended) -> Outcome:
        """Judge an end; what that raises is the attempt's error."""
        try:
            return self._judge(*came)
        except BaseException as broken:  # noqa: BLE001 - the handler's objects raise what they like, `SystemExit` too
            return self._broken(broken)

    def _broken(self, error: BaseException) -> Outcome:
        """Return the outcome of an attempt whose end could not be judged, or be passed on, because of `error`."""
        try:
            return self._outcome(OutcomeKind.FAILED, error=error)
        except BaseException:  # noqa: BLE001 - the run's own output may have been replaced
            return Outcome(OutcomeKind.FAILED, self._clock.now(), error_type=kind_of(error), error=message_of(error))

    def _judge(self, value: Any, error: BaseException | None) -> Outcome:
        if self.stop_reason is not None:
            return self._stopped(self.stop_reason, value, error)
        problem = never_begun(value)
        if problem is not None:
            error = TypeError(problem)
        if error is not None:
            return self._raised(error)
        result, remark = storable_result(self.context.result if value is None else value)
        return self._outcome(OutcomeKind.SUCCEEDED, result=result, reason=remark or self.context.result_remark)

    def _stopped(self, reason: StopReason, value: Any, error: BaseException | None) -> Outcome:
        result = self._kept(value) if error is None else None
        if reason is StopReason.TIMEOUT:
            seconds = self.claim.config.timeout_seconds
            late = TimeoutError(f"timed out after {seconds:g} s")
            late.__traceback__ = where_of(error)
            return self._outcome(OutcomeKind.TIMED_OUT, error=late, result=result)
        if reason is StopReason.CANCEL:
            return self._outcome(OutcomeKind.CANCELLED, reason=self.stop_detail or "cancelled", result=result)
        return self._outcome(OutcomeKind.INTERRUPTED, reason=self.stop_detail or "the node stops", result=result)

    def _kept(self, value: Any) -> Any:
        """Return what can be kept of what stopped code returned; it changes nothing about how it ended."""
        try:
            is_begun = never_begun(value) is None
            return storable_result(self.context.result if value is None else value)[0] if is_begun else None
        except BaseException:  # noqa: BLE001 - as in `_judged`
            return None

    def _raised(self, error: BaseException) -> Outcome:
        if error is self._misfit:
            return self._outcome(OutcomeKind.FAILED, error=error, does_not_fit=True, has_traceback=False)
        if issubclass(type(error), NotStarted):
            self.was_not_started = True
            return self._outcome(OutcomeKind.INTERRUPTED, reason=f"the node could not start it: {message_of(error)}")
        asked = signal_in(error)
        if asked is None:
            rule = {} if self._handler is None else self._handler.retry.judge(error, self.claim.run.attempt)
            return self._outcome(OutcomeKind.FAILED, error=error, **rule)
        if issubclass(type(asked), Discard):
            return self._outcome(OutcomeKind.FAILED, error=asked, reason=reason_of(asked), is_discard=True)
        delay = wanted_seconds(asked)
        if issubclass(type(asked), Snooze):
            return self._outcome(OutcomeKind.SNOOZED, reason=message_of(asked), delay_seconds=delay)
        return self._outcome(OutcomeKind.FAILED, error=asked, delay_seconds=delay)

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
            error_type=None if error is None else kind_of(error),
            error=None if error is None else message_of(error),
            traceback=traceback_of(error) if error is not None and has_traceback else None,
            output=self.output.text(),
            **more,
        )
