"""A node: one operating-system process (or one orchestrator in it) that claims and runs.

It wires the services together: the ticker claims and starts, an attempt runs a handler's code, the recorder writes how
it ended, the heartbeat proves that the node lives. What it holds, from the claim to the written end, is in `slots`.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import jobrunner.storage.workers.definitions as worker_store
from jobrunner.errors import DatabaseError, DatabaseGone, SchemaAhead, SchemaError
from jobrunner.model.worker import Isolation
from jobrunner.policy.liveness import heartbeat_patience, node_patience
from jobrunner.runtime.alerting import Alerting
from jobrunner.runtime.aside import SetAside
from jobrunner.runtime.attempt import StopReason
from jobrunner.runtime.blockers import LoopWatch
from jobrunner.runtime.clock import SystemClock
from jobrunner.runtime.executors.code import LONGEST_GRACE_SECONDS
from jobrunner.runtime.executors.launcher import Launcher
from jobrunner.runtime.heartbeat import Heartbeat, Hooks, posting
from jobrunner.runtime.housekeeper import Housekeeper
from jobrunner.runtime.identity import new_identity
from jobrunner.runtime.outage import Outage
from jobrunner.runtime.pings import Pinger
from jobrunner.runtime.registration import warnings_of
from jobrunner.runtime.service_manager import ServiceManager
from jobrunner.runtime.slots import Slots
from jobrunner.runtime.takeover import take_over
from jobrunner.runtime.tick import Ticker
from jobrunner.runtime.timekeeper import Timekeeper
from jobrunner.storage import nodes
from jobrunner.storage.database import wakeups
from jobrunner.storage.runs import live as runs
from jobrunner.storage.runs.facts import Here
from jobrunner.storage.runs.looks import Claimer
from jobrunner.storage.schema.parts import trouble_behind
from jobrunner.telemetry import events as e

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from jobrunner.config import Settings
    from jobrunner.model.named_limit import LimitConfig
    from jobrunner.model.worker import WorkerConfig
    from jobrunner.runtime.clock import Clock
    from jobrunner.runtime.executors.wrapped import Middleware
    from jobrunner.runtime.handlers import Handler
    from jobrunner.storage.database.database import Database
    from jobrunner.storage.nodes import NodeIdentity

STOP_GRACE_SECONDS = 2.0  # after the drain: how long code that was told to stop may take


class Node:
    """Runs workers until stopped; see the module. It registers all of `configs`, and runs those that have a handler."""

    def __init__(
        self,
        settings: Settings,
        open_database: Callable[[int, float], Database],
        handlers: Mapping[str, Handler],
        configs: Mapping[str, WorkerConfig],
        limits: Sequence[LimitConfig],
        version: int | None,
        clock: Clock,
        events: e.Events,
        on_crash: Callable[[float], None],
        middleware: Sequence[Middleware] = (),
        service_manager: ServiceManager | None = None,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.db = open_database(settings.pool_size, node_patience(settings.lease))
        self.identity: NodeIdentity = self._new_identity(settings)
        self.has_stuck_code = False
        self._settings = settings
        self._open_database = open_database
        self._service_manager = service_manager or ServiceManager()
        self._handlers = handlers
        self._configs = configs
        self._limits = limits
        self._version = version
        self._clock = clock
        self._events = events
        self._outage = Outage(clock, events, posting(self.loop, self._on_gone))
        self._is_claiming = self._is_stopping = False
        self._services: set[asyncio.Task[Any]] = set()
        self._hurried = asyncio.Event()
        self._launcher = Launcher(middleware)
        self._wakeups = wakeups.open_wakeups(self.db)
        self._slots = Slots(
            self.db, clock, self._outage, events, self._launcher, handlers, self._is_fenced, self._on_free
        )
        self._recorder = self._slots.recorder
        self.held = self._slots.held
        self._loop_watch = LoopWatch(self.loop, self.held, events)
        self._housekeeper = Housekeeper(
            self.db, clock, self._outage, settings, self._slots, self._launcher, lambda: self.identity.id
        )
        self._alerting = Alerting(self.db, clock, self._outage, settings, lambda: self.identity.id)
        self._pinger = Pinger(events)
        events.subscribe(self._pinger)
        self._ticker = self._new_ticker()
        self._heartbeat = self._new_heartbeat()
        self._on_crash = on_crash
        self.crashed: asyncio.Future[None] | None = None

    @staticmethod
    def _new_identity(of: Settings) -> NodeIdentity:
        return new_identity(of.max_concurrent, allows_commands=of.allow_commands, lease=of.lease)

    async def start(self) -> None:
        """Register the workers, join, take over from dead predecessors, and begin to tick."""
        now = self._clock.now()
        async with self.db.write(is_long=True) as conn:  # there may be 100,000 workers, and other nodes before us
            configs = list(self._configs.values())
            registered = await worker_store.register(conn, self.db.dialect, configs, self._version, now, self._limits)
            await nodes.join(conn, self.db.dialect, self.identity, self._handlers.keys(), now)
            await wakeups.notify(self.db, conn)
        self.crashed = asyncio.get_running_loop().create_future()
        for warning in warnings_of(registered):
            self._events.emit(e.Warned(warning))
        await take_over(self.db, self.identity, self._clock, self._events)
        await self._ticker.warm_up()
        self._is_claiming = True
        await asyncio.to_thread(self._launcher.warm, self._process_handlers())
        await self._wakeups.start(self._on_wakeup)
        self._ticker.note_round()  # it has not gone round while all this was made ready
        self._heartbeat.start()
        self._loop_watch.start()
        for service in (
            self._ticker.run(),
            self._recorder.run(),
            *self._housekeeper.services(),
            *self._alerting.services(),
        ):
            self._run_service(service)
        self._events.emit(e.NodeStarted(self.identity.id, len(self._handlers), self.db.shown_url))
        self._service_manager.ready()

    def _process_handlers(self) -> list[Handler]:
        return [code for name, code in self._handlers.items() if self._configs[name].isolation is Isolation.PROCESS]

    def _run_service(self, service: Any) -> None:
        task = asyncio.ensure_future(service)
        self._services.add(task)
        task.add_done_callback(self._on_service_end)

    def _on_service_end(self, task: asyncio.Task[Any]) -> None:
        self._services.discard(task)
        error = None if task.cancelled() else task.exception()  # looked at, even if one was told already
        if error is not None and self.crashed is not None and not self.crashed.done():
            self._run_service(self._judge_crash(error))

    async def _judge_crash(self, error: BaseException) -> None:
        """Leave at once after an error nobody expected, unless the schema explains it."""
        if isinstance(error, DatabaseGone):
            self._on_gone(error)
            return
        trouble = None
        with suppress(TimeoutError):
            async with asyncio.timeout(STOP_GRACE_SECONDS):
                trouble = await trouble_behind(self.db, error)
        if trouble is not None:
            self._on_outdated(trouble)
        elif self.crashed is None or not self.crashed.done():
            self._events.emit(e.NodeCrashed(self.identity.id, error))
            self._leave_for(error, 0.0)

    def _on_outdated(self, trouble: SchemaError) -> None:
        """Drain if a newer jobrunner has upgraded the schema, and its nodes go on; leave at once if it is gone."""
        if self._is_stopping or (self.crashed is not None and self.crashed.done()):
            return
        is_ahead = isinstance(trouble, SchemaAhead)
        self._events.emit(e.Warned(f"{trouble}; this node {'drains and ' * is_ahead}leaves"))
        self._leave_for(trouble, self._settings.drain_timeout if is_ahead else 0.0)

    @property
    def crash(self) -> BaseException | None:
        """What made the node leave by itself, if anything did."""
        return self.crashed.exception() if self.crashed is not None and self.crashed.done() else None

    def _on_gone(self, error: DatabaseGone) -> None:
        """Leave at once, also when the node drains already: what is written now is lost, or in another's database."""
        self.hurry()
        with suppress(DatabaseGone):
            self.db.check_file(is_now=True)  # another connection found it: from now on nothing is written through ours
        if self.crashed is not None and not self.crashed.done():
            self._leave_for(error, 0.0)

    def _leave_for(self, error: BaseException, drain_timeout: float) -> None:
        if self.crashed is not None:
            self.crashed.set_exception(error)
            self.crashed.exception()  # looked at, whether or not somebody waits for it
        self._on_crash(drain_timeout)

    def _is_fenced(self) -> bool:
        return self._heartbeat.is_fenced

    def _on_free(self) -> None:
        self._ticker.wake()

    def _new_ticker(self) -> Ticker:
        interval, free_slots = self._settings.tick_interval, self._free_slots
        claimer, recorder = self._claimer(), self._recorder
        aside = SetAside(self._clock, self._events)
        keeper = Timekeeper(self.db, self._clock, self._events, interval)
        own = claimer, recorder, interval, free_slots, self._slots.begin, aside, keeper, self._slots.warn
        return Ticker(self.db, self._clock, self._outage, *own, self._slots.timed)

    def _claimer(self) -> Claimer:
        return Claimer(self.identity.id, self._here())

    def _here(self) -> Here:
        asks_time = not self.db.is_sqlite and isinstance(self._clock, SystemClock)
        return Here(frozenset(self._handlers), self._settings.allow_commands, asks_time)

    def _new_heartbeat(self) -> Heartbeat:
        post, settings = partial(posting, self.loop), self._settings
        hooks = Hooks(
            held=lambda: set(self.held.copy()),
            is_ticking=lambda: self._ticker.is_ticking,
            last_tick_at=lambda: self._ticker.last_tick_at,
            came_round_at=lambda: self._ticker.came_round_at,
            blockers=self._loop_watch.blockers,
            on_lost=post(self._on_lost),
            on_fence=post(self._on_fence),
            on_code_without_claim=post(self._slots.drop),
            on_changed=post(self._ticker.wake),
            on_outdated=post(self._on_outdated),
        )
        return Heartbeat(
            lambda: self._open_database(1, heartbeat_patience(settings.lease)),
            self.identity,
            settings.lease,
            settings.tick_interval,
            self._clock,
            self._outage,
            self._events,
            hooks,
            self._service_manager,
        )

    def wake(self) -> None:
        """Tick as soon as possible: this process has changed something. May be called from any thread."""
        self.loop.call_soon_threadsafe(self._ticker.wake)

    def _on_wakeup(self) -> None:
        self._ticker.wake_from_outside(may_be_early=self._wakeups.may_be_early)
        if self._housekeeper.should_check_cancellations():
            self._run_service(self._housekeeper.stop_cancelled())

    def _free_slots(self) -> int | None:
        may_claim = self._is_claiming and not self._is_stopping and not self._heartbeat.is_fenced
        return self._settings.max_concurrent - len(self.held) if may_claim else None

    def _on_fence(self) -> None:
        """Stop all code: the lease is about to end, and beyond it another node may run the same work."""
        if self.held:
            self._events.emit(e.Warned("the lease could not be renewed; all running work is stopped"))
        self._slots.stop_all(StopReason.DRAIN, "the node could not renew its lease")

    def _on_lost(self) -> None:
        if self._is_stopping:
            self._slots.stop_all(StopReason.LOST, "the node was declared lost")
        elif self._is_claiming:
            self._is_claiming = False
            self._run_service(self._rejoin())

    async def _rejoin(self) -> None:
        """This node was declared lost: stop its runs, write nothing for them, and join anew under a new id."""
        self._events.emit(
            e.Warned(f"this node, {self.identity.id[:8]}, was declared lost; it stops its runs and rejoins")
        )
        await self._ticker.at_rest()  # what is being claimed in the old name is stopped, too
        self._slots.stop_all(StopReason.LOST, "the node was declared lost")
        await self._heartbeat.stop()

        async def join() -> None:
            # A new id for every try: the answer to the one before may have been lost, and its row be written.
            self.identity = self._new_identity(self._settings)
            self._heartbeat = self._new_heartbeat()  # before the row is seen: its lease counts from here
            async with self.db.write() as conn:
                await nodes.join(conn, self.db.dialect, self.identity, self._handlers.keys(), self._clock.now())

        await self._outage.until_it_works(join)
        self._ticker.claim_as(self._claimer())
        self._heartbeat.start()
        self._is_claiming = True
        self._ticker.wake()

    async def is_idle(self) -> bool:
        """Say whether nothing runs here, nothing could start, and no failed run waits to be tried again."""
        if self.held or self._outage.is_on or self._slots.shortage.is_waiting:
            return False
        try:
            async with self.db.read() as conn:  # one snapshot: what is claimed meanwhile must not slip through
                return not await runs.has_work(conn, self.db.dialect, self._clock.now(), self._here())
        except DatabaseError as error:
            self._outage.failed(error)
            return False

    async def wait_idle(self) -> None:
        """Wait until `is_idle`."""
        while True:
            self._ticker.found_nothing.clear()
            self._ticker.wake()
            await self._ticker.found_nothing.wait()
            await self._slots.all_ended.wait()
            if await self.is_idle():
                return
            await self._clock.sleep(0.05)

    async def stop(self, drain_timeout: float) -> None:
        """Claim nothing more, let runs end for `drain_timeout` seconds, stop the rest and give them back, and leave."""
        self._is_stopping = True
        self._service_manager.stopping()
        self._events.emit(e.NodeDraining(self.identity.id, len(self.held), drain_timeout))
        await self._note_state("draining")
        with suppress(TimeoutError):
            async with asyncio.timeout(STOP_GRACE_SECONDS):
                await self._ticker.at_rest()  # what is being claimed now still runs here
        await self._drain(drain_timeout)
        if self.held:
            self._slots.stop_all(StopReason.DRAIN, "the node stops")
            await self._wait_ended(self._stop_grace())
        try:
            async with asyncio.timeout(STOP_GRACE_SECONDS):
                await self._slots.outbox.empty()
        except TimeoutError:
            self._events.emit(e.Warned("not every outcome could be written; what is left is settled at the next start"))
        self.has_stuck_code = bool(self.held)
        self._loop_watch.stop()
        await self._wakeups.stop()
        await self._ticker.close()
        self._launcher.close()
        await self._heartbeat.stop()
        await self._alerting.flush(STOP_GRACE_SECONDS)
        self._events.unsubscribe(self._pinger)
        await asyncio.to_thread(self._pinger.close, STOP_GRACE_SECONDS)
        for task in self._services:
            task.cancel()
        await asyncio.wait([*self._services], timeout=STOP_GRACE_SECONDS) if self._services else None
        await self._note_state("stopped")
        await self.db.close()
        self._events.emit(e.NodeStopped(self.identity.id, len(self.held)))

    def _stop_grace(self) -> float:
        """Return how long code that was told to stop may take: what is killed after its grace gets the whole of it."""
        kills = {Isolation.PROCESS, Isolation.COMMAND}
        is_slow = any(attempt.claim.config.isolation in kills for attempt in self.held.values())
        return LONGEST_GRACE_SECONDS + STOP_GRACE_SECONDS if is_slow else STOP_GRACE_SECONDS

    async def _drain(self, seconds: float) -> None:
        hurried = asyncio.ensure_future(self._hurried.wait())
        drained = asyncio.ensure_future(self._wait_ended(seconds))
        await asyncio.wait({hurried, drained}, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()
        drained.cancel()

    def hurry(self) -> None:
        """Cut the drain short."""
        self._hurried.set()

    async def abandon(self) -> None:
        """Leave after a start that failed: nothing was claimed."""
        self._loop_watch.stop()
        for task in self._services:
            task.cancel()
        await self._wakeups.stop()
        self._events.unsubscribe(self._pinger)
        await self._ticker.close()
        self._launcher.close()
        if self.crashed is not None:  # it has joined
            await self._note_state("stopped")
        await self.db.close()

    async def _wait_ended(self, seconds: float) -> None:
        if self.held and seconds > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._slots.all_ended.wait()

    async def _note_state(self, state: str) -> None:
        if isinstance(self.crash, DatabaseGone):
            return
        try:
            async with asyncio.timeout(STOP_GRACE_SECONDS), self.db.write() as conn:
                await nodes.set_state(conn, self.identity.id, state, self._clock.now())
                await wakeups.notify(self.db, conn)
        except Exception as error:  # noqa: BLE001 - the node leaves, whatever the database says
            if isinstance(error, DatabaseError):
                self._outage.failed(error)
