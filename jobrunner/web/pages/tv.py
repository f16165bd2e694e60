"""The wall: how all stands, to be read from the other end of the room."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jobrunner.policy.words import first_line, show_time
from jobrunner.web.pages import now
from jobrunner.web.pages.page import Shown

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from jobrunner.web.api.ask import Ask

MOST_TILES = 24
_FAR_YEAR = 9000


async def read(ask: Ask) -> Shown:
    """Read what the first page reads, of the workers in trouble as many as there is room for."""
    shown = await now.read(ask, MOST_TILES)
    seen, trouble = shown.facts["seen"], shown.facts["trouble"]
    is_calm = not trouble and seen.heard.live > 0 and not seen.heard.silent and seen.totals.workers > 0
    facts = {
        **shown.facts,
        "trouble": [{**each, "why": why(each["row"], ask.now)} for each in trouble],
        "is_calm": is_calm,
        "wall": "All is well" if is_calm else shown.facts["headline"],
        "letters": seen.letters.firings + seen.letters.triggered,
        "pace": show_pace(shown.facts["last_hour"]),
    }
    return Shown(facts, "All is well" if is_calm else "In trouble" if trouble else "Wall", shown.cli)


def show_pace(number: int) -> str:
    """Say how much ends, in the unit that fits; empty where nothing did."""
    if number >= 3600:
        return f"{number / 3600:,.1f} a second"
    if number >= 60:
        return f"{number / 60:.1f} a minute"
    return f"{number:,} in all" if number else ""


def why(row: Mapping[str, Any], moment: datetime) -> str:
    """Say in a line why a worker is as it is."""
    if row["disabled_actor"]:
        return _told("disabled", row["disabled_actor"], row["disabled_reason"])
    if row["health"] == "paused":
        until = row["paused_until"]
        end = "" if until is None or until.year >= _FAR_YEAR else f" until {show_time(until, today=moment)}"
        return _told(f"paused{end}", row["paused_by"], row["paused_reason"])
    return first_line(str(row["why"] or row["last_error"] or ""))


def _told(what: str, actor: str | None, reason: str | None) -> str:
    by = f" by {actor}" if actor else ""
    return f"{what}{by}: {first_line(reason)}" if reason else f"{what}{by}"
