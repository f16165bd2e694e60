"""Why something does not start, for those who ask: every gate judged, by the functions that the tick judges with.

The first shut gate is where a tick stops; what is said first is the gate that matters. One that stays shut until
somebody does something (disabled, paused, no code, a dependency that is disabled or has failed) comes before one that
opens by itself (not due, running, no slot).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from jobrunner.model.facts import Candidate, Facts, Gate, Verdict, WorkerFacts
from jobrunner.policy.gates import (
    GATES,
    OPENED_BY_FORCE,
    PROBE_PASSES,
    View,
    candidates_of,
    decide_starts,
    stays_unmet,
    walk,
)
from jobrunner.policy.limit_gates import starting_order
from jobrunner.policy.schedule import schedule_problem
from jobrunner.policy.words import show_time

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from datetime import datetime

T = TypeVar("T")

_LASTING = frozenset({Gate.ENABLED, Gate.PAUSED, Gate.HANDLER})


def headline(verdicts: Sequence[Verdict]) -> Verdict | None:
    """Return the shut gate that matters: the first that stays shut, else the first; None if all are open."""
    shut = [verdict for verdict in verdicts if not verdict.is_open]
    return next((verdict for verdict in shut if verdict.is_lasting), shut[0] if shut else None)


def explain(facts: Facts, name: str) -> tuple[Candidate | None, list[Verdict]]:
    """Judge every gate for the run of `name` that would start first; with none waiting, for the worker itself.

    The candidate is judged in its place among all others, so a counterpart that comes first is seen. The result is
    all open exactly when `decide_starts` on the same facts starts that candidate, given a slot for each before it.
    """
    view = View.of(facts)
    chosen = _choose(facts, facts.workers[name], _starting(facts))
    if chosen is not None:
        for _ in walk(view, until=chosen):
            pass
    return chosen, _verdicts(view, name, chosen)


def explain_due(facts: Facts, names: Collection[str]) -> dict[str, list[Verdict]]:
    """Judge those of `names` that have something due as `explain` does, all in one pass."""
    return _judge_due(facts, names, _verdicts)


def first_shut_due(facts: Facts, names: Collection[str]) -> dict[str, Verdict | None]:
    """Return the first shut gate of each that `explain_due` would judge; None where all are open."""

    def judge(view: View, name: str, chosen: Candidate) -> Verdict | None:
        return next((verdict for verdict in _judged(view, name, chosen, is_shut_only=True)), None)

    return _judge_due(facts, names, judge)


def first_shut_of_each(facts: Facts, name: str) -> dict[int | None, Verdict | None]:
    """Return the first shut gate of each run of `name` that is due, and of its schedule (None), by id.

    Where no slot is left before it is a run's turn, it is not judged.
    """
    view = View.of(facts)
    found: dict[int | None, Verdict | None] = {}

    def look(candidate: Candidate) -> None:
        if candidate.worker == name:
            found[candidate.id] = next(_judged(view, name, candidate, is_shut_only=True), None)

    for _ in walk(view, look=look):
        pass
    return found


def _judge_due(facts: Facts, names: Collection[str], judge: Callable[[View, str, Candidate], T]) -> dict[str, T]:
    view = View.of(facts)
    starting = _starting(facts)
    chosen: dict[str, Candidate] = {}
    for name in names:
        first = _choose(facts, facts.workers[name], starting)
        if first is not None and first.due_at <= facts.now:
            chosen[name] = first
    found: dict[str, T] = {}

    def look(candidate: Candidate) -> None:
        if candidate == chosen.get(candidate.worker):
            found[candidate.worker] = judge(view, candidate.worker, candidate)

    for _ in walk(view, look=look):
        pass
    return found | {name: judge(view, name, first) for name, first in chosen.items() if name not in found}


def why_not(facts: Facts, candidate: Candidate) -> Verdict | None:
    """Return the shut gate that matters for this very run, as `explain` would say it; None if all are open.

    A run for later is judged at its time, by what will not have changed by itself until then.
    """
    if candidate.due_at > facts.now:
        verdicts = _verdicts(View.of(replace(facts, now=candidate.due_at)), candidate.worker, candidate)
        return headline([verdict for verdict in verdicts if verdict.is_lasting])
    return headline(explain_run(facts, candidate))


def explain_run(facts: Facts, candidate: Candidate) -> list[Verdict]:
    """Judge every gate for this very run, in its place among all others."""
    view = View.of(facts)
    for _ in walk(view, until=candidate):
        pass
    return _verdicts(view, candidate.worker, candidate)


def show_overdue(name: str, since: datetime, timezone: str) -> str:
    """Say that something of a worker is due, where the gates were not asked or are all open."""
    return f"due since {show_time(since, timezone)}; `jobrunner explain {name}` tells more"


def _starting(facts: Facts) -> set[tuple[str, int | None]]:
    if facts.free_slots <= 0:
        return set()
    return {(start.worker, start.run_id) for start in decide_starts(facts)}


def _choose(facts: Facts, worker: WorkerFacts, starting: set[tuple[str, int | None]]) -> Candidate | None:
    """Choose whom to explain: what the next pass starts, else the first that is due, else the first to be."""
    mine = list(candidates_of(worker))
    mine.sort(key=starting_order(facts, [candidate for candidate in mine if candidate.due_at <= facts.now]))
    for candidate in mine:
        if (candidate.worker, candidate.id) in starting:
            return candidate
    later = () if worker.later is None else worker.later.first
    rows = [candidate for candidate in mine if candidate.id is not None]
    is_waiting = worker.scheduled_run not in {None, *(run.id for run in worker.active)}
    if is_waiting and (rows or later):  # the run of its schedule has to end before that fires again
        mine = rows
    due = [candidate for candidate in mine if candidate.due_at <= facts.now]
    return due[0] if due else min([*mine, *later], key=lambda candidate: candidate.due_at, default=None)


def _verdicts(view: View, name: str, chosen: Candidate | None) -> list[Verdict]:
    return list(_judged(view, name, chosen))


def _judged(view: View, name: str, chosen: Candidate | None, *, is_shut_only: bool = False) -> Iterator[Verdict]:
    # With nothing waiting and no schedule, the other gates are judged for a run that would be due now.
    worker = view.worker(name)
    candidate = chosen or Candidate(name, None, int(worker.config.priority), view.facts.now)
    for gate, judge in GATES:
        reason = judge(view, candidate)
        if gate is Gate.DUE and chosen is None:
            reason = schedule_problem(worker.config) or "nothing is waiting: no trigger, and no next time"
        if reason is None:
            if not is_shut_only:
                yield Verdict(gate, is_open=True, reason=_open_reason(view, gate, candidate))
        elif candidate.is_forced and gate in OPENED_BY_FORCE:
            if not is_shut_only:
                yield Verdict(gate, is_open=True, reason=f"forced, although {reason}", is_forced=True)
        else:
            is_lasting = gate in _LASTING or (gate is Gate.DUE and chosen is None) or _lasts(view, gate, worker)
            yield Verdict(gate, is_open=False, reason=reason, is_lasting=is_lasting)


def _lasts(view: View, gate: Gate, worker: WorkerFacts) -> bool:
    edges = worker.config.depends_on if gate is Gate.DEPENDENCIES else ()
    return any(stays_unmet(view.worker(edge.depends_on)) for edge in edges)


def _open_reason(view: View, gate: Gate, candidate: Candidate) -> str:
    worker = view.worker(candidate.worker)
    what = "its schedule" if candidate.id is None else f"run {candidate.id}"
    limits = {Gate.KEY: view.limits.key_open, Gate.RATE: view.limits.rate_open, Gate.LIMITS: view.limits.shared_open}
    if gate in limits:
        return limits[gate](candidate)
    texts = {
        Gate.ENABLED: "enabled" if worker.state.is_enabled else PROBE_PASSES,
        Gate.PAUSED: "not paused",
        Gate.DUE: f"{what} is due since {show_time(candidate.due_at, worker.config.timezone)}",
        Gate.HANDLER: "a live node has the handler",
        Gate.MAX_RUNNING: f"{view.active[candidate.worker]} of {worker.config.max_running} running",
        Gate.DEPENDENCIES: "met: " + ", ".join(edge.depends_on for edge in worker.config.depends_on)
        if worker.config.depends_on
        else "it has none",
        Gate.BLOCKS: "none of its counterparts is running" if worker.counterparts else "it has none",
        Gate.SLOT: "a slot is free",
    }
    return texts[gate]
