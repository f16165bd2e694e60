"""Alerts: what there is to tell, whom it was told, who is told of what, and which messages wait."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from jobrunner.policy.durations import show_seconds
from jobrunner.policy.words import counted
from jobrunner.storage.reading.deliveries import list_waiting, read_told, told_to
from jobrunner.storage.reading.incidents import count_waiting
from jobrunner.web.api import fields as f
from jobrunner.web.api import reads
from jobrunner.web.api.fields import Field
from jobrunner.web.pages.narrowed import narrowed
from jobrunner.web.pages.page import Shown
from jobrunner.web.pages.render import query

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jobrunner.web.api.ask import Ask

FIELDS = (
    Field("worker", f.TEXT, "of this worker only"),
    Field("all", f.FLAG, "also those that are over", False),
    Field("after", f.ID, "the id where the page before ended"),
)
_MOST_ROWS = 50
_MOST_RULES = 100
_MOST_WAITING = 20
_MOST_COUNTED = 1000
_SQL = "SELECT kind, worker, opened_at, count, summary FROM alerts WHERE closed_at IS NULL ORDER BY id DESC"


async def read(ask: Ask) -> Shown:
    """Read the incidents, the open ones first, with the rules."""
    worker, is_all, after = (ask.fields[name] for name in ("worker", "all", "after"))
    page = await reads.alerts(narrowed(ask, worker=worker, all=is_all, limit=_MOST_ROWS, after=after))
    rules = await reads.rules(narrowed(ask, limit=_MOST_RULES, after=None))
    async with ask.desk.reading() as conn:
        told = await read_told(conn, [row["id"] for row in page.rows])
        waiting = [ask.published(row) for row in await list_waiting(conn, _MOST_WAITING)]
        count = await count_waiting(conn, _MOST_COUNTED + 1)
    incidents = [
        {"row": row, "told": told_to(told.get(row["id"], [])), "lasted": _lasted(row)}
        for row in sorted(page.rows, key=lambda row: row["closed_at"] is not None)
    ]
    number = sum(row["closed_at"] is None for row in page.rows)
    facts = {
        "incidents": incidents,
        "headline": _headline(number, is_more=page.after is not None and not is_all, worker=worker),
        "is_well": not number,
        "is_all": is_all,
        "after": page.after,
        "rules": [{"row": row, "channel": show_channel(row["channel"])} for row in rules.rows],
        "has_more_rules": rules.after is not None,
        "waiting": waiting,
        "waiting_count": f"{_MOST_COUNTED:,}+" if count > _MOST_COUNTED else f"{count:,}",
        "is_waiting": count > 0,
    }
    words = [*(["--worker", shlex.quote(worker)] if worker else []), *(["--all"] if is_all else [])]
    commands = (" ".join(["jobrunner alerts list", *words]), "jobrunner alerts rules")
    api = query(worker=worker, all="true" if is_all else None)
    return Shown(facts, "Alerts", commands, f"api/alerts{api}", _SQL)


def show_channel(channel: Mapping[str, Any]) -> str:
    """Show in a line where a rule's messages go; of one without its secrets what is left."""
    kind = str(channel.get("type", "?"))
    command = channel.get("command")
    where = shlex.join(map(str, command)) if isinstance(command, list) else command or channel.get("url") or ""
    signed = ", signed" if channel.get("secret") else ""
    return f"{kind} {where}".strip() + signed


def _lasted(row: Mapping[str, Any]) -> str | None:
    """Say how long an incident lasted; None while it does."""
    if row["closed_at"] is None:
        return None
    return show_seconds(max(round((row["closed_at"] - row["opened_at"]).total_seconds()), 0))


def _headline(number: int, *, is_more: bool, worker: str | None) -> str:
    of = "" if worker is None else " of this worker"
    if not number:
        return f"No incident is open{of}."
    more = "+" if is_more else ""
    return f"{counted(number, 'incident').replace(' ', f'{more} ', 1)}{of} {'is' if number == 1 else 'are'} open."
