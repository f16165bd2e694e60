"""`jobrunner demo`: the bundled example."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobrunner import demo as bundled
from jobrunner.demo.story import DEFAULT_FILE, DEFAULT_SECONDS, LEAST_SECONDS

app = typer.Typer(rich_markup_mode=None)


@app.command("demo")
def demo(
    file: Annotated[
        Path, typer.Option(metavar="FILE", help="Where: a new file; one that an earlier demo left is replaced.")
    ] = DEFAULT_FILE,
    seconds: Annotated[
        float, typer.Option(min=LEAST_SECONDS, max=3600, help="How long: about so many seconds.")
    ] = DEFAULT_SECONDS,
) -> None:
    """Run the bundled example on a fresh SQLite file.

    Some seconds of real work in a live view; then the status, the history, the dead letters, and the SQL to see them.
    Exits with 1 if what it promises did not happen. Ctrl-C ends it early.
    """
    code = bundled.main(file, seconds)
    if code != 0:
        raise typer.Exit(code)
