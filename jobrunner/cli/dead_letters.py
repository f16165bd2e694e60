"""`jobrunner dead-letters`: the runs whose attempts are used up."""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobrunner.cli import context
from jobrunner.cli.causes import show_causes
from jobrunner.cli.context import Access, Actor, AsJson, DatabaseUrl, Limit, WorkerFilter
from jobrunner.cli.inputs import read_payload, require_one
from jobrunner.cli.layout import ERROR, Column, columns
from jobrunner.cli.output import Listing, age, note, say, show_json, show_one, show_rows
from jobrunner.cli.searching import Words, read_words, show_found
from jobrunner.errors import InvalidSetting, UsageError
from jobrunner.policy.arguments import LARGEST_ID
from jobrunner.policy.durations import parse_time
from jobrunner.policy.words import counted
from jobrunner.storage.reading.pages import letter_pages
from jobrunner.storage.reading.search import search_letters
from jobrunner.storage.reading.status import require_trace
from jobrunner.storage.runs import dead_letters as letters

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from jobrunner.storage.database.database import Database

app = typer.Typer(rich_markup_mode=None, help="List, show, replay and discard the runs whose attempts are used up.")
_STATUSES = ("open", "replayed", "discarded")

LetterId = Annotated[
    int, typer.Argument(metavar="LETTER", help="The letter's id.", min=1, max=LARGEST_ID, show_default=False)
]
LetterIds = Annotated[
    list[int] | None, typer.Argument(metavar="[LETTER]...", help="Ids of letters.", min=1, max=LARGEST_ID)
]
AllOf = Annotated[str | None, typer.Option("--worker", metavar="WORKER", help="All open letters of this worker.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Change nothing; show which letters it would be.")]


@app.command("list")
def list_letters(
    ctx: typer.Context,
    words: Words = None,
    of: WorkerFilter = None,
    status: Annotated[str, typer.Option(metavar="STATUS", help=f"One of {', '.join(_STATUSES)}.")] = "open",
    is_all: Annotated[bool, typer.Option("--all", help="Of every status.")] = False,
    is_by_error: Annotated[
        bool,
        typer.Option("--by-error", help="A line for each cause: how many died of it, and the command to replay them."),
    ] = False,
    limit: Limit = None,
    as_json: AsJson = False,
    database_url: DatabaseUrl = None,
) -> None:
    """List the dead letters, the newest first: the open ones.

    Terms say what is meant: worker:NAME or a pattern, since:, until: (when it died), error:, trigger:, key: and
    payload.FIELD:; status: instead of --status.
    """
    if status not in _STATUSES:
        raise UsageError(f"--status: {status!r} is none of {', '.join(_STATUSES)}")
    wanted = None if is_all else status
    is_said = any(word.startswith("status:") for word in words or ())
    worker, asked = read_words(words, of, "letters", status=None if is_said else wanted)

    if is_by_error and (wanted != "open" or not asked.is_empty):
        raise UsageError("--by-error is of the open letters, of all or of one worker; leave the other narrowing out")

    async def read(db: Database) -> None:
        async with db.peek() as conn:
            if worker is not None:
                await require_trace(conn, worker)
        if is_by_error:
            await show_causes(db, worker, limit, as_json=as_json)
            return
        async with db.peek() as conn:
            opened = await letters.count_open(conn, worker) if wanted in {None, "open"} and not as_json else None
        shown = [
            *columns("id", "worker"),
            *columns("run_id", run_id="run", importance=5),
            *columns("trigger", importance=7),
            *columns("attempts", importance=4),
            age("died_at", "died", context.now(), importance=8),
            *columns("died_at", died_at="at", importance=5),
            *columns("status", importance=6),
            *columns("replay_run_id", replay_run_id="replayed as", importance=7),
            Column("error", "error", _error, longest=ERROR),
            Column("payload", "payload", lambda row: row["payload"] or None, longest=80),
        ]
        if not asked.is_empty:
            await show_found(db, search_letters, asked, limit, shown, "no dead letters that fit", as_json=as_json)
            return
        listing = Listing(
            lambda conn, most: letters.list_letters(conn, worker=worker, status=wanted, limit=most),
            lambda: letter_pages(db, worker=worker, status=wanted),
            shown,
            empty="no dead letters" if is_all else f"no {status} dead letters",
        )
        await listing.show(db, limit, as_json=as_json)
        if opened is not None and opened.firings + opened.triggered:
            say(f"\n{show_open(opened)}")
            note(_what_to_do("LETTER"))

    context.with_database(ctx, database_url, read)


def show_open(opened: letters.OpenLetters) -> str:
    """Say how many letters are open, and apart how many of them are firings of schedules."""
    if opened.is_capped:
        return f"over {letters.MOST_COUNTED:,} open dead letters"
    all_of_them = counted(opened.firings + opened.triggered, "open dead letter")
    if not opened.firings:
        return all_of_them
    return f"{all_of_them} ({opened.firings} of schedules, {opened.triggered} triggered)"


def _error(row: Mapping[str, Any]) -> str:
    return f"{row['error_type']}: {row['error']}" if row["error_type"] else row["error"] or ""


@app.command("show")
def show(ctx: typer.Context, letter: LetterId, as_json: AsJson = False, database_url: DatabaseUrl = None) -> None:
    """Show one dead letter: its payload, and the error of every attempt."""

    async def read(db: Database) -> dict[str, Any]:
        async with db.read() as conn:
            return await letters.read_letter(conn, letter)

    found = context.with_database(ctx, database_url, read)
    show_one(found if as_json else {key: value for key, value in found.items() if key != "errors"}, as_json=as_json)
    if not as_json:
        say("\nattempts:")
        finished = Column("finished_at", "finished", _finished_at)
        shown = [*columns("attempt", "outcome"), finished, Column("error", "error", _error, longest=ERROR)]
        show_rows(found["errors"], shown, as_json=False, empty="none")
        if found["status"] == "open":
            note(_what_to_do(str(letter)))


def _what_to_do(letter: str) -> str:
    return (
        f"`jobrunner dead-letters replay {letter}` makes a new run of it, "
        f"`jobrunner dead-letters discard {letter}` closes it"
    )


def _finished_at(row: Mapping[str, Any]) -> datetime | None:
    try:
        return parse_time(str(row.get("finished_at")))
    except InvalidSetting:  # written by hand
        return None


@app.command("replay")
def replay(
    ctx: typer.Context,
    ids: LetterIds = None,
    worker: AllOf = None,
    payload: Annotated[
        str | None, typer.Option(metavar="JSON|@FILE|-", help="Take this payload instead of the letter's own.")
    ] = None,
    dry_run: DryRun = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Do not ask before more than the latest firing of a schedule runs again.")
    ] = False,
    actor: Actor = None,
    as_json: AsJson = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Make a new run of each letter and close it; named ones all or none."""
    chosen, who = _chosen(ids, worker), context.actor_of(actor)
    edited = read_payload(payload)

    async def work(db: Database) -> letters.Resolution:
        if worker is not None and not dry_run and not yes:
            await _ask_before_firings(db, worker)
        return await letters.replay(db, chosen, context.now(), who, payload=edited, dry_run=dry_run)

    done = context.with_database(ctx, database_url, work, Access.READ if dry_run else Access.WRITE)
    _show(done, "replay", dry_run=dry_run, as_json=as_json)


async def _ask_before_firings(db: Database, worker: str) -> None:
    """Ask whether a schedule's old firings shall all run again: most often the latest is all that is wanted."""
    async with db.peek() as conn:
        opened = await letters.count_open(conn, worker)
        latest = await letters.latest_firing(conn, worker)
    if opened.firings < 2 and not (opened.is_capped and latest is not None):
        return
    number = "all" if opened.is_capped else opened.firings
    what = f"{number} firings of the schedule of {worker}"
    alone = f"`jobrunner dead-letters replay {latest}` replays the latest alone"
    if sys.stdin is None or not sys.stdin.isatty():
        raise UsageError(f"this replays {what}, and there is nobody to ask; pass --yes, or {alone}")
    typer.confirm(f"This replays {what}; {alone}. Replay them all?", abort=True, err=True)


@app.command("discard")
def discard(
    ctx: typer.Context,
    ids: LetterIds = None,
    worker: AllOf = None,
    dry_run: DryRun = False,
    actor: Actor = None,
    as_json: AsJson = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Close letters without running anything; they are kept."""
    chosen, who = _chosen(ids, worker), context.actor_of(actor)

    async def work(db: Database) -> letters.Resolution:
        return await letters.discard(db, chosen, context.now(), who, dry_run=dry_run)

    done = context.with_database(ctx, database_url, work, Access.READ if dry_run else Access.WRITE)
    _show(done, "discard", dry_run=dry_run, as_json=as_json)


def _chosen(ids: list[int] | None, worker: str | None) -> letters.Chosen:
    advice = "give the ids of letters, or --worker WORKER for all open ones of a worker"
    require_one(bool(ids), worker is not None, advice)
    return letters.Chosen(tuple(dict.fromkeys(ids or ())), worker)


def _show(done: letters.Resolution, verb: str, *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        show_json([dataclasses.asdict(item) for item in done.resolved])
    else:
        begin = f"would {verb}" if dry_run else f"{verb}ed"
        for item in done.resolved:
            run = "" if item.run_id is None else f" as run {item.run_id}"
            say(f"{begin} letter {item.letter_id} of {item.worker}{run}")
        if not done.resolved:
            say(f"no open letters to {verb}")
    if done.held_back:
        held = ", ".join(str(letter) for letter in done.held_back[:10])
        stay = counted(len(done.held_back), "letter stays", "letters stay")
        note(f"{stay} open, since a waiting run has the key: {held}")
