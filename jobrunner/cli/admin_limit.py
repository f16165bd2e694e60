"""`jobrunner admin limit`: limits that workers share, shown and changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobrunner.cli import context
from jobrunner.cli.context import Access, Actor, AsJson, DatabaseUrl, Reason
from jobrunner.cli.inputs import read_limit_values
from jobrunner.cli.layout import Column, columns
from jobrunner.cli.output import note, say, say_folded, show_field, show_json, show_rows
from jobrunner.errors import UsageError
from jobrunner.policy.named_limits import FIELDS
from jobrunner.storage.reading.named_limits import list_limits, read_limit
from jobrunner.storage.workers import named_limits

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jobrunner.storage.database.database import Database

_MOST_LISTED = 1000
_NONE = (
    "no named limits; orchestrator.limit() declares one, `jobrunner admin limit NAME max_running=4 --create` makes one"
)


def limit(
    ctx: typer.Context,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="The limit's name; without it, all.")] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FIELD=VALUE]...", help="Such as max_running=4 or rate=100/1m; null lifts it."),
    ] = None,
    unset: Annotated[
        list[str] | None,
        typer.Option(metavar="FIELD", help="Take back what was set; may be given several times."),
    ] = None,
    create: Annotated[bool, typer.Option("--create", help="Make the limit, if there is none of that name.")] = False,
    reason: Reason = None,
    actor: Actor = None,
    as_json: AsJson = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Show named limits and what runs under them, or set one over what code says; a deploy does not undo it.

    What runs beyond a limit that was lowered may end.
    """
    if name is None:
        _refuse_without_name(unset, create=create)
        context.with_database(ctx, database_url, lambda db: _list(db, as_json=as_json))
    elif not assignments and not unset:
        if create:
            raise UsageError("--create needs what the limit allows, such as max_running=4")
        _show(context.with_database(ctx, database_url, lambda db: _read(db, name)), as_json=as_json)
    else:
        if assignments and unset:
            raise UsageError("give FIELD=VALUE or --unset, not both")
        values, fields = read_limit_values(assignments or ()), list(dict.fromkeys(unset or ()))
        who = context.actor_of(actor)

        async def change(db: Database) -> dict[str, Any]:
            if values:
                changed = await named_limits.set_limit(db, name, values, context.now(), who, reason, is_new=create)
            else:
                changed = await named_limits.unset_limit(db, name, fields, context.now(), who, reason)
            if not as_json:
                _say_changed(name, changed, [*values, *fields], is_again=bool(fields))
            return await _read(db, name) if as_json else {}

        found = context.with_database(ctx, database_url, change, Access.WRITE)
        if as_json:
            show_json(found)


def _refuse_without_name(unset: Sequence[str] | None, *, create: bool) -> None:
    if unset or create:
        raise UsageError("name the limit: jobrunner admin limit NAME")


async def _list(db: Database, *, as_json: bool) -> None:
    async with db.read() as conn:
        rows = await list_limits(conn, _MOST_LISTED + 1)
    shown = [
        *columns("name"),
        Column("max_running", "max running", lambda row: _bound(row["max_running"])),
        Column("rate", "rate", lambda row: _bound(row["rate"])),
        *columns("running", "workers", importance=7),
        Column("overrides", "set by operators", _shown_overrides, importance=5),
    ]
    show_rows(rows[:_MOST_LISTED], shown, as_json=as_json, empty=_NONE)
    if len(rows) > _MOST_LISTED:
        note(f"there are more than these {_MOST_LISTED:,}")


async def _read(db: Database, name: str) -> dict[str, Any]:
    async with db.read() as conn:
        return await read_limit(conn, name)


def _bound(value: Any) -> str:
    return "no limit" if value is None else str(value)


def _shown_overrides(row: Mapping[str, Any]) -> str:
    overrides = row["overrides"] if isinstance(row["overrides"], dict) else {}
    return ", ".join(f"{field}={_bound(overrides[field])}" for field in FIELDS if field in overrides)


def _say_changed(name: str, changed: named_limits.RedefinedLimit, fields: Sequence[str], *, is_again: bool) -> None:
    if changed.is_new:
        say(f"made limit {name}")
    for field in dict.fromkeys(fields):
        value = getattr(changed.after, field)
        shown = "no limit" if value is None else show_field(field, value)
        say(f"{name}: {field} is {shown}{' again' * is_again}")


def _show(row: Mapping[str, Any], *, as_json: bool) -> None:
    """Show one limit: each field in its layers, who runs in it, which workers name it."""
    if as_json:
        show_json(dict(row))
        return
    definition, overrides = (row[key] if isinstance(row[key], dict) else {} for key in ("definition", "overrides"))
    say(f"limit {row['name']}")
    for field in FIELDS:
        in_code = _bound(definition[field]) if field in definition else "not said"
        set_by = f"; set by operators: {_bound(overrides[field])}" if field in overrides else ""
        say(f"  {field:<12} {_bound(row[field])} (code: {in_code}{set_by})")
    runs = [f"run {each['run_id']} of {each['worker']}" for each in row["holders"]]
    say_folded(_some(runs, row["running"]) or "nothing", "  running now  ")
    say_folded(_some(row["worker_names"], row["workers"]) or "none", "  named by     ")


def _some(shown: Sequence[str], count: int) -> str:
    more = count - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")
