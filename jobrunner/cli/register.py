"""`jobrunner register`: what a deploy does before its nodes start."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from jobrunner.cli import context
from jobrunner.cli.context import AsJson, DatabaseUrl, Module
from jobrunner.cli.loading import load_orchestrator
from jobrunner.cli.output import note, say, show_json
from jobrunner.policy.words import counted
from jobrunner.runtime.registration import warnings_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from jobrunner.storage.workers.definitions import Registered

app = typer.Typer(rich_markup_mode=None)
_MOST_NAMED = 10


@app.command("register")
def register(
    ctx: typer.Context,
    module: Module,
    as_json: AsJson = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Write the definitions of MODULE's workers, without running any: for a deploy.

    A node does the same when it starts; a program that triggers before the first one has started needs it here. An
    SQLite file is created and upgraded by itself.
    """
    explicit: dict[str, Any] = {"database_url": context.given_url(ctx, database_url)}
    context.load_settings(ctx, **explicit)
    orchestrator = load_orchestrator(module)
    orchestrator.configure(**explicit)
    names = list(orchestrator.workers)
    registered = context.run_async(orchestrator.register_definitions())
    if as_json:
        show_json(_document(names, registered))
        return
    say(_line(names, registered))
    for warning in warnings_of(registered):
        note(warning)


def _document(names: Sequence[str], registered: Registered) -> dict[str, Any]:
    return {
        "workers": len(names),
        "added": list(registered.added),
        "changed": list(registered.changed),
        "limits": list(registered.limits),
        "kept_newer": list(registered.kept_newer),
        "unused_overrides": list(registered.unused),
    }


def _line(names: Sequence[str], registered: Registered) -> str:
    """Say in one line what changed: `registered 3 workers: added send-email; changed fetch-data; 1 as it was`."""
    changes = list(_changes(len(names), registered))
    return f"registered {counted(len(names), 'worker')}" + (f": {'; '.join(changes)}" if changes else "")


def _changes(count: int, registered: Registered) -> Iterator[str]:
    each = (("added", registered.added), ("changed", registered.changed), ("set limits", registered.limits))
    for what, changed in each:
        if changed:
            more = len(changed) - _MOST_NAMED
            yield f"{what} {', '.join(changed[:_MOST_NAMED])}" + (f" and {more} more" if more > 0 else "")
    same = count - len(registered.added) - len(registered.changed)
    if same:
        yield f"{same} unchanged"
