"""`jobrunner admin enable`, `disable`, `pause` and `resume`: of one worker, of several, of a pattern, of all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from jobrunner.cli import context
from jobrunner.cli.context import Access, Actor, DatabaseUrl, Reason, Yes
from jobrunner.cli.inputs import ask_or_refuse, read_duration, read_time, require_one
from jobrunner.cli.output import note, say_folded, short
from jobrunner.errors import UsageError, WorkerNotFound
from jobrunner.policy.missed import show_end_of_pause
from jobrunner.policy.switches import end_of_pause
from jobrunner.policy.words import counted, show_time, some_of
from jobrunner.storage.reading.status import all_names, chosen_names
from jobrunner.storage.workers import switching

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from jobrunner.model.worker import WorkerState
    from jobrunner.storage.database.database import Database

Workers = Annotated[
    list[str] | None,
    typer.Argument(metavar="[WORKER]...", help="The workers' names, or patterns such as 'send-*'."),
]
All = Annotated[bool, typer.Option("--all", help="Every worker there is.")]


def enable(
    ctx: typer.Context,
    names: Workers = None,
    is_all: All = False,
    yes: Yes = False,
    reason: Reason = None,
    actor: Actor = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Enable workers: zero the failure streak, close the circuit."""
    chosen = _Chosen(names, is_all, yes, "enable")
    chosen.switch(ctx, database_url, actor, switching.enabling(reason), "enabled")


def disable(
    ctx: typer.Context,
    names: Workers = None,
    is_all: All = False,
    yes: Yes = False,
    reason: Reason = None,
    actor: Actor = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Disable workers: nothing of them starts until they are enabled; what runs may end.

    One that an operator has disabled before keeps its reason, unless another is given.
    """
    chosen = _Chosen(names, is_all, yes, "disable")
    chosen.switch(ctx, database_url, actor, switching.disabling(reason), "disabled")


def pause(
    ctx: typer.Context,
    names: Workers = None,
    is_all: All = False,
    duration: Annotated[str | None, typer.Option("--for", metavar="DURATION", help="So long, such as 2h.")] = None,
    until: Annotated[str | None, typer.Option(metavar="TIME", help="Until then: ISO 8601, UTC without a zone.")] = None,
    yes: Yes = False,
    reason: Reason = None,
    actor: Actor = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Pause workers; without --for and --until, until they are resumed."""
    end = _pause_end(duration, until, context.now())
    chosen = _Chosen(names, is_all, yes, f"pause {show_end_of_pause(end)}:")
    switch = switching.pausing(end, reason, is_length=duration is not None)
    chosen.switch(ctx, database_url, actor, switch, f"paused {show_end_of_pause(end)}:")


def _pause_end(duration: str | None, until: str | None, now: datetime) -> datetime:
    if duration is not None and until is not None:
        raise UsageError("--for and --until are both given; keep one")
    return end_of_pause(now, read_duration("--for", duration), read_time("--until", until))


def resume(
    ctx: typer.Context,
    names: Workers = None,
    is_all: All = False,
    yes: Yes = False,
    reason: Reason = None,
    actor: Actor = None,
    database_url: DatabaseUrl = None,
) -> None:
    """End the pause of workers now."""
    chosen = _Chosen(names, is_all, yes, "resume")
    chosen.switch(ctx, database_url, actor, switching.resuming(reason), "resumed")


class _Chosen:
    """The workers that are meant; if one of the names or patterns is unknown, nothing is changed."""

    def __init__(self, given: Sequence[str] | None, is_all: bool, yes: bool, asked: str) -> None:
        require_one(
            bool(given), is_all, "give the names of workers or a pattern such as 'send-*', or --all for every one"
        )
        self._given = given
        self._yes = yes
        self._asked = asked

    def switch(
        self,
        ctx: typer.Context,
        database_url: str | None,
        actor: str | None,
        switch: switching.Switch,
        said: str,
    ) -> None:
        """Ask if that is more than one worker, then turn the switch of each, and say so."""
        who = context.actor_of(actor)

        async def work(db: Database) -> None:
            async with db.peek() as conn:
                if self._given:
                    names = await chosen_names(conn, db.dialect, self._given)
                else:
                    names = await all_names(conn)
            if not names:
                say_folded("there is no worker")
                return
            is_spelled_out = self._given is not None and not any("*" in word for word in self._given)
            if len(names) > 1 and not (self._yes or is_spelled_out):
                ask_or_refuse(self._asked, _named(names))
            done: dict[str, WorkerState] = {}
            for place in range(0, len(names), switching.MOST_AT_ONCE):
                some = names[place : place + switching.MOST_AT_ONCE]
                done |= await switching.switch_some(db, some, context.now(), who, switch)
            if not done:
                raise WorkerNotFound(names[0])
            say_folded(f"{said} {_named(list(done))}{_what_now(switch, done)}")
            if len(done) < len(names):
                note(f"removed meanwhile, and left as they were: {some_of(sorted({*names} - {*done}))}")

        context.with_database(ctx, database_url, work, Access.WRITE)


def _what_now(switch: switching.Switch, done: Mapping[str, WorkerState]) -> str:
    """Say of one worker that was enabled what to expect of it."""
    if switch.action != "enable" or len(done) != 1:
        return ""
    (state,) = done.values()
    said = [] if state.next_run_at is None else [f"next due {show_time(state.next_run_at)}"]
    if state.last_error and state.last_run_outcome != "succeeded":
        said.append(f"its last run {str(state.last_run_outcome).replace('_', ' ')}: {short(state.last_error, 100)}")
    return f"; {'; '.join(said)}" if said else ""


def _named(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{counted(len(names), 'worker')}: {some_of(names)}"
