"""The housekeeper: what a node does besides claiming and running, and in no hurry.

Cancellations that no wake-up told of, batches that a crash has left, the progress and output of what runs (at most one
write a second), pruning, and on PostgreSQL keeping small the tables that change with every run.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from jobrunner.errors import DatabaseError
from jobrunner.runtime.attempt import StopReason
from jobrunner.runtime.bulk import Bulk
from jobrunner.storage.runs import batches, retention
from jobrunner.storage.runs import live as runs
from jobrunner.storage.runs.compaction import Compactor

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from jobrunner.config import Settings
    from jobrunner.runtime.attempt import Attempt
    from jobrunner.runtime.clock import Clock
    from jobrunner.runtime.executors.launcher import Launcher
    from jobrunner.runtime.outage import Outage
    from jobrunner.runtime.slots import Slots
    from jobrunner.storage.database.database import Database

ROUND_SECONDS = 1.0
FIRST_PRUNE_SECONDS = (30.0, 90.0)
PRUNE_SECONDS = 600.0
SWEEP_SECONDS = 5.0
DOUBTED_JUMP_SECONDS, DOUBTED_FOR_SECONDS = 86400.0, 3600.0
MOST_NEWS = 16  # runs in one statement: 1 MiB of output at most, some 10 ms of the loop's time
CANCEL_CHECK_SECONDS = 0.25  # at most so often are cancellations looked for after a wake-up
COMPACT_SECONDS, COMPACT_AGAIN_SECONDS = 0.25, 5.0
"""How often a node that works looks whether the tables have grown; the latter where somebody keeps them in use."""


class Housekeeper:
    """Serves the attempts in `slots`, of the node that `node_id` names at that moment."""

    def __init__(
        self,
        db: Database,
        clock: Clock,
        outage: Outage,
        settings: Settings,
        slots: Slots,
        launcher: Launcher,
        node_id: Callable[[], str],
    ) -> None:
        self._db = db
        self._clock = clock
        self._outage = outage
        self._settings = settings
        self._slots = slots
        self._held = slots.held
        self._node_id = node_id
        self._launcher = launcher
        self._last_cancel_check = 0.0
        self._is_refusal_told = False

    def services(self) -> list[Coroutine[Any, Any, None]]:
        """Return all of it, each to be run until it is cancelled."""
        compaction = [] if self._db.is_sqlite else [self.compact()]
        bulk = Bulk(self._db, self._clock, self._outage, self._node_id)
        return [self.run(), self.prune(), self.sweep(), bulk.run(), *compaction]

    async def run(self) -> None:
        """Look after what runs, until cancelled."""
        while True:
            await self._clock.sleep(ROUND_SECONDS)
            self._launcher.look_after(self._clock.monotonic())
            if self._held:
                await self.stop_cancelled()
                await self._show_news()

    def should_check_cancellations(self) -> bool:
        """Say, at a wake-up, whether to look for cancellations now; the answer counts as a look."""
        now = self._clock.monotonic()
        if not self._held or now - self._last_cancel_check < CANCEL_CHECK_SECONDS:
            return False
        self._last_cancel_check = now
        return True

    async def stop_cancelled(self) -> None:
        """Tell the runs to stop that an operator has cancelled."""
        try:
            async with self._db.peek() as conn:
                asked = await runs.cancel_requested(conn, self._node_id())
        except Exception as error:  # noqa: BLE001 - the node goes on, and looks again in a second
            self._outage.dropped("cancellations could not be looked for", error)
            return
        for key, reason in asked:
            if key in self._held:
                self._held[key].stop(StopReason.CANCEL, reason or "cancelled by an operator")

    async def prune(self) -> None:
        """Delete what is old enough now and then, until cancelled; by itself, for a first time may take minutes.

        What a clock that has jumped ahead makes of an age is not believed for an hour: it may be set right, but what
        is deleted stays so.
        """
        days = self._settings.history_days, self._settings.failure_days
        offset = self._clock_offset()
        await self._clock.sleep(random.uniform(*FIRST_PRUNE_SECONDS))  # noqa: S311 - spreads load
        while True:
            before, offset = offset, self._clock_offset()
            if offset - before > DOUBTED_JUMP_SECONDS:
                await self._clock.sleep(DOUBTED_FOR_SECONDS)
                continue
            try:
                await retention.prune(self._db, self._clock.now(), *days, self._clock.sleep)
            except Exception as error:  # noqa: BLE001 - what is old can wait, and the next round tries again
                self._outage.dropped("what is old could not be pruned", error)
            await self._clock.sleep(PRUNE_SECONDS)

    async def sweep(self) -> None:
        """Look after batches that a crash has left unfinished, until cancelled."""
        after = 0
        while True:
            await self._clock.sleep(SWEEP_SECONDS)
            try:
                after = await batches.sweep(self._db, after, self._clock.now())
            except Exception as error:  # noqa: BLE001 - the next round tries again, here or elsewhere
                self._outage.dropped("open batches could not be looked after", error)

    async def compact(self) -> None:
        """Keep the tables small that change with every run, as long as any start, until cancelled."""
        compactor = Compactor(self._db)
        seen = 0
        pause = COMPACT_SECONDS
        while True:
            await self._clock.sleep(pause)
            if self._slots.begun == seen:
                continue
            seen, pause = self._slots.begun, COMPACT_SECONDS
            try:
                compacted = await compactor.compact()
            except Exception as error:  # noqa: BLE001 - it makes the node faster, and no more
                self._outage.dropped("the tables claims and worker_state could not be kept small", error)
                pause = COMPACT_AGAIN_SECONDS
                continue
            if compacted.in_use or compacted.refused:
                pause = COMPACT_AGAIN_SECONDS
            if compacted.refused and not self._is_refusal_told:
                self._is_refusal_told = True
                tables = " and ".join(compacted.refused)
                self._slots.warn(
                    f"{tables}: this user may not TRUNCATE, so that a transaction that is held open elsewhere slows"
                    " this node down; `jobrunner db grants --role NAME --for node` prints what it needs"
                )

    def _clock_offset(self) -> float:
        return self._clock.now().timestamp() - self._clock.monotonic()

    async def _show_news(self) -> None:
        """Write the progress and the output of what runs, as far as either is new."""
        telling = [news for attempt in list(self._held.values()) if (news := self._news_of(attempt)) is not None]
        try:
            for start in range(0, len(telling), MOST_NEWS):
                await self._show(telling[start : start + MOST_NEWS])
        except DatabaseError as error:
            self._outage.failed(error)

    def _news_of(self, attempt: Attempt) -> runs.News | None:
        """Return what is new of an attempt, if anything; its code has the context in its hands, and may break it."""
        try:
            context = attempt.context
            has_said = attempt.output.has_news
            if not has_said and context.latest_progress is None:
                return None
            output, lines = attempt.output.whole_lines() if has_said else (None, None)
            return runs.News(attempt.claim.run.claim_key, context.latest_progress, output, lines)
        except Exception as error:  # noqa: BLE001 - it is only shown, and must not end a node
            self._outage.dropped("output or progress of a run could not be shown", error)
            return None

    async def _show(self, some: list[runs.News]) -> None:
        """Write news; should the database refuse them for what is in them, each alone, and drop what it refuses."""
        try:
            async with self._db.write() as conn:
                written = await runs.show_news(conn, self._db.dialect, some)
        except DatabaseError:
            raise
        except Exception as error:  # noqa: BLE001 - it is only shown, and must not end a node
            if len(some) > 1:
                for each in some:
                    await self._show([each])
                return
            self._outage.dropped("output or progress of a run could not be shown", error)
            written = {some[0].claim}
        for each in some:
            if each.claim in written:
                self._note_shown(each)

    def _note_shown(self, news: runs.News) -> None:
        attempt = self._held.get(news.claim)
        if attempt is None:
            return
        if attempt.context.latest_progress is news.progress:
            attempt.context.latest_progress = None
        if news.output_lines is not None:
            attempt.output.shown_lines = news.output_lines
