"""Batches: which there are and how far they are; and one, with what it calls."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobrunner.policy.batches import ON_FAILURE, ON_FINISH, ON_SUCCESS
from jobrunner.storage.reading.groups import MOST_COUNTED
from jobrunner.web.api import groups as reads
from jobrunner.web.pages.lists import ROWS
from jobrunner.web.pages.narrowed import narrowed
from jobrunner.web.pages.page import Shown

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from jobrunner.web.api.ask import Ask

_SQL = "SELECT * FROM batches ORDER BY id DESC LIMIT 50"
_CALLS = ((ON_SUCCESS, "success_run_id"), (ON_FAILURE, "failure_run_id"), (ON_FINISH, "finish_run_id"))
_LOOKS = {"open": "pending", "sealed": "running", "finished": "succeeded", "failed": "failed"}


async def read(ask: Ask) -> Shown:
    """Read them, the newest first."""
    page = await reads.batches(narrowed(ask, limit=ROWS, after=ask.fields["after"]))
    rows = [{"row": row, "looks": _LOOKS[str(row["state"])], "calls": calls(row)} for row in page.rows]
    facts = {"rows": rows, "after": page.after, "most": MOST_COUNTED}
    return Shown(facts, "Batches", ("jobrunner batches",), "api/batches", _SQL)


async def read_one(ask: Ask) -> Shown:
    """Read one."""
    row = await reads.batch(ask)
    facts = {"row": row, "looks": _LOOKS[str(row["state"])], "calls": calls(row), "most": MOST_COUNTED}
    number = row["id"]
    sql = f"SELECT * FROM run_history WHERE batch_id = {number} ORDER BY id"  # noqa: S608 - to be pasted; a number
    return Shown(facts, f"Batch {number}", (f"jobrunner batches {number}",), f"api/batches/{number}", sql)


def calls(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what a batch calls: when, which worker, and the run once there is one. Pure."""
    return [{"when": call, "worker": row[call], "run_id": row[made]} for call, made in _CALLS if row[call] is not None]
