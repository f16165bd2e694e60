"""`jobrunner run`: a node."""

from __future__ import annotations

import logging
import os
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobrunner.cli import context
from jobrunner.cli.context import DatabaseUrl, Module
from jobrunner.cli.inputs import read_duration
from jobrunner.cli.listening import HttpAddress, beside_node
from jobrunner.cli.loading import load_orchestrator
from jobrunner.cli.output import note
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
    database_url: DatabaseUrl = None,
) -> None:
    """Start a node: run the workers of MODULE until told to stop.

    SIGTERM or SIGINT lets running work end first; a second one stops at once. An SQLite file is created and upgraded
    by itself. Exits with 0 when it was told to stop or, with --until-idle, when there is nothing left to do; with 5 if
    with --until-idle a run of this node was exhausted: all its attempts failed.
    """
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
    }
    settings = context.load_settings(ctx, **explicit)
    orchestrator = load_orchestrator(module)
    is_said = log_level is not None or bool(os.environ.get("JOBRUNNER_LOG_LEVEL", "").strip())
    set_up_logging(settings.log_level, is_said=is_said)
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


class _OneLine(logging.Formatter):
    """`2026-03-01T12:00:00.123Z INFO jobrunner: …`: a record is a line, whatever its message holds."""

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: ARG002, N802 - its name
        """Return the record's time, UTC, to the millisecond."""
        moment = datetime.fromtimestamp(record.created, UTC)
        return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line; of a traceback, the lines one after the other."""
        lines = super().format(record).splitlines()
        line = " | ".join(line.strip() for line in lines if line.strip())
        return line if line.isprintable() else "".join(c if c.isprintable() else " " for c in line)


def set_up_logging(level: str, *, is_said: bool) -> None:
    """Write log records to stderr, one line each, as far as the program has not set up logging itself.

    A handler of the program's, or a level, is its own decision and stays. `level` is that of jobrunner's logger: the
    usual one where the program has decided nothing, and in any case one that was asked for (`is_said`).
    """
    log, ours = logging.getLogger(), logging.getLogger("jobrunner")
    has_handlers = bool(log.handlers or ours.handlers)
    has_level = log.level != logging.WARNING or ours.level != logging.NOTSET
    if not has_handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_OneLine("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        log.addHandler(handler)
    if is_said or not (has_handlers or has_level):
        ours.setLevel(level)
