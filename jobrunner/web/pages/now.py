"""The first page: what is broken, since when, why, and what to press; and that all is well, if it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jobrunner.policy.filters import TROUBLE
from jobrunner.policy.showing import show_health
from jobrunner.storage.reading.error_groups import group_letters
from jobrunner.storage.reading.overview import read_overview
from jobrunner.storage.reading.status import MOST_COUNTED
from jobrunner.storage.reading.traces import read_since
from jobrunner.storage.reading.worst import count_health
from jobrunner.web.pages.charts import minutes_chart
from jobrunner.web.pages.page import Shown
from jobrunner.web.pages.verbs import buttons

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from jobrunner.policy.upcoming import Upcoming
    from jobrunner.storage.reading.overview import Overview
    from jobrunner.web.api.ask import Ask
    from jobrunner.web.pages.verbs import Button

_MOST_ROWS = 15
_MOST_ASKED = 2000
"""Of so many workers each is asked how it is, to count them."""
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
            since = await read_since(conn, db.dialect, ask.now, trouble)
            kinds = await count_health(conn) if len(trouble) == most and seen.totals.workers <= _MOST_ASKED else None
    facts = {
        "seen": seen,
        "trouble": [
            {"row": row, "since": since[row["name"]], "why": why(row), "verbs": _possible(row, ask.now)}
            for row in trouble
        ],
        "is_cut": len(trouble) == most,
        "is_well": not trouble,
        "headline": _headline(trouble, seen, kinds, most),
        "ended": ended,
        "groups": groups,
        "minutes": minutes,
        "chart": minutes_chart(minutes),
        "last_hour": sum(sum(minute.counts.values()) for minute in minutes),
        "knows_hour": all(minute.is_known for minute in minutes),
        "next": _first_of_each(seen.upcoming),
        "waiting": f"{MOST_COUNTED:,}+" if seen.totals.waiting > MOST_COUNTED else f"{seen.totals.waiting:,}",
    }
    return Shown(facts, "Now", ("jobrunner watch", "jobrunner status"), "api/workers", _SQL)


def _possible(row: Mapping[str, Any], now: datetime) -> list[Button]:
    """Return what can be done about a worker in trouble now; its own page says why not of the rest."""
    return [each for each in buttons("worker", row, now, only=_OF_TROUBLE) if each.why_not is None]


_WHY = {
    "late": "its last start was later than it usually is",
    "slow": "it runs for more than twice as long as it usually does",
    "no_node": "no live node has its code",
    "degraded": "more than a tenth of its last 50 runs failed",
}


def why(row: Mapping[str, Any]) -> str:
    """Say why a worker is in trouble: what keeps it from starting, how it failed, or what its health means."""
    said = [_WHY.get(row["health"]), row["why"] or row["last_error"]]
    return "; ".join(str(each) for each in said if each)


def _first_of_each(upcoming: Sequence[Upcoming]) -> list[Upcoming]:
    """Return the next time of each worker, in order."""
    first: dict[str, Upcoming] = {}
    for each in upcoming:
        first.setdefault(each.worker, each)
    return list(first.values())


def _headline(trouble: list[dict[str, Any]], seen: Overview, known: Mapping[str, int] | None, most: int) -> str:
    """Say in a sentence how all stands; `known`: how many workers there are of each health, where that was counted."""
    if not seen.totals.workers:
        return "There are no workers yet."
    silent = seen.heard.show_silent()
    if not seen.heard.live and not silent:
        return "No node lives: nothing starts until one does."
    kinds: dict[str, int] = {}
    for row in trouble:
        kinds[show_health(row)] = kinds.get(show_health(row), 0) + 1
    if known is not None:
        kinds = {kind.replace("_", " "): known[kind] for kind in TROUBLE if known.get(kind)}
    said = ", ".join(f"{number:,} {kind}" for kind, number in kinds.items())
    if trouble:
        is_more = known is None and len(trouble) == most
        first = f"{sum(kinds.values()):,} of {seen.totals.workers:,} workers in trouble: {said}."
        if is_more:
            first = f"{most} or more of {seen.totals.workers:,} workers in trouble; of the worst {most}: {said}."
        return f"{first} {silent}." if silent else first
    return f"{silent}." if silent else f"All is well: {seen.totals.workers:,} workers, none in trouble."
