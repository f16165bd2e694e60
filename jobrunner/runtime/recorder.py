"""The recorder: writes the outcomes of ended attempts, all that wait at that moment in one transaction.

Ends that are sure (`storage.flow`) are left to the ticker, which writes them with its next claims: see `take_sure`.
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
from jobrunner.storage import wakeups
from jobrunner.storage.dialect import first_line
from jobrunner.storage.finishes import Ended, Finished, finish
from jobrunner.storage.flow import is_sure
from jobrunner.telemetry import events as e

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from jobrunner.model.run import ClaimKey
    from jobrunner.runtime.outage import Outage
    from jobrunner.storage.database import Database

MOST_AT_ONCE = 1000
TRY_AGAIN_SECONDS = 5.0
_UNSTORABLE = "the database refused the attempt's texts or result; they are left out"


class Recorder:
    """Writes outcomes in batches; `on_written` is called with the claims whose slots are free."""

    def __init__(
        self, db: Database, outage: Outage, events: e.Events, on_written: Callable[[list[ClaimKey]], None]
    ) -> None:
        self._db = db
        self._outage = outage
        self._events = events
        self._on_written = on_written
        self._on_sure: Callable[[], None] | None = None
        self._waiting: list[Ended] = []
        self._sure: list[Ended] = []
        self._taken = 0
        self._is_writing = False
        self._put_off: dict[ClaimKey, asyncio.TimerHandle] = {}
        self._arrived = asyncio.Event()
        self._is_idle = asyncio.Event()
        self._is_idle.set()

    def leave_sure(self, on_sure: Callable[[], None]) -> None:
        """From now on leave sure ends to be taken; `on_sure` is called for each."""
        self._on_sure = on_sure

    def put(self, ended: Ended) -> None:
        """Hand over an ended attempt."""
        self._is_idle.clear()
        if self._on_sure is not None and is_sure(ended):
            self._sure.append(ended)
            self._on_sure()
        else:
            self._waiting.append(ended)
            self._arrived.set()

    def take_sure(self) -> list[Ended]:
        """Hand out the sure ends that wait; whoever takes them must `settle` them."""
        ended, self._sure = self._sure, []
        self._taken += len(ended)
        return ended

    def settle(self, taken: list[Ended], written: Collection[int]) -> None:
        """Take back sure ends: those `written` are done, the others go the long way."""
        self._taken -= len(taken)
        done = []
        for item in taken:
            if item.run.id in written:
                done.append(item.run.claim_key)
                self._events.emit(e.RunEnded(item.run, item.outcome, EndsRun.SUCCEEDED, None))
            else:
                self._waiting.append(item)
                self._arrived.set()
        if done:
            self._on_written(done)
        self._note_idle()

    def _note_idle(self) -> None:
        if not (self._waiting or self._sure or self._taken or self._is_writing or self._put_off):
            self._is_idle.set()

    def note_written(self, finished: Finished) -> None:
        """Tell of ends that a handler's own transaction has written, and free their slots."""
        self._tell(finished)
        self._on_written([run.claim_key for run, _ in finished.written])

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self._arrived.wait()
            batch, self._waiting = self._waiting[:MOST_AT_ONCE], self._waiting[MOST_AT_ONCE:]
            if not self._waiting:
                self._arrived.clear()
            self._is_writing = True
            await self._write(batch)
            self._is_writing = False
            done = [item.run.claim_key for item in batch if item.run.claim_key not in self._put_off]
            self._on_written(done)
            self._note_idle()

    async def _write(self, batch: list[Ended]) -> None:
        """Write a batch; should the database refuse it for what is in it, each alone, and then without its texts."""
        try:
            finished = await self._outage.until_it_works(lambda: finish(self._db, batch))
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

    def _put_off_writing(self, item: Ended, error: Exception) -> None:
        """Try again later what the database refuses whatever is left out: it is for the sake of other rows.

        The claim stands, and with it its slot: nobody else may run the work while its end is not written.
        """
        key = item.run.claim_key
        if key not in self._put_off:
            why = f"{type(error).__name__}: {first_line(error)}"
            self._events.emit(e.Warned(f"the end of run {item.run.id} of {item.run.worker} cannot be written: {why}"))
        self._put_off[key] = asyncio.get_running_loop().call_later(TRY_AGAIN_SECONDS, self._try_again, item)

    def _try_again(self, item: Ended) -> None:
        self._waiting.append(item)
        self._arrived.set()

    async def drain(self) -> None:
        """Wait until every outcome handed over so far is written or refused."""
        await self._is_idle.wait()

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
