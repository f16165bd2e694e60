"""Bulk operations: which there are, how far each has come; and beginning one, which shows first what it will do."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from jobrunner.storage.bulk import MOST_COUNTED
from jobrunner.web.api import reads
from jobrunner.web.pages.lists import ROWS
from jobrunner.web.pages.page import Shown
from jobrunner.web.pages.verbs import buttons

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jobrunner.web.api.ask import Ask

_NOUNS = {"cancel": "run", "replay": "letter", "discard": "letter"}
_DONE = {"cancel": "cancelled", "replay": "replayed", "discard": "discarded"}
_LISTS = {"cancel": "runs", "replay": "dead-letters", "discard": "dead-letters"}


async def read(ask: Ask) -> Shown:
    """Read the newest of them."""
    page = await reads.operations(replace(ask, fields={"limit": ROWS, "after": ask.fields["after"]}))
    facts = {
        "rows": [{"row": row, "seen": seen_of(row), "verbs": _verbs(ask, row)} for row in page.rows],
        "after": page.after,
    }
    return Shown(
        facts, "Bulk operations", ("jobrunner bulk list",), "api/bulk", "SELECT * FROM bulk_operations ORDER BY id DESC"
    )


async def read_one(ask: Ask) -> Shown:
    """Read one."""
    row = await reads.operation(ask)
    number = row["id"]
    facts = {"row": row, "seen": seen_of(row), "verbs": buttons("bulk", row, ask.now)}
    sql = f"SELECT * FROM bulk_operations WHERE id = {number}"  # noqa: S608 - to be pasted; a number
    title = f"Bulk operation {number}: {row['action']}"
    return Shown(facts, title, (f"jobrunner bulk show {number}",), f"api/bulk/{number}", sql)


def _verbs(ask: Ask, row: Mapping[str, Any]) -> list[Any]:
    return buttons("bulk", row, ask.now) if row["state"] == "running" else []


def seen_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return how far an operation has come, in words; and as a part of the whole, where that is known. Pure."""
    gone = row["done"] + row["left_out"]
    is_capped = row["expected"] > MOST_COUNTED
    left_out = f", {row['left_out']:,} left out" if row["left_out"] else ""
    whole = f"over {MOST_COUNTED:,}" if is_capped else f"{row['expected']:,}"
    return {
        "said": f"{row['done']:,} of {whole} {_DONE[row['action']]}{left_out}",
        "fraction": None if is_capped or not row["expected"] else min(gone / row["expected"], 1.0),
        "list": _LISTS[row["action"]],
    }


def how_many(action: str, number: int) -> str:
    """Say how many an operation would be done to: `344 letters`, `over 10,000 letters`. Pure."""
    noun = _NOUNS[action]
    if number > MOST_COUNTED:
        return f"over {MOST_COUNTED:,} {noun}s"
    return f"{number:,} {noun if number == 1 else f'{noun}s'}"


def list_of(action: str) -> str:
    """Return the list in which one sees what an operation is done to."""
    return _LISTS[action]
