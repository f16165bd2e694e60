"""What may start, in which order, and what is said of what may not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from jobrunner.model.facts import Facts, Gate
from jobrunner.model.worker import CircuitState, Dependency, DependencyCondition
from jobrunner.policy.gates import GATES, OPENED_BY_FORCE, decide_starts
from jobrunner.policy.verdicts import explain, headline
from tests.support.judge import (
    NOW,
    SUCCEEDED,
    at,
    decide,
    disabled,
    facts,
    names,
    runs,
    shut,
    started,
    tripped,
    verdicts,
    waits,
    why,
    worker,
)

FRESH = DependencyCondition.FRESH


# --- order --------------------------------------------------------------------------------------------------------


def test_a_waiting_run_that_is_due_starts():
    assert started(worker("a", waits("a", 1))) == [1]


def test_higher_priority_starts_first_however_late():
    low, high = worker("a", waits("a", 1, due=-900, priority=0)), worker("b", waits("b", 2, priority=3))
    assert started(low, high, slots=1) == [2]


def test_among_equal_priorities_the_older_due_time_starts_first():
    assert started(worker("a", waits("a", 1, due=-1)), worker("b", waits("b", 2, due=-2))) == [2, 1]


def test_among_equal_due_times_the_lower_id_starts_first():
    assert started(worker("a", waits("a", 7)), worker("b", waits("b", 3))) == [3, 7]


def test_a_firing_starts_after_the_waiting_runs_of_its_time():
    assert started(worker("a", next_run=0), worker("b", waits("b", 3))) == [3, "a"]


def test_firings_of_one_time_start_in_the_order_of_names():
    assert started(*(worker(name, next_run=0) for name in "cab")) == ["a", "b", "c"]


def test_a_firing_has_its_workers_priority():
    assert started(worker("a", waits("a", 1)), worker("b", next_run=0, priority=2)) == ["b", 1]


def test_no_more_start_than_slots_are_free():
    assert started(worker("a", *(waits("a", n) for n in range(1, 9)), max_running=8), slots=3) == [1, 2, 3]


def test_nothing_starts_without_a_free_slot():
    assert started(worker("a", waits("a", 1)), slots=0) == []


# --- enabled, paused, due, handler --------------------------------------------------------------------------------


def test_a_disabled_worker_starts_nothing():
    assert started(worker("a", waits("a", 1), **disabled())) == []


def test_a_disabled_worker_holds_up_no_other():
    assert started(worker("a", *(waits("a", n) for n in range(9)), **disabled()), worker("b", waits("b", 99))) == [99]


def test_explain_says_who_disabled_a_worker_and_why():
    by_ann = worker("a", waits("a", 1), **disabled(disabled_actor="ann@desk"))
    assert why("a", Gate.ENABLED, by_ann) == "disabled by ann@desk: maintenance"
    assert why("a", Gate.ENABLED, worker("a", waits("a", 1), **disabled())) == "disabled by an operator: maintenance"


def test_a_paused_worker_starts_nothing_until_the_pause_ends():
    assert started(worker("a", waits("a", 1), paused_until=at(1))) == []
    assert started(worker("a", waits("a", 1), paused_until=at(0))) == [1]


def test_explain_says_until_when_a_worker_is_paused():
    assert (
        why("a", Gate.PAUSED, worker("a", waits("a", 1), paused_until=at(60))) == "paused until 2026-03-02 12:01:00 UTC"
    )
    forever = NOW.replace(year=9999)
    assert why("a", Gate.PAUSED, worker("a", waits("a", 1), paused_until=forever)) == "paused until resumed"


def test_a_run_does_not_start_before_it_is_due():
    assert started(worker("a", waits("a", 1, due=0.001))) == []
    assert shut("a", worker("a", waits("a", 1, due=1))) == {Gate.DUE}


def test_a_schedule_does_not_fire_while_its_last_run_is_live():
    waiting = worker("a", next_run=-5, scheduled_run=8, max_running=3)
    assert started(waiting) == []
    assert "run 8 has not ended" in why("a", Gate.DUE, waiting)


def test_a_trigger_starts_beside_the_schedules_live_run_if_max_running_allows():
    assert started(worker("a", waits("a", 9), next_run=-5, scheduled_run=8, active=[runs("a", 8)], max_running=2)) == [
        9
    ]


def test_a_worker_whose_code_this_node_lacks_does_not_start_here():
    assert started(worker("a", waits("a", 1), has_handler=False), worker("b", waits("b", 2))) == [2]
    assert "no live node has the handler" in why("a", Gate.HANDLER, worker("a", waits("a", 1), has_handler=False))


def test_with_nothing_waiting_explain_says_so_and_judges_the_worker_itself():
    found = verdicts("a", worker("a", **disabled()))
    assert "nothing is waiting" in found[Gate.DUE].reason
    assert not found[Gate.ENABLED].is_open
    assert found[Gate.SLOT].is_open


def test_explain_shows_every_gate_in_order():
    _, shown = explain(facts(worker("a", waits("a", 1))), "a")
    assert [verdict.gate for verdict in shown] == list(Gate) == [gate for gate, _ in GATES]
    assert all(verdict.is_open for verdict in shown)


def test_explain_says_first_what_stays_shut_until_somebody_does_something():
    def said(*others, **more):
        each = worker("b", waits("b", 1, due=60), **more)
        return headline(explain(facts(each, *others), "b")[1])

    not_due = "not due until 2026-03-02 12:01:00 UTC: run 1"
    assert said().reason == not_due
    assert said(active=[runs("b")]).reason == not_due
    assert said(has_handler=False).reason == "no live node has the handler"
    off = worker("a", **SUCCEEDED, **disabled())
    assert said(off, depends_on=["a"]).reason == "waits for a: it is disabled (maintenance)"
    failed = worker("a", last_run_outcome="failed")
    assert said(failed, depends_on=["a"]).reason == "waits for a: its last run failed"
    assert said(worker("a", last_run_outcome="failed", retry=5), depends_on=["a"]).reason == not_due
    assert said(worker("a"), depends_on=["a"]).reason == not_due


def test_of_several_dependencies_the_one_that_stays_unmet_is_named():
    running, off = worker("a", active=[runs("a")], **SUCCEEDED), worker("c", **SUCCEEDED, **disabled())
    each = worker("b", waits("b", 1), depends_on=["a", "c"])
    assert why("b", Gate.DEPENDENCIES, running, off, each) == "waits for c: it is disabled (maintenance)"


def test_times_are_shown_in_the_workers_own_zone_too():
    each = worker("a", waits("a", 1), paused_until=at(60))
    own = replace(each, config=replace(each.config, timezone="Asia/Tokyo"))
    assert why("a", Gate.PAUSED, own) == "paused until 2026-03-02 12:01:00 UTC (21:01:00 JST)"


# --- max_running --------------------------------------------------------------------------------------------------


def test_active_runs_count_against_max_running():
    assert started(worker("a", waits("a", 1), active=[runs("a")])) == []


def test_one_pass_starts_no_more_than_max_running():
    assert started(worker("a", *(waits("a", n) for n in range(1, 9)), max_running=3), slots=50) == [1, 2, 3]


def test_one_pass_counts_what_was_active_before():
    assert started(worker("a", waits("a", 1), waits("a", 2), active=[runs("a")], max_running=2)) == [1]


def test_a_firing_and_a_trigger_together_keep_within_max_running():
    assert started(worker("a", waits("a", 1), next_run=0)) == [1]


def test_a_saturated_worker_holds_up_no_other():
    full = worker("a", *(waits("a", n, priority=3) for n in range(1, 9)), active=[runs("a")])
    assert started(full, worker("b", waits("b", 99))) == [99]


def test_runs_take_the_lowest_free_slots_of_their_worker():
    waiting = worker("a", waits("a", 1), waits("a", 2), active=[runs("a", 8, 1), runs("a", 9, 4)], max_running=6)
    assert [start.slot for start in decide(waiting)] == [0, 2]


def test_a_pause_keeps_its_reason_in_what_explain_says():
    paused = worker("a", waits("a", 1), paused_until=at(60), paused_reason="moving house")
    assert why("a", Gate.PAUSED, paused) == "paused until 2026-03-02 12:01:00 UTC: moving house"


def test_explain_says_who_runs_and_since_when():
    reason = why("a", Gate.MAX_RUNNING, worker("a", waits("a", 1), active=[runs("a", 812, since=-60)]))
    assert reason == "1 of 1 running: run 812 on node node-1, since 2026-03-02 11:59:00 UTC"


# --- dependencies -------------------------------------------------------------------------------------------------


def dependent(*waiting, edge: str | Dependency = "a", **more):
    """A worker `b` that waits for `a`, with one run due."""
    return worker("b", *(waiting or (waits("b", 1),)), depends_on=[edge], **more)


def test_a_dependency_is_met_once_its_last_run_succeeded_and_it_is_idle():
    assert started(worker("a", **SUCCEEDED), dependent()) == [1]


def test_a_dependency_that_never_ran_is_not_met():
    assert started(worker("a"), dependent()) == []
    assert "has not succeeded yet" in why("b", Gate.DEPENDENCIES, worker("a"), dependent())


@pytest.mark.parametrize("outcome", ["failed", "timed_out", "lost"])
def test_a_dependency_whose_last_run_ended_otherwise_is_not_met(outcome):
    other = worker("a", last_run_outcome=outcome, last_success_at=at(-600), next_run=300)
    assert started(other, dependent()) == []
    reason = why("b", Gate.DEPENDENCIES, other, dependent())
    assert reason == f"waits for a: its last run {outcome.replace('_', ' ')}, next try 2026-03-02 12:05:00 UTC"


def test_a_dependency_with_an_active_run_is_not_met():
    other = worker("a", active=[runs("a", 7)], **SUCCEEDED)
    assert started(other, dependent()) == []
    assert "it is running (run 7 on node node-1" in why("b", Gate.DEPENDENCIES, other, dependent())


def test_a_dependency_with_a_waiting_retry_is_not_met():
    other = worker("a", retry=30, **SUCCEEDED)
    assert started(other, dependent()) == []
    assert "to be retried at 2026-03-02 12:00:30" in why("b", Gate.DEPENDENCIES, other, dependent())


def test_a_dependency_that_is_due_too_goes_first():
    other = worker("a", waits("a", 2, due=0), **SUCCEEDED)
    assert started(other, dependent(waits("b", 1, due=-60, priority=3))) == [2]
    assert "goes first" in why("b", Gate.DEPENDENCIES, other, dependent())


def test_a_dependencys_firing_that_is_due_goes_first():
    assert started(worker("a", next_run=0, **SUCCEEDED), dependent()) == ["a"]


def test_a_dependency_that_has_just_started_in_this_pass_is_not_met():
    assert started(worker("a", waits("a", 2, priority=3), **SUCCEEDED), dependent()) == [2]


def test_a_dependency_that_is_due_but_for_want_of_a_slot_still_goes_first():
    filler = worker("c", waits("c", 3, priority=3))
    due = worker("a", waits("a", 2, priority=0), **SUCCEEDED)
    assert started(filler, due, dependent(), slots=1) == [3]
    assert started(due, dependent(), slots=1) == [2]


def test_a_dependency_that_is_due_but_could_not_start_is_not_waited_for():
    for other in (
        worker("a", waits("a", 2), paused_until=at(60), **SUCCEEDED),
        worker("a", waits("a", 2), has_handler=False, **SUCCEEDED),
        worker("a", waits("a", 2, due=60), **SUCCEEDED),
    ):
        assert started(other, dependent()) == [1]


def test_a_dependency_that_another_node_could_start_goes_first():
    other = worker("a", waits("a", 2), has_handler=False, elsewhere=True, **SUCCEEDED)
    assert started(other, dependent()) == []


@pytest.mark.parametrize("more", [{"last_run_outcome": "failed"}, {}, {"retry": 30, **SUCCEEDED}, SUCCEEDED])
def test_a_dependency_that_is_disabled_is_not_met_and_that_is_said(more):
    other = worker("a", **more, **disabled())
    assert started(other, dependent()) == []
    assert why("b", Gate.DEPENDENCIES, other, dependent()).endswith("it is disabled (maintenance)")


def test_every_dependency_must_be_met():
    met, unmet = worker("a", **SUCCEEDED), worker("c")
    both = worker("b", waits("b", 1), depends_on=["a", "c"])
    assert started(met, unmet, both) == []
    assert started(met, worker("c", **SUCCEEDED), both) == [1]


def test_a_fresh_dependency_asks_for_a_success_after_the_last_start_here():
    edge = Dependency("a", FRESH)
    other = worker("a", **SUCCEEDED)  # 60 s ago
    assert started(other, dependent(edge=edge, last_run_at=at(-90))) == [1]
    assert started(other, dependent(edge=edge, last_run_at=at(-30))) == []
    assert started(other, dependent(edge=edge, last_run_at=at(-60))) == []
    assert started(other, dependent(edge=edge)) == [1]


def test_one_success_of_a_fresh_dependency_lets_one_run_start_also_within_one_pass():
    edge = Dependency("a", FRESH)
    two = dependent(waits("b", 1), waits("b", 2), edge=edge, max_running=2, last_run_at=at(-90))
    assert started(worker("a", **SUCCEEDED), two) == [1]


def test_the_retry_of_a_run_that_has_started_passes_fresh():
    edge = Dependency("a", FRESH)
    retry = waits("b", 1, attempt=2, has_started_before=True)
    assert started(worker("a", **SUCCEEDED), dependent(retry, edge=edge, last_run_at=at(-30))) == [1]


def test_max_age_refuses_a_success_that_is_too_old():
    assert started(worker("a", **SUCCEEDED), dependent(edge=Dependency("a", max_age_seconds=59.0))) == []
    assert started(worker("a", **SUCCEEDED), dependent(edge=Dependency("a", max_age_seconds=60.0))) == [1]
    reason = why("b", Gate.DEPENDENCIES, worker("a", **SUCCEEDED), dependent(edge=Dependency("a", max_age_seconds=5)))
    assert reason == "waits for a: its last success is older than 5 s"


def test_max_age_holds_for_retries_too():
    retry = waits("b", 1, attempt=2, has_started_before=True)
    assert started(worker("a", **SUCCEEDED), dependent(retry, edge=Dependency("a", FRESH, max_age_seconds=5))) == []


def chain(length: int):
    """Workers that wait for each other in a row, all of them due, all of them succeeded last time."""
    first = worker("w0000", next_run=0, **SUCCEEDED)
    return [first] + [
        worker(f"w{n:04}", next_run=0, depends_on=[f"w{n - 1:04}"], **SUCCEEDED) for n in range(1, length)
    ]


def test_of_a_chain_that_is_due_whoever_could_start_goes_before_what_waits_for_it():
    # The second waits for the first; so it could not itself start, and the third does not wait for it.
    assert started(*chain(3)) == ["w0000", "w0002"]


def test_a_chain_of_dependencies_may_be_longer_than_pythons_stack():
    assert started(*reversed(chain(3000)), slots=2) == ["w0000", "w0002"]


def test_a_circle_of_dependencies_made_by_hand_does_not_stop_the_tick():
    a = worker("a", next_run=0, depends_on=["b"], **SUCCEEDED)
    b = worker("b", next_run=0, depends_on=["a"], **SUCCEEDED)
    assert "c" in started(a, b, worker("c", next_run=0))


# --- blocks -------------------------------------------------------------------------------------------------------


def test_blocks_hold_in_both_directions():
    a, b = worker("a", waits("a", 1), counterparts=["b"]), worker("b", waits("b", 2), counterparts=["a"])
    assert started(a, worker("b", active=[runs("b")], counterparts=["a"])) == []
    assert started(worker("a", active=[runs("a")], counterparts=["b"]), b) == []


def test_counterparts_never_start_in_one_pass():
    a, b = worker("a", waits("a", 1), counterparts=["b"]), worker("b", waits("b", 2), counterparts=["a"])
    assert started(a, b) == [1]
    assert "blocked by a, which is about to start" in why("b", Gate.BLOCKS, a, b)


def test_explain_says_which_run_blocks_and_since_when():
    a = worker("cleanup", active=[runs("cleanup", 812, since=-60)], counterparts=["b"])
    reason = why("b", Gate.BLOCKS, a, worker("b", waits("b", 2), counterparts=["cleanup"]))
    assert reason == "blocked by cleanup, run 812 on node node-1, since 2026-03-02 11:59:00 UTC"


def test_a_blocked_run_that_comes_first_stops_new_starts_of_its_counterparts():
    busy = worker("b", waits("b", 2), active=[runs("b")], counterparts=["a"], max_running=2)
    first = worker("a", waits("a", 1, due=-5), counterparts=["b"])
    assert started(first, busy) == []
    assert "lets a go first" in why("b", Gate.BLOCKS, first, busy)


def test_a_blocked_run_that_does_not_come_first_stops_nobody():
    busy = worker("b", waits("b", 1, due=-5), active=[runs("b")], counterparts=["a"], max_running=2)
    assert started(worker("a", waits("a", 2), counterparts=["b"]), busy) == [1]


def test_a_blocked_run_stops_only_its_counterparts():
    first = worker("a", waits("a", 1, due=-5), counterparts=["b"])
    busy = worker("b", active=[runs("b")], counterparts=["a"], max_running=2)
    assert started(first, busy, worker("c", waits("c", 3))) == [3]


def test_whoever_is_stopped_this_way_stops_nobody_in_turn():
    running = worker("x", active=[runs("x")], counterparts=["a"])
    first = worker("a", waits("a", 1, due=-5), counterparts=["b", "x"])
    second = worker("b", waits("b", 2, due=-4), counterparts=["a", "c"])
    assert started(running, first, second, worker("c", waits("c", 3), counterparts=["b"])) == [3]


def test_a_blocked_run_that_could_not_start_anyway_stops_nobody():
    busy = worker("b", waits("b", 2), active=[runs("b")], counterparts=["a"], max_running=2)
    for more in ({"paused_until": at(60)}, disabled(), {"active": [runs("a")], "max_running": 1}):
        first = worker("a", waits("a", 1, due=-5), counterparts=["b"], **more)
        assert started(first, busy) == ([] if "active" in more else [2])


def test_a_blocked_run_whose_code_is_on_another_node_stops_its_counterparts_here_too():
    busy = worker("b", waits("b", 2), active=[runs("b")], counterparts=["a"], max_running=2)
    there = worker("a", waits("a", 1, due=-5), counterparts=["b"], has_handler=False, elsewhere=True)
    nowhere = worker("a", waits("a", 1, due=-5), counterparts=["b"], has_handler=False)
    assert started(there, busy) == []
    assert started(nowhere, busy) == [2]


def test_blocks_and_a_dependency_on_one_worker_go_together():
    def b(**more):
        return worker("b", waits("b", 1), depends_on=["a"], counterparts=["a"], **more)

    assert started(worker("a", counterparts=["b"], **SUCCEEDED), b()) == [1]
    assert started(worker("a", waits("a", 2), counterparts=["b"], **SUCCEEDED), b()) == [2]
    assert started(worker("a", active=[runs("a")], counterparts=["b"], **SUCCEEDED), b()) == []


# --- force --------------------------------------------------------------------------------------------------------


def test_force_opens_exactly_enabled_paused_rates_and_dependencies():
    assert {Gate.ENABLED, Gate.PAUSED, Gate.RATE, Gate.DEPENDENCIES} == OPENED_BY_FORCE


@pytest.mark.parametrize("state", [disabled(), tripped(), tripped(60), {"paused_until": at(60)}])
def test_a_forced_run_starts_though_its_worker_is_disabled_or_paused(state):
    assert started(worker("a", waits("a", 1, is_forced=True), **state)) == [1]


def test_a_forced_run_starts_though_a_dependency_is_not_met():
    assert started(worker("a", active=[runs("a")]), dependent(waits("b", 1, is_forced=True))) == [1]


def test_a_forced_run_waits_for_its_due_time_handler_limit_blocks_and_slot():
    def forced(**more):
        return worker("a", waits("a", 1, is_forced=True), **more)

    assert started(worker("a", waits("a", 1, due=1, is_forced=True))) == []
    assert started(forced(has_handler=False)) == []
    assert started(forced(active=[runs("a")])) == []
    assert started(forced(counterparts=["b"]), worker("b", active=[runs("b")], counterparts=["a"])) == []
    assert started(forced(), slots=0) == []


def test_explain_says_which_gates_were_forced_open():
    found = verdicts("a", worker("a", waits("a", 1, is_forced=True), **disabled()))
    assert found[Gate.ENABLED].is_open
    assert found[Gate.ENABLED].is_forced
    assert found[Gate.ENABLED].reason == "forced, although disabled by an operator: maintenance"


# --- the circuit's probe ------------------------------------------------------------------------------------------


def test_an_open_circuit_starts_nothing_before_its_probe_time():
    assert started(worker("a", waits("a", 1), **tripped())) == []
    assert started(worker("a", waits("a", 1), **tripped(0.001))) == []
    assert "a probe may start at 2026-03-02 12:01:00" in why(
        "a", Gate.ENABLED, worker("a", waits("a", 1), **tripped(60))
    )
    assert "admin enable a" in why("a", Gate.ENABLED, worker("a", waits("a", 1), **tripped()))


def test_after_the_cooldown_the_first_run_in_order_alone_is_the_probe():
    (start,) = decide(worker("a", waits("a", 2), waits("a", 1), waits("a", 3, priority=2), max_running=9, **tripped(0)))
    assert (start.run_id, start.is_probe) == (3, True)


def test_a_firing_may_be_the_probe():
    (start,) = decide(worker("a", next_run=0, **tripped(-1)))
    assert start.is_probe


def test_while_the_circuit_is_half_open_only_the_probe_starts():
    half_open = tripped(-1, circuit_state=CircuitState.HALF_OPEN, probe_run_id=2)
    assert started(worker("a", waits("a", 1), waits("a", 2), max_running=9, **half_open)) == [2]
    assert "only its probe, run 2, may start" in why("a", Gate.ENABLED, worker("a", waits("a", 1), **half_open))


def test_a_probe_that_starts_again_is_not_a_new_probe():
    half_open = tripped(-1, circuit_state=CircuitState.HALF_OPEN, probe_run_id=2)
    (start,) = decide(worker("a", waits("a", 2), **half_open))
    assert not start.is_probe


def test_a_forced_run_is_no_probe():
    (start,) = decide(worker("a", waits("a", 1, is_forced=True), **tripped(-1)))
    assert not start.is_probe


def test_a_forced_run_leaves_the_probe_to_another():
    waiting = worker("a", waits("a", 1, is_forced=True), waits("a", 2), max_running=2, **tripped(-1))
    assert [(start.run_id, start.is_probe) for start in decide(waiting)] == [(1, False), (2, True)]


def test_the_circuit_never_undoes_an_operator():
    stopped = disabled("operator", probe_at=at(-1), circuit_state=CircuitState.OPEN)
    assert started(worker("a", waits("a", 1), **stopped)) == []


# --- explain and the tick agree -----------------------------------------------------------------------------------


def test_explain_judges_a_run_in_its_place_among_all_others():
    first = worker("c", waits("c", 1, due=-5))
    assert shut("a", worker("a", waits("a", 2)), first, slots=1) == {Gate.SLOT}
    assert shut("a", worker("a", waits("a", 2)), first, slots=2) == set()


def test_explain_chooses_the_run_that_starts():
    mine = worker("a", waits("a", 1, due=-9), waits("a", 2, is_forced=True), **disabled())
    chosen, shown = explain(facts(mine), "a")
    assert chosen is not None
    assert chosen.id == 2
    assert all(verdict.is_open for verdict in shown)


def test_without_any_work_nothing_is_decided():
    assert decide_starts(Facts(NOW, {}, 5)) == []
    assert names(decide(worker("a"))) == []


def test_a_slot_that_others_take_first_is_no_full_node():
    busy = [worker(name, waits(name, number)) for number, name in enumerate("ab", 1)]
    late = worker("c", waits("c", 9))
    assert why("c", Gate.SLOT, *busy, late, slots=2) == (
        "others that are due go first, and take the 2 slots that the node has free"
    )
    assert why("c", Gate.SLOT, late, slots=0) == "all slots of the node are taken"


def test_who_paused_a_worker_is_said():
    paused = worker("a", waits("a", 1), paused_until=at(60), paused_by="root@vm", paused_reason="deploy")
    assert why("a", Gate.PAUSED, paused) == "paused until 2026-03-02 12:01:00 UTC, by root@vm: deploy"
