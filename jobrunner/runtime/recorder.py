"""The recorder: writes the outcomes that no turn of the fast path writes, all that wait at once in one transaction.

There is no delay that waits for more: while one batch is being written the next one gathers, so batches grow with load.
An outcome is held until its write is answered. While the database is away the recorder tries again with backoff and
tells of the outage once. A slot is free only when the end is written, or refused because the claim is no longer ours.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from jobrunner.errors import DatabaseGone
from jobrunner.model.run import EndsRun, OutcomeKind
from jobrunner.runtime.ends import tell_ends
from jobrunner.storage.database import wakeups
from jobrunner.storage.database.dialect import first_line
from jobrunner.storage.runs.finishes import Ended, Finished, finish
from jobrunner.telemetry import events as e

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from jobrunner.model.run import ClaimKey
    from jobrunner.runtime.outage import Outage
    from jobrunner.runtime.outbox import Outbox
    from jobrunner.storage.database.database import Database

MOST_AT_ONCE = 1000
TRY_AGAIN_SECONDS = 5.0
_UNSTORABLE = "the database refused the attempt's texts or result; they are left out"


class Recorder:
    """Writes outcomes in batches; `on_written` is called with the claims whose slots are free."""

    def __init__(
        self,
        db: Database,
        outage: Outage,
        events: e.Events,
        outbox: Outbox,
        on_written: Callable[[list[ClaimKey]], None],
    ) -> None:
        self.outbox = outbox
        self._db = db
        self._outage = outage
        self._events = events
        self._on_written = on_written
        self._put_off: dict[ClaimKey, asyncio.TimerHandle] = {}

    def settle_simple(self, taken: list[Ended], written: Collection[int]) -> None:
        """Tell of the simple ends that a turn has written, by their runs' ids, and free their slots."""
        done = self.outbox.settle(taken, written)
        for item in done:
            self._events.emit(e.RunEnded(item.run, item.outcome, EndsRun.SUCCEEDED, None, trace=item.trace))
        if done:
            self._on_written([item.run.claim_key for item in done])
            self.outbox.acknowledge(len(done))

    def note_written(self, finished: Finished, item: Ended) -> None:
        """Tell of the end of `item`, which its handler's own transaction has written, and free its slot."""
        self._tell(finished, [item])
        self._on_written([run.claim_key for run, _ in finished.written])

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            batch = await self.outbox.take_others(MOST_AT_ONCE)
            await self._write(batch)
            done = [item.run.claim_key for item in batch if item.run.claim_key not in self._put_off]
            self._on_written(done)
            self.outbox.acknowledge(len(done))

    async def _write(self, batch: list[Ended]) -> None:
        """Write a batch; should the database refuse it for what is in it, each alone, and then without its texts."""
        try:
            finished = await self._outage.until_it_works(lambda: self._finish(batch))
            for item in batch:
                self._put_off.pop(item.run.claim_key, None)
            self._tell(finished, batch)
            await self._offer(finished)
        except DatabaseGone:
            return  # there is nowhere to write it; the node leaves
        except Exception as error:  # noqa: BLE001 - one end that cannot be written must not keep others from it
            if len(batch) > 1:
                for item in batch:
                    await self._write([item])
            elif batch[0].outcome.reason == _UNSTORABLE:
                self._put_off_writing(batch[0], error)
            else:
                why = first_line(error)
                self._events.emit(e.Warned(f"{batch[0].run.worker}: an outcome could not be stored whole: {why}"))
                await self._write([_bare(batch[0])])

    async def _finish(self, batch: list[Ended]) -> Finished:
        began = self._outage.clock.monotonic()
        finished = await finish(self._db, batch)
        self._events.emit(e.Timed("finish", self._outage.clock.monotonic() - began))
        return finished

    def _put_off_writing(self, item: Ended, error: Exception) -> None:
        """Try again later what the database refuses whatever is left out: it is for the sake of other rows.

        The claim stands, and with it its slot: nobody else may run the work while its end is not written.
        """
        key = item.run.claim_key
        if key not in self._put_off:
            why = f"{type(error).__name__}: {first_line(error)}"
            self._events.emit(e.Warned(f"the end of run {item.run.id} of {item.run.worker} cannot be written: {why}"))
        self._put_off[key] = asyncio.get_running_loop().call_later(TRY_AGAIN_SECONDS, self.outbox.put_back, item)

    async def _offer(self, finished: Finished) -> None:
        """Wake the other nodes for runs that were given back: they may start there at once."""
        if any(decided.outcome.kind is OutcomeKind.INTERRUPTED for _, decided in finished.written):
            with suppress(Exception):  # they look by themselves, too
                async with self._db.write() as conn:
                    await wakeups.notify(self._db, conn)

    def _tell(self, finished: Finished, batch: Sequence[Ended] = ()) -> None:
        tell_ends(self._events, finished, batch)
        for run in finished.stale:
            self._events.emit(e.RunTakenAway(run))


def _bare(item: Ended) -> Ended:
    """Leave out of an outcome all that came from the handler."""
    outcome = replace(item.outcome, error=None, traceback=None, result=None, output=None, reason=_UNSTORABLE)
    if item.outcome.error is not None:
        outcome = replace(outcome, error=_UNSTORABLE)
    return replace(item, outcome=outcome)
