"""The live runs: those that run, how far they are; then those that wait, and why."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from jobrunner.storage.reading.nodes_heard import read_nodes_heard
from jobrunner.storage.reading.why_waits import with_why
from jobrunner.web.api import reads
from jobrunner.web.pages.lists import ROWS, listed
from jobrunner.web.pages.page import Shown
from jobrunner.web.pages.render import query
from jobrunner.web.pages.verbs import buttons

if TYPE_CHECKING:
    from jobrunner.web.api.ask import Ask

_SQL = "SELECT id, worker, state, attempt, due_at, started_at, progress, node_id FROM runs ORDER BY started_at, due_at"


async def read(ask: Ask) -> Shown:
    """Read a page of them."""
    asked, after = ask.fields["q"], ask.fields["after"]
    found = await listed(reads.runs, ask, q=asked, after=after, worker=None, limit=ROWS)
    async with ask.desk.database() as db, db.read() as conn:
        rows = await with_why(conn, db.dialect, ask.now, found.page.rows)
        heard, _ = await read_nodes_heard(conn, ask.now)
    facts = {
        "rows": [{"row": row, "verbs": buttons("run", row, ask.now, only=("cancel",))} for row in rows],
        "silent": heard.silent,
        "after": found.page.after,
        "searched": found.page.searched,
        "refused": found.refused,
        "asked": asked,
    }
    command = shlex.join(["jobrunner", "runs", *filter(None, [asked])])
    return Shown(facts, "Runs", (command,), f"api/runs{query(q=asked)}", _SQL)
