"""All pages, in the order of the menu."""

from __future__ import annotations

from jobrunner.web.api import fields as f
from jobrunner.web.api.fields import Field
from jobrunner.web.pages import bulk, letters, now, run, runs
from jobrunner.web.pages.page import Page

_FILTER = Field("q", f.TEXT, "a filter: worker:send-* error:timeout payload.customer:42")
_AFTER = Field("after", f.TEXT, "the place where the page before ended")
_AFTER_ID = Field("after", f.ID, "the id where the page before ended")
_COMPARE = Field("compare", f.TEXT, "two attempts to see beside each other, such as 1,3")

PAGES = (
    Page("/", "now", now.read, "Now", "n"),
    Page("/runs", "runs", runs.read, "Runs", "r", (_FILTER, _AFTER)),
    Page("/runs/{id}", "run", run.read, fields=(_COMPARE,)),
    Page("/dead-letters", "letters", letters.read, "Dead letters", "d", (_FILTER, _AFTER)),
    Page("/dead-letters/{id}", "letter", letters.read_one),
    Page("/bulk", "bulk", bulk.read, fields=(_AFTER_ID,)),
    Page("/bulk/{id}", "bulk_one", bulk.read_one),
)
