"""Random ends of attempts: the streak equals its recomputation, attempts are numbered without gap, runs end once."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from jobrunner.model.run import USES_UP_AN_ATTEMPT, EndsRun, Outcome, OutcomeKind, Run, Trigger
from jobrunner.model.worker import CircuitState, WorkerConfig, WorkerState
from jobrunner.policy import switches
from jobrunner.policy.ends import MAY_END
from jobrunner.policy.transitions import POISON_AFTER, Finish, decide_finish, is_probe
from tests.support.ends import a_run, at, config

KINDS = st.sampled_from([kind for kind in OutcomeKind if kind is not OutcomeKind.MISSED])
ENDS = st.builds(
    lambda kind, flag, delay: (kind, flag, delay),
    KINDS,
    st.sampled_from([None, None, None, None, "is_discard", "does_not_fit"]),
    st.sampled_from([None, None, 0.0, 7.0]),
)
SWITCHES = st.sampled_from(["enable", "disable", "pause", "resume"])
STEPS = st.lists(ENDS | SWITCHES, min_size=1, max_size=60)
RULES = st.builds(
    lambda retries, failures, cooldown, mode: config(
        mode, max_retries=retries, max_consecutive_failures=failures, cooldown_seconds=cooldown
    ),
    st.integers(0, 4),
    st.integers(1, 4),
    st.none() | st.sampled_from([5.0, 3000.0]),
    st.sampled_from(["scheduled", "triggered", "continuous"]),
)


@dataclass
class Row:
    """What history keeps of an attempt."""

    run_id: int
    attempt: int
    kind: OutcomeKind
    ends_run: EndsRun | None


@dataclass
class World:
    """One worker, one run at a time; `rows` is its history, `zeroed` the row from which the streak counts anew."""

    rules: WorkerConfig
    state: WorkerState = field(default_factory=lambda: WorkerState("a"))
    run: Run = field(default_factory=a_run)
    rows: list[Row] = field(default_factory=list)
    zeroed: int = 0
    clock: float = 0.0

    def step(self, step) -> Finish | None:
        self.clock += 1
        if isinstance(step, str):
            self._switch(step)
            return None
        kind, flag, delay = step
        if self.state.circuit_state is CircuitState.OPEN and self.state.probe_at is not None:
            # The claim of the first run in order makes it the probe.
            self.state = replace(self.state, circuit_state=CircuitState.HALF_OPEN, probe_run_id=self.run.id)
        outcome = Outcome(
            kind,
            at(self.clock),
            delay_seconds=delay,
            error="no luck",
            is_discard=flag == "is_discard" and kind is OutcomeKind.FAILED,
            does_not_fit=flag == "does_not_fit" and kind is OutcomeKind.FAILED,
        )
        decided = decide_finish(self.run, outcome, self.rules, self.rules, self.state, 0.0)
        assert decided.ends_run in MAY_END[kind]
        self.rows.append(Row(self.run.id, self.run.attempt, kind, decided.ends_run))
        self.state = decided.state
        if decided.retry is None:
            self.run = a_run(self.run.id + 1, trigger=Trigger.CONTINUOUS if self.run.id % 2 else Trigger.MANUAL)
        else:
            retry = decided.retry
            self.run = replace(self.run, attempt=retry.attempt, due_at=retry.due_at, lost_in_a_row=retry.lost_in_a_row)
        return decided

    def _switch(self, switch: str) -> None:
        now = at(self.clock)
        if switch == "enable":
            self.state, _ = switches.enable(self.state, self.rules, now)
            self.zeroed = len(self.rows)
        elif switch == "disable":
            self.state, _ = switches.disable(self.state, self.rules, now, None)
        elif switch == "pause":
            self.state, _ = switches.pause(self.state, self.rules, now, at(self.clock + 30))
        else:
            self.state, _ = switches.resume(self.state, self.rules, now)


@given(RULES, STEPS)
@settings(max_examples=100)
def test_the_streak_equals_its_recomputation_from_history(rules, steps):
    world = World(rules)
    for step in steps:
        world.step(step)
        streak = 0
        for row in world.rows[world.zeroed :]:
            if row.ends_run is EndsRun.SUCCEEDED:
                streak = 0
            elif row.ends_run is EndsRun.EXHAUSTED:
                streak += 1
        assert world.state.consecutive_failures == streak


@given(RULES, STEPS)
@settings(max_examples=100)
def test_attempts_that_use_up_a_try_are_numbered_from_one_without_gap_or_repeat(rules, steps):
    world = World(rules)
    for step in steps:
        world.step(step)
    for run_id in {row.run_id for row in world.rows}:
        used = [row.attempt for row in world.rows if row.run_id == run_id and row.kind in USES_UP_AN_ATTEMPT]
        assert used == list(range(1, len(used) + 1))
        assert len(used) <= rules.max_retries + 1


@given(RULES, STEPS)
@settings(max_examples=100)
def test_every_run_ends_exactly_once_and_with_a_letter_exactly_when_it_failed(rules, steps):
    world = World(rules)
    for step in steps:
        decided = world.step(step)
        if decided is not None:
            assert (decided.ends_run is None) == (decided.retry is not None)
            assert decided.has_letter == (decided.ends_run in {EndsRun.EXHAUSTED, EndsRun.DISCARDED})
    for run_id in {row.run_id for row in world.rows} - {world.run.id}:
        rows = [row for row in world.rows if row.run_id == run_id]
        assert [row.ends_run is not None for row in rows] == [False] * (len(rows) - 1) + [True]


@given(RULES, STEPS)
@settings(max_examples=100)
def test_a_worker_is_enabled_or_says_who_disabled_it(rules, steps):
    world = World(rules)
    for step in steps:
        world.step(step)
        state = world.state
        assert state.is_enabled == (state.disabled_by is None) == (state.disabled_reason is None)
        assert (state.circuit_state is CircuitState.CLOSED) == (state.disabled_by != "circuit")
        assert (state.probe_run_id is not None) == (state.circuit_state is CircuitState.HALF_OPEN)


@given(RULES, STEPS)
@settings(max_examples=100)
def test_only_the_probe_and_operators_move_an_open_circuit(rules, steps):
    world = World(rules)
    for step in steps:
        before, run = world.state, world.run
        decided = world.step(step)
        if decided is not None and before.circuit_state is not CircuitState.CLOSED and not before.probe_at:
            assert decided.state.circuit_state is before.circuit_state
            assert not is_probe(run, before)


@given(RULES, STEPS)
@settings(max_examples=100)
def test_no_run_is_lost_more_often_in_a_row_than_a_poison_run(rules, steps):
    world = World(rules)
    for step in steps:
        world.step(step)
        assert world.run.lost_in_a_row < POISON_AFTER


@given(ENDS, st.integers(1, 6), RULES, st.booleans(), st.integers(0, 2))
def test_how_a_run_ends_is_in_the_table_that_db_verify_reads(end, attempt, rules, is_cancelled, lost):
    kind, flag, delay = end
    is_failed = kind is OutcomeKind.FAILED
    outcome = Outcome(
        kind,
        at(1),
        delay_seconds=delay,
        is_discard=is_failed and flag == "is_discard",
        does_not_fit=is_failed and flag == "does_not_fit",
    )
    run = replace(a_run(), attempt=attempt, lost_in_a_row=lost, cancel_requested_at=at(0) if is_cancelled else None)
    decided = decide_finish(run, outcome, rules, rules, WorkerState("a"), 0.0)
    assert decided.ends_run in MAY_END[kind]
