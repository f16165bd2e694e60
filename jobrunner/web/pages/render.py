"""From facts to HTML: the templates' environment, and how times, texts and documents are shown in it.

All that a database holds may be hostile: markup, control characters, marks that turn the direction of writing, a
megabyte in one line. What a template shows is escaped, and its control characters are written out, in one place
(`_shown`), so that no template can forget it.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from jobrunner.model.run import HELD_UNTIL
from jobrunner.model.worker import JobPriority
from jobrunner.policy.durations import show_seconds
from jobrunner.policy.liveness import short_id
from jobrunner.policy.showing import show_duration, show_health, show_progress, show_schedule, without_controls
from jobrunner.policy.words import HELD, counted, first_line, show_age
from jobrunner.policy.zones import zone_or_utc
from jobrunner.storage.tables.types import to_json as time_to_json
from jobrunner.web.answers import to_json

if TYPE_CHECKING:
    from collections.abc import Mapping

LONGEST_TEXT = 64 * 1024
"""Characters of one text on a page; what is cut is said, and where the whole is."""
_KEPT = "\n\t"
_SYMBOLS = {
    "disabled": "■",
    "paused": "❚❚",
    "failing": "✖",
    "stalled": "▲",
    "late": "◆",
    "slow": "◔",
    "no_node": "⊘",
    "degraded": "▼",
    "healthy": "●",
    "unknown": "○",
    "succeeded": "✔",
    "failed": "✖",
    "timed_out": "◷",
    "lost": "?",
    "cancelled": "⊗",
    "missed": "-",
    "snoozed": "z",
    "retried": "↻",
    "discarded": "⊗",
    "running": "▶",
    "pending": "…",
    "open": "✉",
    "replayed": "↻",
    "active": "●",
    "draining": "◔",
    "stopped": "○",
    "silent": "▲",
    "incident": "▲",
    "over": "✔",
    "told": "✔",
    "untold": "…",
    "open-letter": "✉",
    "exhausted": "✖",
    "stopping": "◔",
    "interrupted": "↺",
    "done": "✔",
    "shut": "■",
}
"""A shape for each state beside its word: colour alone says nothing to some."""


def environment() -> Environment:
    """Return the environment of the templates."""
    made = Environment(
        loader=PackageLoader("jobrunner.web", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "age": show_age,
        "cut": cut,
        "document": show_document,
        "duration": show_duration,
        "first_line": first_line,
        "health": show_health,
        "number": lambda number: f"{number:,}",
        "priority": lambda value: JobPriority(value).name if value in set(JobPriority) else str(value),
        "progress": show_progress,
        "quoted": lambda text: quote(str(text), safe=""),
        "schedule": show_schedule,
        "seconds": show_seconds,
        "short_id": short_id,
        "symbol": lambda state: _SYMBOLS.get(str(state), "·"),
    }
    made.globals |= {"counted": counted, "query": query, "when": when, "LONGEST_TEXT": LONGEST_TEXT}
    made.tests |= {"moment": lambda value: isinstance(value, datetime)}
    return made


def _shown(value: Any) -> Any:
    """Return what an expression of a template has given, as it may be shown."""
    if value is None:
        return ""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return without_controls(value, _KEPT)


def cut(text: object, most: int = LONGEST_TEXT) -> str:
    """Return a text, its end cut off where it is longer."""
    whole = str(text)
    return whole if len(whole) <= most else f"{whole[:most]}…"


def show_document(value: Any) -> str:
    """Return a value as JSON, laid out over several lines; a text that is JSON already keeps its numbers."""
    try:
        return json.dumps(json.loads(to_json(value)), ensure_ascii=False, indent=2)
    except (TypeError, ValueError, RecursionError):
        return str(value)


def query(**values: Any) -> str:
    """Return a query string of the values that are given, with its question mark; empty of none."""
    given = [(name, str(value)) for name, value in values.items() if value not in (None, "", False)]
    return f"?{urlencode(given)}" if given else ""


def when(moment: datetime | None, tz: str, zone: str = "UTC", now: datetime | None = None) -> Markup:
    """Return a time: in UTC or in the worker's `zone`, and marked for the page's script where it is to be local.

    With `now` how far it lies from there is added.
    """
    if moment is None:
        return Markup("–")  # noqa: RUF001 - an en dash, for what is not
    if moment == HELD_UNTIL:
        return Markup(HELD)  # noqa: S704 - a text of ours
    local = moment.astimezone(zone_or_utc(zone if tz == "worker" else "UTC"))
    text = f"{local:%Y-%m-%d %H:%M:%S %Z}"
    shown = Markup('<time datetime="{}"{}>{}</time>').format(
        time_to_json(moment), Markup(" data-local") if tz == "local" else "", text
    )
    if now is None:
        return shown
    return shown + Markup(' <span class="age" data-at="{}">{}</span>').format(
        time_to_json(moment), show_age(moment, now)
    )


def link_values(given: Mapping[str, Any], **changes: Any) -> str:
    """Return the query string of a page with some of its values changed."""
    return query(**{**given, **changes})
