"""Which workers may take the fast path, judged here alone; `storage.turns.turn` says what that path is.

A worker is *eligible* when its own limit is all that can keep its waiting runs from starting. `JUDGED_BY_A_TURN` and
`STAYS_OPEN` together name every gate: a turn judges the former for itself, run by run; each of the latter has a rule
that says when it is open for every run of the worker, whatever else happens. A gate in neither would be passed
unseen, and a test sees to it that there is none.

The rules hold as long as what they were judged by. The database does not know them: it keeps a number, the worker's
*revision*, that every change of its definition, its relations or its switches raises. A turn goes on only where the
revision is still the one that was judged under.

An end is *simple* when it changes nothing but counters: a success of a run that is neither a circuit's probe nor a
loop's own, nor a member of a batch or a step of a flow, under the revision that the run was claimed under.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from jobrunner.model.facts import Gate
from jobrunner.model.worker import CircuitState, WorkerExecutionMode
from jobrunner.policy.limit_gates import goes_by_key

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    from jobrunner.model.facts import Facts, WorkerFacts
    from jobrunner.model.run import Run
    from jobrunner.model.worker import WorkerConfig, WorkerState

MOST_ELIGIBLE = 100
MOST_STUCK = 1000
"""With more of either, passing their names costs more than it saves."""
MOST_FIRED = 1000
"""In one turn: of 1,000 due at the same moment the last is 25 ms late on PostgreSQL, and 150 ms in turns of 100."""

JUDGED_BY_A_TURN = frozenset({Gate.DUE, Gate.MAX_RUNNING, Gate.RATE, Gate.SLOT})
STAYS_OPEN: Mapping[Gate, Callable[[WorkerFacts], bool]] = {
    Gate.ENABLED: lambda worker: worker.state.is_enabled and worker.state.circuit_state is CircuitState.CLOSED,
    Gate.PAUSED: lambda worker: worker.state.paused_until is None,
    Gate.HANDLER: lambda worker: worker.has_handler and worker.problem is None,
    Gate.KEY: lambda worker: not is_beyond_turns(worker.config),  # `max_running_per_key` a turn judges
    Gate.LIMITS: lambda worker: not worker.config.limits,
    Gate.DEPENDENCIES: lambda worker: not worker.config.depends_on,
    Gate.BLOCKS: lambda worker: not worker.counterparts,
}


@dataclass(frozen=True, slots=True)
class Planned:
    """A scheduled worker as its last firing left it."""

    config: WorkerConfig
    revision: int
    state: WorkerState


@dataclass(frozen=True, slots=True)
class NextFiring:
    """A schedule that is due: what `next_run_at` must still be, what is fired, and what comes after."""

    expected: datetime
    scheduled_for: datetime
    after: WorkerState


@dataclass(frozen=True, slots=True)
class Eligible:
    """Eligible workers by name, and the names of those with something due that is to be passed by.

    With `firings` it is schedules that are due, and not runs that wait. `revisions` and `firings` are then of the first
    of the workers; the others are due as well, and find no slot.
    """

    configs: Mapping[str, WorkerConfig]
    revisions: Mapping[str, int]
    stuck: tuple[str, ...]
    firings: Mapping[str, NextFiring] = field(default_factory=dict)

    def beside(self, before: Eligible | None) -> Eligible:
        """Return the same with those who were eligible before and of whom nothing else is known now."""
        kept = [] if before is None else [name for name in before.configs if name not in {*self.configs, *self.stuck}]
        if before is None or len(kept) + len(self.configs) > MOST_ELIGIBLE:
            return self
        configs = {**self.configs, **{name: before.configs[name] for name in kept}}
        revisions = {**self.revisions, **{name: before.revisions[name] for name in kept}}
        return Eligible(configs, revisions, self.stuck)


def is_beyond_turns(config: WorkerConfig) -> bool:
    """Say whether no turn judges the worker's keys: their order, their turns, or their rates."""
    return config.ordered or config.fair or config.rate_per_key is not None


def most_of_a_key(config: WorkerConfig) -> int | None:
    """Return how many runs of one key a turn may have active at once; None: it matters to none which key a run has."""
    return config.max_running_per_key if config.limit_key is not None else None


def is_passed_by(worker: WorkerFacts) -> bool:
    """Say whether a worker that has just given runs may wait for the next look: its limits alone are beyond turns."""
    is_else_open = all(is_open(worker) for gate, is_open in STAYS_OPEN.items() if gate not in {Gate.KEY, Gate.LIMITS})
    return worker.state.missed_from is None and is_else_open


def is_unhindered(worker: WorkerFacts) -> bool:
    """Say whether a worker is eligible but for its schedule, which may be due."""
    if worker.config.rate is not None and any(run.is_forced for run in worker.waiting):
        return False  # it passes the rate, by which a turn judges all
    return worker.state.missed_from is None and all(is_open(worker) for is_open in STAYS_OPEN.values())


def find_eligible(facts: Facts, started: set[str]) -> Eligible | None:
    """Return the workers of `facts` that may take the fast path, or None when the next tick must go the long way.

    `started` are the workers that gave runs at this tick. One of them that is not eligible, and was not merely fired,
    keeps all on the long way. But if its limits alone are why, it waits for the next look where others are eligible.
    """
    unhindered = {name for name, worker in facts.workers.items() if is_unhindered(worker)}
    eligible = {
        name: facts.workers[name] for name in unhindered if not _is_schedule_due(facts.workers[name], facts.now)
    }
    fired = {name for name in started & unhindered if not facts.workers[name].waiting}
    beyond = started - eligible.keys() - fired
    if any(worker.waiting for worker in eligible.values()):
        beyond = {name for name in beyond if not is_passed_by(facts.workers[name])}
    if len(eligible) > MOST_ELIGIBLE or beyond:
        return None
    due = {name for name, worker in facts.workers.items() if worker.waiting or _is_schedule_due(worker, facts.now)}
    stuck = due - eligible.keys() - fired
    if len(stuck) > MOST_STUCK:
        return None
    return Eligible(
        {name: worker.config for name, worker in eligible.items()},
        {name: worker.revision for name, worker in eligible.items()},
        tuple(sorted(stuck)),
    )


def find_planned(facts: Facts, after: Mapping[str, WorkerState]) -> tuple[Planned, ...]:
    """Return, of the workers that were just fired, those whose next firing may take the fast path."""
    found = []
    for name, state in after.items():
        worker = facts.workers[name]
        is_scheduled = worker.config.execution_mode is WorkerExecutionMode.SCHEDULED
        is_limited = worker.config.rate is not None or goes_by_key(worker.config)
        if is_scheduled and state.next_run_at is not None and is_unhindered(worker) and not is_limited:
            found.append(Planned(worker.config, worker.revision, state))
    return tuple(found)


def _is_schedule_due(worker: WorkerFacts, now: datetime) -> bool:
    return worker.state.next_run_at is not None and worker.state.next_run_at <= now


def simple_under(config: WorkerConfig, circuit: CircuitState, revision: int) -> int | None:
    """Return the revision under which a success of a run claimed now is simple; None if it never is.

    For all runs of the worker but those of which others wait to hear (`is_waited_for`).
    """
    is_loop = config.execution_mode is WorkerExecutionMode.CONTINUOUS
    return None if is_loop or circuit is not CircuitState.CLOSED else revision


def is_waited_for(run: Run) -> bool:
    """Say whether the end of a run may be what others wait for: the steps of its flow, or what follows its batch."""
    return run.batch_id is not None or run.flow_id is not None
