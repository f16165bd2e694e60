"""`jobrunner run`: a node."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from jobrunner.cli import context
from jobrunner.cli.context import DatabaseUrl, Root
from jobrunner.cli.inputs import read_duration
from jobrunner.cli.loading import load_orchestrator
from jobrunner.runtime.process import set_aside_what_is_loaded
from jobrunner.telemetry import events as e

app = typer.Typer(rich_markup_mode=None)


@app.command("run")
def run(
    ctx: typer.Context,
    module: Annotated[
        str,
        typer.Argument(
            metavar="MODULE[:NAME]",
            help="A module of the current folder or Python's path, and its orchestrator, if it has several.",
            show_default=False,
        ),
    ],
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
    until_idle: Annotated[bool, typer.Option("--until-idle", help="Stop as soon as there is nothing to do.")] = False,
    migrate: Annotated[bool, typer.Option("--migrate", help="Upgrade an old schema, on PostgreSQL too.")] = False,
    allow_commands: Annotated[
        bool, typer.Option("--allow-commands", help="Run command workers, which operators add.")
    ] = False,
    log_level: Annotated[
        str | None, typer.Option(metavar="LEVEL", help="DEBUG, INFO, WARNING, ERROR or CRITICAL; else INFO.")
    ] = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Start a node: run the workers of MODULE until told to stop.

    SIGTERM or SIGINT lets running work end first; a second one stops at once. An SQLite file is created and upgraded
    by itself.
    """
    root = ctx.find_root().obj
    before = root.database_url if isinstance(root, Root) else None
    explicit: dict[str, Any] = {
        "database_url": before if database_url is None else database_url,
        "tick_interval": read_duration("--tick-interval", tick_interval),
        "max_concurrent": max_concurrent,
        "drain_timeout": read_duration("--drain-timeout", drain_timeout),
        "lease": read_duration("--lease", lease),
        "allow_commands": True if allow_commands else None,
        "log_level": log_level,
    }
    settings = context.load_settings(ctx, **explicit)
    orchestrator = load_orchestrator(module)
    set_up_logging(settings.log_level)
    orchestrator.configure(**explicit)
    orchestrator.events.subscribe(_on_event)
    set_aside_what_is_loaded()
    context.run_async(orchestrator.run(until_idle=until_idle, migrate=migrate))


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


def set_up_logging(level: str) -> None:
    """Write log records to stderr, one line each, unless the program has set up logging itself."""
    log = logging.getLogger()
    if log.handlers:
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.WARNING)
    logging.getLogger("jobrunner").setLevel(level)
