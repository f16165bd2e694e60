"""What the schedules will do in the time ahead, played: when each firing will really start, and why later than due.

The play goes from moment to moment, as a node does from tick to tick: what ends ends, what may start starts, judged by
the gates; a firing becomes a run, or is passed over, by the worker's `misfire`. Three things are taken to be so: every
run succeeds, each takes as long as its worker's usually do (no time, where nobody knows), and nobody triggers or
switches anything. Loops are not played: they would fill the play with themselves.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import chain, islice
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from jobrunner.model.facts import ActiveRun, Facts, Gate, Verdict, WorkerFacts
from jobrunner.model.run import FROM_SCHEDULE, EndsRun, Outcome, OutcomeKind, Run, RunState, Trigger
from jobrunner.model.worker import WorkerExecutionMode
from jobrunner.policy import schedule as schedules
from jobrunner.policy.due_queue import DueQueue, Order
from jobrunner.policy.durations import show_seconds
from jobrunner.policy.expected import expected_end
from jobrunner.policy.firing import Fired, after_starts, fire
from jobrunner.policy.gates import candidates_of, decide_starts
from jobrunner.policy.limit_gates import goes_by_key, starting_order
from jobrunner.policy.played_limits import NOTED, PlayedLimits, show_waited_for
from jobrunner.policy.ties import related, tied_groups
from jobrunner.policy.transitions import after_end
from jobrunner.policy.verdicts import first_shut_due, first_shut_of_each

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from jobrunner.model.facts import Candidate, LimitFacts, Start
    from jobrunner.model.worker import WorkerState

MOST_PLAYED = 10_000
"""So many starts are played at most."""
LATE = timedelta(seconds=1)
"""What starts so much later than it is due, or more, is late: why is said then."""
NO_LIMITS: Mapping[str, LimitFacts] = MappingProxyType({})
_NODE = "forecast"
_FIRST_ID = 2**62  # of the runs that the play makes

Key = tuple[str, datetime | int]
"""What names a start: a worker, and the time of its schedule or the id of a run that waits."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What will come of a firing or a waiting run: when it starts (None: not in the time ahead), and why so late."""

    starts_at: datetime | None = None
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Forecast:
    """What was played, up to `until`: earlier than was asked where there was too much to play."""

    until: datetime
    expected: Mapping[Key, Expected] = field(default_factory=dict)
    overdue: Mapping[Key, Expected] = field(default_factory=dict)
    """What will come of the times that are due already: they are listed as one, the first."""
    stuck: Mapping[str, tuple[datetime, str | None]] = field(default_factory=dict)
    """The workers of which a time still waits at the end: the first such time, and why."""
    begins: Mapping[str, datetime] = field(default_factory=dict)
    """When the first run of a worker that never ran will begin, where that is later than planned: its grid with it."""

    def of(self, worker: str, due_at: datetime, run_id: int | None) -> Expected:
        """Return what will come of a time of a worker's schedule, or of a run that waits."""
        key = (worker, due_at if run_id is None else run_id)
        found = self.overdue.get(key) or self.expected.get(key)
        if found is not None:
            return found
        first, why = self.stuck.get(worker, (None, None))
        if run_id is None and first is not None and first <= due_at <= self.until:
            return Expected(note=why)
        return Expected()


@dataclass(slots=True)
class _Part:
    """One worker in the play: its facts, and when its active runs end, by id."""

    facts: WorkerFacts
    usual: timedelta | None
    related: frozenset[str]
    tied: frozenset[str]
    """All that is connected with it in any direction: what happens here may matter there."""
    ends: dict[int, datetime] = field(default_factory=dict)
    why: dict[int | None, str] = field(default_factory=dict)
    """Why a run, or the next firing (None), did not start when it was due."""


def play(
    workers: Mapping[str, WorkerFacts],
    usual: Mapping[str, timedelta],
    slots: int,
    now: datetime,
    until: datetime,
    most: int = MOST_PLAYED,
    limits: Mapping[str, LimitFacts] = NO_LIMITS,
) -> Forecast:
    """Play the time from `now` to `until`.

    Args:
        workers: the workers, with all that they are related to; `waiting` holds what is due and what is due later.
        usual: how long their runs usually take.
        slots: how many of their runs may be active at once.
        now: the time now.
        until: the end of the play.
        most: so many starts are played at most.
        limits: the limits that the workers share.
    """
    return _Play(workers, usual, slots, now, limits).run(until, most)


class _Play:
    def __init__(
        self,
        workers: Mapping[str, WorkerFacts],
        usual: Mapping[str, timedelta],
        slots: int,
        now: datetime,
        limits: Mapping[str, LimitFacts],
    ) -> None:
        self._now = self._began = now
        self._limits = PlayedLimits(workers, limits, now)
        self._slots = slots
        self._active = sum(len(worker.active) for worker in workers.values())
        self._found: dict[Key, Expected] = {}
        self._listed: dict[Key, Expected] = {}
        self._begins: dict[str, datetime] = {}
        self._played = 0
        self._last_id = _FIRST_ID
        self._agenda: list[tuple[datetime, str]] = []
        self._touched = set(workers)  # something has happened since they were judged
        self._has_freed = False  # or a slot has become free, so that all may be judged otherwise
        self._queue = DueQueue()
        self._unexplained: set[str] = set()  # due, and nobody has said yet why it did not start
        self._parts: dict[str, _Part] = {}
        self._overdue = {
            name: worker.state.next_run_at
            for name, worker in workers.items()
            if worker.state.next_run_at is not None and worker.state.next_run_at <= now
        }
        tied = tied_groups(workers)
        for name, worker in workers.items():
            part = _Part(_as_played(worker, now), usual.get(name), related(name, workers), tied[name])
            self._parts[name] = part
            part.ends = {run.id: expected_end(worker, run.started_at, part.usual, now) for run in worker.active}
            self._plan(name)

    def run(self, until: datetime, most: int) -> Forecast:
        while self._played < most:
            self._end()
            if self._start():
                continue
            self._note_why()
            self._touched.clear()
            self._has_freed = False
            moment = self._next_moment()
            if moment is None or moment > until:
                return self._forecast(until)
            self._now = moment
        return self._forecast(self._now)

    def _forecast(self, until: datetime) -> Forecast:
        stuck: dict[str, tuple[datetime, str | None]] = {}
        for name, part in self._parts.items():
            first = part.facts.state.next_run_at
            if first is not None and first <= until:
                stuck[name] = (first, part.why.get(None))
            for run_id in part.why.keys() & {run.id for run in part.facts.waiting if run.id is not None}:
                if run_id is not None:
                    self._found[name, run_id] = Expected(note=part.why[run_id])
        return Forecast(until, self._found, self._listed, stuck, self._begins)

    # --- the agenda ---

    def _plan(self, name: str) -> None:
        """Keep in mind when something of a worker happens next, and that it may be due."""
        part = self._parts[name]
        state = part.facts.state
        moments = {state.next_run_at, state.probe_at, state.paused_until, *(run.due_at for run in part.facts.waiting)}
        ahead = [moment for moment in moments if moment is not None and moment > self._now]
        ahead += [*part.ends.values(), *self._limits.opens(part.facts, self._now)]
        if ahead:
            heapq.heappush(self._agenda, (min(ahead), name))
        due = [each.order for each in candidates_of(part.facts) if each.due_at <= self._now]
        is_told = not self._queue.put(name, due, part.tied) or _is_explained(part, self._now)
        (self._unexplained.discard if is_told else self._unexplained.add)(name)
        self._touched.update(part.tied)

    def _next_moment(self) -> datetime | None:
        return self._agenda[0][0] if self._agenda else None

    def _reached(self) -> set[str]:
        """Return the workers of which something happens now, and plan what happens of them next."""
        names = set()
        while self._agenda and self._agenda[0][0] <= self._now:
            names.add(heapq.heappop(self._agenda)[1])
        return names

    # --- what happens ---

    def _end(self) -> None:
        is_full = self._active >= self._slots
        for name in sorted(self._reached()):
            part = self._parts[name]
            for run_id in [run_id for run_id, at in part.ends.items() if at <= self._now]:
                del part.ends[run_id]
                self._active -= 1
                self._limits.end(part.facts.config, run_id)
                part.facts = _ended(part.facts, run_id, self._now)
            self._plan(name)
        if is_full and self._active < self._slots:  # whoever waited for a slot
            self._has_freed = True

    def _facts(self, names: Iterable[str]) -> Facts:
        around = frozenset[str]().union(*(self._parts[name].related for name in names))
        free = max(self._slots - self._active, 0)
        workers = {name: self._limits.of(self._parts[name].facts, self._now) for name in around}
        return Facts(self._now, workers, free, self._limits.shared(workers.values(), self._now))

    def _start(self) -> bool:
        """Start what may start; say whether anything has changed, be it only that a time was passed over."""
        free = self._slots - self._active
        if free <= 0:
            return False
        due = self._queue.open(None if self._has_freed else self._touched)
        starts = self._queue.decide(due, free, lambda names: decide_starts(self._facts(names)), self._place)
        for start in starts:
            self._played += 1
            self._start_one(start)
        return bool(starts)

    def _place(self, start: Start) -> Order:
        facts = self._parts[start.worker].facts
        worker = self._limits.of(facts, self._now) if facts.config.fair else facts
        due = [each for each in candidates_of(worker) if each.due_at <= self._now]
        place = starting_order(Facts(self._now, {start.worker: worker}, 0), due)
        return next(place(each) for each in due if each.id == start.run_id)

    def _start_one(self, start: Start) -> None:
        part = self._parts[start.worker]
        worker = part.facts
        run_id, trigger, begins, state = start.run_id, Trigger.MANUAL, True, worker.state
        changed: dict[str, Any]
        if run_id is None:
            fired = fire(worker.config, worker.state, self._now)
            self._note_passed(start.worker, fired)
            state = fired.state
            if fired.trigger is None or fired.scheduled_for is None:
                part.facts = replace(worker, state=state)
                part.why.pop(None, None)
                self._plan(start.worker)
                return
            self._last_id += 1
            run_id, trigger = self._last_id, fired.trigger
            changed = {"scheduled_run": run_id}
            self._note_firing(part.facts.state, fired.scheduled_for, part.why.pop(None, None))
        else:
            run = next(each for each in worker.waiting if each.id == run_id)
            waiting = tuple(each for each in worker.waiting if each.id != run_id)
            changed = {"waiting": waiting, "waiting_retry": _first_retry(waiting)}
            trigger = Trigger.SCHEDULE if worker.scheduled_run == run_id else trigger
            begins = not run.has_started_before
            self._note_start(start.worker, run_id, run.due_at, part.why.pop(run_id, None))
        probe = run_id if start.is_probe else None
        state = after_starts(state, state.last_fence + 1, self._now if begins else None, probe)
        where = (run_id, start.worker, start.slot, _NODE, self._now, trigger)
        active = ActiveRun(*where, start.limit_key, start.key_slot)
        self._limits.start(worker.config, active)
        part.facts = replace(worker, state=state, active=(*worker.active, active), **changed)
        self._active += 1
        part.ends[run_id] = self._now + (part.usual or timedelta())
        self._plan(start.worker)

    # --- what is noted ---

    def _note_firing(self, before: WorkerState, due_at: datetime, why: str | None) -> None:
        name, planned = before.worker, before.next_run_at
        is_moved = before.last_due_at is None and planned is not None and due_at > planned
        if is_moved and self._began < due_at == self._now:  # the grid begins with the first run
            self._begins[name] = due_at
        self._note_start(name, due_at, planned if is_moved and planned is not None else due_at, why)
        if due_at <= self._began and name in self._overdue:
            self._listed.setdefault((name, self._overdue[name]), self._found[name, due_at])

    def _note_start(self, name: str, key: datetime | int, due_at: datetime, why: str | None) -> None:
        self._found[name, key] = Expected(self._now, why if self._now - due_at >= LATE else None)

    def _note_passed(self, name: str, fired: Fired) -> None:
        schedule = schedules.usable_schedule(self._parts[name].facts.config) if fired.missed else None
        for missed in fired.missed if schedule is not None else ():
            assert schedule is not None  # noqa: S101 - the loop's condition, for the type checker
            times = chain([missed.first], schedules.occurrences(schedule, missed.first, missed.last))
            for due_at in islice(times, missed.occurrences):
                self._found[name, due_at] = Expected(note=missed.reason)

    def _note_why(self) -> None:
        """Note of what is due and could not start why that is, the first time that it could not."""
        new = self._unexplained if self._has_freed else self._unexplained & self._touched
        if not new:
            return
        facts = self._facts(new)
        for name, shut in first_shut_due(facts, new).items():
            part = self._parts[name]
            said = dict.fromkeys(_due_ids(part.facts, self._now), shut)
            if goes_by_key(part.facts.config):  # its runs wait for one thing each
                said |= first_shut_of_each(facts, name)
            for run_id, each in said.items():
                part.why.setdefault(run_id, "waits" if each is None else self._show(part, each))
            self._unexplained.discard(name)

    def _show(self, part: _Part, shut: Verdict) -> str:
        """Say what is waited for, with how long that usually takes."""
        config = part.facts.config
        if shut.is_lasting:
            return shut.reason
        if shut.gate in NOTED:
            return show_waited_for(shut)
        match shut.gate:
            case Gate.MAX_RUNNING | Gate.DUE:
                return "waits for its run before" + self._usually(config.name)
            case Gate.DEPENDENCIES:
                names = [edge.depends_on for edge in config.depends_on]
                other = next(name for name in names if shut.reason.startswith(f"waits for {name}: "))
                return f"waits for {other}" + self._usually(other)
            case Gate.BLOCKS:
                others = [name for name in part.facts.counterparts if self._parts[name].ends]
                return f"waits for {others[0]}" + self._usually(others[0]) if others else shut.reason
            case Gate.SLOT:
                return "waits for a free slot"
            case _:
                return shut.reason

    def _usually(self, name: str) -> str:
        usual = self._parts[name].usual
        return "" if usual is None else f", usually {show_seconds(usual.total_seconds())}"


def _as_played(worker: WorkerFacts, now: datetime) -> WorkerFacts:
    """Return the facts with which the play begins: no loop goes on, and what is late keeps the grid that is planned.

    The grid of an interval begins with the first run. Of a worker that is late for that nobody knows when it will be.
    """
    state = worker.state
    if worker.config.execution_mode is WorkerExecutionMode.CONTINUOUS:
        return replace(worker, state=replace(state, next_run_at=None))
    if state.last_due_at is None and state.next_run_at is not None and state.next_run_at < now:
        return replace(worker, state=replace(state, last_due_at=state.next_run_at))
    return worker


def _due_ids(worker: WorkerFacts, now: datetime) -> list[int | None]:
    """Return the ids of the runs that are due, and None if its schedule is."""
    found: list[int | None] = [run.id for run in worker.waiting if run.due_at <= now]
    next_run_at = worker.state.next_run_at
    return [*found, None] if next_run_at is not None and next_run_at <= now else found


def _is_explained(part: _Part, now: datetime) -> bool:
    return all(run_id in part.why for run_id in _due_ids(part.facts, now))


def _first_retry(waiting: tuple[Candidate, ...]) -> datetime | None:
    return min((run.due_at for run in waiting if run.attempt > 1), default=None)


def _ended(worker: WorkerFacts, run_id: int, now: datetime) -> WorkerFacts:
    """Let an active run succeed."""
    active = next(run for run in worker.active if run.id == run_id)
    trigger = active.trigger
    run = Run(
        id=run_id,
        worker=worker.config.name,
        trigger=trigger,
        state=RunState.RUNNING,
        priority=int(worker.config.priority),
        scheduled_for=active.started_at,
        due_at=active.started_at,
        payload={},
        key=None,
        attempt=1,
        is_forced=False,
    )
    # A loop's end would set its next time, and loops are not played.
    is_loop = trigger is Trigger.CONTINUOUS
    after, _, _ = after_end(worker.state, run, Outcome(OutcomeKind.SUCCEEDED, now), EndsRun.SUCCEEDED, worker.config)
    return replace(
        worker,
        state=replace(after, next_run_at=None) if is_loop else after,
        active=tuple(each for each in worker.active if each.id != run_id),
        scheduled_run=None if trigger in FROM_SCHEDULE or worker.scheduled_run == run_id else worker.scheduled_run,
    )
