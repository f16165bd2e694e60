"""What enabling, disabling, pausing and resuming change."""

from __future__ import annotations

import pytest

from jobrunner.model.schedule import Missed
from jobrunner.model.worker import CircuitState, WorkerState
from jobrunner.policy.missed import UNTIL_RESUMED, show_end_of_pause
from jobrunner.policy.switches import disable, enable, pause, resume
from tests.support.ends import NOW, at, config

MINUTELY = config(interval_seconds=60)
LOOP = config("continuous")
TRIGGERED = config("triggered")


def off(**more) -> WorkerState:
    return WorkerState("a", **{"is_enabled": False, "disabled_by": "operator", "disabled_reason": "x", **more})


def tripped(**more) -> WorkerState:
    return off(
        **{
            "disabled_by": "circuit",
            "circuit_state": CircuitState.OPEN,
            "circuit_opened_at": at(-5),
            "cooldown_current_seconds": 90.0,
            "probe_at": at(85),
            "consecutive_failures": 5,
            "next_run_at": at(110),
            "last_due_at": at(-10),
            **more,
        }
    )


# --- enable -------------------------------------------------------------------------------------------------------


def test_enabling_zeroes_the_streak_and_closes_the_circuit():
    after, _ = enable(tripped(circuit_state=CircuitState.HALF_OPEN, probe_run_id=7), MINUTELY, NOW)
    assert after.is_enabled
    assert (after.disabled_by, after.disabled_reason) == (None, None)
    assert (after.consecutive_failures, after.circuit_state) == (0, CircuitState.CLOSED)
    assert (after.probe_at, after.probe_run_id, after.cooldown_current_seconds, after.circuit_opened_at) == (None,) * 4


def test_enabling_sets_the_next_time_on_the_grid_after_now():
    assert enable(off(last_due_at=at(-130)), MINUTELY, NOW)[0].next_run_at == at(50)
    assert enable(off(), config(cron="0 * * * *"), NOW)[0].next_run_at == at(3600)


def test_enabling_what_never_ran_makes_it_due_at_once():
    assert enable(off(), MINUTELY, NOW)[0].next_run_at == NOW


def test_enabling_a_triggered_worker_plans_nothing():
    assert enable(off(), TRIGGERED, NOW)[0].next_run_at is None


def test_enabling_a_loop_makes_it_due_now_unless_its_run_is_live():
    next_run_at = enable(off(), LOOP, NOW)[0].next_run_at
    assert next_run_at is not None
    assert NOW <= next_run_at <= at(0.001)
    assert enable(off(), LOOP, NOW, has_loop_run=True)[0].next_run_at is None


def test_enabling_an_enabled_worker_keeps_its_next_time_and_zeroes_the_streak():
    before = WorkerState("a", next_run_at=at(-7), consecutive_failures=3)
    after, _ = enable(before, MINUTELY, NOW)
    assert (after.next_run_at, after.consecutive_failures) == (at(-7), 0)


def test_enabling_does_not_end_a_pause():
    after, _ = enable(off(paused_until=at(90), last_due_at=at(-10)), MINUTELY, NOW)
    assert (after.paused_until, after.next_run_at) == (at(90), at(110))
    after, _ = enable(off(paused_until=UNTIL_RESUMED), MINUTELY, NOW)
    assert after.next_run_at is None
    assert resume(after, MINUTELY, NOW)[0].next_run_at is not None


# --- disable ------------------------------------------------------------------------------------------------------


def test_disabling_clears_the_next_time_and_keeps_who_and_why():
    after, missed = disable(WorkerState("a", next_run_at=at(7)), MINUTELY, NOW, "maintenance", "root@vm")
    assert (after.is_enabled, after.disabled_by, after.disabled_reason) == (False, "operator", "maintenance")
    assert (after.next_run_at, missed) == (None, ())
    assert (after.disabled_actor, after.missed_from) == ("root@vm", at(7))


def test_disabling_writes_what_was_missed_so_far():
    after, missed = disable(WorkerState("a", next_run_at=at(-130)), MINUTELY, NOW, None, "root@vm")
    assert missed == (Missed(at(-130), at(-10), 3, "disabled by root@vm: no reason given"),)
    assert after.missed_from == at(50)


@pytest.mark.parametrize("what", [LOOP, TRIGGERED], ids=["loop", "triggered"])
def test_a_worker_without_a_schedule_misses_nothing(what):
    assert disable(WorkerState("a", next_run_at=at(-130)), what, NOW, None)[1] == ()


def test_an_operators_disable_ends_the_cooldown():
    after, missed = disable(tripped(), MINUTELY, NOW, "for good")
    assert (after.disabled_by, after.disabled_reason) == ("operator", "for good")
    assert (after.circuit_state, after.probe_at, after.probe_run_id) == (CircuitState.CLOSED, None, None)
    assert (after.cooldown_current_seconds, after.next_run_at, missed) == (None, None, ())


def test_disabling_keeps_the_streak():
    assert disable(tripped(), MINUTELY, NOW, None)[0].consecutive_failures == 5


def test_disabling_twice_records_what_passed_under_the_first_and_goes_on_from_there():
    once, _ = disable(WorkerState("a", next_run_at=at(-130)), MINUTELY, NOW, "upgrade", "ann@desk")
    again, missed = disable(once, MINUTELY, at(600), "still", "root@vm")
    assert missed == (Missed(at(50), at(590), 10, "disabled by ann@desk: upgrade"),)
    assert enable(again, MINUTELY, at(720))[1] == (Missed(at(650), at(710), 2, "disabled by root@vm: still"),)


def test_disabling_again_for_the_same_reason_leaves_what_passes_to_one_row():
    once, _ = disable(WorkerState("a", next_run_at=at(50)), MINUTELY, NOW, "upgrade", "ann@desk")
    again, missed = disable(once, MINUTELY, at(200), None, "root@vm")
    assert (again, missed) == (once, ())
    assert enable(again, MINUTELY, at(400))[1] == (Missed(at(50), at(350), 6, "disabled by ann@desk: upgrade"),)


# --- pause --------------------------------------------------------------------------------------------------------


def test_pausing_sets_the_first_time_after_its_end():
    before = WorkerState("a", next_run_at=at(50), last_due_at=at(-10))
    after, missed = pause(before, MINUTELY, NOW, at(90))
    assert (after.paused_until, after.next_run_at, missed) == (at(90), at(110), ())


def test_a_time_exactly_at_the_end_of_the_pause_is_kept():
    before = WorkerState("a", next_run_at=at(50), last_due_at=at(-10))
    assert pause(before, MINUTELY, NOW, at(110))[0].next_run_at == at(110)


def test_pausing_writes_what_was_missed_so_far():
    _, missed = pause(WorkerState("a", next_run_at=at(-70), last_due_at=at(-130)), MINUTELY, NOW, at(90))
    assert missed == (Missed(at(-70), at(-10), 2, f"paused {show_end_of_pause(at(90))}"),)


def test_pausing_until_resumed_plans_nothing():
    before = WorkerState("a", next_run_at=at(50), last_due_at=at(-10))
    after, _ = pause(before, MINUTELY, NOW, UNTIL_RESUMED)
    assert (after.paused_until, after.next_run_at) == (UNTIL_RESUMED, None)
    assert pause(WorkerState("a", next_run_at=NOW), LOOP, NOW, UNTIL_RESUMED)[0].next_run_at is None


def test_pausing_a_loop_moves_its_next_time_to_the_end_of_the_pause():
    assert pause(WorkerState("a", next_run_at=at(1)), LOOP, NOW, at(90))[0].next_run_at == at(90)
    assert pause(WorkerState("a", next_run_at=at(120)), LOOP, NOW, at(90))[0].next_run_at == at(120)


def test_pausing_a_loop_whose_run_is_live_leaves_the_next_time_to_that_runs_end():
    assert pause(WorkerState("a"), LOOP, NOW, at(90))[0].next_run_at is None


def test_pausing_a_disabled_worker_plans_nothing():
    after, missed = pause(off(), MINUTELY, NOW, at(90))
    assert (after.next_run_at, missed) == (None, ())


@pytest.mark.parametrize("what", [MINUTELY, LOOP], ids=["scheduled", "loop"])
def test_a_shorter_pause_takes_the_place_of_a_longer_one(what):
    long, _ = pause(WorkerState("a", next_run_at=at(50), last_due_at=at(-10)), what, NOW, at(7200))
    after, _ = pause(long, what, NOW, at(110))
    assert (after.paused_until, after.next_run_at) == (at(110), at(110))


@pytest.mark.parametrize("what", [MINUTELY, LOOP], ids=["scheduled", "loop"])
def test_a_pause_with_an_end_takes_the_place_of_one_without(what):
    forever, _ = pause(WorkerState("a", next_run_at=at(50), last_due_at=at(-10)), what, NOW, UNTIL_RESUMED)
    after, _ = pause(forever, what, NOW, at(110))
    assert (after.paused_until, after.next_run_at) == (at(110), at(110))


def test_a_pause_decided_before_a_claim_that_it_waited_for_does_not_serve_its_time_again():
    """The operator's clock was read at 12:00:00; then the lock was waited for while 12:00:00.2 was served."""
    often = config(interval_seconds=0.05)
    served = WorkerState("a", next_run_at=at(0.25), last_due_at=at(0.2))
    assert pause(served, often, NOW, at(0.1))[0].next_run_at == at(0.25)
    assert enable(off(last_due_at=at(0.2)), often, NOW)[0].next_run_at == at(0.25)


def test_after_the_clock_went_back_the_next_time_is_near_all_the_same():
    assert enable(off(last_due_at=at(86400)), MINUTELY, NOW)[0].next_run_at == at(60)


# --- resume -------------------------------------------------------------------------------------------------------


def test_resuming_sets_the_next_time_after_now():
    paused, _ = pause(WorkerState("a", next_run_at=at(50), last_due_at=at(-10)), MINUTELY, NOW, at(7200))
    after, _ = resume(paused, MINUTELY, at(60))
    assert (after.paused_until, after.next_run_at) == (None, at(110))


def test_resuming_a_loop_makes_it_due_now_unless_its_run_is_live():
    paused, _ = pause(WorkerState("a", next_run_at=at(1)), LOOP, NOW, UNTIL_RESUMED)
    next_run_at = resume(paused, LOOP, at(60))[0].next_run_at
    assert next_run_at is not None
    assert at(60) <= next_run_at <= at(60.001)
    assert resume(paused, LOOP, at(60), has_loop_run=True)[0].next_run_at is None


def test_resuming_what_is_not_paused_changes_nothing():
    before = WorkerState("a", next_run_at=at(-7))
    assert resume(before, MINUTELY, NOW) == (before, ())


def test_resuming_after_the_pause_has_ended_keeps_the_next_time():
    before = WorkerState("a", paused_until=at(-5), next_run_at=at(-1))
    assert resume(before, MINUTELY, NOW)[0].next_run_at == at(-1)


def test_resuming_a_disabled_worker_plans_nothing():
    after, _ = resume(off(paused_until=UNTIL_RESUMED), MINUTELY, NOW)
    assert (after.paused_until, after.next_run_at) == (None, None)


@pytest.mark.parametrize("what", [MINUTELY, LOOP], ids=["scheduled", "loop"])
def test_a_probe_is_still_planned_after_a_pause_until_resumed(what):
    paused, _ = pause(tripped(), what, NOW, UNTIL_RESUMED)
    after, _ = resume(paused, what, at(60))
    assert after.next_run_at is not None
    assert after.disabled_by == "circuit"


def test_a_pause_keeps_its_reason_until_it_is_resumed_or_paused_anew():
    paused, _ = pause(WorkerState("a"), MINUTELY, NOW, at(90), "moving house")
    assert paused.paused_reason == "moving house"
    assert resume(paused, MINUTELY, NOW)[0].paused_reason is None
    assert pause(paused, MINUTELY, NOW, at(90))[0].paused_reason is None
    assert disable(paused, MINUTELY, NOW, "x")[0].paused_reason == "moving house"
    assert enable(paused, MINUTELY, NOW)[0].paused_reason == "moving house"
