"""`jobrunner trigger`: making a run."""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobrunner.cli import context
from jobrunner.cli.context import Access, AsJson, DatabaseUrl, WorkerName
from jobrunner.cli.inputs import read_duration, read_payload, read_priority, read_time
from jobrunner.cli.output import clean, note, say, say_folded, show_document, show_json
from jobrunner.cli.watching import Heard, show_end
from jobrunner.errors import DatabaseError, Refused, UsageError, WaitedTooLong
from jobrunner.policy.definitions import check_key
from jobrunner.policy.duplicates import CHOICES, KEEP, POSTPONE, REPLACE, check_duplicate
from jobrunner.policy.durations import show_seconds
from jobrunner.policy.showing import show_progress
from jobrunner.policy.words import show_time
from jobrunner.runtime.clock import SystemClock
from jobrunner.storage.reading.explain import why_waits
from jobrunner.storage.reading.status import read_due_time, read_live
from jobrunner.storage.records.history import read_history
from jobrunner.storage.runs.dead_letters import find_letter
from jobrunner.storage.runs.enqueue import Added, Request, enqueue_told
from jobrunner.storage.workers.payloads import refuse_misfit
from jobrunner.telemetry import tracing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from jobrunner.cli.watching import Row
    from jobrunner.storage.database.database import Database

app = typer.Typer(rich_markup_mode=None)
_FIRST_LOOK_SECONDS, _LONGEST_LOOK_SECONDS = 0.05, 1.0


@app.command("trigger")
def trigger(
    ctx: typer.Context,
    worker: WorkerName,
    payload: Annotated[
        str | None,
        typer.Option(metavar="JSON|@FILE|-", help="A JSON object, a file with one, or - for standard input."),
    ] = None,
    at: Annotated[str | None, typer.Option(metavar="TIME", help="When: ISO 8601; without a zone it is UTC.")] = None,
    delay: Annotated[
        str | None, typer.Option("--in", metavar="DURATION", help="When: such as 90s, 15m, 1h30m.")
    ] = None,
    key: Annotated[str | None, typer.Option(help="Make no second run while one with this key has not started.")] = None,
    key_scope: Annotated[
        str | None, typer.Option(metavar="waiting|live", help="live: while one with this key has not ended.")
    ] = None,
    on_duplicate: Annotated[
        str,
        typer.Option(
            metavar="|".join(CHOICES),
            help="What becomes of the waiting run with that key: it stays, takes this payload, or is put off by --in.",
        ),
    ] = KEEP,
    at_most: Annotated[
        str | None,
        typer.Option(metavar="DURATION", help="With postpone: no later than so long after the first trigger."),
    ] = None,
    priority: Annotated[str | None, typer.Option(help="LOW, NORMAL, HIGH or CRITICAL; else the worker's.")] = None,
    wait: Annotated[
        bool,
        typer.Option("--wait", help="Tell its output until it has ended, then its result; exit 1 unless it succeeded."),
    ] = False,
    wait_timeout: Annotated[
        str | None,
        typer.Option(
            "--timeout",
            "--wait-timeout",
            metavar="DURATION",
            help="With --wait: at most so long, such as 30 or 5m; exit 1 then, and the run stays.",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Start it even if disabled, paused, or waiting for another worker.")
    ] = False,
    as_json: AsJson = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Make a run of a worker, now or later.

    Prints the run's id; with a key that another run has, that run's.
    """
    now, seconds = context.now(), _wait_seconds(wait_timeout, wait=wait)
    waits_for: list[int] = []
    request = Request(
        worker=worker,
        payload=read_payload(payload),
        due_at=_due_at(at, delay, now),
        key=check_key(key),
        key_scope=_key_scope(key_scope, key),
        priority=None if priority is None else int(read_priority(worker, priority)),
        is_forced=force,
        waits_since=None if delay is None else now,
        on_duplicate=on_duplicate,
        at_most=_bound(on_duplicate, at_most, key, delay),
    )

    async def work(db: Database) -> dict[str, Any] | None:
        caller = tracing.in_environment(os.environ)
        with tracing.sending(tracing.tracer(), worker, caller) as sending:
            added = await _enqueue(db, replace(request, trace_context=sending.trace_context), now)
            run_id, is_new = added.run_id, added.is_new
            sending.sent([run_id])
        waits_for.extend([run_id] if wait else [])
        if not as_json:
            say_folded(
                f"run {run_id}" + ("" if is_new else f" (there already, with that key{_change(request, added)})")
            )
        elif not wait:
            show_json({"run_id": run_id, "worker": worker, "is_new": is_new})
        if is_new or wait:
            await _note_what_it_waits_for(db, request.worker, run_id)
        if not wait:
            return None
        ended = await _end_of(db, run_id, worker, seconds, is_quiet=as_json)
        async with db.peek() as conn:
            return {**ended, "dead_letter_id": await find_letter(conn, run_id)}

    with _telling_of(waits_for, worker):
        ended = context.with_database(ctx, database_url, work, Access.WRITE)
    if ended is not None and as_json:
        show_json(ended)
    elif ended is not None:
        _show_end(ended)
    if ended is not None and ended["ends_run"] != "succeeded":
        raise typer.Exit(1)


def _show_end(ended: dict[str, Any]) -> None:
    say_folded(show_end(ended))
    if ended["result"] is not None:
        say_folded(f"result: {show_document(ended['result'])}")
    if ended["dead_letter_id"] is not None:
        letter = ended["dead_letter_id"]
        say_folded(f"dead letter {letter}; `jobrunner dead-letters show {letter}` tells more")


@contextmanager
def _telling_of(waits_for: list[int], worker: str) -> Iterator[None]:
    """Say what becomes of the run that is waited for when the wait is interrupted."""
    try:
        yield
    except KeyboardInterrupt:
        for run_id in waits_for:
            note(_stays(run_id, worker))
        raise


def _wait_seconds(given: str | None, *, wait: bool) -> float | None:
    if given is not None and not wait:
        raise UsageError("--timeout needs --wait")
    return read_duration("--timeout", given)


def _stays(run_id: int, worker: str, after: str = "") -> str:
    """Say that a run goes on without whoever waited for it."""
    return (
        f"run {run_id} of {worker} has not ended{after}, and stays: `jobrunner runs --worker {worker}` shows it, "
        f"`jobrunner explain {worker}` says why it waits, `jobrunner admin cancel {run_id}` cancels it"
    )


def _due_at(at: str | None, delay: str | None, now: datetime) -> datetime | None:
    if at is not None and delay is not None:
        raise UsageError("--at and --in are both given; keep one")
    seconds = read_duration("--in", delay)
    return read_time("--at", at) if seconds is None else now + timedelta(seconds=seconds)


def _key_scope(scope: str | None, key: str | None) -> str:
    if scope is not None and scope not in {"waiting", "live"}:
        raise UsageError(f"--key-scope: {scope!r} is none of waiting, live")
    if scope is not None and key is None:
        raise UsageError("--key-scope needs --key")
    return scope or "waiting"


def _bound(on_duplicate: str, at_most: str | None, key: str | None, delay: str | None) -> timedelta | None:
    if on_duplicate not in CHOICES:
        raise UsageError(f"--on-duplicate: {on_duplicate!r} is none of {', '.join(CHOICES)}")
    if on_duplicate != KEEP and key is None:
        raise UsageError(f"--on-duplicate {on_duplicate} needs --key")
    if on_duplicate == POSTPONE and delay is None:
        raise UsageError("--on-duplicate postpone needs --in: by so much the run is put off")
    if on_duplicate != POSTPONE and at_most is not None:
        raise UsageError("--at-most goes with --on-duplicate postpone")
    seconds = read_duration("--at-most", at_most)
    return check_duplicate(on_duplicate, seconds, has_key=key is not None, has_delay=delay is not None)


def _change(request: Request, added: Added) -> str:
    """Say what became of the run that has the key, where more was asked for than to keep it."""
    if request.on_duplicate == KEEP:
        return ""
    if not added.is_changed:
        return "; nothing of it was changed"
    return "; it has this payload now" if request.on_duplicate == REPLACE else "; it is put off"


async def _enqueue(db: Database, request: Request, now: datetime) -> Added:
    await refuse_misfit(db, request.worker, request.payload)
    async with db.write() as conn:
        return await enqueue_told(conn, db.dialect, request, now)


async def _note_what_it_waits_for(db: Database, worker: str, run_id: int) -> None:
    """Say until when the run waits, if it is one for later, and why, in the gates' own words.

    Of a run that has started meanwhile nothing is said: its attempts are told first, by who waits. Who may only trigger
    is told nothing.
    """
    with suppress(DatabaseError):
        async with db.peek() as conn:
            due_at, timezone = await read_due_time(conn, run_id) or (context.now(), "UTC")
        why = await why_waits(db, run_id, context.now())
        async with db.peek() as conn:
            live = await read_live(conn, run_id)  # last, so that what was read before is of the same wait
        if live is None or live["first_started_at"] is not None:
            return
        if due_at > context.now():
            note(_is_due(run_id, due_at, timezone))
        if why is not None:
            note(f"{worker} waits: {why} (`jobrunner explain {worker}` tells more)")


def _is_due(run_id: int, due_at: datetime, timezone: str) -> str:
    return f"run {run_id} is due at {show_time(due_at, timezone)}"


async def _end_of(db: Database, run_id: int, worker: str, seconds: float | None, *, is_quiet: bool) -> dict[str, Any]:
    """Wait until the run has ended and return the history row of its last attempt.

    Unless it is quiet, its output and its progress are told as they are seen.

    Raises:
        WaitedTooLong: it has not ended after so many `seconds`; None: there is no end to the wait.
    """
    clock = SystemClock()
    began, pause = clock.monotonic(), _FIRST_LOOK_SECONDS
    teller = _Teller(is_quiet)
    while True:
        async with db.peek() as conn:
            live = await read_live(conn, run_id)  # before the history: a run is in one of the two at any time
            attempts = await read_history(conn, run_id=run_id, limit=1000)
            _, timezone = await read_due_time(conn, run_id) or (None, "UTC")
        teller.tell(live, attempts, timezone)
        if attempts and attempts[0]["ends_run"] is not None:
            return attempts[0]
        if live is None:
            raise Refused(f"run {run_id} is gone without an end in the history; was the database changed by hand?")
        left = pause if seconds is None else seconds - (clock.monotonic() - began)
        if left <= 0:
            raise WaitedTooLong(_stays(run_id, worker, f" after {show_seconds(seconds or 0.0)}"))
        await clock.sleep(min(pause, left))
        pause = min(pause * 1.5, _LONGEST_LOOK_SECONDS)


class _Teller:
    """Says what is new about a run: what its attempts say, how they end, and its progress."""

    def __init__(self, is_quiet: bool) -> None:
        self._is_quiet = is_quiet
        self._last_id = 0
        self._heard = Heard()
        self._shown = ""

    def tell(self, live: dict[str, Any] | None, attempts: list[dict[str, Any]], timezone: str) -> None:
        if self._is_quiet:
            return
        told = self._last_id
        for attempt in reversed(attempts):
            if attempt["id"] <= self._last_id:
                continue
            self._last_id = attempt["id"]
            self._say(attempt)
            if attempt["ends_run"] is None:
                say_folded(f"attempt {attempt['attempt']} {show_end(attempt)}")
        if live is not None and self._last_id > told and live["state"] == "pending":
            note(_is_due(live["id"], live["due_at"], timezone))
        if live is not None and live["fence"] is not None:
            self._say(live)
        progress = "" if live is None else show_progress(live["progress"])
        if progress and progress != self._shown:
            say(f"  {clean(progress)}")
            self._shown = progress

    def _say(self, row: Row) -> None:
        for line in self._heard.new_lines(row["fence"], row["output"]):
            say(f"  {line}")
