"""The nodes: which live, which are silent, what each has room for and what it holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobrunner.policy.words import counted
from jobrunner.storage.reading.held import read_held
from jobrunner.web.api import fields as f
from jobrunner.web.api import reads
from jobrunner.web.api.fields import Field
from jobrunner.web.pages.narrowed import narrowed
from jobrunner.web.pages.page import Shown

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from jobrunner.web.api.ask import Ask

FIELDS = (
    Field("all", f.FLAG, "also those that have stopped or were lost", False),
    Field("after", f.TEXT, "the place where the page before ended"),
)
_MOST_ROWS = 100
_MOST_NAMED = 10
_SQL = "SELECT id, hostname, pid, state, heartbeat_at, last_tick_at, max_concurrent FROM nodes ORDER BY started_at DESC"


async def read(ask: Ask) -> Shown:
    """Read the nodes, the newest first, and the runs that they hold."""
    is_all = ask.fields["all"]
    page = await reads.nodes(narrowed(ask, limit=_MOST_ROWS, after=ask.fields["after"], all=is_all))
    async with ask.desk.reading() as conn:
        held = await read_held(conn, [row["id"] for row in page.rows])
    words = [_word(row) for row in page.rows]
    nodes = [
        {"row": row, "word": word, "held": held.runs.get(row["id"], [])}
        for row, word in zip(page.rows, words, strict=True)
    ]
    facts = {
        "nodes": nodes,
        "headline": _headline(words, is_more=page.after is not None),
        "is_well": "active" in words and "silent" not in words,
        "is_all": is_all,
        "is_cut": held.is_cut,
        "most_named": _MOST_NAMED,
        "after": page.after,
    }
    command = "jobrunner admin nodes --all" if is_all else "jobrunner admin nodes"
    return Shown(facts, "Nodes", (command,), f"api/nodes{'?all=true' if is_all else ''}", _SQL)


def _word(row: Any) -> str:
    return "silent" if row["silent_seconds"] is not None else str(row["state"])


def _headline(words: Sequence[str], *, is_more: bool) -> str:
    if "active" not in words:
        draining = words.count("draining")
        return "No node takes runs" + (f": {counted(draining, 'node')} drain" if draining else "") + "."
    more = " or more" if is_more else ""
    kinds = [f"{words.count(kind)} {kind}" for kind in ("active", "draining", "silent") if kind in words]
    return f"{', '.join(kinds)}{more}."
