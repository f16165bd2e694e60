"""All pages, in the order of the menu; behind it those that a page leads to."""

from __future__ import annotations

from jobrunner.web.api import fields as f
from jobrunner.web.api.fields import Field
from jobrunner.web.pages import (
    alerts,
    audit,
    bulk,
    history,
    letters,
    named_limits,
    nodes,
    now,
    run,
    runs,
    tv,
    upcoming,
    worker,
    workers,
)
from jobrunner.web.pages.page import Page

_FILTER = Field("q", f.TEXT, "a filter: worker:send-* error:timeout payload.customer:42")
_AFTER = Field("after", f.TEXT, "the place where the page before ended")
_AFTER_ID = Field("after", f.ID, "the id where the page before ended")
_COMPARE = Field("compare", f.TEXT, "two attempts to see beside each other, such as 1,3")
_AT = Field("at", f.TEXT, "as it was then: a time, or a duration ago such as 2h")

PAGES = (
    Page("/", "now", now.read, "Now", "n"),
    Page("/workers", "workers", workers.read, "Workers", "w", (_FILTER, _AFTER)),
    Page("/runs", "runs", runs.read, "Runs", "r", (_FILTER, _AFTER)),
    Page("/upcoming", "upcoming", upcoming.read, "Upcoming", "u", upcoming.FIELDS),
    Page("/history", "history", history.read, "History", "h", history.FIELDS),
    Page("/dead-letters", "letters", letters.read, "Dead letters", "d", (_FILTER, _AFTER)),
    Page("/nodes", "nodes", nodes.read, "Nodes", "o", nodes.FIELDS),
    Page("/alerts", "alerts", alerts.read, "Alerts", "l", alerts.FIELDS),
    Page("/limits", "limits", named_limits.read, "Limits", "m", (_AFTER,)),
    Page("/audit", "audit", audit.read, "Audit", "a", audit.FIELDS),
    Page("/workers/{name}", "worker", worker.read, fields=(_AT,)),
    Page("/runs/{id}", "run", run.read, fields=(_COMPARE,)),
    Page("/dead-letters/{id}", "letter", letters.read_one),
    Page("/limits/{name}", "limit", named_limits.read_one),
    Page("/bulk", "bulk", bulk.read, fields=(_AFTER_ID,)),
    Page("/bulk/{id}", "bulk_one", bulk.read_one),
    Page("/tv", "tv", tv.read),
)
