"""The list of workers: how each stands, how its last attempts ended, and why it does not start."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from jobrunner.errors import UsageError
from jobrunner.policy.filters import TROUBLE
from jobrunner.storage.reading.strips import Strip, read_strips
from jobrunner.web.api import reads
from jobrunner.web.api.ask import Page
from jobrunner.web.pages.page import Shown
from jobrunner.web.pages.render import query
from jobrunner.web.pages.worker_charts import strip_chart

if TYPE_CHECKING:
    from jobrunner.web.api.ask import Ask

_PAGE_ROWS = 50
_WORD = re.compile(r"[A-Za-z0-9._*,-]+")
_NOTHING = Strip((), None, 0)
_SQL = (
    "SELECT name, health, next_run_at, last_run_at, last_run_outcome, running_runs, pending_runs, last_error"
    " FROM worker_status ORDER BY name LIMIT 50"
)
_SHORTCUTS = (
    ("in trouble", f"health:{','.join(TROUBLE)}"),
    ("failing", "health:failing"),
    ("disabled", "health:disabled"),
    ("paused", "health:paused"),
    ("stalled or late", "health:stalled,late,slow,no_node"),
    ("loops", "mode:continuous"),
)


def asked(typed: str) -> str:
    """Return the filter that was meant: a word without a key is a part of a worker's name, unless it has a `*`.

    `mail` is `worker:*mail*`, and `mail,fetch` finds both. What is no such word stays, to be refused by its reader.
    """
    if '"' in typed:
        return typed.strip()
    return " ".join(_of_names(word) if _WORD.fullmatch(word) else word for word in typed.split())


def _of_names(word: str) -> str:
    parts = [part if "*" in part else f"*{part}*" for part in word.split(",") if part]
    return f"worker:{','.join(parts)}" if parts else word


async def read(ask: Ask) -> Shown:
    """Read a page of the list: by name, or of a filter the worst."""
    typed = ask.fields["q"]
    q = asked(typed) if typed is not None else None
    after = ask.fields["after"] if q is None else None
    found, refused = Page([]), None
    try:
        found = await reads.workers(replace(ask, fields={"limit": _PAGE_ROWS, "after": after, "q": q}))
    except UsageError as error:
        refused = str(error)
    async with ask.desk.database() as db, db.read() as conn:
        strips = await read_strips(conn, db.dialect, [row["name"] for row in found.rows])
    facts = {
        "q": q,
        "refused": refused,
        "typed": typed,
        "run_id": typed.strip() if typed is not None and typed.strip().isdecimal() else None,
        "rows": [_row(ask.published(row), strips.get(row["name"], _NOTHING)) for row in found.rows],
        "after": found.after,
        "searched": found.searched,
        "is_full": q is not None and len(found.rows) == _PAGE_ROWS,
        "shortcuts": _SHORTCUTS,
    }
    command = "jobrunner status" if q is None else shlex.join(["jobrunner", "status", q])
    return Shown(facts, "Workers", (command,), f"api/workers{query(q=q, limit=_PAGE_ROWS, after=after)}", _SQL)


def _row(row: dict[str, Any], strip: Strip) -> dict[str, Any]:
    return {**row, "strip": strip_chart(strip), "p95_ms": strip.p95_ms, "counted": strip.counted}
