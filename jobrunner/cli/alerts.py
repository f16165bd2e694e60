"""`jobrunner alerts`: who is told of what, and what there is to tell."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobrunner.cli import context
from jobrunner.cli.context import Access, Actor, AsJson, DatabaseUrl, Limit, WorkerFilter
from jobrunner.cli.inputs import read_duration
from jobrunner.cli.layout import ERROR, Column, columns
from jobrunner.cli.output import Listing, note, say, show_json, show_rows
from jobrunner.errors import InvalidSetting, UsageError
from jobrunner.model.alerts import AlertKind, AlertRule
from jobrunner.policy import channels
from jobrunner.policy.definitions import check_name
from jobrunner.policy.durations import show_seconds
from jobrunner.policy.near import did_you_mean
from jobrunner.policy.words import counted
from jobrunner.runtime.channels.sending import send
from jobrunner.storage.alerts import message, rules
from jobrunner.storage.reading import incidents
from jobrunner.storage.reading.pages import alert_pages

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jobrunner.storage.database.database import Database

app = typer.Typer(rich_markup_mode=None, help="Tell people when something is wrong: rules, incidents, a test.")
RuleName = Annotated[str, typer.Argument(metavar="RULE", help="The rule's name.", show_default=False)]
_KINDS = tuple(map(str, AlertKind))


@app.command("list")
def list_incidents(
    ctx: typer.Context,
    worker: WorkerFilter = None,
    is_all: Annotated[bool, typer.Option("--all", help="Those that are over, too.")] = False,
    limit: Limit = None,
    as_json: AsJson = False,
    database_url: DatabaseUrl = None,
) -> None:
    """List the incidents, the newest first: the open ones."""

    async def read(db: Database) -> None:
        listing = Listing(
            lambda conn, most: incidents.list_incidents(conn, most, worker=worker, is_all=is_all),
            lambda: alert_pages(db, worker=worker, is_all=is_all),
            [
                *columns("id", "kind"),
                Column("worker", "worker", lambda row: row["worker"] or row["subject"]),
                *columns("opened_at", opened_at="opened", importance=8),
                *columns("closed_at", closed_at="closed", importance=7),
                *columns("count", importance=6),
                Column("summary", "summary", lambda row: row["recovered"] or row["summary"], longest=ERROR),
            ],
            empty="no incidents" if is_all else "no open incidents",
        )
        await listing.show(db, limit, as_json=as_json)
        async with db.peek() as conn:
            has_rules = bool(await incidents.list_rules(conn))
        if not has_rules and not as_json:
            note("no rule asks for any; `jobrunner alerts add NAME --webhook URL` adds one")

    context.with_database(ctx, database_url, read)


@app.command("rules")
def list_rules(ctx: typer.Context, as_json: AsJson = False, database_url: DatabaseUrl = None) -> None:
    """List the rules: who is told of what, and which messages still wait."""

    async def read(db: Database) -> list[dict[str, Any]]:
        async with db.read() as conn:
            return await incidents.list_rules(conn)

    found = context.with_database(ctx, database_url, read)
    shown = [
        *columns("name"),
        Column("kinds", "kinds", _shown_kinds, importance=6, longest=ERROR),
        Column("workers", "workers", importance=8),
        Column("channel", "channel", lambda row: channels.show(row["channel"]), longest=ERROR),
        Column("repeat_seconds", "repeat", lambda row: show_seconds(row["repeat_seconds"]), importance=5),
        *columns("waiting", importance=7),
        *columns("last_sent_at", last_sent_at="last sent", importance=4),
        Column("last_error", "last error", longest=ERROR),
    ]
    show_rows(found, shown, as_json=as_json, empty="no alert rules; `jobrunner alerts add NAME --webhook URL` adds one")


def _shown_kinds(row: Mapping[str, Any]) -> str:
    kinds = row["kinds"]
    return "all" if set(kinds) == set(_KINDS) else ", ".join(kinds)


@app.command("add")
def add(
    ctx: typer.Context,
    rule: RuleName,
    kinds: Annotated[
        str, typer.Option(metavar="KIND,...", help=f"Of what to tell: all, or some of {', '.join(_KINDS)}.")
    ] = "all",
    workers: Annotated[
        str, typer.Option(metavar="PATTERN,...", help="Of which workers: patterns of names, such as 'send-*'.")
    ] = "*",
    webhook: Annotated[
        str | None, typer.Option(metavar="URL", help="POST it as JSON there; env:NAME for a URL that is secret.")
    ] = None,
    secret: Annotated[
        str | None, typer.Option(metavar="env:NAME", help="Sign what the webhook gets with that secret.")
    ] = None,
    command: Annotated[
        str | None,
        typer.Option(metavar="COMMAND", help="Run it with the JSON on its standard input; needs --allow-commands."),
    ] = None,
    apprise: Annotated[
        str | None, typer.Option(metavar="env:NAME", help="Send it by Apprise to that URL (extra `alerts`).")
    ] = None,
    repeat: Annotated[
        str, typer.Option(metavar="DURATION", help="Tell of the same incident again after so long at the earliest.")
    ] = "1h",
    backlog: Annotated[
        int, typer.Option(metavar="RUNS", min=1, max=10_000, help="So many waiting runs of a worker are a backlog.")
    ] = 1000,
    actor: Actor = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Add a rule: which incidents of which workers are told, and where."""
    who = context.actor_of(actor)
    made = AlertRule(
        check_name(rule),
        _read_kinds(kinds),
        _read_patterns(workers),
        _read_channel(webhook, secret, command, apprise),
        _read_repeat(repeat),
        backlog,
    )

    async def work(db: Database) -> None:
        await rules.add(db, made, context.now(), who)

    context.with_database(ctx, database_url, work, Access.CREATE)
    say(f"added {rule}: {channels.show(made.channel)}")
    note(f"`jobrunner alerts test {rule}` sends a test message")


def _read_kinds(given: str) -> frozenset[AlertKind]:
    names = [name.strip() for name in given.split(",") if name.strip()]
    if names == ["all"]:
        return frozenset(AlertKind)
    if not names:
        raise UsageError("--kinds names none; give all, or some of " + ", ".join(_KINDS))
    for name in names:
        if name not in _KINDS:
            raise UsageError(f"--kinds: {name!r} is none; {did_you_mean(name, _KINDS)}")
    return frozenset(map(AlertKind, names))


def _read_patterns(given: str) -> str:
    patterns = [pattern.strip() for pattern in given.split(",") if pattern.strip()]
    if not patterns or not given.isprintable():
        raise InvalidSetting("--workers must be patterns of workers' names, such as 'send-*'")
    return ",".join(patterns)


def _read_repeat(given: str) -> float:
    seconds = read_duration("--repeat", given)
    if not seconds:
        raise InvalidSetting("--repeat must be more than 0 seconds")
    return seconds


def _read_channel(webhook: str | None, secret: str | None, command: str | None, apprise: str | None) -> dict[str, Any]:
    if sum(each is not None for each in (webhook, command, apprise)) != 1:
        raise UsageError("give one of --webhook, --command and --apprise: where it is told")
    if secret is not None and webhook is None:
        raise UsageError("--secret goes with --webhook")
    if webhook is not None:
        return channels.webhook(webhook, secret)
    if apprise is not None:
        return channels.apprise(apprise)
    try:
        return channels.command(shlex.split(command or ""))
    except ValueError as error:
        raise InvalidSetting(f"--command cannot be split into words: {error}") from None


@app.command("remove")
def remove(ctx: typer.Context, rule: RuleName, actor: Actor = None, database_url: DatabaseUrl = None) -> None:
    """Remove a rule; its messages that wait are dropped."""
    who = context.actor_of(actor)

    async def work(db: Database) -> int:
        return await rules.remove(db, rule, context.now(), who)

    dropped = context.with_database(ctx, database_url, work, Access.WRITE)
    say(f"removed {rule}" + (f", and {counted(dropped, 'message')} that waited" if dropped else ""))


@app.command("test")
def send_test(
    ctx: typer.Context,
    rule: RuleName,
    allow_commands: Annotated[
        bool, typer.Option("--allow-commands", help="Run the rule's command here, if its channel is one.")
    ] = False,
    as_json: AsJson = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Send a message that is marked as a test, from here and now, and say what came back."""
    settings = context.load_settings(ctx, database_url)

    async def work(db: Database) -> tuple[AlertRule, str]:
        async with db.peek() as conn:
            found = await rules.read_rule(conn, rule)
        now = context.now()
        body = message.trial(rule, settings.http_url, now)
        allows = allow_commands or settings.allow_commands
        key = f"test-{rule}-{now:%Y%m%dT%H%M%S%f}"
        return found, await send(found.channel, body, key, now, allow_commands=allows)

    found, came = context.with_database(ctx, database_url, work)
    if as_json:
        show_json({"rule": rule, "channel": dict(found.channel), "answer": came})
        return
    say(f"sent to {channels.show(found.channel)}: {came}")
