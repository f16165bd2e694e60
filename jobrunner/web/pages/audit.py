"""The audit log: who did what, a sentence an entry."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from jobrunner.policy.deeds import tell_deed
from jobrunner.storage.tables.kept_tables import AUDIT_ACTIONS
from jobrunner.web.api import fields as f
from jobrunner.web.api import reads
from jobrunner.web.api.fields import Field
from jobrunner.web.pages.narrowed import narrowed
from jobrunner.web.pages.page import Shown
from jobrunner.web.pages.render import query

if TYPE_CHECKING:
    from jobrunner.web.api.ask import Ask

FIELDS = (
    Field("worker", f.TEXT, "of this worker only"),
    Field("actor", f.TEXT, "only what this one decided: user@host, or the user"),
    Field("action", f.TEXT, "only this action", choices=AUDIT_ACTIONS),
    Field("since", f.PAST, "only what was since then"),
    Field("after", f.ID, "the id where the page before ended"),
)
_MOST_ROWS = 50
_SQL = "SELECT at, actor, action, worker, detail FROM audit_log ORDER BY id DESC LIMIT 50"


async def read(ask: Ask) -> Shown:
    """Read the newest decisions that fit."""
    names = ("worker", "actor", "action", "since")
    asked = {name: ask.fields[name] for name in names}
    action = asked["action"]
    page = await reads.audit(
        narrowed(
            ask,
            **{**asked, "action": None if action is None else (action,)},
            limit=_MOST_ROWS,
            after=ask.fields["after"],
        )
    )
    entries = [{"row": row, "deed": tell_deed(row["action"], row["detail"])} for row in page.rows]
    facts = {
        "entries": entries,
        "after": page.after,
        "searched": page.searched,
        "actions": AUDIT_ACTIONS,
        "is_narrowed": any(value is not None for value in asked.values()),
    }
    words = [f"--{name} {shlex.quote(str(value))}" for name, value in asked.items() if value and name != "since"]
    command = " ".join(["jobrunner admin audit", *words])
    api = query(worker=asked["worker"], actor=asked["actor"], action=action)
    return Shown(facts, "Audit", (command,), f"api/audit{api}", _SQL)
