"""Named limits over HTTP: `jobrunner admin limit`, through the same functions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jobrunner.errors import InvalidSetting
from jobrunner.policy.named_limits import FIELDS
from jobrunner.policy.near import did_you_mean
from jobrunner.storage.reading.named_limits import list_limits, read_limit
from jobrunner.web.api.ask import Page

if TYPE_CHECKING:
    from jobrunner.web.api.ask import Ask


async def limits(ask: Ask) -> Page:
    """`jobrunner admin limit`: all of them, by name."""
    most = ask.fields["limit"]
    async with ask.desk.reading() as conn:
        rows = await list_limits(conn, most + 1, ask.fields["after"])
    return Page(rows[:most], rows[most - 1]["name"] if len(rows) > most else None)


async def limit(ask: Ask) -> dict[str, Any]:
    """`jobrunner admin limit NAME`: what holds, who runs in it, which workers name it."""
    async with ask.desk.reading() as conn:
        return await read_limit(conn, ask.path["name"])


async def set_limit(ask: Ask) -> dict[str, Any]:
    """`jobrunner admin limit NAME max_running=4`: lay values over what the code says; a deploy does not undo it."""
    values = ask.fields["values"]
    if not values:
        raise InvalidSetting('values names no field; send {"values": {"max_running": 4}}')
    for field in values:
        if field not in FIELDS:  # before it becomes the name of an argument
            raise InvalidSetting(f"{field!r} cannot be set; {did_you_mean(field, FIELDS)}")
    await ask.desk.require_schema()
    said = {"actor": ask.actor, "reason": ask.fields["reason"], "is_new": ask.fields["create"]}
    await ask.desk.orchestrator.set_limit(ask.path["name"], **said, **values)
    return await limit(ask)


async def unset_limit(ask: Ask) -> dict[str, Any]:
    """`jobrunner admin limit NAME --unset max_running`: the fields are again as the code says."""
    await ask.desk.require_schema()
    said = {"actor": ask.actor, "reason": ask.fields["reason"]}
    await ask.desk.orchestrator.unset_limit(ask.path["name"], *ask.fields["fields"], **said)
    return await limit(ask)
