"""What ended, the newest first, as a filter chooses it; and the same to be taken away as CSV or JSON."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from jobrunner.errors import UsageError
from jobrunner.policy.filters import parse_filter
from jobrunner.policy.showing import show_times_missed
from jobrunner.policy.words import first_line
from jobrunner.web.api import fields as f
from jobrunner.web.api import reads
from jobrunner.web.api.ask import Page
from jobrunner.web.api.fields import Field
from jobrunner.web.pages.narrowed import narrowed
from jobrunner.web.pages.page import Shown
from jobrunner.web.pages.render import query

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jobrunner.web.api.ask import Ask

QUERY = Field("q", f.TEXT, "a filter: worker:send-* outcome:failed since:2h error:timeout payload.customer:42")
FIELDS = (QUERY, Field("after", f.TEXT, "the place where the page before ended"))
ABOUT = (
    "worker:NAME or a pattern, outcome:failed,lost, since:2h, until:, run:, trigger:, node:, attempt:, error:text, "
    "payload.FIELD:value; all must hold."
)
_MOST_ROWS = 50
_SQL = "SELECT id, finished_at, worker, run_id, attempt, outcome, error FROM run_history ORDER BY id DESC LIMIT 50"
QUICK = (
    ("Failed in the last 2 h", "outcome:failed,timed_out,lost since:2h"),
    ("Given up", "outcome:exhausted,discarded"),
    ("Lost", "outcome:lost"),
    ("Missed", "outcome:missed"),
    ("Timed out", "outcome:timed_out"),
    ("Retries", "attempt:2,3,4,5"),
)
"""Filters that are asked for again and again, with what they are called."""


async def read(ask: Ask) -> Shown:
    """Read a page of what ended; a filter that cannot be read is told beside it."""
    asked = ask.fields["q"]
    refused = None
    page = Page([])
    try:
        worker = None if asked is None else parse_filter(asked, "history", ask.now).only_worker
        page = await ended(ask, asked, _MOST_ROWS, ask.fields["after"])
    except UsageError as error:
        refused, worker = str(error), None
    facts = {
        "rows": [{"row": row, "why": why(row)} for row in page.rows],
        "after": page.after,
        "searched": page.searched,
        "refused": refused,
        "about": ABOUT,
        "quick": QUICK,
        "asked": asked,
        "of_worker": None if worker is None else f"worker:{worker} outcome:failed,timed_out,lost",
        "worker": worker,
    }
    words = "" if asked is None else f" {shlex.quote(asked)}"
    return Shown(facts, "History", (f"jobrunner history{words}",), f"api/history{query(q=asked)}", _SQL)


async def ended(ask: Ask, asked: str | None, limit: int, after: str | None) -> Page:
    """Return a page of what ended and fits the filter, as the API gives it."""
    none = dict.fromkeys(("worker", "outcome", "since", "until", "run"))
    return await reads.history(narrowed(ask, q=asked, limit=limit, after=after, **none))


def why(row: Mapping[str, Any]) -> str:
    """Return in a line why an attempt ended so, or which times were missed and why; empty where all is said."""
    if row["occurrences"] is not None:
        return f"{show_times_missed(row)}: {first_line(row['reason'] or '')}"
    if row["error"]:
        kind = f"{row['error_type']}: " if row["error_type"] else ""
        return kind + first_line(row["error"])
    return first_line(row["reason"] or "")
