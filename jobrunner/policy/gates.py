"""What may start, and why not: the one table of gates that the tick and `explain` (`policy.verdicts`) both read.

A run starts when every gate is open. `GATES` lists them in order; each is a function of the facts and a candidate
that returns None when open and a sentence when shut. `decide_starts` walks the candidates of all workers in starting
order (higher priority, older `due_at`, lower id) and starts each one whose gates are all open, counting what it has
just started as active, so that one pass can never start more than a limit allows.

Order between blocked counterparts: a candidate that fails at the blocks gate only (and at no gate before it) stops new
starts of its counterparts that come after it, and of nothing else. It does not matter that it did not start itself:
without this, two counterparts that are always due would let the busier one starve the other. A candidate stopped this
way does not stop others in turn, which keeps the waiting local.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from jobrunner.model.facts import MOST_LATER, ActiveRun, Candidate, Facts, Gate, Start, WorkerFacts
from jobrunner.model.run import HELD_UNTIL, OutcomeKind
from jobrunner.model.worker import CircuitState, Dependency, DependencyCondition
from jobrunner.policy.limit_gates import Limits, starting_order
from jobrunner.policy.limit_options import limit_key_of
from jobrunner.policy.missed import show_pause, why_disabled
from jobrunner.policy.words import counted, first_line, show_time

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from jobrunner.model.worker import WorkerState


@dataclass(slots=True)
class View:
    """The facts, and what this pass has decided so far."""

    facts: Facts
    active: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    slots_taken: defaultdict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    probing: set[str] = field(default_factory=set)
    begun: set[str] = field(default_factory=set)  # workers of which a run has begun, no mere retry
    held_by: dict[str, Candidate] = field(default_factory=dict)
    can_start: dict[str, bool] = field(default_factory=dict)  # `could_start` since the last decision
    free_slots: int = 0
    limits: Limits = field(init=False)

    def __post_init__(self) -> None:
        self.limits = Limits(self.facts)

    @classmethod
    def of(cls, facts: Facts) -> View:
        """Start from the snapshot: what is active in the database, nothing decided."""
        view = cls(facts=facts, free_slots=facts.free_slots)
        for name, worker in facts.workers.items():
            view.active[name] = len(worker.active)
            view.slots_taken[name] = {run.slot for run in worker.active}
        return view

    def worker(self, name: str) -> WorkerFacts:
        """Return the facts of a worker."""
        return self.facts.workers[name]

    def start(self, candidate: Candidate) -> Start:
        """Count `candidate` as active from here on, in the lowest slot that is free."""
        name = candidate.worker
        taken = self.slots_taken[name]
        slot = next(number for number in range(len(taken) + 1) if number not in taken)
        taken.add(slot)
        self.active[name] += 1
        self.free_slots -= 1
        self.can_start.clear()
        if not candidate.has_started_before:
            self.begun.add(name)
        is_probe = _would_probe(self, candidate)
        if is_probe:
            self.probing.add(name)
        return Start(name, candidate.id, slot, is_probe, self.limits.start(candidate), candidate.limit_key)


def _would_probe(view: View, candidate: Candidate) -> bool:
    state = view.worker(candidate.worker).state
    if candidate.is_forced or state.is_enabled or candidate.worker in view.probing:
        return False
    return _lets_a_probe_through(state, view.facts.now)


def _lets_a_probe_through(state: WorkerState, now: datetime) -> bool:
    if state.disabled_by != "circuit" or state.circuit_state is not CircuitState.OPEN:
        return False
    return state.probe_at is not None and state.probe_at <= now


def _enabled(view: View, candidate: Candidate) -> str | None:
    worker = view.worker(candidate.worker)
    if worker.state.is_enabled:
        return None
    is_probing = candidate.worker in view.probing
    return _why_disabled(worker, view.facts.now, candidate.id, is_probing=is_probing)


def _why_disabled(worker: WorkerFacts, now: datetime, run_id: int | None, *, is_probing: bool = False) -> str | None:
    state = worker.state
    if state.is_enabled:
        return None
    reason = why_disabled(state)
    if state.disabled_by != "circuit":
        return reason
    if state.circuit_state is CircuitState.HALF_OPEN:
        is_probe = run_id is not None and run_id == state.probe_run_id
        return None if is_probe else f"{reason}; only its probe, run {state.probe_run_id}, may start"
    if is_probing:
        return f"{reason}; its probe comes first"
    if _lets_a_probe_through(state, now):
        return None
    if state.probe_at is None:
        return f"{reason}; `jobrunner admin enable {state.worker}` closes it"
    return f"{reason}; a probe may start at {show_time(state.probe_at, worker.config.timezone)}"


def _paused(view: View, candidate: Candidate) -> str | None:
    return _why_paused(view.worker(candidate.worker), view.facts.now)


def _why_paused(worker: WorkerFacts, now: datetime) -> str | None:
    state = worker.state
    if state.paused_until is None or state.paused_until <= now:
        return None
    return show_pause(state, state.paused_until, worker.config.timezone)


def why_switched_off(worker: WorkerFacts, now: datetime) -> str | None:
    """Say why a worker's switches stop its next run: what the gates ENABLED and PAUSED say; None if they are open."""
    return _why_disabled(worker, now, None) or _why_paused(worker, now)


def _due(view: View, candidate: Candidate) -> str | None:
    worker = view.worker(candidate.worker)
    if candidate.due_at > view.facts.now:
        return _not_due(worker, candidate)
    if candidate.id is None and worker.scheduled_run is not None:
        return f"its schedule's run {worker.scheduled_run} has not ended"
    return None


def _not_due(worker: WorkerFacts, candidate: Candidate) -> str:
    """Say for when the candidate waits, what of it failed last, and how many more runs wait for their time."""
    until = show_time(candidate.due_at, worker.config.timezone)
    said = "waits for others of its flow" if candidate.due_at == HELD_UNTIL else f"not due until {until}"
    waiting = worker.later.count if worker.later is not None else 0
    if candidate.id is not None:
        waiting -= 1  # the others
        said += f": run {candidate.id}"
        if candidate.attempt > 1:
            said += f", attempt {candidate.attempt}"
        error = worker.later and worker.later.errors.get(candidate.id)
        if error:
            said += f": {first_line(error)}"
    if waiting <= 0:
        return said
    number = f"at least {MOST_LATER}" if waiting >= MOST_LATER else str(waiting)
    return f"{said}; {number} more wait{'s' if waiting == 1 else ''}"


def why_retried(worker: WorkerFacts, now: datetime) -> str | None:
    """Say in a few words that the worker's next run was tried or snoozed, for when it waits and why; else None."""
    run = worker.later.first[0] if worker.later is not None and worker.later.first else None
    if run is None or worker.later is None:
        return None
    error = worker.later.errors.get(run.id or 0)
    if run.attempt == 1 and not error:
        return None
    what = f"attempt {run.attempt}" if run.attempt > 1 else f"run {run.id} again"
    said = f"{what} at {show_time(run.due_at, worker.config.timezone, today=now)}"
    return f"{said}: {first_line(error)}" if error else said


def _handler(view: View, candidate: Candidate) -> str | None:
    worker = view.worker(candidate.worker)
    if worker.problem is not None:
        return show_problem(worker.problem)
    return None if worker.has_handler else "no live node has the handler"


def show_problem(problem: str) -> str:
    """Say that nothing of a worker starts because of what its rows hold."""
    return f"set aside: {problem}"


def _max_running(view: View, candidate: Candidate) -> str | None:
    worker = view.worker(candidate.worker)
    limit, active = worker.config.max_running, view.active[candidate.worker]
    if active < limit:
        return None
    shown = show_active(worker.active, worker.config.timezone)
    return f"{active} of {limit} running: {shown or 'about to start'}"


def _dependencies(view: View, candidate: Candidate) -> str | None:
    worker = view.worker(candidate.worker)
    edges = worker.config.depends_on
    if len(edges) > 1:
        edges = tuple(sorted(edges, key=lambda edge: not stays_unmet(view.worker(edge.depends_on))))
    for edge in edges:
        reason = _unmet(view, worker, edge, candidate)
        if reason is not None:
            return f"waits for {edge.depends_on}: {reason}"
    return None


def stays_unmet(other: WorkerFacts) -> bool:
    """Say whether who depends on `other` waits until something is done about it: it is disabled, or has failed."""
    if not other.state.is_enabled:
        return True
    has_failed = other.state.last_run_outcome not in {None, OutcomeKind.SUCCEEDED}
    return has_failed and other.waiting_retry is None


def _unmet(view: View, worker: WorkerFacts, edge: Dependency, candidate: Candidate) -> str | None:
    """Say why `edge` is not met, or None. Idle is judged last, so that the lasting reason is said first."""
    other = view.worker(edge.depends_on)
    timezone = worker.config.timezone
    reason = _last_run_unmet(other, timezone) or _stale(view, worker, edge, candidate)
    if not other.state.is_enabled:
        is_disabled = f"it is disabled ({other.state.disabled_reason or 'no reason given'})"
        return is_disabled if reason is None else f"{reason}, and {is_disabled}"
    if reason is None and view.active[edge.depends_on] > 0:
        return f"it is running ({show_active(other.active, timezone)})" if other.active else "it is about to start"
    reason = reason or _retry_waits(other, timezone)
    if reason is not None:
        return reason
    if could_start(view, edge.depends_on):
        return "it is due too, and goes first"
    return None


def _retry_waits(other: WorkerFacts, timezone: str) -> str | None:
    retry = other.waiting_retry
    return None if retry is None else f"its run is to be retried at {show_time(retry, timezone)}"


def _last_run_unmet(other: WorkerFacts, timezone: str) -> str | None:
    outcome = other.state.last_run_outcome
    if outcome == OutcomeKind.SUCCEEDED:
        return None
    if other.waiting_retry is not None:
        return _retry_waits(other, timezone)
    next_run_at = other.state.next_run_at
    next_try = "" if next_run_at is None else f", next try {show_time(next_run_at, timezone)}"
    return f"it has not succeeded yet{next_try}" if outcome is None else f"its last run {_said(outcome)}{next_try}"


def _said(outcome: str) -> str:
    return outcome.replace("_", " ")


def _stale(view: View, worker: WorkerFacts, edge: Dependency, candidate: Candidate) -> str | None:
    """Judge the edge's own condition. A run that has started once has passed `fresh` already."""
    success = view.worker(edge.depends_on).state.last_success_at
    if edge.condition is DependencyCondition.FRESH and not candidate.has_started_before:
        last_start = view.facts.now if candidate.worker in view.begun else worker.state.last_run_at
        if success is None or (last_start is not None and success <= last_start):
            return "it has not succeeded since the last start here"
    if edge.max_age_seconds is not None:
        age = None if success is None else (view.facts.now - success).total_seconds()
        if age is None or age > edge.max_age_seconds:
            return f"its last success is older than {edge.max_age_seconds:g} s"
    return None


def _blocks(view: View, candidate: Candidate) -> str | None:
    worker = view.worker(candidate.worker)
    for name in worker.counterparts:
        if view.active[name] > 0:
            held = show_active(view.worker(name).active, worker.config.timezone)
            return f"blocked by {name}, {held}" if held else f"blocked by {name}, which is about to start"
    holder = view.held_by.get(candidate.worker)
    if holder is not None:
        since = show_time(holder.due_at, worker.config.timezone)
        return f"lets {holder.worker} go first: it has waited since {since}"
    return None


def _slot(view: View, _candidate: Candidate) -> str | None:
    if view.free_slots > 0:
        return None
    free = view.facts.free_slots
    if free <= 0:
        return "all slots of the node are taken"
    return f"others that are due go first, and take the {counted(free, 'slot')} that the node has free"


GATES: tuple[tuple[Gate, Callable[[View, Candidate], str | None]], ...] = (
    (Gate.ENABLED, _enabled),
    (Gate.PAUSED, _paused),
    (Gate.DUE, _due),
    (Gate.HANDLER, _handler),
    (Gate.MAX_RUNNING, _max_running),
    (Gate.KEY, lambda view, candidate: view.limits.key_shut(candidate)),
    (Gate.RATE, lambda view, candidate: view.limits.rate_shut(candidate)),
    (Gate.LIMITS, lambda view, candidate: view.limits.shared_shut(candidate)),
    (Gate.DEPENDENCIES, _dependencies),
    (Gate.BLOCKS, _blocks),
    (Gate.SLOT, _slot),
)
OPENED_BY_FORCE = frozenset({Gate.ENABLED, Gate.PAUSED, Gate.RATE, Gate.DEPENDENCIES})
PROBE_PASSES = "the circuit lets its probe through"
_NO_SLOT = frozenset({Gate.SLOT})
_ELSEWHERE = frozenset({Gate.SLOT, Gate.HANDLER})


def first_shut(view: View, candidate: Candidate, ignoring: frozenset[Gate] = frozenset()) -> Gate | None:
    """Return the first gate that is shut for `candidate`, or None when all are open."""
    for gate, judge in GATES:
        if gate in ignoring or (candidate.is_forced and gate in OPENED_BY_FORCE):
            continue
        if judge(view, candidate) is not None:
            return gate
    return None


def could_start(view: View, name: str) -> bool:
    """Say whether work of `name` is due and could itself start on some node that has a free slot.

    Remembered between decisions: in a wide graph of dependencies the same question comes up along every path. What it
    depends on is judged first, on a stack of our own, since a chain of workers may be longer than Python's recursion
    limit; while a worker is being judged it counts as one that could not start, which ends any circle.
    """
    to_judge = [] if name in view.can_start else [(name, False)]
    while to_judge:
        each, is_ready = to_judge.pop()
        worker = view.facts.workers[each]
        if is_ready:
            ignoring = _ELSEWHERE if worker.has_handler_elsewhere else _NO_SLOT
            view.can_start[each] = any(first_shut(view, c, ignoring) is None for c in candidates_of(worker))
        elif each not in view.can_start:
            view.can_start[each] = False
            if any(candidate.due_at <= view.facts.now for candidate in candidates_of(worker)):
                to_judge.append((each, True))
                to_judge += [(edge.depends_on, False) for edge in worker.config.depends_on]
    return view.can_start[name]


def candidates_of(worker: WorkerFacts) -> Iterator[Candidate]:
    """Yield the worker's waiting runs, and its schedule's next firing, which has no row yet."""
    yield from worker.waiting
    next_run_at = worker.state.next_run_at
    if next_run_at is not None:
        key = limit_key_of(worker.config)
        yield Candidate(worker.config.name, None, int(worker.config.priority), next_run_at, limit_key=key)


def decide_starts(facts: Facts) -> list[Start]:
    """Decide what this node starts now, in starting order. Pure: the same facts give the same starts."""
    return list(walk(View.of(facts)))


def walk(
    view: View, until: Candidate | None = None, look: Callable[[Candidate], None] | None = None
) -> Iterator[Start]:
    """Decide the due candidates in starting order; stop at the place of `until`, or when no slot is left.

    `look` is called with each candidate before it is decided.
    """
    now = view.facts.now
    due = [c for worker in view.facts.workers.values() for c in candidates_of(worker) if c.due_at <= now]
    place = starting_order(view.facts, due)
    for candidate in sorted(due, key=place):
        if until is not None and place(candidate) >= place(until):
            return
        if look is not None:
            look(candidate)
        shut = first_shut(view, candidate)
        if shut is None:
            yield view.start(candidate)
        elif shut is Gate.SLOT:
            return
        elif candidate.worker not in view.held_by and _is_only_blocked(view, candidate, shut):
            for name in view.worker(candidate.worker).counterparts:
                view.held_by.setdefault(name, candidate)
            view.can_start.clear()


def _is_only_blocked(view: View, candidate: Candidate, shut: Gate) -> bool:
    """Say whether a counterpart alone keeps `candidate` from starting here or on the node that has its code."""
    if shut is Gate.HANDLER and view.worker(candidate.worker).has_handler_elsewhere:
        shut = first_shut(view, candidate, frozenset({Gate.HANDLER})) or shut
    return shut is Gate.BLOCKS


def show_active(active: tuple[ActiveRun, ...], timezone: str) -> str:
    """Show the first of a worker's active runs: which, where and since when."""
    since = [show_time(run.started_at, timezone) for run in active[:3]]
    shown = [f"run {run.id} on node {run.node_id[:8]}, since {at}" for run, at in zip(active, since, strict=False)]
    more = len(active) - len(shown)
    return "; ".join(shown) + (f"; and {more} more" if more > 0 else "")
