"""`jobrunner demo`: the bundled example."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobrunner import demo as bundled
from jobrunner.cli.listening import DEFAULT_ADDRESS, serving_beside_node
from jobrunner.demo.story import DEFAULT_FILE, DEFAULT_SECONDS, LEAST_SECONDS
from jobrunner.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from jobrunner.runtime.orchestrator import WorkerOrchestrator

app = typer.Typer(rich_markup_mode=None)


@app.command("demo")
def demo(
    file: Annotated[
        Path, typer.Option(metavar="FILE", help="Where: a new file; one that an earlier demo left is replaced.")
    ] = DEFAULT_FILE,
    seconds: Annotated[
        float, typer.Option(min=LEAST_SECONDS, max=3600, help="How long: about so many seconds.")
    ] = DEFAULT_SECONDS,
    http: Annotated[
        bool, typer.Option("--http", help="Open the console on it, and go on until Ctrl-C, whatever --seconds says.")
    ] = False,
    address: Annotated[
        str | None, typer.Argument(metavar="HOST:PORT", help=f"Where, with --http; else {DEFAULT_ADDRESS}.")
    ] = None,
) -> None:
    """Run the bundled example on a fresh SQLite file.

    Some seconds of real work in a live view; then the status, the history, the dead letters, and the SQL to see them.
    Exits with 1 if what it promises did not happen. Ctrl-C ends it early.
    """
    if address is not None and not http:
        raise UsageError(f"{address!r} is where the console would open; write --http {address}")
    code = bundled.main(file, seconds, beside=_console_at(address or DEFAULT_ADDRESS) if http else None)
    if code != 0:
        raise typer.Exit(code)


def _console_at(address: str) -> Callable[[WorkerOrchestrator], AbstractContextManager[None]]:
    return lambda orchestrator: serving_beside_node(orchestrator, address)
