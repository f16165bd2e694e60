"""The short way through a tick: write what has succeeded and claim what is plain, in one transaction, by set.

Terms. A worker is *plain* when nothing but its own limit can keep its waiting runs from starting: enabled, not paused,
circuit closed, no dependency, no block in either direction, its handler here, nothing due from its schedule. An end is
*sure* when it changes nothing but counters: a success of a run that is neither a circuit's probe nor a loop's own.
Under load nearly all work is plain and nearly all ends are sure, and then neither needs a decision.

A *firing* goes the short way, too, when its worker is plain but for the schedule, has no run at all, and was fired
the long way before: then the node knows what its schedule says next, and the database need only agree.

The protocol. The long way (`claims`, `finishes`) decides by `policy.gates` and `policy.transitions`; when a tick of it
finds plain workers it says which (`Plain`), with the revision of the definition it has read. While that holds, a turn

1. locks the states of the workers whose runs have ended, in the order of names, and ends those runs by (id, fence);
2. locks the states of the plain workers, passing by those that are locked;
3. in statements that begin after that, looks whether they are still plain, under the same revision, and whether
   anything is due that belongs to none of them. If so it claims nothing: the long way decides;
4. claims in starting order, each run into its worker's lowest free slot under the next fence; or, when schedules are
   due, fires those whose `next_run_at` is what the node expects. Never both: what is due is then either all runs or
   all firings, and starting order needs no comparison between them. Commits.

What is not written in 1 was no longer this node's, or is not sure after all: the long way settles which. Workers that
the long way has just found stuck (disabled, blocked, without a handler) are passed by for `LOOK_AGAIN_SECONDS` and one
turn, so that what they have waiting does not keep everybody else on the long way.

On PostgreSQL a node's turns go on in a worker's queue where its last one ended, and look at the whole of it once in
`LOOK_AGAIN_SECONDS`. Only what is put *before* the head of a queue can be passed by, and for no longer than that.

A failure before the commit changes nothing; after a commit whose answer is lost, the ends are found settled by the long
way, and the claims are found without code by the heartbeat: both as if the long way had been gone.

Measured, claiming and finishing 10,000 runs 50 at a time without handlers: PostgreSQL 1,800/s by the long way's 15
round trips, 16,000 to 21,000/s by the one of `take_turn` (migration 0001).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from jobrunner.model.run import OutcomeKind, Trigger
from jobrunner.model.worker import CircuitState, WorkerExecutionMode

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from jobrunner.model.facts import Facts, WorkerFacts
    from jobrunner.model.run import Run
    from jobrunner.model.worker import WorkerConfig, WorkerState
    from jobrunner.storage.finishes import Ended

LOOK_AGAIN_SECONDS = 0.2
"""A look takes some 10 ms when workers with 300,000 waiting runs are stuck."""
MOST_PLAIN = 100
MOST_STUCK = 1000
"""With more of either, passing their names costs more than it saves."""
MOST_FIRED = 1000
"""In one turn: of 1,000 due at the same moment the last is 25 ms late on PostgreSQL, and 150 ms in turns of 100."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A scheduled worker as its last firing left it."""

    config: WorkerConfig
    revision: int
    state: WorkerState


@dataclass(frozen=True, slots=True)
class Firing:
    """A schedule that is due: what `next_run_at` must still be, what is fired, and what comes after."""

    expected: datetime
    scheduled_for: datetime
    after: WorkerState


@dataclass(frozen=True, slots=True)
class Plain:
    """Plain workers by name, and the names of those with something due that is to be passed by.

    With `firings` it is schedules that are due, and not runs that wait. `revisions` and `firings` are then of the first
    of the workers; the others are due as well, and find no slot.
    """

    configs: Mapping[str, WorkerConfig]
    revisions: Mapping[str, int]
    stuck: tuple[str, ...]
    firings: Mapping[str, Firing] = field(default_factory=dict)

    def beside(self, before: Plain | None) -> Plain:
        """Return the same with those who were plain before and of whom nothing else is known now."""
        kept = [] if before is None else [name for name in before.configs if name not in {*self.configs, *self.stuck}]
        if before is None or len(kept) + len(self.configs) > MOST_PLAIN:
            return self
        configs = {**self.configs, **{name: before.configs[name] for name in kept}}
        revisions = {**self.revisions, **{name: before.revisions[name] for name in kept}}
        return Plain(configs, revisions, self.stuck)


@dataclass(frozen=True, slots=True)
class Turned:
    """What a turn did: the runs claimed, and the ids of those whose ends were written.

    `has_other`: something is due that only the long way can judge.
    """

    runs: tuple[Run, ...] = ()
    written: frozenset[int] = frozenset()
    has_other: bool = False


def find_plain(facts: Facts, started: set[str]) -> Plain | None:
    """Return the workers of `facts` that may go the short way, or None when the next tick must go the long one.

    `started` are the workers that gave runs at this tick. One of them that is not plain, and was not merely fired,
    keeps all on the long way.
    """
    plain = {name: worker for name, worker in facts.workers.items() if _is_plain(worker, facts.now)}
    fired = {name for name in started if _is_unhindered(facts.workers[name]) and not facts.workers[name].waiting}
    if len(plain) > MOST_PLAIN or started - plain.keys() - fired:
        return None
    due = {name for name, worker in facts.workers.items() if worker.waiting or _is_schedule_due(worker, facts.now)}
    stuck = due - plain.keys() - fired
    if len(stuck) > MOST_STUCK:
        return None
    return Plain(
        {name: worker.config for name, worker in plain.items()},
        {name: worker.revision for name, worker in plain.items()},
        tuple(sorted(stuck)),
    )


def find_planned(facts: Facts, after: Mapping[str, WorkerState]) -> tuple[Planned, ...]:
    """Return, of the workers that were just fired, those whose next firing may go the short way."""
    found = []
    for name, state in after.items():
        worker = facts.workers[name]
        is_scheduled = worker.config.execution_mode is WorkerExecutionMode.SCHEDULED
        if is_scheduled and state.next_run_at is not None and _is_unhindered(worker):
            found.append(Planned(worker.config, worker.revision, state))
    return tuple(found)


def _is_plain(worker: WorkerFacts, now: datetime) -> bool:
    return _is_unhindered(worker) and not _is_schedule_due(worker, now)


def _is_unhindered(worker: WorkerFacts) -> bool:
    state = worker.state
    return (
        state.is_enabled
        and state.paused_until is None
        and state.missed_from is None
        and state.circuit_state is CircuitState.CLOSED
        and worker.has_handler
        and not worker.config.depends_on
        and not worker.counterparts
    )


def _is_schedule_due(worker: WorkerFacts, now: datetime) -> bool:
    return worker.state.next_run_at is not None and worker.state.next_run_at <= now


def is_sure(ended: Ended) -> bool:
    """Say whether an end may go the short way; the database has the last word."""
    return ended.outcome.kind is OutcomeKind.SUCCEEDED and ended.run.trigger is not Trigger.CONTINUOUS


def result_json(value: Any) -> str | None:
    """Write a result as both databases take it."""
    return None if value is None else json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
