"""Named limits: which there are and how full each is; and one, with who runs in it and which workers name it."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from jobrunner.policy.named_limits import FIELDS
from jobrunner.policy.words import counted
from jobrunner.web.api import named_limits as reads
from jobrunner.web.pages.lists import ROWS
from jobrunner.web.pages.narrowed import narrowed
from jobrunner.web.pages.page import Shown
from jobrunner.web.pages.verbs import buttons

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jobrunner.web.api.ask import Ask

_SQL = "SELECT name, max_running, rate, definition, overrides FROM limits ORDER BY name"


async def read(ask: Ask) -> Shown:
    """Read them by name."""
    page = await reads.limits(narrowed(ask, limit=ROWS, after=ask.fields["after"]))
    rows = [{"row": row, "is_full": is_full(row), "overrides": _object(row["overrides"])} for row in page.rows]
    facts = {"rows": rows, "after": page.after}
    return Shown(facts, "Limits", ("jobrunner admin limit",), "api/limits", _SQL)


async def read_one(ask: Ask) -> Shown:
    """Read one."""
    row = await reads.limit(ask)
    facts = {
        "row": row,
        "headline": headline(row),
        "is_full": is_full(row),
        "layers": layers(row),
        "verbs": buttons("limit", row, ask.now),
    }
    name = row["name"]
    sql = f"SELECT * FROM limits WHERE name = '{name}'"  # noqa: S608 - to be pasted; a checked name
    command = f"jobrunner admin limit {shlex.quote(name)}"
    return Shown(facts, f"Limit {name}", (command,), f"api/limits/{name}", sql)


def is_full(row: Mapping[str, Any]) -> bool:
    """Say whether nothing more may run under a limit now. Pure."""
    return row["max_running"] is not None and row["running"] >= row["max_running"]


def headline(row: Mapping[str, Any]) -> str:
    """Say how full a limit is: `4 of 4 run`. Pure."""
    rate = "" if row["rate"] is None else f", at most {row['rate']} start"
    if row["max_running"] is None:
        return f"{counted(row['running'], 'run')} now, without a bound{rate}."
    over = row["running"] - row["max_running"]
    more = f"; {over:,} more than it allows may end" if over > 0 else ""
    return f"{row['running']:,} of {row['max_running']:,} run now{more}{rate}."


def layers(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return each field of a limit as it holds, as code says it, and as operators have set it. Pure."""
    code, overrides = _object(row["definition"]), _object(row["overrides"])
    return [
        {
            "name": field,
            "holds": row[field],
            "code": code.get(field),
            "is_set": field in overrides,
            "override": overrides.get(field),
        }
        for field in FIELDS
    ]


def _object(document: Any) -> Mapping[str, Any]:
    return document if isinstance(document, dict) else {}
