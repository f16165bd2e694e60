"""One worker: why it does not start, now or then, how its runs went, what it is, and who changed it."""

from __future__ import annotations

import shlex
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from jobrunner.errors import InvalidSetting
from jobrunner.policy.deeds import tell_deed
from jobrunner.policy.filters import TROUBLE
from jobrunner.runtime.moments import read_past
from jobrunner.storage.reading import status as reading
from jobrunner.storage.reading.days import read_days
from jobrunner.storage.reading.error_groups import group_letters
from jobrunner.storage.reading.grid import read_grid, read_last_ends
from jobrunner.storage.reading.neighbours import read_neighbours
from jobrunner.storage.reading.search import search_audits
from jobrunner.web.api import reads
from jobrunner.web.pages.definition import layers
from jobrunner.web.pages.mentions import mentions
from jobrunner.web.pages.page import Shown
from jobrunner.web.pages.render import query
from jobrunner.web.pages.verbs import buttons
from jobrunner.web.pages.worker_charts import days_chart, grid_chart, neighbours_chart

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import datetime

    from jobrunner.web.api.ask import Ask

_MOST_LIVE, _MOST_ENDED, _MOST_AUDITS, _MOST_FIRES, _MOST_GROUPS = 5, 10, 20, 10, 8
_AHEAD_SECONDS = 366 * 86400.0


async def read(ask: Ask) -> Shown:
    """Read all there is about a worker. Raises `WorkerNotFound`."""
    name = ask.path["name"]
    at, refused = _moment(ask)
    row = await reads.worker(ask)
    explained = await reads.explain(replace(ask, fields={"at": at}))
    upcoming = await reads.upcoming(
        replace(ask, fields={"limit": _MOST_FIRES, "worker": name, "for": _AHEAD_SECONDS, "after": None})
    )
    async with ask.desk.reading() as conn:
        runs = await read_grid(conn, name)
        days = await read_days(conn, name, ask.now)
        neighbours = await read_neighbours(conn, name)
        live = await reading.read_runs(conn, worker=name, limit=_MOST_LIVE, has_output=False)
        ended = await read_last_ends(conn, name, _MOST_ENDED)
        groups = await group_letters(conn, worker=name, most=_MOST_GROUPS)
        audits = await ask.shown(conn, (await search_audits(conn, _MOST_AUDITS, worker=name)).rows)
        changes = (await search_audits(conn, _MOST_AUDITS, worker=name, actions=("set", "unset"))).rows
    facts = {
        "row": row,
        "verbs": buttons("worker", row, ask.now),
        "is_in_trouble": row["health"] in TROUBLE,
        "at": at,
        "refused": refused,
        "explained": explained,
        "gates": _gates(explained, neighbours.names),
        "runs": runs,
        "draw_grid": partial(grid_chart, runs),
        "days": days,
        "days_drawing": days_chart(days),
        "fires": upcoming.rows,
        "of_all_fires": _said_of_all(upcoming.rows),
        "layers": layers(row, changes),
        "neighbours": neighbours,
        "draw_neighbours": partial(neighbours_chart, name, neighbours),
        "live": live,
        "ended": ended,
        "groups": groups,
        "audits": [{**entry, "deed": tell_deed(entry["action"], entry["detail"])} for entry in audits],
    }
    return Shown(facts, name, _commands(name, ask.fields["at"]), _address(name, at, ask.fields["at"]), _sql(name))


def _moment(ask: Ask) -> tuple[datetime | None, str | None]:
    """Return the past moment that is asked about, or why it is none."""
    try:
        at = read_past("at", ask.fields["at"], ask.now)
        if at is not None and at > ask.now:
            return None, f"at: {at:%Y-%m-%d %H:%M:%S} UTC is still to come; the next fires are below"
    except InvalidSetting as error:
        return None, str(error)
    return at, None


def _gates(explained: Mapping[str, Any], names: Collection[str]) -> list[dict[str, Any]]:
    """Return the gates, and what they say in pieces that lead to what they name."""
    return [
        {
            **gate,
            "pieces": mentions(gate["reason"] or "", names),
            "matters": not gate["open"] and gate["reason"] == explained["why"],
            "running": _holders(gate, explained["running"]),
        }
        for gate in explained["gates"]
    ]


def _holders(gate: Mapping[str, Any], running: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    return running if gate["gate"] == "max_running" else ()


def _said_of_all(fires: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the note that all of several fires have."""
    notes = {fire["note"] for fire in fires}
    return notes.pop() if len(notes) == 1 and len(fires) > 1 else None


def _commands(name: str, at: str | None) -> tuple[str, ...]:
    then = [] if at is None else ["--at", at]
    return (
        shlex.join(["jobrunner", "explain", name, *then]),
        shlex.join(["jobrunner", "admin", "show", name]),
        shlex.join(["jobrunner", "history", "--worker", name]),
    )


def _address(name: str, at: datetime | None, typed: str | None) -> str:
    return f"api/workers/{name}" if at is None else f"api/workers/{name}/explain{query(at=typed)}"


def _sql(name: str) -> str:
    quoted = name.replace("'", "''")
    return f"SELECT * FROM worker_status WHERE name = '{quoted}'"  # noqa: S608 - to be shown, not run
