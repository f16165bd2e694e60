"""Who may take the fast path: no gate may be passed unseen."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from jobrunner.model.facts import ActiveRun, Candidate, Gate, LimitFacts, WorkerFacts
from jobrunner.model.worker import CircuitState, WorkerConfig, WorkerExecutionMode
from jobrunner.policy.fast_path import JUDGED_BY_A_TURN, STAYS_OPEN, find_eligible, is_unhindered, simple_under
from jobrunner.policy.gates import GATES
from jobrunner.policy.verdicts import explain
from tests.support.judge import at, disabled, facts, runs, tripped, waits, worker

RUN = waits("a", 1)
RUN_OF_KEY = waits("a", 1, limit_key="k")
SHARED = {"x": LimitFacts("x", max_running=0)}


def limited(run: Candidate, active: tuple[ActiveRun, ...] | list[ActiveRun] = (), **options: Any) -> WorkerFacts:
    found = worker("a", run, active=active, max_running=9)
    return replace(found, config=replace(found.config, **options))


SHUT: dict[Gate, list[WorkerFacts]] = {
    Gate.ENABLED: [worker("a", RUN, **disabled()), worker("a", RUN, **tripped(probe=60))],
    Gate.PAUSED: [worker("a", RUN, paused_until=at(60))],
    Gate.HANDLER: [worker("a", RUN, has_handler=False), replace(worker("a", RUN), problem="its payload")],
    Gate.KEY: [limited(RUN_OF_KEY, active=[replace(runs("a"), limit_key="k")], limit_key="f", ordered=True)],
    Gate.LIMITS: [limited(RUN, limits=("x",))],
    Gate.DEPENDENCIES: [worker("a", RUN, depends_on=["b"])],
    Gate.BLOCKS: [worker("a", RUN, counterparts=["b"])],
}
"""For each gate that a turn does not judge: facts that shut it, and it alone."""


def others() -> WorkerFacts:
    return worker("b", active=[runs("b")], last_run_outcome="succeeded", last_success_at=at(-60))


def test_each_gate_is_judged_by_a_turn_or_has_a_rule_that_keeps_its_worker_off_the_fast_path():
    assert {gate for gate, _ in GATES} == set(Gate)
    assert JUDGED_BY_A_TURN | STAYS_OPEN.keys() == set(Gate), "say in policy/fast_path.py what a turn does about it"
    assert not JUDGED_BY_A_TURN & STAYS_OPEN.keys()
    assert SHUT.keys() == STAYS_OPEN.keys(), "add facts that shut the new gate alone"


@pytest.mark.parametrize(("gate", "shut_one"), [(gate, one) for gate, many in SHUT.items() for one in many])
def test_a_worker_with_one_gate_shut_is_not_eligible(gate: Gate, shut_one: WorkerFacts):
    judged = replace(facts(shut_one, others()), limits=SHARED)
    assert {verdict.gate for verdict in explain(judged, "a")[1] if not verdict.is_open} == {gate}
    assert [rule for rule, is_open in STAYS_OPEN.items() if not is_open(shut_one)] == [gate]
    assert not is_unhindered(shut_one)
    found = find_eligible(facts(shut_one, others()), set())
    assert found is not None
    assert ("a" in found.configs, found.stuck) == (False, ("a",))


def test_a_worker_with_nothing_in_its_way_is_eligible_under_its_revision():
    found = find_eligible(facts(replace(worker("a", RUN), revision=7)), {"a"})
    assert found is not None
    assert (found.revisions, found.stuck) == ({"a": 7}, ())


def test_a_worker_whose_missed_times_are_not_written_yet_is_not_eligible():
    assert not is_unhindered(worker("a", RUN, missed_from=at(-60)))


@pytest.mark.parametrize("circuit", [*CircuitState])
def test_a_success_is_simple_under_the_claims_revision_unless_of_a_loop_or_with_the_circuit_not_closed(
    circuit: CircuitState,
):
    config = WorkerConfig("a", execution_mode=WorkerExecutionMode.TRIGGERED)
    assert simple_under(config, circuit, 7) == (7 if circuit is CircuitState.CLOSED else None)
    loop = replace(config, execution_mode=WorkerExecutionMode.CONTINUOUS)
    assert simple_under(loop, circuit, 7) is None
