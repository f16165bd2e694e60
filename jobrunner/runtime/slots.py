"""Slots: the claims a node holds, from the start of their code until their ends are written.

What goes wrong here with one claim, an object of its handler's or a fault of the node's own, ends that claim as
`failed`, which tells of it, and touches no other: each is begun and ended inside a guard.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from jobrunner.errors import DatabaseError
from jobrunner.model.run import Outcome, OutcomeKind
from jobrunner.model.worker import Isolation
from jobrunner.policy.backoff import later
from jobrunner.policy.transitions import unreadable_end
from jobrunner.runtime.attempt import Attempt, StopReason
from jobrunner.runtime.context import RunContext
from jobrunner.runtime.outbox import Outbox
from jobrunner.runtime.raised import kind_of, message_of, traceback_of
from jobrunner.runtime.recorder import Recorder
from jobrunner.runtime.shortage import Shortage
from jobrunner.runtime.timeouts import Timeouts
from jobrunner.runtime.transaction import open_transaction
from jobrunner.storage.runs import live as runs
from jobrunner.storage.runs.finishes import Ended
from jobrunner.storage.runs.flows import read_before
from jobrunner.telemetry import events as e
from jobrunner.telemetry.current import current_run
from jobrunner.telemetry.tracing import processing

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from jobrunner.model.run import ClaimKey
    from jobrunner.runtime.clock import Clock
    from jobrunner.runtime.executors.launcher import Launcher
    from jobrunner.runtime.handlers import Handler
    from jobrunner.runtime.outage import Outage
    from jobrunner.storage.database.database import Database
    from jobrunner.storage.runs.claims import Claim


class Slots:
    """`held` are the claims by key; `all_ended` is set while there is none; `begun` counts all there have been.

    `is_fenced`: no code may be started.
    """

    def __init__(
        self,
        db: Database,
        clock: Clock,
        outage: Outage,
        events: e.Events,
        launcher: Launcher,
        handlers: Mapping[str, Handler],
        is_fenced: Callable[[], bool],
        on_free: Callable[[], None],
    ) -> None:
        self.held: dict[ClaimKey, Attempt] = {}
        self.begun = 0
        self.all_ended = asyncio.Event()
        self.all_ended.set()
        self.shortage = Shortage(clock, events)
        self._db = db
        self._clock = clock
        self._outage = outage
        self._events = events
        self.outbox = Outbox()
        self.recorder = Recorder(db, outage, events, self.outbox, self.free)
        self._launcher = launcher
        self._handlers = handlers
        self._is_fenced = is_fenced
        self._on_free = on_free
        self._timeouts = Timeouts()
        self._informing: set[asyncio.Task[None]] = set()

    def begin(self, claim: Claim) -> None:
        """Start the code of a claim; what keeps the node from that is the attempt's error."""
        self.begun += 1
        try:
            self._start(claim)
        except Exception as error:  # noqa: BLE001 - the other claims of this tick are started, whatever it is
            self._settle(claim, error)

    def _start(self, claim: Claim) -> None:
        is_command = claim.config.isolation is Isolation.COMMAND
        handler = None if is_command else self._handlers[claim.run.worker]
        deadline = later(claim.run.started_at or self._clock.now(), claim.config.timeout_seconds)
        context = RunContext(claim.run, deadline)
        attempt = Attempt(
            claim, handler, context, self._clock, self._launcher, self._timeouts, self._show_stopping, self.warn
        )
        if claim.config.isolation is Isolation.INLINE:
            context.open_transaction = partial(open_transaction, self._db, attempt, self._clock)
        self.held[claim.run.claim_key] = attempt
        self.all_ended.clear()
        unreadable = unreadable_end(claim.run, self._clock.now())
        if unreadable is not None:
            self._end(attempt, unreadable)
        elif claim.run.flow_id is not None:
            informing = asyncio.ensure_future(self._inform(attempt))
            self._informing.add(informing)
            informing.add_done_callback(self._informing.discard)
        else:
            self._begin_unless_fenced(attempt)

    async def _inform(self, attempt: Attempt) -> None:
        """Read what a step of a flow is told of those before it, and then start its code."""
        run, failures = attempt.claim.run, 0
        try:
            while attempt.stop_reason is None:
                try:
                    async with self._db.peek() as conn:
                        attempt.context.before = await read_before(conn, run.id)
                    break
                except DatabaseError as error:
                    failures += 1
                    self._outage.failed(error)
                    await self._outage.pause(failures)
            stopped = attempt.stopped_before()
            if stopped is None:
                self._begin_unless_fenced(attempt)
            else:
                self._end(attempt, stopped)
        except Exception as error:  # noqa: BLE001 - as in `begin`
            self._settle(attempt.claim, error)

    def _begin_unless_fenced(self, attempt: Attempt) -> None:
        if self._is_fenced():  # held up since the claim: is it still ours?
            reason = "the node could not renew its lease before the code was started"
            self._end(attempt, Outcome(OutcomeKind.INTERRUPTED, self._clock.now(), reason=reason))
        else:
            self._begin(attempt)

    def _begin(self, attempt: Attempt) -> None:
        """Start the code, where what it logs and traces is known as this run's."""
        run = attempt.claim.run
        attempt.tracing = traced = processing(run)
        self._events.emit(e.RunStarted(run, attempt.claim.config.ping, attempt.trace))
        token = current_run.set((run, attempt.trace))
        try:
            if traced is None:
                attempt.start(self._end)
            else:
                attempt.context.trace_context = traced.trace_context
                with traced.current():
                    attempt.start(self._end)
        finally:
            current_run.reset(token)

    def _end(self, attempt: Attempt, outcome: Outcome) -> None:
        """Have the end written; what keeps the node from that is the attempt's error."""
        try:
            self._pass_on(attempt, outcome)
        except Exception as error:  # noqa: BLE001 - the run ends, whatever it is
            self._settle(attempt.claim, error)

    def _settle(self, claim: Claim, error: Exception) -> None:
        """End a claim as failed: something about it raised in the node itself. Its end tells of it."""
        outcome = Outcome(
            OutcomeKind.FAILED,
            self._clock.now(),
            error_type=kind_of(error),
            error=message_of(error),
            traceback=traceback_of(error),
        )
        self.outbox.put(Ended(claim.run, outcome, claim.config, claim.simple_under))

    def _pass_on(self, attempt: Attempt, outcome: Outcome) -> None:
        claim, run = attempt.claim, attempt.claim.run
        attempt.context.open_transaction = None  # it holds the attempt, which holds the context: a circle for each run
        if attempt.tracing is not None:
            attempt.tracing.end(None if attempt.stop_reason is StopReason.LOST else outcome)
        ended = Ended(run, outcome, claim.config, claim.simple_under, attempt.trace)
        if attempt.context.finished is not None:
            if outcome.kind is not OutcomeKind.SUCCEEDED:
                what = outcome.error or outcome.kind
                self.warn(f"{run.worker}: after its transaction had ended the run: {what}")
            self.recorder.note_written(attempt.context.finished, ended)
        elif attempt.stop_reason is StopReason.LOST:  # whoever took the run away writes its end
            self._events.emit(e.RunTakenAway(run))
            self.free([run.claim_key])
        else:
            if attempt.was_not_started:
                delay = self.shortage.failed(f"{run.worker}: {outcome.reason}")
                ended = replace(ended, outcome=replace(outcome, delay_seconds=delay))
            elif claim.config.isolation is not Isolation.INLINE:
                self.shortage.worked()
            self.outbox.put(ended)

    def warn(self, message: str) -> None:
        """Tell an operator."""
        self._events.emit(e.Warned(message))

    def timed(self, what: str, since: float) -> None:
        """Tell how long a part of the node's own work took, `since` a time on the node's monotonic clock."""
        self._events.emit(e.Timed(what, self._clock.monotonic() - since))

    async def _show_stopping(self, claim: Claim) -> None:
        """Show the run as `stopping`: it was told to, and its code has not ended."""
        try:
            async with self._db.write() as conn:
                await runs.set_stopping(conn, claim.run)
        except Exception as error:  # noqa: BLE001 - it is only shown, and nobody waits for it
            self._outage.dropped("that a run was told to stop could not be shown", error)

    def free(self, keys: list[ClaimKey]) -> None:
        """The ends of these claims are written."""
        for key in keys:
            self.held.pop(key, None)
        if not self.held:
            self.all_ended.set()
        self._on_free()

    def stop_all(self, reason: StopReason, detail: str) -> None:
        """Tell all code to stop."""
        for attempt in list(self.held.values()):
            attempt.stop(reason, detail)

    def drop(self, keys: list[ClaimKey]) -> None:
        """Stop the code of claims that were taken away."""
        for key in keys:
            attempt = self.held.get(key)
            if attempt is not None and attempt.stop_reason is None and attempt.context.finished is None:
                attempt.stop(StopReason.LOST, "the claim was taken away")
