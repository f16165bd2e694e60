"""What becomes of incidents: facts and a time in; what to open, note, close and tell out. Pure.

An incident of a kind that lasts (`failing`, `stalled`, `late`, `slow`, `no_node`, `backlog`) is *on* while the
worker's health is that word, or the backlog that long. One of `failing` opens at once. Another opens once it was on at
two looks some time apart, and is *suspected* until then: while a node starts anew, or a database was away, many workers
look bad for some seconds.

A health is *clear* when it is a lesser evil, or somebody has disabled or paused the worker. Behind a greater evil
nothing can be seen of it, and it stays as it is: a worker that fails and is then disabled by its circuit has not
recovered.

Of what happens at a moment, `dead_letter` is clear when no letter since its beginning is open any more, `tripped` when
the circuit is closed, `node_lost` when the host has a live node again or a quarter of an hour has passed; `closed` is
over as soon as it is told.

An incident closes when it has been clear for the calm time, so that a worker which fails every other time does not
send two messages a minute. A rule is told when an incident opens, again after `repeat_seconds` if it is still on, or
has happened again since, and when it closes. While a message waits for its receiver, no further one is written but the
last.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING
from urllib.parse import quote

from jobrunner.model.alerts import EVENT_KINDS, AlertKind, MessageKind
from jobrunner.policy.durations import show_seconds
from jobrunner.policy.words import counted, first_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from datetime import datetime

    from jobrunner.model.alerts import AlertRule, Happened, Incident

    Place = tuple[AlertKind, str]

HEALTHS = (
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
"""How a worker may be, in the order of harm."""
OF_HEALTH = frozenset(
    {AlertKind.FAILING, AlertKind.STALLED, AlertKind.LATE, AlertKind.SLOW, AlertKind.NO_NODE},
)
SUSPECTED_FIRST = OF_HEALTH - {AlertKind.FAILING} | {AlertKind.BACKLOG}
HOST_QUIET_SECONDS = 900.0
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 300.0
GIVEN_UP_AFTER_SECONDS = 3 * 86400.0
SHOWN_LINES, LONGEST_LINE = 20, 500


@dataclass(frozen=True, slots=True)
class Seen:
    """How a worker was seen. `waiting_runs` is 0 where nobody asks. `disabled_by` is `operator`, `circuit` or None."""

    worker: str
    health: str
    waiting_runs: int = 0
    disabled_by: str | None = None
    circuit_state: str = "closed"
    consecutive_failures: int = 0
    last_error: str | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """What a look has found: workers by name, workers that are gone, and what events are over.

    `resolved` are ids of incidents about dead letters of which none is open any more; `hosts` have a live node.
    `suspected` is since when what was not yet told of is on; `known` are further incidents that are open.
    """

    workers: Mapping[str, Seen]
    gone: frozenset[str] = frozenset()
    resolved: frozenset[int] = frozenset()
    hosts: frozenset[str] = frozenset()
    suspected: Mapping[Place, datetime] = field(default_factory=dict)
    known: frozenset[Place] = frozenset()


@dataclass(frozen=True, slots=True)
class Message:
    """One message to write: of incident `alert_id`, to the channel of `rule`."""

    alert_id: int
    rule: str
    kind: MessageKind
    count: int


@dataclass(frozen=True, slots=True)
class Cleared:
    """The cause of an incident is gone since `since`; None: it is back."""

    alert_id: int
    since: datetime | None


@dataclass(frozen=True, slots=True)
class Closed:
    """An incident to close, unless something has happened after `last_at`; `why` it is over, in words."""

    alert_id: int
    last_at: datetime
    summary: str


@dataclass(frozen=True, slots=True)
class Decided:
    """What a look changes; `suspected` is what the next one may open."""

    opened: tuple[tuple[AlertKind, Seen], ...]
    cleared: tuple[Cleared, ...]
    closed: tuple[Closed, ...]
    messages: tuple[Message, ...]
    suspected: Mapping[Place, datetime]

    @property
    def is_nothing(self) -> bool:
        """Whether there is nothing to write."""
        return not (self.opened or self.cleared or self.closed or self.messages)


def fits(patterns: str, subject: str) -> bool:
    """Say whether a name fits one of the patterns, which commas part."""
    return any(fnmatchcase(subject, pattern.strip()) for pattern in patterns.split(","))


def wants(rule: AlertRule, kind: AlertKind, worker: str | None) -> bool:
    """Say whether a rule is to be told of incidents of that kind and worker; of a lost node, whatever its patterns."""
    return kind in rule.kinds and (worker is None or fits(rule.workers, worker))


def backlog_limit(rules: Iterable[AlertRule], worker: str) -> int | None:
    """Return how many waiting runs of a worker are a backlog to the rule that minds first; None: to none."""
    return min((r.backlog_runs for r in rules if wants(r, AlertKind.BACKLOG, worker)), default=None)


def decide(
    rules: Sequence[AlertRule],
    incidents: Sequence[Incident],
    facts: Facts,
    now: datetime,
    calm_seconds: float,
    sure_seconds: float,
) -> Decided:
    """Decide what a look changes; see the module.

    Args:
        rules: all there are.
        incidents: those that are open, or some of them.
        facts: what is known of their subjects, and of the workers looked at.
        now: the time now, UTC.
        calm_seconds: how long an incident must have been clear before it closes.
        sure_seconds: how long a suspicion must have lasted before an incident opens.
    """
    is_open = facts.known | {(incident.kind, incident.subject) for incident in incidents}
    opened: list[tuple[AlertKind, Seen]] = []
    suspected: dict[Place, datetime] = {}
    for seen in facts.workers.values():
        for kind in _found(rules, seen):
            place = kind, seen.worker
            since = min(facts.suspected.get(place, now), now)  # a clock that went back makes nothing late
            if place in is_open:
                continue
            if kind not in SUSPECTED_FIRST or (
                place in facts.suspected and now - since >= timedelta(seconds=sure_seconds)
            ):
                opened.append((kind, seen))
            else:
                suspected[place] = since
    cleared: list[Cleared] = []
    closed: list[Closed] = []
    messages: list[Message] = []
    for incident in incidents:
        mine = [rule for rule in rules if wants(rule, incident.kind, incident.worker)]
        over = _over(incident, facts, rules, now) if mine else "no rule asks for it any more"
        if over is None:
            if incident.clear_since is not None and _is_on(incident, facts, rules):
                cleared.append(Cleared(incident.id, None))
            messages += _due(incident, mine, facts, now)
        elif mine and not _is_calm(incident, now, calm_seconds):
            if incident.clear_since is None:
                cleared.append(Cleared(incident.id, now))
        else:
            closed.append(Closed(incident.id, incident.last_at, over))
    return Decided(tuple(opened), tuple(cleared), tuple(closed), tuple(messages), suspected)


def _found(rules: Sequence[AlertRule], seen: Seen) -> Iterator[AlertKind]:
    """Yield the lasting kinds that are on, and that somebody asks for."""
    if seen.health in OF_HEALTH:
        kind = AlertKind(seen.health)
        if any(wants(rule, kind, seen.worker) for rule in rules):
            yield kind
    limit = backlog_limit(rules, seen.worker)
    if limit is not None and seen.waiting_runs >= limit:
        yield AlertKind.BACKLOG


def _is_on(incident: Incident, facts: Facts, rules: Sequence[AlertRule]) -> bool:
    """Say whether the cause is there for certain."""
    seen = facts.workers.get(incident.subject)
    if incident.kind in EVENT_KINDS:
        return True
    if seen is None:
        return False
    if incident.kind is AlertKind.BACKLOG:
        limit = backlog_limit(rules, seen.worker)
        return limit is not None and seen.waiting_runs >= limit
    return seen.health == incident.kind


def _over(incident: Incident, facts: Facts, rules: Sequence[AlertRule], now: datetime) -> str | None:
    """Say why an incident is over; None if it is not, or nobody knows."""
    if incident.kind is AlertKind.NODE_LOST:
        if incident.subject in facts.hosts:
            return "the host has a live node again"
        is_quiet = now - incident.last_at >= timedelta(seconds=HOST_QUIET_SECONDS)
        return "no other node of that host was lost since" if is_quiet else None
    if incident.subject in facts.gone:
        return "the worker was removed"
    if incident.kind is AlertKind.DEAD_LETTER:
        return "its dead letters are replayed or discarded" if incident.id in facts.resolved else None
    seen = facts.workers.get(incident.subject)
    return None if seen is None else _over_for(incident, seen, rules)


def _over_for(incident: Incident, seen: Seen, rules: Sequence[AlertRule]) -> str | None:
    if incident.kind is AlertKind.BACKLOG:  # it grows, whoever has paused the worker
        limit = backlog_limit(rules, seen.worker)
        is_on = limit is not None and seen.waiting_runs >= limit
        return None if is_on else f"{counted(seen.waiting_runs, 'run')} of {seen.worker} wait"
    if incident.kind is AlertKind.TRIPPED and seen.circuit_state != "closed":
        return None
    if seen.health == "paused" or (seen.health == "disabled" and seen.disabled_by == "operator"):
        return f"somebody has {seen.health} {seen.worker}"
    if incident.kind is AlertKind.TRIPPED:
        return f"the circuit of {seen.worker} is closed"
    if _harm(seen.health) <= _harm(incident.kind):
        return None
    return f"{seen.worker} is {seen.health.replace('_', ' ')}"


def _harm(health: str) -> int:
    return HEALTHS.index(health) if health in HEALTHS else len(HEALTHS)


def _is_calm(incident: Incident, now: datetime, calm_seconds: float) -> bool:
    return incident.clear_since is not None and now - incident.clear_since >= timedelta(seconds=calm_seconds)


def _due(incident: Incident, rules: Sequence[AlertRule], facts: Facts, now: datetime) -> Iterator[Message]:
    """Yield what is to be told of an incident that goes on."""
    is_on = _is_on(incident, facts, rules)
    for rule in rules:
        told = incident.told.get(rule.name)
        if told is None:
            if is_on and _minds(rule, incident, facts):
                yield Message(incident.id, rule.name, MessageKind.OPEN, incident.count)
        elif not told.is_waiting and now - told.at >= timedelta(seconds=rule.repeat_seconds):
            is_news = incident.count > told.count if incident.kind in EVENT_KINDS else is_on
            if is_news:
                yield Message(incident.id, rule.name, MessageKind.REPEAT, incident.count)


def _minds(rule: AlertRule, incident: Incident, facts: Facts) -> bool:
    """Say whether a backlog is long enough for this very rule."""
    if incident.kind is not AlertKind.BACKLOG:
        return True
    seen = facts.workers.get(incident.subject)
    return seen is not None and seen.waiting_runs >= rule.backlog_runs


def summary_of(kind: AlertKind, seen: Seen) -> str:
    """Say in a sentence what is the matter with a worker."""
    name = seen.worker
    match kind:
        case AlertKind.FAILING:
            last = f"; the last: {first_line(seen.last_error)}" if seen.last_error else ""
            return f"{name} fails: {counted(seen.consecutive_failures, 'run')} in a row{last}"
        case AlertKind.STALLED:
            return f"{name} is due for longer than three of its periods, and does not start"
        case AlertKind.LATE:
            return f"{name} started later than at any of its last 50 starts"
        case AlertKind.SLOW:
            return f"{name} runs for more than twice as long as any of its last 50 runs"
        case AlertKind.NO_NODE:
            return f"no live node has the handler of {name}"
        case _:
            shown = "over 10,000" if seen.waiting_runs > 10_000 else f"{seen.waiting_runs:,}"
            return f"{shown} runs of {name} wait"


def recovered(kind: AlertKind, worker: str | None, seconds: float, why: str) -> str:
    """Say in a sentence that an incident is over."""
    subject = "" if worker is None else f"{worker}: "
    return f"{subject}recovered after {show_seconds(max(seconds, 0.0))} ({kind}): {why}"


def pause_after(attempts: int, jitter: float) -> float:
    """Return the seconds until a message is tried again; `jitter` is -0.2 to 0.2."""
    doubled = FIRST_PAUSE_SECONDS * 2.0 ** min(attempts - 1, 30)
    return min(doubled, LONGEST_PAUSE_SECONDS) * (1.0 + jitter)


def together(happened: Iterable[Happened]) -> list[tuple[Happened, int, datetime]]:
    """Return what happened by subject and kind, in that order: the last of each, how often, and the earliest time."""
    found: dict[tuple[str, AlertKind], tuple[Happened, int, datetime]] = {}
    for each in happened:
        place = each.subject, each.kind
        last, count, first_at = found.get(place, (each, 0, each.at))
        found[place] = each if each.at >= last.at else last, count + 1, min(first_at, each.at)
    return [found[place] for place in sorted(found)]


def link_to(base: str | None, worker: str | None) -> str | None:
    """Return where the console shows it; `base` is where the console is, None if there is none."""
    if base is None:
        return None
    page = "alerts" if worker is None else f"workers/{quote(worker, safe='')}"
    return f"{base.rstrip('/')}/{page}"


def tail(text: str | None, most: int = SHOWN_LINES) -> list[str]:
    """Return the last lines of an output, each cut where it is very long."""
    return [line[:LONGEST_LINE] for line in (text or "").splitlines()[-most:]]
