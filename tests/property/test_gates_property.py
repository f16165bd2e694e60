"""Random snapshots: no pass starts more than it may, and `explain` says what the pass does.

What a pass starts is checked against the rules in words of their own, not with the gates' functions.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from datetime import timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from jobrunner.model.facts import Candidate, Facts, Gate, WorkerFacts
from jobrunner.model.worker import CircuitState, Dependency, DependencyCondition
from jobrunner.policy.gates import candidates_of, decide_starts, why_switched_off
from jobrunner.policy.verdicts import explain, explain_due, headline, why_not
from tests.support.judge import NOW, at, disabled, runs, tripped, waits, worker

NAMES = "abcdef"
SECONDS = st.sampled_from([-90.0, -60.0, -5.0, 0.0, 5.0])
MAYBE_SECONDS = st.none() | SECONDS
RARELY = st.integers(0, 9).map(lambda n: n == 0)


@st.composite
def states(draw):
    kind = draw(st.sampled_from(["enabled"] * 6 + ["operator", "open", "probe due", "half open"]))
    if kind == "operator":
        state = disabled()
    elif kind == "half open":
        state = tripped(-10, circuit_state=CircuitState.HALF_OPEN, probe_run_id=draw(st.integers(0, 30)))
    else:
        state = {"enabled": {}, "open": tripped(60), "probe due": tripped(-1)}[kind]
    succeeded = draw(st.sampled_from(["succeeded", "succeeded", "succeeded", "failed", None]))
    return {
        **state,
        "paused_until": at(60) if draw(RARELY) else None,
        "last_run_outcome": succeeded,
        "last_success_at": None if succeeded is None else at(draw(SECONDS) - 10),
        "last_run_at": None if draw(RARELY) else at(draw(SECONDS) - 10),
    }


@st.composite
def edges_to(draw, names):
    chosen = draw(st.lists(st.sampled_from(names), unique=True, max_size=2)) if names else []
    kinds = st.sampled_from([DependencyCondition.SUCCEEDED, DependencyCondition.FRESH])
    ages = st.sampled_from([None, None, 30.0])
    return tuple(Dependency(name, draw(kinds), draw(ages)) for name in chosen)


@st.composite
def snapshots(draw):
    names = NAMES[: draw(st.integers(1, len(NAMES)))]
    pairs = draw(st.lists(st.tuples(st.sampled_from(names), st.sampled_from(names)), max_size=4))
    ids = iter(draw(st.permutations(range(1, 31))))
    known = {}
    for index, name in enumerate(names):
        counterparts = sorted({b if a == name else a for a, b in pairs if name in (a, b) and a != b})
        slots = draw(st.lists(st.integers(0, 3), unique=True, max_size=2)) if draw(RARELY) or draw(RARELY) else []
        has_handler = not draw(RARELY)
        known[name] = worker(
            name,
            *(
                waits(
                    name,
                    next(ids),
                    due=draw(SECONDS),
                    priority=draw(st.integers(0, 3)),
                    is_forced=draw(RARELY),
                    has_started_before=draw(RARELY),
                )
                for _ in range(draw(st.integers(0, 3)))
            ),
            active=[runs(name, 100 + 10 * index + slot, slot) for slot in slots],
            depends_on=draw(edges_to(names[:index])),
            counterparts=counterparts,
            max_running=draw(st.integers(1, 3)),
            priority=draw(st.integers(0, 3)),
            next_run=draw(MAYBE_SECONDS),
            retry=draw(SECONDS) if draw(RARELY) else None,
            has_handler=has_handler,
            elsewhere=not has_handler and draw(st.booleans()),
            scheduled_run=next(ids) if draw(RARELY) else None,
            **draw(states()),
        )
    return Facts(NOW, known, draw(st.integers(0, 6)))


def candidate_of(facts: Facts, name: str, run_id: int | None) -> Candidate:
    (found,) = [c for c in candidates_of(facts.workers[name]) if c.id == run_id]
    return found


def chosen(facts: Facts) -> list[Candidate]:
    return [candidate_of(facts, start.worker, start.run_id) for start in decide_starts(facts)]


@given(snapshots())
@settings(max_examples=150)
def test_explain_says_all_open_for_a_run_exactly_when_the_tick_starts_it(facts):
    starts = {(start.worker, start.run_id) for start in decide_starts(facts)}
    for name in facts.workers:
        candidate, verdicts = explain(facts, name)
        says = all(verdict.is_open for verdict in verdicts)
        if candidate is None:
            assert not says
            assert not any(start == name for start, _ in starts)
        else:
            assert says == ((name, candidate.id) in starts)
            # Where explain shows a shut gate for the run that comes first, no other run of the worker starts either.
            assert says or not any(start == name for start, _ in starts)


@given(snapshots())
@settings(max_examples=150)
def test_why_a_run_waits_is_the_headline_of_explain(facts):
    for name in facts.workers:
        candidate, verdicts = explain(facts, name)
        if candidate is not None and candidate.due_at <= facts.now:
            assert why_not(facts, candidate) == headline(verdicts)


@given(snapshots())
@settings(max_examples=150)
def test_all_that_is_due_is_judged_in_one_pass_as_explain_judges_each(facts):
    each = {name: explain(facts, name) for name in facts.workers}
    due = {name: verdicts for name, (run, verdicts) in each.items() if run is not None and run.due_at <= facts.now}
    assert explain_due(facts, facts.workers) == due


@given(snapshots())
@settings(max_examples=150)
def test_a_run_waits_for_nothing_exactly_when_the_pass_starts_it(facts):
    starts = {(start.worker, start.run_id) for start in decide_starts(facts)}
    for name, each in facts.workers.items():
        for candidate in candidates_of(each):
            if candidate.due_at <= facts.now:
                assert (why_not(facts, candidate) is None) == ((name, candidate.id) in starts)


@given(snapshots())
@settings(max_examples=150)
def test_why_a_worker_is_switched_off_is_what_the_gates_of_the_switches_say(facts):
    for name, each in facts.workers.items():
        alone = replace(each, waiting=(waits(name, 31),), state=replace(each.state, next_run_at=None))
        _, verdicts = explain(Facts(NOW, {**facts.workers, name: alone}, 6), name)
        shut = [v.reason for v in verdicts if v.gate in {Gate.ENABLED, Gate.PAUSED} and not v.is_open]
        assert why_switched_off(each, NOW) == next(iter(shut), None)


@given(snapshots())
@settings(max_examples=150)
def test_no_pass_starts_more_than_slots_and_max_running_allow(facts):
    starts = decide_starts(facts)
    assert len(starts) <= facts.free_slots
    for name, count in Counter(start.worker for start in starts).items():
        each = facts.workers[name]
        assert len(each.active) + count <= each.config.max_running
        taken = [run.slot for run in each.active] + [start.slot for start in starts if start.worker == name]
        assert len(taken) == len(set(taken))
    assert len({(start.worker, start.run_id) for start in starts}) == len(starts)


@given(snapshots())
@settings(max_examples=150)
def test_no_pass_starts_what_is_blocked(facts):
    active = Counter(start.worker for start in decide_starts(facts))
    active.update({name: len(each.active) for name, each in facts.workers.items()})
    for start in decide_starts(facts):
        assert not any(active[other] for other in facts.workers[start.worker].counterparts)


@given(snapshots())
@settings(max_examples=150)
def test_no_pass_starts_what_a_dependency_holds_back(facts):
    starts = chosen(facts)
    begun = {candidate.worker for candidate in starts}
    for position, candidate in enumerate(starts):
        mine = facts.workers[candidate.worker]
        if candidate.is_forced:
            continue
        for edge in mine.config.depends_on:
            other = facts.workers[edge.depends_on]
            assert other.state.last_run_outcome == "succeeded"
            assert not other.active
            assert other.waiting_retry is None
            assert edge.depends_on not in begun
            success = other.state.last_success_at
            assert success is not None
            if edge.max_age_seconds is not None:
                assert NOW - success <= timedelta(seconds=edge.max_age_seconds)
            if edge.condition is DependencyCondition.FRESH and not candidate.has_started_before:
                assert mine.state.last_run_at is None or success > mine.state.last_run_at
                before = [c for c in starts[:position] if c.worker == candidate.worker and not c.has_started_before]
                assert not before


@given(snapshots())
@settings(max_examples=150)
def test_no_pass_starts_what_is_disabled_paused_not_due_or_without_code(facts):
    probes: Counter[str] = Counter()
    for start in decide_starts(facts):
        each = facts.workers[start.worker]
        candidate = candidate_of(facts, start.worker, start.run_id)
        assert candidate.due_at <= NOW
        assert each.has_handler
        assert start.run_id is not None or each.scheduled_run is None
        if not candidate.is_forced:
            state = each.state
            assert state.paused_until is None or state.paused_until <= NOW
            assert state.is_enabled or start.is_probe or state.probe_run_id == candidate.id
            assert state.is_enabled or state.disabled_by == "circuit"
        probes[start.worker] += start.is_probe
    assert all(count <= 1 for count in probes.values())


@given(snapshots())
@settings(max_examples=150)
def test_no_run_that_may_start_is_left_waiting(facts):
    """Of the runs without relations, those left are disabled, paused, not due, without code, saturated, or too many."""
    starts = decide_starts(facts)
    if len(starts) == facts.free_slots:
        return
    begun = Counter(start.worker for start in starts)
    for name, each in facts.workers.items():
        if each.config.depends_on or each.counterparts or not each.has_handler or not each.state.is_enabled:
            continue
        if each.state.paused_until is not None:
            continue
        due = [c for c in candidates_of(each) if c.due_at <= NOW and (c.id is not None or each.scheduled_run is None)]
        room = max(each.config.max_running - len(each.active), 0)
        assert begun[name] == min(len(due), room)


def reordered(worker_facts: WorkerFacts, keys) -> WorkerFacts:
    return replace(
        worker_facts,
        waiting=tuple(sorted(worker_facts.waiting, key=keys)),
        active=tuple(sorted(worker_facts.active, key=keys)),
        counterparts=tuple(sorted(worker_facts.counterparts, key=keys)),
    )


@given(snapshots(), st.randoms(use_true_random=False))
@settings(max_examples=100)
def test_the_order_in_which_facts_are_read_changes_nothing(facts, random):
    names = list(facts.workers)
    random.shuffle(names)
    places = defaultdict[str, float](random.random)
    shuffled = Facts(
        facts.now,
        {name: reordered(facts.workers[name], lambda value: places[str(value)]) for name in names},
        facts.free_slots,
    )
    assert decide_starts(shuffled) == decide_starts(facts)
