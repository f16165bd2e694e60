"""All pages, in the order of the menu."""

from __future__ import annotations

from jobrunner.web.pages import alerts, audit, history, nodes, now, tv, upcoming
from jobrunner.web.pages.page import Page

PAGES = (
    Page("/", "now", now.read, "Now", "n"),
    Page("/upcoming", "upcoming", upcoming.read, "Upcoming", "u", upcoming.FIELDS),
    Page("/history", "history", history.read, "History", "h", history.FIELDS),
    Page("/nodes", "nodes", nodes.read, "Nodes", "o", nodes.FIELDS),
    Page("/audit", "audit", audit.read, "Audit", "a", audit.FIELDS),
    Page("/alerts", "alerts", alerts.read, "Alerts", "l", alerts.FIELDS),
    Page("/tv", "tv", tv.read, frame="wall.html"),
)
