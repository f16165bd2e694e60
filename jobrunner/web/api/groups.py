"""What the API shows of batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jobrunner.storage.reading.groups import list_batches, read_batch
from jobrunner.web.access import Level
from jobrunner.web.api.ask import Page

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jobrunner.web.api.ask import Ask


async def batches(ask: Ask) -> Page:
    """`jobrunner batches`: the newest first."""
    limit = ask.fields["limit"]
    async with ask.desk.reading() as conn:
        rows = await list_batches(conn, limit + 1, ask.fields["after"])
    after = str(rows[limit - 1]["id"]) if len(rows) > limit else None
    return Page([_shown(ask, row) for row in rows[:limit]], after)


async def batch(ask: Ask) -> dict[str, Any]:
    """`jobrunner batches BATCH`: one, and how far it is."""
    async with ask.desk.reading() as conn:
        return _shown(ask, await read_batch(conn, ask.path["id"]))


def _shown(ask: Ask, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row as who asks may see it: what it hands to the workers it calls is for administrators."""
    return dict(row) if ask.level >= Level.ADMIN else {name: value for name, value in row.items() if name != "payload"}
