"""Alerts as values: what can be told of, who is to be told how, and what is told already."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime


class AlertKind(StrEnum):
    """What an incident is about."""

    DEAD_LETTER = "dead_letter"
    TRIPPED = "tripped"
    CLOSED = "closed"
    FAILING = "failing"
    STALLED = "stalled"
    LATE = "late"
    SLOW = "slow"
    NO_NODE = "no_node"
    NODE_LOST = "node_lost"
    BACKLOG = "backlog"


EVENT_KINDS = frozenset({AlertKind.DEAD_LETTER, AlertKind.TRIPPED, AlertKind.CLOSED, AlertKind.NODE_LOST})
"""Those that happen at a moment, and arise in the transaction that causes them. The others last, and are looked for."""


class MessageKind(StrEnum):
    """Why a message is sent."""

    OPEN = "open"
    REPEAT = "repeat"
    CLOSE = "close"
    TEST = "test"


@dataclass(frozen=True, slots=True)
class AlertRule:
    """Who is told of what: `kinds`, of the workers that fit `workers`, go to `channel`.

    `workers` are patterns with commas, such as `send-*,report`. The same incident is told of again after
    `repeat_seconds` at the earliest. `backlog_runs` is how many runs must wait for the kind `backlog`.
    """

    name: str
    kinds: frozenset[AlertKind]
    workers: str = "*"
    channel: Mapping[str, Any] = field(default_factory=dict)
    repeat_seconds: float = 3600.0
    backlog_runs: int = 1000


@dataclass(frozen=True, slots=True)
class Happened:
    """Something that opens an incident, or is counted in the one that is open.

    `subject` is what the incident is about: the worker, or of `node_lost` the host.
    """

    kind: AlertKind
    subject: str
    worker: str | None
    at: datetime
    summary: str
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Told:
    """The last message of an incident to a rule's channel: when it was written, and the count it told of."""

    at: datetime
    count: int
    is_waiting: bool


@dataclass(frozen=True, slots=True)
class Incident:
    """An open incident. `told`: by the names of rules. `clear_since`: since when its cause is gone, if it is."""

    id: int
    kind: AlertKind
    subject: str
    worker: str | None
    opened_at: datetime
    last_at: datetime
    count: int
    clear_since: datetime | None = None
    told: Mapping[str, Told] = field(default_factory=dict)
