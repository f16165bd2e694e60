"""The first page: what is broken, since when, why, and what to press; and that all is well, if it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jobrunner.policy.filters import TROUBLE
from jobrunner.policy.showing import show_health
from jobrunner.storage.reading.error_groups import group_letters
from jobrunner.storage.reading.overview import read_overview
from jobrunner.storage.reading.status import MOST_COUNTED
from jobrunner.web.pages.charts import minutes_chart
from jobrunner.web.pages.page import Shown
from jobrunner.web.pages.verbs import buttons

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from jobrunner.storage.reading.overview import Overview
    from jobrunner.web.api.ask import Ask
    from jobrunner.web.pages.verbs import Button

_MOST_ROWS = 15
_MOST_GROUPS = 8
_SQL = (
    "SELECT name, health, next_run_at, last_run_at, consecutive_failures, last_error FROM worker_status ORDER BY name"
)
_OF_TROUBLE = ("enable", "resume", "pause", "disable", "trigger")


async def read(ask: Ask, most: int = _MOST_ROWS) -> Shown:
    """Read how all stands, of each kind at most so many rows."""
    async with ask.desk.database() as db:
        seen = await read_overview(db, ask.now, most)
        async with db.read() as conn:
            minutes = await ask.desk.minutes.look(conn, ask.now)
            groups = await group_letters(conn, most=_MOST_GROUPS)
            ended = await ask.shown(conn, seen.ended)
    trouble = [row for row in seen.workers if row["health"] in TROUBLE]
    facts = {
        "seen": seen,
        "trouble": [{"row": row, "since": since(row, ask.now), "verbs": _possible(row, ask.now)} for row in trouble],
        "is_cut": len(trouble) == most,
        "is_well": not trouble,
        "headline": _headline(trouble, seen, most),
        "ended": ended,
        "groups": groups,
        "minutes": minutes,
        "chart": minutes_chart(minutes),
        "last_hour": sum(sum(minute.counts.values()) for minute in minutes),
        "knows_hour": all(minute.is_known for minute in minutes),
        "next": list({each.worker: each for each in reversed(seen.upcoming)}.values())[::-1],
        "waiting": f"{MOST_COUNTED:,}+" if seen.totals.waiting > MOST_COUNTED else f"{seen.totals.waiting:,}",
    }
    return Shown(facts, "Now", ("jobrunner watch", "jobrunner status"), "api/workers", _SQL)


def _possible(row: Mapping[str, Any], now: datetime) -> list[Button]:
    """Return what can be done about a worker in trouble now; its own page says why not of the rest."""
    return [each for each in buttons("worker", row, now, only=_OF_TROUBLE) if each.why_not is None]


def since(row: Mapping[str, Any], now: datetime) -> datetime | None:
    """Return since when a worker has been as it is, where its row says so."""
    moment: datetime | None = {
        "failing": row["last_run_at"],
        "stalled": row["next_at"],
        "late": row["last_run_at"],
        "slow": row["last_run_at"],
    }.get(row["health"])
    if row["health"] == "disabled" and row["circuit_opened_at"] is not None:
        moment = row["circuit_opened_at"]
    return moment if moment is not None and moment <= now else None


def _headline(trouble: list[dict[str, Any]], seen: Overview, most: int) -> str:
    """Say in a sentence how all stands."""
    if not seen.totals.workers:
        return "There are no workers yet."
    silent = seen.heard.show_silent()
    if not seen.heard.live and not silent:
        return "No node lives: nothing starts until one does."
    kinds: dict[str, int] = {}
    for row in trouble:
        kinds[show_health(row)] = kinds.get(show_health(row), 0) + 1
    more = "+" if len(trouble) == most else ""
    said = ", ".join(f"{number} {kind}" for kind, number in kinds.items())
    if trouble:
        first = f"{len(trouble)}{more} of {seen.totals.workers:,} workers in trouble: {said}."
        return f"{first} {silent}." if silent else first
    return f"{silent}." if silent else f"All is well: {seen.totals.workers:,} workers, none in trouble."
