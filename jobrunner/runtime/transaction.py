"""`run.transaction()`: a handler's writes and the end of its run, committed together.

When the block is left without an error the run has succeeded, with the result set by `run.set_result`, and what the
handler does after that no longer matters to it: the attempt ends when the handler has returned, but nothing more is
written. An error inside the block rolls back the handler's writes and leaves the end to the attempt, as without it.

A commit whose answer is lost, or during which the handler is cancelled, may have been written. The attempt then ends
as any that raised: finishing finds the claim gone and writes nothing, or finds it there and nothing was committed.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from jobrunner.errors import Refused
from jobrunner.model.run import Outcome, OutcomeKind
from jobrunner.runtime.results import storable_result
from jobrunner.storage.runs.finishes import Ended, Finished
from jobrunner.storage.runs.transaction import finishing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from jobrunner.runtime.attempt import Attempt
    from jobrunner.runtime.clock import Clock
    from jobrunner.storage.database.database import Database
    from jobrunner.storage.runs.transaction import AsyncConnection

_inside: ContextVar[bool] = ContextVar("jobrunner_inside_transaction", default=False)


def refuse_inside_transaction(db: Database) -> None:
    """Refuse, instead of waiting for ever: on SQLite a transaction holds the only connection that writes.

    Raises:
        Refused: this is the block of a `run.transaction()`.
    """
    if db.is_sqlite and _inside.get():
        raise Refused("inside run.transaction() SQLite can be written through its connection only; pass connection=")


@asynccontextmanager
async def open_transaction(db: Database, attempt: Attempt, clock: Clock) -> AsyncIterator[AsyncConnection]:
    """See `RunContext.transaction`."""
    claim, context = attempt.claim, attempt.context
    if context.finished is not None:
        raise Refused("the run has ended in a transaction already; a run has one end")
    if _inside.get():
        raise Refused("run.transaction() is open already")

    def end() -> Ended:
        result, remark = storable_result(context.result)
        outcome = Outcome(
            OutcomeKind.SUCCEEDED,
            clock.now(),
            duration_ms=max(0, round((clock.monotonic() - attempt.began) * 1000)),
            result=result,
            reason=remark,
            output=context.output.text(),
        )
        return Ended(claim.run, outcome, claim.config)

    def note(finished: Finished) -> None:
        context.finished = finished

    token = _inside.set(True)
    try:
        async with finishing(db, claim.run, end, note) as connection:
            yield connection
    finally:
        _inside.reset(token)
