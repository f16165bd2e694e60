"""`jobrunner admin cancel`: ending runs before they end by themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from jobrunner.cli import context
from jobrunner.cli.context import Access, Actor, DatabaseUrl, Reason, Yes
from jobrunner.cli.inputs import ask_or_refuse, require_one
from jobrunner.cli.output import note, say, say_folded
from jobrunner.errors import RunNotFound
from jobrunner.model.run import RunState
from jobrunner.model.worker import Isolation
from jobrunner.policy.arguments import LARGEST_ID
from jobrunner.policy.words import counted, some_of
from jobrunner.storage.reading.pages import to_cancel
from jobrunner.storage.reading.status import MOST_COUNTED, chosen_names, count_live, read_holder, read_live
from jobrunner.storage.runs import cancelling

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jobrunner.storage.database.database import Database


def cancel(
    ctx: typer.Context,
    runs: Annotated[
        list[int] | None, typer.Argument(metavar="[RUN]...", help="The runs' ids.", min=1, max=LARGEST_ID)
    ] = None,
    worker: Annotated[
        str | None,
        typer.Option(
            "--worker",
            metavar="WORKER",
            help="All runs of this worker, or of those that fit a pattern such as 'send-*', that wait or run.",
        ),
    ] = None,
    yes: Yes = False,
    reason: Reason = None,
    actor: Actor = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Cancel runs: one that waits ends at once, one that runs is told to stop.

    If one of the ids is not that of a live run, nothing is cancelled. More than one run of --worker is asked about
    first.
    """
    require_one(
        bool(runs), worker is not None, "give the ids of runs, or --worker WORKER for all live ones of a worker"
    )
    canceller = _Canceller(context.actor_of(actor), reason)

    async def work(db: Database) -> None:
        if worker is None:
            await canceller.cancel_named(db, list(dict.fromkeys(runs or ())))
        else:
            await canceller.cancel_all(db, worker, yes)

    context.with_database(ctx, database_url, work, Access.WRITE)


class _Canceller:
    """Cancels run after run, each in a transaction of its own, and says so."""

    def __init__(self, actor: str, reason: str | None) -> None:
        self._actor = actor
        self._reason = reason
        self._asked: set[int] = set()

    async def cancel_named(self, db: Database, ids: Sequence[int]) -> None:
        async with db.peek() as conn:
            for run_id in ids:
                if await read_live(conn, run_id) is None:
                    raise RunNotFound(run_id)
        for run_id in ids:
            await self._cancel(db, run_id)

    async def cancel_all(self, db: Database, worker: str, yes: bool) -> None:
        """Cancel those there are now, of a pattern after a yes where they are several; what comes meanwhile stays."""
        async with db.peek() as conn:
            names = await chosen_names(conn, db.dialect, [worker])
            live = await count_live(conn, db.dialect, names)
        whose = some_of(names)
        if live > 1 and "*" in worker and not yes:
            number = f"more than {MOST_COUNTED:,} runs" if live > MOST_COUNTED else counted(live, "run")
            ask_or_refuse("cancel", f"{number} of {whose}")
        for name in names:
            await self._cancel_of(db, name)
        if not self._asked:
            say_folded(f"no run of {whose} waits or runs")

    async def _cancel_of(self, db: Database, worker: str) -> None:
        newest: int | None = None
        while True:
            async with db.peek() as conn:
                newest, found = await to_cancel(conn, worker, newest)
            new = [run_id for run_id in found if run_id not in self._asked]
            if not new:
                break
            for run_id in new:
                await self._cancel(db, run_id)

    async def _cancel(self, db: Database, run_id: int) -> None:
        self._asked.add(run_id)
        try:
            state = await cancelling.cancel(db, run_id, context.now(), self._actor, self._reason)
        except RunNotFound:
            note(f"run {run_id} has ended meanwhile")
            return
        if state is RunState.PENDING:
            say(f"cancelled run {run_id}")
            return
        say(f"told run {run_id} to stop")
        async with db.peek() as conn:
            holder = await read_holder(conn, run_id)
        if holder is not None and holder["isolation"] == Isolation.THREAD:
            note(
                f"run {run_id} is a thread, which cannot be killed: it goes on and keeps its place until its code asks "
                f"`run.should_stop` or ends. If it never does, stop its node (pid {holder['pid']} on "
                f"{holder['hostname']}): the run then ends cancelled"
            )
