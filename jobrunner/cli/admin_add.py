"""`jobrunner admin add`: a worker whose code is a command of the system."""

from __future__ import annotations

import dataclasses
import json
import shlex
from typing import TYPE_CHECKING, Annotated

import typer

from jobrunner.cli import context
from jobrunner.cli.context import Access, Actor, DatabaseUrl, WorkerName
from jobrunner.cli.inputs import read_duration, read_payload, read_priority
from jobrunner.cli.output import note, say
from jobrunner.errors import InvalidWorker
from jobrunner.model.worker import Dependency, Isolation, WorkerConfig, WorkerExecutionMode
from jobrunner.policy.definitions import check_definition, check_name
from jobrunner.policy.showing import show_schedule
from jobrunner.storage.workers import commands

if TYPE_CHECKING:
    from jobrunner.storage.database.database import Database


def add(
    ctx: typer.Context,
    worker: WorkerName,
    command: Annotated[str, typer.Option(metavar="COMMAND", help="What to run, as in a shell.", show_default=False)],
    shell: Annotated[bool, typer.Option("--shell", help="Let /bin/sh run it: pipes, variables, redirections.")] = False,
    cron: Annotated[str | None, typer.Option(metavar="CRON", help="When: five fields of cron.")] = None,
    interval: Annotated[str | None, typer.Option(metavar="DURATION", help="When: every so often.")] = None,
    triggered: Annotated[bool, typer.Option("--triggered", help="When: only when asked.")] = False,
    timezone: Annotated[str, typer.Option(help="The time zone of --cron.")] = "UTC",
    timeout: Annotated[str, typer.Option(metavar="DURATION", help="Stop it after so long.")] = "60s",
    max_retries: Annotated[int, typer.Option(help="Try again so often.")] = 3,
    retry_delay: Annotated[str, typer.Option(metavar="DURATION", help="Wait so long before the first retry.")] = "5s",
    priority: Annotated[str, typer.Option(help="LOW, NORMAL, HIGH or CRITICAL.")] = "NORMAL",
    memory: Annotated[
        int | None, typer.Option(metavar="MIB", help="Let each of its processes use so much memory; else no cap.")
    ] = None,
    payload: Annotated[
        str | None,
        typer.Option(metavar="JSON|@FILE|-", help="What it gets on standard input, unless a trigger says otherwise."),
    ] = None,
    cooldown: Annotated[
        str | None, typer.Option(metavar="DURATION", help="Probe it so long after its circuit has opened; else never.")
    ] = None,
    max_running: Annotated[int, typer.Option(help="Run at most so many at the same time.")] = 1,
    depends_on: Annotated[
        list[str] | None, typer.Option(metavar="WORKER", help="Wait for this worker; may be repeated.")
    ] = None,
    blocks: Annotated[
        list[str] | None, typer.Option(metavar="WORKER", help="Never run beside this worker; may be repeated.")
    ] = None,
    description: Annotated[str, typer.Option(metavar="TEXT", help="What it is for.")] = "",
    actor: Actor = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Add a worker that runs a command; nodes started with --allow-commands take it.

    Without --cron, --interval and --triggered it runs every 300 s.
    """
    who = context.actor_of(actor)
    check_name(worker)
    if triggered and (cron is not None or interval is not None):
        raise InvalidWorker(worker, "is triggered, so it takes no --interval and no --cron")
    config = WorkerConfig(
        name=worker,
        handler=_handler(worker, command, is_shell=shell),
        execution_mode=WorkerExecutionMode.TRIGGERED if triggered else WorkerExecutionMode.SCHEDULED,
        interval_seconds=read_duration("--interval", interval),
        cron=cron,
        timezone=timezone,
        timeout_seconds=read_duration("--timeout", timeout) or 0.0,
        max_retries=max_retries,
        retry_delay_seconds=read_duration("--retry-delay", retry_delay) or 0.0,
        priority=read_priority(worker, priority),
        max_running=max_running,
        memory_limit_mb=memory,
        payload=read_payload(payload) or {},
        cooldown_seconds=read_duration("--cooldown", cooldown),
        isolation=Isolation.COMMAND,
        description=description,
        depends_on=tuple(Dependency(name) for name in depends_on or ()),
        blocks=tuple(blocks or ()),
    )
    checked = check_definition(config)  # before a database is opened, or even made, for it

    async def work(db: Database) -> None:
        await commands.add(db, config, context.now(), who)

    context.with_database(ctx, database_url, work, Access.CREATE)
    say(f"added {worker}: {show_schedule(dataclasses.asdict(checked))}")
    note("only nodes started with --allow-commands run it")


def _handler(worker: str, command: str, *, is_shell: bool) -> str:
    if not command.strip() or "\0" in command:
        raise InvalidWorker(worker, "--command must be a command")
    if is_shell:
        return json.dumps({"command": command, "shell": True})
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise InvalidWorker(worker, f"--command cannot be split into words ({error}); or give --shell") from None
    return json.dumps({"command": words, "shell": False})
