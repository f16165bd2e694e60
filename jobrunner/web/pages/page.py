"""What a page is: its address, who may see it, what it takes, and the function that reads its facts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from jobrunner.web.access import Level
from jobrunner.web.api import fields as f
from jobrunner.web.api.ask import Ask
from jobrunner.web.api.fields import Field

Render = Callable[..., Awaitable[bytes]]
"""`render(template, request, facts, given=…)`: the template filled with facts and with what every page shows."""
ZONES = ("local", "utc", "worker")
COMMON = (
    Field("tz", f.TEXT, "times of the browser's zone, in UTC, or in the worker's zone", "local", ZONES),
    Field("as", f.TEXT, "sql: show the statements that this page ran", None, ("sql",)),
)
"""What every page takes beside its own fields."""


@dataclass(frozen=True, slots=True)
class Shown:
    """What a page shows: `facts` for its template, its `title`, and the same by other means.

    `cli`: commands that tell the same. `api`: the address in the API that answers with the same rows. `sql`: what to
    ask in a shell of the database for the same, in short.
    """

    facts: Mapping[str, Any]
    title: str
    cli: tuple[str, ...] = ()
    api: str | None = None
    sql: str | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """A page. `name` is that of its template; `key` what follows `g` on the keyboard; `label` its place in the menu."""

    path: str
    name: str
    read: Callable[[Ask], Awaitable[Shown]]
    label: str | None = None
    key: str | None = None
    fields: tuple[Field, ...] = field(default=())
    level: Level = Level.READ
