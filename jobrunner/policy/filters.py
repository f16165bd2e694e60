"""The one language in which people say which rows they mean: `worker:send-* outcome:failed since:2h error:timeout`.

Terms are divided by spaces and all must hold. A term is `key:value`; a value with spaces stands in double quotes,
alternatives are divided by commas (`outcome:failed,lost`), and `payload.customer:42` compares a field of the payload,
however deep. What cannot be read is refused with what there is instead: a filter that was half understood would show,
or change, other rows than were meant. Pure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

from jobrunner.errors import InvalidSetting, UsageError
from jobrunner.model.run import EndsRun, OutcomeKind, RunState, Trigger
from jobrunner.model.worker import WorkerExecutionMode
from jobrunner.policy.arguments import read_id
from jobrunner.policy.durations import last_clock_time, parse_moment
from jobrunner.policy.near import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

HEALTH = (
    "disabled",
    "paused",
    "failing",
    "stalled",
    "late",
    "slow",
    "no_node",
    "degraded",
    "healthy",
    "unknown",
)
"""How a worker may be, in the order of harm; the view `worker_status` says which of it holds."""
TROUBLE = tuple(each for each in HEALTH if each not in {"healthy", "unknown"})
ENDS_ASKED_FOR = (EndsRun.EXHAUSTED, EndsRun.DISCARDED)
"""How runs end that no outcome of an attempt is called by."""
OUTCOMES = tuple(map(str, (*OutcomeKind, *ENDS_ASKED_FOR)))
"""All that an attempt or its run may have ended as."""
LETTER_STATES = ("open", "replayed", "discarded")

_TERM = re.compile(r'([A-Za-z_][\w.-]*):("(?:[^"\\]|\\.)*"|[^\s"]+)(?=\s|$)')
_PATTERN = re.compile(r"[A-Za-z0-9._*-]{1,200}\Z")
_PAYLOAD = "payload."
_KEYS = {
    "history": ("worker", "outcome", "since", "until", "run", "trigger", "node", "attempt", "error"),
    "runs": ("worker", "state", "trigger", "node", "key", "priority", "attempt"),
    "letters": ("worker", "status", "since", "until", "error", "trigger", "key", "id"),
    "workers": ("worker", "health", "mode"),
}
_HAS_PAYLOAD = frozenset({"history", "runs", "letters"})
_CHOICES = {
    "outcome": OUTCOMES,
    "state": tuple(map(str, RunState)),
    "trigger": tuple(map(str, Trigger)),
    "status": LETTER_STATES,
    "health": HEALTH,
    "mode": tuple(map(str, WorkerExecutionMode)),
}


@dataclass(frozen=True, slots=True)
class Filter:
    """What was asked for; of a field with several values any one will do, an empty one asks nothing.

    `worker` holds names, or patterns with `*`; `payload` pairs of a path and its value as text.
    `is_of_known`: only of workers that exist; no term says so.
    """

    worker: tuple[str, ...] = ()
    outcome: tuple[str, ...] = ()
    state: tuple[str, ...] = ()
    trigger: tuple[str, ...] = ()
    status: tuple[str, ...] = ()
    health: tuple[str, ...] = ()
    mode: tuple[str, ...] = ()
    node: tuple[str, ...] = ()
    key: tuple[str, ...] = ()
    run: tuple[int, ...] = ()
    id: tuple[int, ...] = ()
    attempt: tuple[int, ...] = ()
    priority: tuple[int, ...] = ()
    since: datetime | None = None
    until: datetime | None = None
    error: str | None = None
    payload: tuple[tuple[tuple[str, ...], str], ...] = field(default=())
    is_of_known: bool = False

    @property
    def is_empty(self) -> bool:
        """Does it ask nothing, so that every row is meant?"""
        return self == Filter()

    @property
    def only_worker(self) -> str | None:
        """The one worker that is named, without a pattern; None if it is not one."""
        return self.worker[0] if len(self.worker) == 1 and "*" not in self.worker[0] else None


def parse_filter(text: str, kind: str, now: datetime, local: datetime | None = None) -> Filter:
    """Read a filter of rows of `kind`: `history`, `runs`, `letters` or `workers`.

    Args:
        text: the terms; none at all is the empty filter.
        kind: what is filtered; each kind takes its own keys.
        now: the time now, from which `since:2h` counts back.
        local: what the reader's clock shows now, without a zone, for `since:03:00`; UTC's by default.

    Raises:
        UsageError: a term cannot be read; the message names it and says what could stand there.
    """
    found: dict[str, list[str]] = {}
    payload: list[tuple[tuple[str, ...], str]] = []
    for key, value in _terms(text, kind):
        if key.startswith(_PAYLOAD) and kind in _HAS_PAYLOAD:
            payload.append((_path(key), value))
        elif key in _KEYS[kind]:
            found.setdefault(key, []).append(value)
        else:
            takes = [*_KEYS[kind], *(["payload.FIELD"] if kind in _HAS_PAYLOAD else [])]
            raise UsageError(f"{_called(kind)} cannot be filtered by {key!r}; {did_you_mean(key, takes)}")
    values = {key: _read(key, given, now, local) for key, given in found.items()}
    made = Filter(**values, payload=tuple(payload))  # type: ignore[arg-type]  # each is read as its field is
    if made.since is not None and made.until is not None and made.since > made.until:
        raise UsageError("since: is later than until:, so nothing lies between them")
    return made


def _called(kind: str) -> str:
    return {"letters": "dead letters", "runs": "live runs"}.get(kind, kind)


def _terms(text: str, kind: str) -> Iterable[tuple[str, str]]:
    place, rest = 0, text.strip()
    while place < len(rest):
        term = _TERM.match(rest, place)
        if term is None:
            word = rest[place:].split()[0]
            example = "worker:send-* outcome:failed" if kind == "history" else f"{_KEYS[kind][0]}:send-*"
            raise UsageError(
                f'the filter cannot be read at {word!r}; write key:value or key:"some words", as {example}'
            )
        value = term[2]
        if value.startswith('"'):
            value = re.sub(r"\\(.)", r"\1", value[1:-1])
        if not value:
            raise UsageError(f"{term[1]}: has no value; leave the term out, or give one")
        if not value.isprintable():
            raise UsageError(f"{term[1]}: its value is not printable")
        yield term[1], value
        place = term.end()
        while place < len(rest) and rest[place].isspace():
            place += 1


def split_terms(text: str) -> list[str]:
    """Return the terms of a filter as they stand in it; none of a text that cannot be read."""
    place, found, rest = 0, [], text.strip()
    while term := _TERM.match(rest, place):
        found.append(term[0])
        place = term.end()
        while place < len(rest) and rest[place].isspace():
            place += 1
    return found if place == len(rest) else []


def _path(key: str) -> tuple[str, ...]:
    parts = tuple(key[len(_PAYLOAD) :].split("."))
    if "" in parts:
        raise UsageError(f"{key}: names no field; write payload.customer or payload.customer.id")
    return parts


def _read(key: str, given: list[str], now: datetime, local: datetime | None) -> object:
    if key in {"since", "until", "error"}:
        if len(given) > 1:
            raise UsageError(f"{key}: stands there {len(given)} times; keep one")
        return given[0] if key == "error" else _moment(key, given[0], now, local)
    values = tuple(dict.fromkeys(part for value in given for part in value.split(",") if part))
    if not values:
        raise UsageError(f"{key}: has no value; leave the term out, or give one")
    if key in _CHOICES:
        for value in values:
            if value not in _CHOICES[key]:
                raise UsageError(f"{key}:{value}: {did_you_mean(value, _CHOICES[key])}")
        return values
    if key == "worker":
        return tuple(check_pattern(value, "worker:") for value in values)
    numbers = {item.name for item in fields(Filter) if "int" in str(item.type)}
    return tuple(_number(key, value) for value in values) if key in numbers else values


def check_pattern(value: str, said_before: str = "") -> str:
    """Return a worker's name, or a pattern with `*`.

    Raises:
        UsageError: it can be neither; the message begins with `said_before` and the value.
    """
    if not _PATTERN.match(value):
        raise UsageError(f"{said_before}{value}: a name or a pattern is of letters, digits, '.', '_', '-' and *")
    return value


def _number(key: str, value: str) -> int:
    try:
        number = read_id(key, value)
    except InvalidSetting:
        number = -1
    if number < 0:
        raise UsageError(f"{key}:{value[:60]}: is no whole number")
    return number


def _moment(key: str, value: str, now: datetime, local: datetime | None) -> datetime:
    """Read a time; a time of day is the last such one, on the reader's clock."""
    shown = last_clock_time(value, (local or now).replace(tzinfo=None))
    if shown is not None:
        return now - ((local or now).replace(tzinfo=None) - shown)
    try:
        return parse_moment(value, now, is_past=True)
    except InvalidSetting as error:
        raise UsageError(f"{key}: {error}") from None


def without_payload_values(text: str, mask: str) -> str:
    """Return a filter's text with `mask` in place of each value that is looked for in payloads."""
    place, shown = 0, []
    while place < len(text):
        term = _TERM.match(text, place)
        if term is None:
            return mask
        shown.append(f"{term[1]}:{mask}" if term[1].startswith(_PAYLOAD) else term[0])
        place = term.end()
        while place < len(text) and text[place].isspace():
            place += 1
    return " ".join(shown)


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Say whether a worker's name is one of `patterns`, in which `*` stands for any text."""
    return any(re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), name) is not None for pattern in patterns)
