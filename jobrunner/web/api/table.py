"""The table of the API's routes: what each is called, who may ask, what it takes and what it gives.

The application is made from it, and so is the OpenAPI document: they cannot differ.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from jobrunner.policy.duplicates import CHOICES, KEEP
from jobrunner.policy.filters import LETTER_STATES, OUTCOMES
from jobrunner.storage.bulk import DEFAULT_RATE
from jobrunner.storage.tables.kept_tables import AUDIT_ACTIONS
from jobrunner.web.access import Level
from jobrunner.web.api import fields as f
from jobrunner.web.api import named_limits, reads, verbs
from jobrunner.web.api.ask import Ask, Page
from jobrunner.web.api.fields import Field


@dataclass(frozen=True, slots=True)
class Route:
    """One route. `fields` are those of the query of a GET, and of the body of a POST; `do` answers it."""

    method: str
    path: str
    level: Level
    do: Callable[[Ask], Awaitable[Page | dict[str, Any]]]
    about: str
    fields: tuple[Field, ...] = ()

    @property
    def is_list(self) -> bool:
        """Say whether it answers with a page of rows."""
        return any(field.name == "limit" for field in self.fields)

    @property
    def name(self) -> str:
        """The route's name: that of the function behind it."""
        return self.do.__name__


_LIMIT = Field("limit", f.LIMIT, "so many rows at most", 50)
_AFTER = Field("after", f.TEXT, "the place where the page before ended: of its Link header")
_AFTER_ID = Field("after", f.ID, "the id where the page before ended: of its Link header")
_WORKER = Field("worker", f.TEXT, "of this worker only")
_SINCE = Field("since", f.PAST, "only what was since then")
_QUERY = Field("q", f.TEXT, "a filter instead of the other fields: worker:send-* error:timeout payload.customer:42")
_REASON = Field("reason", f.TEXT, "why, for those who look later")
_PAYLOAD = Field("payload", f.OBJECT, "the payload, a JSON object")


def _get(path: str, do: Any, about: str, *fields: Field) -> Route:
    return Route("GET", path, Level.READ, do, about, fields)


def _post(path: str, do: Any, about: str, *fields: Field, level: Level = Level.OPERATE) -> Route:
    return Route("POST", path, level, do, about, fields)


ROUTES = (
    _get(
        "/api/workers",
        reads.workers,
        "How the workers stand, by name; of a filter the worst first.",
        _LIMIT,
        _AFTER,
        _QUERY,
    ),
    _get("/api/workers/{name}", reads.worker, "All there is about a worker."),
    _get(
        "/api/workers/{name}/explain",
        reads.explain,
        "Every gate a worker's run must pass, and why it is shut.",
        Field("at", f.PAST, "as it was then, from history and audit log"),
    ),
    _get(
        "/api/runs",
        reads.runs,
        "The live runs: those that run, then those that wait; with `q` the newest first.",
        _QUERY,
        _WORKER,
        _LIMIT,
        _AFTER,
    ),
    _get("/api/runs/{id}", reads.run, "One run, live or ended, with its attempts."),
    _get("/api/runs/{id}/explain", reads.explain_one_run, "Why a run waits, since when it runs, or how it ended."),
    _get(
        "/api/history",
        reads.history,
        "What ended, the newest first.",
        _QUERY,
        _WORKER,
        Field("outcome", f.TEXTS, "only what ended so; may be given several times", choices=OUTCOMES),
        Field("since", f.TEXT, "only what was since then: a time (UTC without a zone), or a duration ago such as 2h"),
        Field("until", f.TEXT, "only what was until then, in the same ways"),
        Field("run", f.ID, "of this run only"),
        _LIMIT,
        _AFTER,
    ),
    _get(
        "/api/dead-letters",
        reads.letters,
        "The dead letters, the newest first.",
        _QUERY,
        _WORKER,
        Field("status", f.TEXT, "those of this status; else the open ones", choices=(*LETTER_STATES, "all")),
        _LIMIT,
        _AFTER,
    ),
    _get("/api/dead-letters/{id}", reads.letter, "One dead letter, with the error of every attempt."),
    _get(
        "/api/upcoming",
        reads.upcoming,
        "What will fire, in the order of time.",
        _WORKER,
        Field("for", f.LENGTH, "how far to look ahead, such as 24h", 86400.0),
        _LIMIT,
        _AFTER,
    ),
    _get(
        "/api/nodes",
        reads.nodes,
        "The nodes, the newest first.",
        Field("all", f.FLAG, "also those that have stopped or were lost", False),
        _LIMIT,
        _AFTER,
    ),
    _get(
        "/api/audit",
        reads.audit,
        "Who decided what, the newest first.",
        _WORKER,
        _SINCE,
        Field("action", f.TEXTS, "only these actions; may be given several times", choices=AUDIT_ACTIONS),
        Field("actor", f.TEXT, "only what this one decided: user@host, or the user"),
        _LIMIT,
        _AFTER_ID,
    ),
    _get(
        "/api/alerts",
        reads.alerts,
        "The incidents, the newest first.",
        _WORKER,
        Field("all", f.FLAG, "also those that are over", False),
        _LIMIT,
        _AFTER_ID,
    ),
    _get("/api/alerts/rules", reads.rules, "The alert rules, by name, and how many messages wait.", _LIMIT, _AFTER),
    _get("/api/limits", named_limits.limits, "The limits that workers share, by name.", _LIMIT, _AFTER),
    _get("/api/limits/{name}", named_limits.limit, "One limit: what holds, who runs in it, which workers name it."),
    _get("/api/bulk", reads.operations, "The bulk operations, the newest first.", _LIMIT, _AFTER_ID),
    _get("/api/bulk/{id}", reads.operation, "One bulk operation, and how far it has come."),
    _post("/api/workers/{name}/enable", verbs.enable, "Enable a worker: zero its streak, close its circuit.", _REASON),
    _post("/api/workers/{name}/disable", verbs.disable, "Disable a worker: nothing of it starts.", _REASON),
    _post(
        "/api/workers/{name}/pause",
        verbs.pause,
        "Pause a worker; without `for` and `until`, until it is resumed.",
        Field("for", f.LENGTH, "so long, such as 2h"),
        Field("until", f.TIME, "until then; UTC without a zone"),
        _REASON,
    ),
    _post("/api/workers/{name}/resume", verbs.resume, "End a worker's pause now.", _REASON),
    _post(
        "/api/workers/{name}/trigger",
        verbs.trigger,
        "Make a run of a worker, now or later.",
        _PAYLOAD,
        Field("key", f.TEXT, "make no second run while one with this key has not started"),
        Field("key_scope", f.TEXT, "live: while one with this key has not ended", "waiting", ("waiting", "live")),
        Field("priority", f.PRIORITY, "else the worker's"),
        Field("at", f.TIME, "when; UTC without a zone"),
        Field("in", f.LENGTH, "after so long, such as 15m"),
        Field("on_duplicate", f.TEXT, "what becomes of the waiting run with that key", KEEP, CHOICES),
        Field("at_most", f.LENGTH, "with postpone: no later than so long after the first trigger"),
        Field("force", f.FLAG, "start it even if disabled, paused, or waiting for another worker", False),
    ),
    _post(
        "/api/workers/{name}/set",
        verbs.set_values,
        "Set fields of a worker's definition over what its code says.",
        Field("values", f.OBJECT, "the fields and their values, such as interval_seconds", is_required=True),
        level=Level.ADMIN,
    ),
    _post(
        "/api/workers/{name}/unset",
        verbs.unset_values,
        "Take back what was set: the fields are again as the worker's code says.",
        Field("fields", f.TEXTS, "their names", is_required=True),
        level=Level.ADMIN,
    ),
    _post(
        "/api/limits/{name}/set",
        named_limits.set_limit,
        "Set a limit over what its code says; what runs beyond it may end.",
        Field("values", f.OBJECT, "max_running or rate, such as 4 and 100/1m; null lifts it", is_required=True),
        Field("create", f.FLAG, "make the limit, if there is none of that name", False),
        _REASON,
    ),
    _post(
        "/api/limits/{name}/unset",
        named_limits.unset_limit,
        "Take back what was set of a limit: the fields are again as its code says.",
        Field("fields", f.TEXTS, "their names", is_required=True),
        _REASON,
    ),
    _post("/api/runs/{id}/cancel", verbs.cancel, "Cancel a run: one that runs is told to stop.", _REASON),
    _post("/api/dead-letters/{id}/replay", verbs.replay, "Make a new run of a letter, and close it.", _PAYLOAD),
    _post("/api/dead-letters/{id}/discard", verbs.discard, "Close a letter without running anything; it is kept."),
    _post(
        "/api/bulk",
        verbs.begin_bulk,
        "Cancel runs, replay or discard letters: all that fit a filter. The nodes do it, at a rate.",
        Field("action", f.TEXT, "what to do", choices=("cancel", "replay", "discard"), is_required=True),
        Field("filter", f.TEXT, "to which: worker:send-* error:timeout payload.customer:42", is_required=True),
        Field("dry_run", f.FLAG, "change nothing; say how many it would be, and show the newest", False),
        Field("expected", f.ID, "refuse it if not so many fit"),
        Field("rate", f.NUMBER, "at most so many a second", DEFAULT_RATE),
        _REASON,
    ),
    _post("/api/bulk/{id}/stop", verbs.stop_bulk, "Stop a bulk operation; what is done stays done."),
)
