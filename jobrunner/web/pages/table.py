"""All pages, in the order of the menu."""

from __future__ import annotations

from jobrunner.web.api import fields as f
from jobrunner.web.api.fields import Field
from jobrunner.web.pages import now, worker, workers
from jobrunner.web.pages.page import Page

PAGES = (
    Page("/", "now", now.read, "Now", "n"),
    Page(
        "/workers",
        "workers",
        workers.read,
        "Workers",
        "w",
        (
            Field("q", f.TEXT, "a part of a name, or a filter"),
            Field("after", f.TEXT, "the name where the page before ended"),
        ),
    ),
    Page(
        "/workers/{name}",
        "worker",
        worker.read,
        fields=(Field("at", f.TEXT, "as it was then: a time, or a duration ago such as 2h"),),
    ),
)
