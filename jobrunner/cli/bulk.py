"""`jobrunner bulk`: the same done to all runs or letters that fit a filter; shown first, then durable."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobrunner.cli import context
from jobrunner.cli.context import Access, Actor, AsJson, DatabaseUrl, Limit, Reason, Yes
from jobrunner.cli.inputs import ask_or_refuse
from jobrunner.cli.layout import WHOLE, Column, columns
from jobrunner.cli.output import note, say, show_json, show_one, show_rows
from jobrunner.cli.searching import filter_text
from jobrunner.policy.arguments import LARGEST_ID
from jobrunner.policy.durations import show_seconds
from jobrunner.policy.words import counted
from jobrunner.runtime.clock import SystemClock
from jobrunner.storage import bulk

if TYPE_CHECKING:
    from jobrunner.storage.database.database import Database

app = typer.Typer(
    rich_markup_mode=None, help="Cancel runs, replay or discard dead letters: all that fit a filter, at a rate."
)
_LOOK_SECONDS = 1.0
_WHAT = {"cancel": "live run", "replay": "open letter", "discard": "open letter"}
_DONE = {"cancel": "cancelled", "replay": "replayed", "discard": "discarded"}

Terms = Annotated[
    list[str],
    typer.Argument(
        metavar="TERM...", help="What is meant, such as worker:send-* error:timeout since:2h.", show_default=False
    ),
]
Rate = Annotated[float, typer.Option("--rate", metavar="NUMBER", help="At most so many a second.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Change nothing; show how many it would be, and the newest.")]
Detach = Annotated[bool, typer.Option("--detach", help="Leave the work to the nodes, and return at once.")]
BulkId = Annotated[
    int, typer.Argument(metavar="BULK", help="The operation's id.", min=1, max=LARGEST_ID, show_default=False)
]


def _add(action: str, about: str) -> None:
    """Add the command that does `action`; what the three take is the same."""

    @app.command(action, help=about)
    def command(
        ctx: typer.Context,
        terms: Terms,
        rate: Rate = bulk.DEFAULT_RATE,
        reason: Reason = None,
        yes: Yes = False,
        dry_run: DryRun = False,
        detach: Detach = False,
        actor: Actor = None,
        as_json: AsJson = False,
        database_url: DatabaseUrl = None,
    ) -> None:
        order = _Order(action, filter_text(terms), rate, reason, context.actor_of(actor), yes, dry_run, detach)
        order.give(ctx, database_url, as_json=as_json)


_OF_LETTERS = "worker:, since:, until:, error:, trigger:, key:, id:, payload.FIELD:"
_add(
    "cancel",
    "Cancel the live runs that fit: worker:, state:, trigger:, node:, key:, priority:, attempt:, payload.FIELD:.",
)
_add("replay", f"Replay the open letters that fit: {_OF_LETTERS}.")
_add("discard", f"Discard the open letters that fit: {_OF_LETTERS}.")


@dataclass(frozen=True, slots=True)
class _Order:
    """An operation that is asked for: shown, confirmed, written down, and worked at."""

    _action: str
    _text: str
    _rate: float
    _reason: str | None
    _actor: str
    _is_sure: bool
    _is_dry: bool
    _is_detached: bool

    def give(self, ctx: typer.Context, database_url: str | None, *, as_json: bool) -> None:
        access = Access.READ if self._is_dry else Access.WRITE
        found = context.with_database(ctx, database_url, self._give, access)
        if as_json:
            show_json(found)
        elif "id" in found:
            say(_summary(found))

    async def _give(self, db: Database) -> dict[str, Any]:
        now = context.now()
        seen = await bulk.preview(db, self._action, self._text, now, now.astimezone().replace(tzinfo=None))
        what = _many(self._action, seen.count)
        if self._is_dry or not seen.count:
            self._show(seen, what)
            return {"action": self._action, "filter": self._text, "expected": seen.count}
        if not self._is_sure:
            if sys.stdin is not None and sys.stdin.isatty():
                self._show(seen, what)
            ask_or_refuse(
                self._action, f"{what} at {self._rate:g} a second, about {show_seconds(seen.count / self._rate)}"
            )
        bulk_id = await bulk.begin(db, seen, now, self._actor, reason=self._reason, rate=self._rate)
        if not self._is_detached:
            await self._work(db, bulk_id)
        async with db.peek() as conn:
            return await bulk.read_operation(conn, bulk_id)

    def _show(self, seen: bulk.Preview, what: str) -> None:
        what = f"at least {what}" if seen.is_cut else what
        note(f"{what} fit {self._text}{':' if seen.examples else ''}")
        for row in seen.examples:
            note(f"  {row['id']} {row['worker']} {row.get('error') or row.get('state') or ''}"[:200])
        if seen.count > len(seen.examples) > 0:
            note(f"  and {'many' if seen.count > bulk.MOST_COUNTED else seen.count - len(seen.examples)} more")

    async def _work(self, db: Database, bulk_id: int) -> None:
        """Work at it here; or, where a node was faster, look on until it has ended."""
        note(f"bulk operation {bulk_id}; Ctrl-C leaves it to the nodes, `jobrunner bulk stop {bulk_id}` stops it")
        holder, clock = f"{self._actor} pid {os.getpid()}", SystemClock()
        while True:
            row = await bulk.take(db, holder, context.now(), bulk_id)
            if row is not None:
                await bulk.BulkWorker(db, row, clock.now, clock.sleep).run(_Progress())
            async with db.peek() as conn:
                if (await bulk.read_operation(conn, bulk_id))["state"] != "running":
                    return
            await clock.sleep(_LOOK_SECONDS)


class _Progress:
    """Says how far an operation has come, on a terminal only."""

    def __call__(self, row: dict[str, Any]) -> None:
        if sys.stderr.isatty():
            typer.echo(f"\r{_DONE[row['action']]} {row['done']} of {row['expected']}", nl=False, err=True)
            if row["state"] != "running":
                typer.echo("", err=True)


def _many(action: str, count: int) -> str:
    if count > bulk.MOST_COUNTED:
        return f"more than {bulk.MOST_COUNTED:,} {_WHAT[action]}s"
    return counted(count, _WHAT[action])


def _summary(row: dict[str, Any]) -> str:
    said = f"bulk operation {row['id']}: {row['state']}, {_many(row['action'], row['done'])} {_DONE[row['action']]}"
    if row["left_out"]:
        said += f", {row['left_out']} left out" + (f" ({row['last_error']})" if row["last_error"] else "")
    return said


@app.command("list")
def list_operations(
    ctx: typer.Context, limit: Limit = None, as_json: AsJson = False, database_url: DatabaseUrl = None
) -> None:
    """List the bulk operations, the newest first."""

    async def read(db: Database) -> list[dict[str, Any]]:
        async with db.peek() as conn:
            return await bulk.read_operations(conn, limit or 50)

    shown = [
        *columns("id", "action"),
        Column("filter", "filter", longest=WHOLE),
        *columns("state"),
        *columns("done", "expected", "left_out", left_out="left out", importance=6),
        *columns("actor", importance=5),
        *columns("created_at", created_at="begun", importance=7),
    ]
    rows = context.with_database(ctx, database_url, read)
    show_rows(rows, shown, as_json=as_json, empty="no bulk operations")


@app.command("show")
def show(ctx: typer.Context, bulk_id: BulkId, as_json: AsJson = False, database_url: DatabaseUrl = None) -> None:
    """Show one bulk operation, and how far it has come."""

    async def read(db: Database) -> dict[str, Any]:
        async with db.peek() as conn:
            return await bulk.read_operation(conn, bulk_id)

    show_one(context.with_database(ctx, database_url, read), as_json=as_json)


@app.command("stop")
def stop(ctx: typer.Context, bulk_id: BulkId, actor: Actor = None, database_url: DatabaseUrl = None) -> None:
    """Stop a bulk operation; what is done stays done."""

    async def work(db: Database) -> dict[str, Any]:
        await bulk.stop(db, bulk_id, context.now(), context.actor_of(actor))
        async with db.peek() as conn:
            return await bulk.read_operation(conn, bulk_id)

    say(_summary(context.with_database(ctx, database_url, work, Access.WRITE)))
