"""The tick loop: write what has ended, claim what is due, start it, sleep until there is something to do.

The loop sleeps until the next due time, a wake-up or `tick_interval`, whichever is first. A wake-up is a free slot, a
trigger of this process, or word from the database that someone else changed something. From PostgreSQL such word may
come a moment before the change it tells of can be seen by us, or be throttled; so the loop looks once more shortly
after each.

A pass begins with turns of the fast path (`storage.turns.turn`) as long as there is something for it: simple ends, or
eligible workers known from the last look. Under load turns and handlers alternate: while the database works for one
half of the slots, the code of the other half is started and runs. What the turns leave goes the long way: a look, and
then one more turn if all that may start is eligible, or a claim.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from jobrunner.errors import DatabaseError, FastPathRefused
from jobrunner.runtime.fast_path import LOCKED_PAUSE_SECONDS, FastPathKnowledge
from jobrunner.storage.database.wakeups import RESCAN_AFTER_SECONDS
from jobrunner.storage.runs.claims import Claim, Claimed, Nothing, Passed, claim_due, warm_up
from jobrunner.storage.runs.facts import read_due
from jobrunner.storage.runs.looks import look
from jobrunner.storage.turns.fast_path import open_fast_path
from jobrunner.storage.turns.turn import NOBODY, Turned, claims_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from jobrunner.policy.fast_path import Eligible
    from jobrunner.runtime.aside import SetAside
    from jobrunner.runtime.clock import Clock
    from jobrunner.runtime.outage import Outage
    from jobrunner.runtime.recorder import Recorder
    from jobrunner.runtime.timekeeper import Timekeeper
    from jobrunner.storage.database.database import Database
    from jobrunner.storage.runs.finishes import Ended
    from jobrunner.storage.runs.looks import Claimer, Look
    from jobrunner.storage.turns.fast_path import FastPath

MOST_TRIED_ALONE = 1000
MOST_A_TURN = 250
"""With 500 slots, 19,000 runs a second instead of 15,000 with all of them in one turn: the halves overlap."""


class Ticker:
    """Claims and starts; `start` is called with each claim, `tell` with what an operator should know.

    `timed` is called with the name of each part of the work that was done, and when it began on the monotonic clock.

    `free_slots` says how many runs the node can take, None when it must not claim.
    """

    def __init__(
        self,
        db: Database,
        clock: Clock,
        outage: Outage,
        claimer: Claimer,
        recorder: Recorder,
        tick_interval: float,
        free_slots: Callable[[], int | None],
        start: Callable[[Claim], None],
        aside: SetAside,
        timekeeper: Timekeeper,
        tell: Callable[[str], None],
        timed: Callable[[str, float], None] = lambda _what, _since: None,
    ) -> None:
        self._db = db
        self._clock = clock
        self._outage = outage
        self._claimer = claimer
        self._recorder = recorder
        self._outbox = recorder.outbox
        self._fast_path = open_fast_path(db, asks_time=claimer.here.asks_time)
        if self._fast_path is not None:
            self._outbox.keep_simple(self.wake)
        self._tick_interval = tick_interval
        self._free_slots = free_slots
        self._start = start
        self._aside = aside
        self._timekeeper = timekeeper
        self._tell = tell
        self._timed = timed
        self._known = FastPathKnowledge()
        self._gave_runs = False
        self._woken = asyncio.Event()
        self._second_look: asyncio.TimerHandle | None = None
        self.last_tick_at: datetime | None = None
        self.came_round_at = clock.monotonic()
        """When the loop was last seen going round, whether or not the database could be used."""
        self.ticks = 0
        self.found_nothing = asyncio.Event()
        self._at_rest = asyncio.Event()
        self._at_rest.set()

    @property
    def is_ticking(self) -> bool:
        """Say whether a pass is under way, and with it perhaps a claim that nobody knows of yet."""
        return not self._at_rest.is_set()

    async def at_rest(self) -> None:
        """Wait for the end of the pass that is under way, if there is one."""
        await self._at_rest.wait()

    async def warm_up(self) -> None:
        """Have ready, before the first tick, what a tick needs."""
        now = self._clock.now()
        await warm_up(self._db, self._claimer, now)
        if self._fast_path is not None:
            try:
                await self._fast_path.turn(self._claimer.node_id, now, 1, NOBODY, ())
            except FastPathRefused as error:
                self._do_without_fast_path(error)

    def _do_without_fast_path(self, error: FastPathRefused) -> None:
        self._fast_path = None
        self._outbox.keep_none()
        self._tell(f"all work goes the long way, which is slower under load: {error}")

    def claim_as(self, claimer: Claimer) -> None:
        """Claim in another name from now on."""
        self._claimer = claimer
        self._known.forget()

    def note_round(self) -> None:
        """Note that the loop goes round: the heartbeat vouches for no node whose does not."""
        self.came_round_at = self._clock.monotonic()

    def wake(self) -> None:
        """Tick as soon as possible."""
        self._woken.set()

    def wake_from_outside(self, *, may_be_early: bool) -> None:
        """Tick now; if word may have come before its change can be seen, once more a moment later."""
        self._woken.set()
        if may_be_early and self._second_look is None:
            self._second_look = asyncio.get_running_loop().call_later(RESCAN_AFTER_SECONDS, self._look_again)

    def _look_again(self) -> None:
        self._second_look = None
        self._woken.set()

    async def run(self) -> None:
        """Tick until cancelled. What has ended by then, or ends later, is left to the recorder."""
        try:
            await self._go_on()
        finally:
            self._outbox.keep_none()

    async def _go_on(self) -> None:
        failures = 0
        while True:
            self.note_round()
            self._known.pass_begins(is_worth_a_turn=self._gave_runs or self._woken.is_set())
            self._woken.clear()
            try:
                pause = await self.tick()
            except DatabaseError as error:
                failures += 1
                self.note_round()
                self._outage.failed(error)
                await self._outage.pause(failures)
                continue
            failures = 0
            if self._free_slots() is not None:
                pause = min(pause, self._timekeeper.seconds_left)
            if pause > 0:
                await self._clock.wait(self._woken, pause)

    async def _go_on_without(self, error: Exception) -> float:
        """Find whose rows make a pass fail, by a pass for each worker alone, and set them aside.

        Raises:
            Exception: `error`, where it is nobody's.
        """
        self._known.forget()
        async with self._db.peek() as conn:
            due = await read_due(conn, self._db.dialect, self._clock.now(), MOST_TRIED_ALONE)
        is_found = False
        for name in sorted(due.names - self._aside.names):
            free = self._free_slots()
            if not free or free < 0:
                return self._tick_interval if is_found else LOCKED_PAUSE_SECONDS
            try:
                claimed = await claim_due(self._db, self._claimer, free, self._clock.now, only=name)
            except DatabaseError:
                raise
            except Exception as own:  # noqa: BLE001 - that is what is looked for
                self._aside.add(name, own)
                is_found = True
            else:
                self._start_all(claimed.claims)
        if not is_found:
            raise error
        return 0.0

    async def tick(self) -> float:
        """Do one pass; return for how many seconds there is nothing to do."""
        self._at_rest.clear()
        began = self._clock.monotonic()
        try:
            return await self._pass()
        except DatabaseError:
            raise
        except Exception as error:  # noqa: BLE001 - one worker's rows, as a rule: the others go on
            return await self._go_on_without(error)
        finally:
            self._at_rest.set()
            self._timed("tick", began)

    async def _pass(self) -> float:
        self.ticks += 1
        if self._free_slots() is not None:
            await self._timekeeper.before_claims(self._claimer.node_id)
        self._gave_runs = self._fast_path is not None and await self._take_turns(self._fast_path)
        free = self._free_slots()
        is_look_due = free is not None and self._timekeeper.is_look_due
        if is_look_due and (self._gave_runs or not free):  # no search is to follow that could ask along
            await self._timekeeper.look(self._claimer.node_id)
        if self._gave_runs:
            return 0.0
        if not free or free < 0:
            self.last_tick_at = self._clock.now()
            return self._tick_interval
        rest = self._known.seconds_of_rest(self._clock.now(), self._clock.monotonic())
        if rest is not None and not is_look_due:
            if self._known.is_at_rest:
                self.found_nothing.set()
            return min(rest, self._tick_interval)
        return await self._go_long_way(free, is_look_due)

    async def _go_long_way(self, free: int, is_look_due: bool) -> float:
        """Look for what turns have left, and claim it; return for how many seconds there is nothing to do."""
        is_all_looked_at = self._known.is_at_rest or not self._known.settled
        claimed = await self._claim(free, is_look_due)
        self._outage.worked()
        self.last_tick_at = self._clock.now()
        if isinstance(claimed, Claimed):
            self._known.learn(claimed.planned)
        self._start_all(claimed.claims)
        was_set_right = is_look_due and await self._look(claimed.is_ahead if isinstance(claimed, Nothing) else None)
        if claimed.claims or was_set_right:
            self._gave_runs = bool(claimed.claims)
            return 0.0
        if isinstance(claimed, Passed):
            return LOCKED_PAUSE_SECONDS
        if not is_all_looked_at:
            self._gave_runs = True  # or so it may be: the next pass is to take a turn
            return 0.0
        self.found_nothing.set()
        next_due_at = claimed.next_due_at if isinstance(claimed, Nothing) else None
        if next_due_at is None:
            return self._tick_interval
        return min((next_due_at - self._clock.now()).total_seconds(), self._tick_interval)

    async def _claim(self, free: int, is_looking: bool) -> Claimed | Passed | Nothing:
        """Look, and claim what may start: by a turn if all of it is eligible."""
        seen = await look(
            self._db,
            self._claimer,
            free,
            self._clock.now(),
            is_looking=is_looking,
            aside=self._aside.names,
            settled=self._known.settled,
        )
        if self._fast_path is not None and seen.is_all_eligible:
            claims = await self._turn_after(self._fast_path, seen, free)
            if claims:
                return Claimed(claims)
        began = self._clock.monotonic()
        claimed = await claim_due(self._db, self._claimer, free, self._clock.now, seen, self._aside.names)
        self._timed("claim", began)
        is_nothing_due = isinstance(claimed, Nothing)
        self._known.looked(self._clock.monotonic(), claimed.eligible, is_nothing_due=is_nothing_due)
        return claimed

    async def _turn_after(self, fast_path: FastPath, seen: Look, free: int) -> tuple[Claim, ...]:
        """Take a turn for those that a look found eligible."""
        if seen.eligible is None:
            return ()
        self._known.looked(self._clock.monotonic(), seen.eligible, is_nothing_due=False)
        try:
            turned = await self._turn(fast_path, seen.eligible, [], free)
        except DatabaseError:
            raise
        except Exception:  # noqa: BLE001 - a number in some row that is too large, say
            return ()  # the long way meets it again, and then it is known whose it is
        return claims_of(turned, seen.eligible)

    async def _look(self, is_ahead: bool | None) -> bool:
        """Look for what a clock that was wrong has left behind, unless the search for due work has asked along.

        Say whether anything was set right, and may be due.
        """
        if is_ahead is False:
            self._timekeeper.looked()
            return False
        return await self._timekeeper.look(self._claimer.node_id)

    async def _take_turns(self, fast_path: FastPath) -> bool:
        """Take turns while there is something for them; say whether they gave runs, so that there may be more.

        The runs of a turn are started when the next turn has been sent off.
        """
        gave_runs = False
        claims: tuple[Claim, ...] = ()
        while True:
            if claims and self._timekeeper.is_look_due:
                self._start_all(claims)
                return True
            slots = self._free_slots()
            free = (slots or 0) - len(claims)
            eligible = self._known.next_turn(self._clock.now(), free, may_claim=slots is not None)
            ended = self._outbox.take_simple()
            if not ended and (eligible is None or free <= 0):
                self._start_all(claims)
                return gave_runs
            if eligible is not None:
                self._known.turn_sent(self._clock.monotonic())
            turn = asyncio.ensure_future(self._turn(fast_path, eligible, ended, min(free, MOST_A_TURN - len(ended))))
            asyncio.get_running_loop().call_soon(self._start_all, claims)  # when the turn has begun
            turned = await turn
            self._outage.worked()
            self.last_tick_at = self._clock.now()
            self.note_round()
            if eligible is None or not turned.runs:
                return gave_runs
            claims = claims_of(turned, eligible)
            gave_runs = True

    def _start_all(self, claims: tuple[Claim, ...]) -> None:
        for claim in claims:
            self._start(claim)

    async def _turn(self, fast_path: FastPath, eligible: Eligible | None, ended: list[Ended], most: int) -> Turned:
        turned = Turned(has_other=True)
        began = self._clock.monotonic()
        try:
            turned = await fast_path.turn(self._claimer.node_id, self._clock.now(), most, eligible, ended)
            if eligible is not None:
                self._timed("claim", began)
            if ended:
                self._timed("finish", began)
        except DatabaseError:
            raise
        except FastPathRefused as error:
            self._do_without_fast_path(error)
        except Exception:
            # The database refused what is in one of the outcomes: the long way writes each alone, and says so.
            if not ended:
                raise
        finally:
            self._recorder.settle_simple(ended, turned.written)
            self._known.turn_came_back(eligible, turned)
        return turned

    async def close(self) -> None:
        """Forget a planned second look."""
        if self._second_look is not None:
            self._second_look.cancel()
        if self._fast_path is not None:
            await self._fast_path.close()
