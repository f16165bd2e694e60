"""`jobrunner run`: a node."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobrunner.cli import context
from jobrunner.cli.context import DatabaseUrl, Module
from jobrunner.cli.inputs import read_duration
from jobrunner.cli.listening import HttpAddress, beside_node
from jobrunner.cli.loading import load_orchestrator
from jobrunner.cli.log_output import set_up_logging
from jobrunner.cli.output import note
from jobrunner.cli.reloading import run_reloading
from jobrunner.errors import UsageError
from jobrunner.model.run import EndsRun
from jobrunner.policy.words import counted
from jobrunner.runtime.first import stand_aside_if_first
from jobrunner.runtime.process import set_aside_what_is_loaded
from jobrunner.telemetry import events as e

if TYPE_CHECKING:
    from jobrunner.runtime.orchestrator import WorkerOrchestrator

app = typer.Typer(rich_markup_mode=None)
EXHAUSTED = 5
"""The exit code of `--until-idle` after a run that was exhausted."""


@app.command("run")
def run(
    ctx: typer.Context,
    module: Module,
    tick_interval: Annotated[
        str | None, typer.Option(metavar="DURATION", help="Look at the database at least so often; else 5 s.")
    ] = None,
    max_concurrent: Annotated[int | None, typer.Option(min=1, help="Run so many at the same time; else 5.")] = None,
    drain_timeout: Annotated[
        str | None, typer.Option(metavar="DURATION", help="When told to stop, let runs end for so long; else 25 s.")
    ] = None,
    lease: Annotated[
        str | None, typer.Option(metavar="DURATION", help="Others take over after so long without a beat; else 30 s.")
    ] = None,
    until_idle: Annotated[
        bool,
        typer.Option("--until-idle", help="Stop as soon as there is nothing to do; exit 5 if a run was exhausted."),
    ] = False,
    migrate: Annotated[bool, typer.Option("--migrate", help="Upgrade an old schema, on PostgreSQL too.")] = False,
    allow_commands: Annotated[
        bool, typer.Option("--allow-commands", help="Run command workers, which operators add.")
    ] = False,
    workers: Annotated[
        list[str] | None,
        typer.Option(
            "--workers",
            metavar="PATTERN",
            help="Run only these of MODULE's workers, such as 'send-*'; may be repeated. All are registered.",
        ),
    ] = None,
    log_level: Annotated[
        str | None,
        typer.Option(
            metavar="LEVEL",
            help="jobrunner's own: DEBUG, INFO, WARNING, ERROR or CRITICAL; else the program's, or INFO.",
        ),
    ] = None,
    http: HttpAddress = None,
    log_format: Annotated[
        str | None, typer.Option(metavar="text|json", help="json: an object a line, for programs; else text.")
    ] = None,
    reload: Annotated[
        bool, typer.Option("--reload", help="For developing: start again when a .py file of this folder changes.")
    ] = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Start a node: run the workers of MODULE until told to stop.

    SIGTERM or SIGINT lets running work end first; a second one stops at once. An SQLite file is created and upgraded
    by itself. Exits with 0 when it was told to stop or, with --until-idle, when there is nothing left to do; with 5 if
    with --until-idle a run of this node was exhausted: all its attempts failed.
    """
    if reload:
        if until_idle:
            raise UsageError("--reload and --until-idle are both given; keep one")
        raise typer.Exit(run_reloading(ctx, database_url))
    stand_aside_if_first()
    explicit: dict[str, Any] = {
        "database_url": context.given_url(ctx, database_url),
        "tick_interval": read_duration("--tick-interval", tick_interval),
        "max_concurrent": max_concurrent,
        "drain_timeout": read_duration("--drain-timeout", drain_timeout),
        "lease": read_duration("--lease", lease),
        "allow_commands": True if allow_commands else None,
        "workers": workers or None,
        "log_level": log_level,
        "http": http,
        "log_format": log_format,
    }
    settings = context.load_settings(ctx, **explicit)
    orchestrator = load_orchestrator(module)
    is_said = log_level is not None or bool(os.environ.get("JOBRUNNER_LOG_LEVEL", "").strip())
    set_up_logging(settings.log_level, is_said=is_said, log_format=settings.log_format)
    orchestrator.configure(**explicit)
    exhausted = _count_exhausted(orchestrator)
    orchestrator.events.subscribe(_on_event)
    with beside_node(orchestrator):
        set_aside_what_is_loaded()
        context.run_async(orchestrator.run(until_idle=until_idle, migrate=migrate))
    if until_idle and exhausted:
        note(f"{counted(len(exhausted), 'run')} exhausted; `jobrunner dead-letters list` shows them")
        raise typer.Exit(EXHAUSTED)


def _count_exhausted(orchestrator: WorkerOrchestrator) -> list[int]:
    """Return a list that takes the id of every run that this node ends exhausted."""
    ids: list[int] = []

    def see(event: e.Event) -> None:
        if isinstance(event, e.RunEnded) and event.ends_run == EndsRun.EXHAUSTED:
            ids.append(event.run.id)

    orchestrator.events.subscribe(see)
    return ids


def _on_event(event: e.Event) -> None:
    """Set aside what the start has loaded, too: statements, mostly, which live as long as the node."""
    if isinstance(event, e.NodeStarted):
        set_aside_what_is_loaded()
