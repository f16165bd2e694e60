"""The heartbeat: proves that this node lives, watches the others, and keeps the table and the running code in step.

It runs in a thread of its own, with its own event loop and its own connection, so that handlers which keep the node's
loop busy do not make it look dead. Every sixth of the lease it

1. raises this node's beat, and with the same statement looks for what there is to do: an idle node asks nothing more.
   A node that finds itself declared lost stops its runs, writes nothing for them, and joins anew under a new id. A
   schema that a newer jobrunner has upgraded is none that this code may go on writing to, so the node drains;
2. looks at the other nodes' beats. One that has shown the same beat for a whole lease, on this node's monotonic clock
   and while this node's own beats were being written without a pause, is declared lost. A process of this host that
   has certainly ended is declared lost at once;
3. rescues the runs of nodes that are lost, and tells the other nodes;
4. compares the claims that the table holds in this node's name with the runs it executes: a claim without code (the
   answer to its commit was lost) is given back once it is older than a tick, code without a claim is stopped.

If it could not raise the beat until a sixth of the lease is left, the node stops all its code: beyond the lease another
node may run the same work. Whether the lease has run that far is read from the clock whenever it matters, so that a
process that was stopped and continued claims nothing, and starts nothing it had claimed, before it has beaten again.

It vouches for a node that ticks, not for a process that is there: if the node's loop has not come round for three
intervals (code blocks it, or a wait in it never ends) the beat is not raised, until it does. Others then take over once
the lease is over, and this node stops its code as above, as soon as its loop lets it.

Pauses. A process may be stopped at any point between two lines, together with the others or alone. So the age of
another's beat is counted from *after* it was first read to *before* it is read again, and only while our own beats
went on: what we slept through proves nothing about others. When the database is away for everybody nobody is declared
lost, since nobody's beats are written; the interrupted runs are then given back by this node itself once it is back.
"""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from jobrunner.errors import DatabaseError, SchemaAhead
from jobrunner.model.run import Outcome, OutcomeKind
from jobrunner.policy.leases import BEATS_A_LEASE, Watch
from jobrunner.policy.liveness import longest_silence
from jobrunner.runtime import forks
from jobrunner.runtime.ends import tell_ends
from jobrunner.runtime.identity import is_gone
from jobrunner.storage import nodes
from jobrunner.storage.database.dialect import first_line
from jobrunner.storage.runs.finishes import Ended, finish
from jobrunner.storage.runs.live import read_claims
from jobrunner.storage.schema import revisions
from jobrunner.storage.schema.parts import trouble_behind
from jobrunner.telemetry import events as e

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from jobrunner.errors import SchemaError
    from jobrunner.model.run import ClaimKey
    from jobrunner.runtime.clock import Clock
    from jobrunner.runtime.outage import Outage
    from jobrunner.runtime.service_manager import ServiceManager
    from jobrunner.storage.database.database import Database

SPACING = 1.005  # a hair more than a sixth, so that the sixth look after the first finds that the lease is over
LEFT_BEHIND_SECONDS = 5.0  # after which others take the runs whose code a stopped node could not end


@dataclass(frozen=True)
class Hooks:
    """What the heartbeat asks of its node.

    The first five are called from the heartbeat's thread; the others post to the node's loop.
    """

    held: Callable[[], set[ClaimKey]]  # every claim the node knows of
    is_ticking: Callable[[], bool]  # a claim may be on its way that the node does not know of yet
    last_tick_at: Callable[[], datetime | None]
    came_round_at: Callable[[], float]  # when the node's loop was last seen to go round, on its monotonic clock
    blockers: Callable[[], list[str]]  # the workers whose code runs in the node's loop, if that does not answer
    on_lost: Callable[[], None]
    on_fence: Callable[[], None]
    on_code_without_claim: Callable[[list[ClaimKey]], None]
    on_changed: Callable[[], None]
    on_outdated: Callable[[SchemaError], None]


def posting(loop: asyncio.AbstractEventLoop, callback: Callable[..., None]) -> Callable[..., None]:
    """Return what has `loop` call `callback`, from any thread."""

    def post(*arguments: Any) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(callback, *arguments)

    return post


class Heartbeat:
    """The thread. `interval` and `lease` in seconds."""

    def __init__(
        self,
        open_database: Callable[[], Database],
        identity: nodes.NodeIdentity,
        lease: float,
        tick_interval: float,
        clock: Clock,
        outage: Outage,
        events: e.Events,
        hooks: Hooks,
        service_manager: ServiceManager,
    ) -> None:
        self._open_database = open_database
        self._identity = identity
        self._lease = lease
        self._tick_interval = tick_interval
        self._clock = clock
        self._outage = outage
        self._events = events
        self._hooks = hooks
        self._service_manager = service_manager
        self._is_silent = False
        self._watch = Watch(lease)
        # Real time, whatever the node's clock. The node is made before it joins, so this is before anyone can see it.
        self._renewed_at = time.monotonic()
        self._is_fenced = False
        self._is_stopping = False
        self._told: set[str] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopped: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._body, name="jobrunner:heartbeat", daemon=True)

    @property
    def interval(self) -> float:
        """Seconds between two beats."""
        return self._lease / BEATS_A_LEASE

    def start(self) -> None:
        """Start beating."""
        self._thread.start()

    async def stop(self) -> None:
        """Stop beating, and wait for the thread (at most a few seconds: it may be waiting for the database)."""
        self._is_stopping = True
        loop, stopped = self._loop, self._stopped
        if loop is not None and stopped is not None and not loop.is_closed():
            loop.call_soon_threadsafe(stopped.set)
        await asyncio.to_thread(self._thread.join, 5.0)

    @property
    def is_fenced(self) -> bool:
        """Say whether the lease could not be renewed in time: the node must not run anything."""
        return self._is_fenced or self._is_late()

    def _is_late(self) -> bool:
        return (
            time.monotonic() - self._renewed_at >= self._lease * (BEATS_A_LEASE - 1) / BEATS_A_LEASE - self.interval / 2
        )

    def _body(self) -> None:
        asyncio.run(self._main())

    async def _main(self) -> None:
        loop = asyncio.get_running_loop()
        self._stopped = asyncio.Event()
        self._loop = loop
        forks.protect(loop)
        db = self._open_database()
        guard = asyncio.ensure_future(self._guard())
        try:
            while not self._stopped.is_set() and not self._is_stopping:
                began = loop.time()
                await self._once(db)
                pause = max(self.interval * SPACING - (loop.time() - began), self.interval / 10)
                await _wait(self._stopped, pause)
        finally:
            guard.cancel()
            await db.close()
            forks.unprotect(loop)

    async def _once(self, db: Database) -> None:
        try:
            async with asyncio.timeout(self._lease / 2):
                await self.pulse(db)
        except Exception as error:  # noqa: BLE001 - a thread that ended would let the lease end in silence
            trouble = await trouble_behind(db, error)
            if trouble is not None:
                self._hooks.on_outdated(trouble)
            elif isinstance(error, DatabaseError):
                self._outage.failed(error)
            elif not isinstance(error, TimeoutError):
                self._events.emit(e.Warned(f"the heartbeat failed and is tried again: {first_line(error)}"))

    async def _guard(self) -> None:
        """Fence in time, also while a pulse waits for a database that does not answer."""
        while True:
            await _wait(asyncio.Event(), self.interval / 10)
            self._fence_if_late()
            if self._vouches():
                self._service_manager.alive()

    def _vouches(self) -> bool:
        """Say whether the node ticks, and tell it once if it does not."""
        silence = self._clock.monotonic() - self._hooks.came_round_at()
        was_silent, self._is_silent = self._is_silent, silence > longest_silence(self._tick_interval, self._lease)
        if self._is_silent and not was_silent:
            names = ", ".join(self._hooks.blockers())
            blame = f": its loop is blocked, by the code of {names}" if names else ""
            said = f"this node has not ticked for {silence:.0f} s{blame}; its lease is not renewed until it ticks"
            self._events.emit(e.Warned(said))
        return not self._is_silent

    def _fence_if_late(self) -> None:
        if not self._is_fenced and self._is_late():
            self._is_fenced = True
            self._hooks.on_fence()

    async def pulse(self, db: Database) -> None:
        """Do one heartbeat's work."""
        if not self._vouches():
            self._watch.missed()
            return
        held = self._hooks.held()
        began, before, now = time.monotonic(), self._clock.monotonic(), self._clock.now()
        try:
            async with db.poke() as conn:
                last_tick_at = self._hooks.last_tick_at()
                seen = await nodes.beat(conn, db.dialect, self._identity.id, now, last_tick_at, _left_before(now))
        except BaseException:
            self._watch.missed()
            raise
        if seen is None or seen.state not in {"active", "draining"}:
            self._hooks.on_lost()
            return
        self._renewed_at = began  # the time before the write: never later than others can have seen it
        if self._is_fenced:
            self._is_fenced = False
            self._hooks.on_changed()
        self._outage.beat()
        after = self._clock.monotonic()
        self._watch.beat(after)
        await self._act_on(db, seen, held, before, after)

    async def _act_on(self, db: Database, seen: nodes.Seen, held: set[ClaimKey], before: float, after: float) -> None:
        """Do what a beat has shown that there is to do; `before` and `after` it, on our clock."""
        if revisions.is_ahead(seen.revision):
            self._hooks.on_outdated(SchemaAhead(str(seen.revision)))
        declared = await self._declare_lost(db, seen.others, before, after)
        if declared or seen.has_orphans:
            await self._rescue(db)
        if held or seen.has_claims:
            await self._compare(db, held, has_claims=seen.has_claims)

    async def _declare_lost(self, db: Database, others: Sequence[nodes.SeenNode], before: float, after: float) -> bool:
        """Declare those lost that are silent or certainly gone; say whether there was any."""
        lost = self._watch.look(others, before, after)
        gone = [node for node in others if is_gone(node, self._identity)]
        silent = [node for node in lost if node not in gone]
        for node, reason in [(n, "its process has ended") for n in gone] + [(n, "it is silent") for n in silent]:
            async with db.write() as conn:
                declared = await nodes.declare_lost(conn, db.dialect, node, self._clock.now(), reason)
            if declared:
                self._events.emit(e.NodeLost(node.id, reason))
        return bool(gone or silent)

    async def _rescue(self, db: Database) -> None:
        now = self._clock.now()
        while True:
            finished = await nodes.rescue(db, now, _left_before(now))
            for problem in set(finished.problems) - self._told:
                self._told.add(problem)
                self._events.emit(e.Warned(problem))
            if not finished.written:
                return
            tell_ends(self._events, finished)
            self._hooks.on_changed()

    async def _compare(self, db: Database, held: set[ClaimKey], *, has_claims: bool) -> None:
        """Compare what was held before the beat with what the table says since."""
        claims = {}
        if has_claims:
            async with db.peek() as conn:
                claims = {run.claim_key: run for run in await read_claims(conn, self._identity.id)}
        is_ticking = self._hooks.is_ticking()
        without_claim = [key for key in held if key not in claims]
        if without_claim:
            self._hooks.on_code_without_claim(without_claim)
        now = self._clock.now()
        before = now - timedelta(seconds=self._tick_interval)
        known = held | self._hooks.held()
        without_code = [
            run
            for key, run in claims.items()
            if key not in known and run.started_at is not None and not before < run.started_at <= now
        ]
        if without_code and not is_ticking:  # else the answer to their commit may still be on its way
            await finish(db, [Ended(run, self._given_back()) for run in without_code])
            self._hooks.on_changed()

    def _given_back(self) -> Outcome:
        return Outcome(OutcomeKind.INTERRUPTED, self._clock.now(), reason="claimed, but its code was never started")


def _left_before(now: datetime) -> datetime:
    return now - timedelta(seconds=LEFT_BEHIND_SECONDS)


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass
