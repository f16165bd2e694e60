"""Dead letters: by what they died of, or as a list; and one of them, with the error of each attempt."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from jobrunner.errors import InvalidSetting
from jobrunner.policy.durations import parse_time
from jobrunner.storage.reading.error_groups import group_letters
from jobrunner.storage.runs.dead_letters import count_open
from jobrunner.web.api import reads
from jobrunner.web.pages.lists import ROWS, listed
from jobrunner.web.pages.page import Shown
from jobrunner.web.pages.render import query
from jobrunner.web.pages.tails import tail_of
from jobrunner.web.pages.verbs import buttons

if TYPE_CHECKING:
    from datetime import datetime

    from jobrunner.web.api.ask import Ask

_MOST_GROUPS = 100
_OF_AN_ERROR = ("attempt", "outcome", "error_type", "error")
_SQL = "SELECT id, run_id, worker, died_at, error_type, error FROM dead_letters WHERE status = 'open' ORDER BY id DESC"


async def read(ask: Ask) -> Shown:
    """Read the groups, or with a filter a page of the letters that fit."""
    return await (_read_groups(ask) if ask.fields["q"] is None else _read_list(ask, ask.fields["q"]))


async def _read_groups(ask: Ask) -> Shown:
    async with ask.desk.reading() as conn:
        found = await group_letters(conn, most=_MOST_GROUPS)
        opened = await count_open(conn)
    facts = {"groups": found, "opened": opened, "rows": None, "refused": None, "after": None, "searched": None}
    return Shown(facts, "Dead letters", ("jobrunner dead-letters list",), "api/dead-letters", _SQL)


async def _read_list(ask: Ask, asked: str) -> Shown:
    found = await listed(reads.letters, ask, q=asked, after=ask.fields["after"], worker=None, status=None, limit=ROWS)
    facts = {
        "groups": None,
        "rows": [
            {"row": row, "verbs": buttons("letter", row, ask.now) if row["status"] == "open" else []}
            for row in found.page.rows
        ],
        "after": found.page.after,
        "searched": found.page.searched,
        "refused": found.refused,
        "asked": asked,
    }
    command = shlex.join(["jobrunner", "dead-letters", "list", asked])
    return Shown(facts, "Dead letters", (command,), f"api/dead-letters{query(q=asked)}", _SQL)


async def read_one(ask: Ask) -> Shown:
    """Read one letter."""
    letter = await reads.letter(ask)
    facts = {
        "letter": letter,
        "errors": _errors(letter["errors"]),
        "traceback": tail_of(letter["traceback"]),
        "verbs": buttons("letter", letter, ask.now),
    }
    number = letter["id"]
    title = f"Dead letter {number} of {letter['worker']}"
    sql = f"SELECT * FROM dead_letters WHERE id = {number}"  # noqa: S608 - to be pasted; a number
    return Shown(facts, title, (f"jobrunner dead-letters show {number}",), f"api/dead-letters/{number}", sql)


def _errors(kept: Any) -> list[dict[str, Any]]:
    """Return the errors that a letter has kept, with all that a row shows of one."""
    found = [each for each in kept if isinstance(each, dict)] if isinstance(kept, list) else []
    return [
        {name: each.get(name) for name in _OF_AN_ERROR} | {"at": _moment(each.get("finished_at"))} for each in found
    ]


def _moment(said: object) -> datetime | None:
    try:
        return parse_time(said) if isinstance(said, str) else None
    except InvalidSetting:
        return None
