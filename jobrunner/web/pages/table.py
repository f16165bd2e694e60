"""All pages, in the order of the menu."""

from __future__ import annotations

from jobrunner.web.pages import now
from jobrunner.web.pages.page import Page

PAGES = (Page("/", "now", now.read, "Now", "n"),)
