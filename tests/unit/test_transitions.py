"""What the end of an attempt changes: retries, ends, letters, the streak, the circuit, the next time."""

from __future__ import annotations

from dataclasses import replace

import pytest

from jobrunner.model.run import EndsRun, Trigger
from jobrunner.model.worker import CircuitState, WorkerState
from jobrunner.policy.transitions import LONGEST_COOLDOWN_SECONDS, is_probe
from tests.support.ends import NOW, a_run, at, config, end

USES_UP = ["failed", "timed_out", "lost"]
LAST = {"attempt": 4}  # with three retries


# --- success, cancellation ----------------------------------------------------------------------------------------


def test_success_ends_the_run_and_zeroes_the_streak():
    decided = end(state=WorkerState("a", consecutive_failures=3, last_error="no luck", total_runs=7))
    assert decided.ends_run is EndsRun.SUCCEEDED
    assert (decided.retry, decided.has_letter) == (None, False)
    assert decided.state.consecutive_failures == 0
    assert decided.state.last_run_outcome == "succeeded"
    assert decided.state.last_success_at == NOW
    assert decided.state.last_error is None
    assert decided.state.last_duration_ms == 10_000
    assert decided.state.total_runs == 8


def test_cancellation_ends_the_run_and_leaves_streak_and_last_outcome_alone():
    before = WorkerState("a", consecutive_failures=3, last_run_outcome="failed", total_runs=7)
    decided = end("cancelled", state=before)
    assert decided.ends_run is EndsRun.CANCELLED
    assert not decided.has_letter
    assert decided.state == replace(before, last_duration_ms=10_000, total_runs=8, last_ended_at=NOW, last_fence=1)


# --- retries ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", USES_UP)
def test_an_attempt_that_failed_is_tried_again_later(kind):
    before = WorkerState("a", last_run_outcome="succeeded", consecutive_failures=2)
    decided = end(kind, state=before)
    assert decided.ends_run is None
    assert decided.retry is not None
    assert (decided.retry.attempt, decided.retry.due_at) == (2, at(0 if kind == "lost" else 5))
    assert decided.state.last_error == "no luck"
    assert decided.state.consecutive_failures == 2
    assert decided.state.last_run_outcome == "succeeded"
    assert (decided.state.total_runs, decided.state.total_failures) == (0, 0)


@pytest.mark.parametrize(("attempt", "delay"), [(1, 5), (2, 10), (3, 20), (10, 2560), (11, 3600), (2_000, 3600)])
def test_the_delay_doubles_up_to_one_hour(attempt, delay):
    decided = end("failed", a_run(attempt=attempt), rules=config(max_retries=10_000))
    assert decided.retry is not None
    assert decided.retry.due_at == at(delay)


@pytest.mark.parametrize(("jitter", "delay"), [(-0.1, 4.5), (0.1, 5.5)])
def test_jitter_moves_the_delay_by_a_tenth_at_most(jitter, delay):
    decided = end("failed", jitter=jitter)
    assert decided.retry is not None
    assert decided.retry.due_at == at(delay)


def test_delay_backoff_and_longest_delay_are_the_workers():
    rules = config(retry_delay_seconds=1, retry_backoff=3, retry_max_delay_seconds=8)
    due = [end("failed", a_run(attempt=n), rules=rules).retry for n in (1, 2, 3)]
    assert [retry.due_at for retry in due if retry] == [at(1), at(3), at(8)]


@pytest.mark.parametrize(("seconds_ago", "delay"), [(2, 3), (5, 0), (30, 0)])
def test_the_delay_of_a_lost_run_counts_from_its_nodes_last_sign_of_life(seconds_ago, delay):
    retry = end("lost", replace(a_run(), lost_in_a_row=1), retry_from=at(-seconds_ago)).retry
    assert retry is not None
    assert retry.due_at == at(delay)


def test_a_run_lost_once_is_due_at_once():
    retry = end("lost").retry
    assert retry is not None
    assert (retry.attempt, retry.due_at, retry.lost_in_a_row) == (2, at(0), 1)


def test_a_run_keeps_the_retries_it_was_claimed_with():
    decided = end("failed", a_run(attempt=2), rules=config(max_retries=5), current=config(max_retries=0))
    assert decided.retry is not None
    decided = end("failed", a_run(attempt=2), rules=config(max_retries=1), current=config(max_retries=5))
    assert decided.ends_run is EndsRun.EXHAUSTED


def test_retry_after_overrides_the_delay_without_jitter():
    decided = end("failed", delay_seconds=77.0, jitter=0.1)
    assert decided.retry is not None
    assert (decided.retry.attempt, decided.retry.due_at) == (2, at(77))


def test_retry_after_uses_up_the_last_attempt_as_any_failure():
    assert end("failed", a_run(**LAST), delay_seconds=77.0).ends_run is EndsRun.EXHAUSTED


def test_a_delay_beyond_the_calendar_is_cut():
    for kind in ("failed", "snoozed"):
        retry = end(kind, delay_seconds=1e300).retry
        assert retry is not None
        assert 2100 < retry.due_at.year < 2200


def test_snooze_repeats_the_same_attempt_later():
    decided = end("snoozed", a_run(attempt=2, lost_in_a_row=2), delay_seconds=30.0)
    assert decided.ends_run is None
    assert decided.retry is not None
    assert (decided.retry.attempt, decided.retry.due_at, decided.retry.lost_in_a_row) == (2, at(30), 0)
    assert decided.state.consecutive_failures == 0


@pytest.mark.parametrize("attempt", [1, 4, 9])
def test_interruption_repeats_the_same_attempt_with_the_same_due_time(attempt):
    run = a_run(attempt=attempt, lost_in_a_row=1)
    decided = end("interrupted", run)
    assert decided.ends_run is None
    assert decided.retry is not None
    assert (decided.retry.attempt, decided.retry.due_at, decided.retry.lost_in_a_row) == (attempt, run.due_at, 1)


@pytest.mark.parametrize("kind", ["failed", "timed_out", "lost", "interrupted", "snoozed"])
def test_a_run_that_is_to_be_cancelled_is_not_tried_again(kind):
    decided = end(kind, a_run(cancel_requested_at=at(-1)))
    assert decided.ends_run is EndsRun.CANCELLED
    assert decided.retry is None
    assert not decided.has_letter


def test_a_run_that_succeeded_or_used_up_its_tries_before_it_was_cancelled_ends_as_it_ended():
    assert end("succeeded", a_run(cancel_requested_at=at(-1))).ends_run is EndsRun.SUCCEEDED
    assert end("failed", a_run(cancel_requested_at=at(-1), **LAST)).ends_run is EndsRun.EXHAUSTED


# --- exhausted, discarded, poison ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", USES_UP)
def test_after_its_last_attempt_a_run_is_exhausted(kind):
    decided = end(kind, a_run(**LAST), state=WorkerState("a", consecutive_failures=1))
    assert decided.ends_run is EndsRun.EXHAUSTED
    assert decided.retry is None
    assert decided.has_letter
    assert decided.state.consecutive_failures == 2
    assert decided.state.last_run_outcome == kind
    assert (decided.state.total_runs, decided.state.total_failures) == (1, 1)


def test_without_retries_the_first_failure_exhausts():
    assert end("failed", rules=config(max_retries=0)).ends_run is EndsRun.EXHAUSTED


def test_discard_ends_the_run_at_once_with_a_letter_and_without_touching_the_streak():
    before = WorkerState("a", consecutive_failures=2, last_run_outcome="succeeded")
    decided = end("failed", is_discard=True, state=before)
    assert decided.ends_run is EndsRun.DISCARDED
    assert decided.has_letter
    assert decided.state.consecutive_failures == 2
    assert decided.state.last_run_outcome == "succeeded"
    assert decided.state.total_failures == 1


def test_a_run_lost_three_times_in_a_row_is_exhausted_whatever_its_retries():
    rules = config(max_retries=100)
    counts = []
    run = a_run()
    while (retry := end("lost", run, rules=rules).retry) is not None:
        counts.append(retry.lost_in_a_row)
        run = replace(run, attempt=retry.attempt, lost_in_a_row=retry.lost_in_a_row)
    assert counts == [1, 2]
    assert end("lost", run, rules=rules).ends_run is EndsRun.EXHAUSTED


@pytest.mark.parametrize("kind", ["failed", "timed_out"])
def test_another_failure_in_between_starts_the_count_of_losses_anew(kind):
    retry = end(kind, a_run(lost_in_a_row=2), rules=config(max_retries=100)).retry
    assert retry is not None
    assert retry.lost_in_a_row == 0


def test_a_payload_that_does_not_fit_is_retried_as_any_failure():
    retry = end("failed", does_not_fit=True).retry
    assert retry is not None
    assert (retry.attempt, retry.due_at) == (2, at(5))


def test_a_payload_that_never_fitted_ends_discarded_and_leaves_the_streak_alone():
    decided = end("failed", a_run(**LAST), does_not_fit=True, state=WorkerState("a", consecutive_failures=4))
    assert decided.ends_run is EndsRun.DISCARDED
    assert decided.has_letter
    assert decided.state.consecutive_failures == 4
    assert decided.state.is_enabled


# --- the circuit opens --------------------------------------------------------------------------------------------


def fail_at(streak: int, state: WorkerState | None = None, **fields):
    """Exhaust a run of a worker that has failed `streak` times in a row."""
    current = config(**{"mode": "triggered", **fields})
    return end("failed", a_run(**LAST), state=state or WorkerState("a", consecutive_failures=streak), current=current)


def test_the_circuit_opens_at_the_fifth_exhausted_run_in_a_row():
    assert fail_at(3).state.is_enabled
    assert fail_at(3).audits == ()
    opened = fail_at(4)
    assert not opened.state.is_enabled
    assert opened.state.disabled_by == "circuit"
    assert opened.state.circuit_state is CircuitState.OPEN
    assert opened.state.circuit_opened_at == NOW
    assert opened.state.disabled_reason == "5 runs in a row failed; the last: ValueError: no luck"
    (audit,) = opened.audits
    assert audit.action == "trip"
    assert audit.detail["consecutive_failures"] == 5


def test_the_number_of_failures_that_opens_the_circuit_is_the_workers_as_it_is_now():
    assert not fail_at(0, max_consecutive_failures=1).state.is_enabled
    assert fail_at(4, max_consecutive_failures=6).state.is_enabled


def test_the_reason_is_one_line_of_bounded_length():
    current = config("triggered", max_consecutive_failures=1)
    decided = end("failed", a_run(**LAST), current=current, error="x" * 999 + "\nsecond line")
    reason = decided.state.disabled_reason
    assert reason is not None
    assert "\n" not in reason
    assert len(reason) < 300


def test_an_error_without_words_still_gives_a_reason():
    current = config("triggered", max_consecutive_failures=1)
    decided = end("timed_out", a_run(**LAST), current=current, error="", error_type=None)
    assert decided.state.disabled_reason == "1 run in a row failed; the last: timed out"


def test_without_a_cooldown_an_open_circuit_plans_nothing():
    opened = fail_at(4, mode="scheduled", interval_seconds=60).state
    assert (opened.probe_at, opened.next_run_at, opened.cooldown_current_seconds) == (None, None, None)


def test_with_a_cooldown_a_probe_is_planned_and_the_schedule_goes_on_from_there():
    before = WorkerState("a", consecutive_failures=4, last_due_at=at(-10), next_run_at=at(50))
    opened = fail_at(4, before, mode="scheduled", interval_seconds=60, cooldown_seconds=90).state
    assert (opened.probe_at, opened.cooldown_current_seconds) == (at(90), 90)
    assert opened.next_run_at == at(110)


def test_a_loop_is_next_due_when_its_probe_may_start():
    opened = fail_at(4, mode="continuous", cooldown_seconds=90).state
    assert opened.next_run_at == at(90)


def test_times_that_were_due_and_not_served_are_missed_when_the_circuit_opens():
    before = WorkerState("a", consecutive_failures=4, last_due_at=at(-190), next_run_at=at(-130))
    decided = fail_at(4, before, mode="scheduled", interval_seconds=60)
    (missed,) = decided.missed
    assert (missed.first, missed.last, missed.occurrences) == (at(-130), at(-10), 3)
    assert missed.reason == f"disabled by its circuit: {decided.state.disabled_reason}"
    assert decided.state.missed_from == at(50)


def test_a_worker_disabled_by_an_operator_is_not_tripped():
    before = WorkerState("a", is_enabled=False, disabled_by="operator", disabled_reason="x", consecutive_failures=9)
    after = fail_at(9, before).state
    assert (after.consecutive_failures, after.disabled_by, after.circuit_state) == (10, "operator", CircuitState.CLOSED)


# --- the probe ----------------------------------------------------------------------------------------------------


def half_open(**more) -> WorkerState:
    return WorkerState(
        "a",
        **{
            "is_enabled": False,
            "disabled_by": "circuit",
            "disabled_reason": "it kept failing",
            "circuit_state": CircuitState.HALF_OPEN,
            "circuit_opened_at": at(-100),
            "cooldown_current_seconds": 90.0,
            "probe_at": at(-10),
            "probe_run_id": 1,
            "consecutive_failures": 5,
            **more,
        },
    )


PROBED = config("triggered", cooldown_seconds=90)


def test_the_probes_success_closes_the_circuit_and_enables():
    decided = end(state=half_open(), current=PROBED)
    after = decided.state
    assert (after.is_enabled, after.disabled_by, after.disabled_reason) == (True, None, None)
    assert after.circuit_state is CircuitState.CLOSED
    assert (after.probe_at, after.probe_run_id, after.cooldown_current_seconds) == (None, None, None)
    assert after.consecutive_failures == 0
    assert [audit.action for audit in decided.audits] == ["close"]


def test_after_the_probes_success_the_schedule_goes_on_after_now():
    before = half_open(last_due_at=at(-70), next_run_at=at(-10))
    after = end(state=before, current=config(interval_seconds=60, cooldown_seconds=90)).state
    assert after.next_run_at == at(50)


@pytest.mark.parametrize("kind", USES_UP)
def test_the_probe_has_one_attempt_and_its_failure_opens_the_circuit_for_twice_as_long(kind):
    decided = end(kind, state=half_open(), current=PROBED)
    assert decided.ends_run is EndsRun.EXHAUSTED
    assert decided.has_letter
    after = decided.state
    assert after.circuit_state is CircuitState.OPEN
    assert (after.probe_run_id, after.cooldown_current_seconds, after.probe_at) == (None, 180, at(180))
    assert after.consecutive_failures == 6
    assert after.circuit_opened_at == NOW
    assert [audit.action for audit in decided.audits] == ["trip"]


@pytest.mark.parametrize(("before", "after"), [(90, 180), (1800, 3600), (2000, 3600), (3600, 3600), (7200, 7200)])
def test_the_cooldown_doubles_up_to_one_hour_and_never_shrinks(before, after):
    decided = end("failed", state=half_open(cooldown_current_seconds=float(before)), current=PROBED)
    assert decided.state.cooldown_current_seconds == after
    assert LONGEST_COOLDOWN_SECONDS == 3600


@pytest.mark.parametrize("kind", ["interrupted", "snoozed"])
def test_a_probe_that_was_interrupted_or_snoozed_stays_the_probe(kind):
    before = half_open()
    decided = end(kind, state=before, current=PROBED, delay_seconds=5.0)
    assert decided.ends_run is None
    assert is_probe(a_run(), decided.state)
    assert decided.state.circuit_state is CircuitState.HALF_OPEN


@pytest.mark.parametrize(("kind", "more"), [("cancelled", {}), ("failed", {"is_discard": True})])
def test_after_a_probe_that_was_cancelled_or_discarded_the_next_run_is_the_probe(kind, more):
    after = end(kind, state=half_open(), current=PROBED, **more).state
    assert after.circuit_state is CircuitState.OPEN
    assert (after.probe_run_id, after.probe_at, after.cooldown_current_seconds) == (None, NOW, 90)
    assert not after.is_enabled


def test_a_payload_that_does_not_fit_proves_nothing_about_the_circuit():
    decided = end("failed", state=half_open(), current=PROBED, does_not_fit=True)
    assert decided.ends_run is EndsRun.DISCARDED
    assert decided.state.circuit_state is CircuitState.OPEN
    assert decided.state.consecutive_failures == 5


def test_another_runs_success_zeroes_the_streak_and_does_not_close_the_circuit():
    decided = end(run=a_run(2), state=half_open(), current=PROBED)
    after = decided.state
    assert after.consecutive_failures == 0
    assert (after.is_enabled, after.circuit_state, after.probe_run_id) == (False, CircuitState.HALF_OPEN, 1)
    assert decided.audits == ()


def test_another_runs_failure_counts_and_does_not_move_the_circuit():
    decided = end("failed", a_run(2, **LAST), state=half_open(), current=PROBED)
    after = decided.state
    assert after.consecutive_failures == 6
    assert (after.circuit_state, after.probe_run_id, after.cooldown_current_seconds) == (CircuitState.HALF_OPEN, 1, 90)
    assert decided.audits == ()


def test_a_run_that_is_not_the_probe_keeps_its_retries():
    assert end("failed", a_run(2), state=half_open(), current=PROBED).retry is not None


def test_a_run_whose_worker_was_enabled_meanwhile_is_no_probe():
    assert end("failed", a_run(1), state=WorkerState("a"), current=PROBED).retry is not None


def test_a_forced_runs_end_counts_in_the_streak():
    before = WorkerState("a", consecutive_failures=1)
    assert end("failed", a_run(is_forced=True, **LAST), state=before).state.consecutive_failures == 2
    assert end(run=a_run(is_forced=True), state=before).state.consecutive_failures == 0


# --- the loop -----------------------------------------------------------------------------------------------------


def loop_run(**more):
    return a_run(trigger=Trigger.CONTINUOUS, **more)


@pytest.mark.parametrize(("pause", "due"), [(None, 1), (0, 0), (2.5, 2.5)])
def test_a_loop_is_next_due_its_pause_after_its_last_run_has_ended(pause, due):
    after = end(run=loop_run(), current=config("continuous", interval_seconds=pause)).state
    assert after.next_run_at == at(due)


def test_after_a_cancelled_run_a_loop_goes_on_after_its_pause():
    assert end("cancelled", loop_run(), current=config("continuous")).state.next_run_at == at(1)


@pytest.mark.parametrize(("streak", "due"), [(0, 5), (1, 10), (2, 20)])
def test_after_a_failed_run_a_loop_waits_at_least_the_retry_delay_for_the_streak(streak, due):
    before = WorkerState("a", consecutive_failures=streak)
    current = config("continuous", interval_seconds=0, max_retries=0)
    assert end("failed", loop_run(), state=before, current=current).state.next_run_at == at(due)


def test_after_a_discarded_run_a_loop_waits_as_after_a_failed_one():
    current = config("continuous", interval_seconds=0)
    assert end("failed", loop_run(), current=current, is_discard=True).state.next_run_at == at(5)


def test_a_pause_longer_than_the_retry_delay_holds_after_a_failure_too():
    current = config("continuous", interval_seconds=60, max_retries=0)
    assert end("failed", loop_run(), current=current).state.next_run_at == at(60)


def test_a_loop_whose_run_is_tried_again_has_no_next_time_yet():
    assert end("failed", loop_run(), current=config("continuous")).state.next_run_at is None


def test_a_triggered_run_of_a_loop_does_not_move_its_next_time():
    before = WorkerState("a", next_run_at=at(7))
    assert end(state=before, current=config("continuous")).state.next_run_at == at(7)


def test_a_paused_loop_goes_on_at_the_end_of_the_pause():
    current = config("continuous")
    assert end(run=loop_run(), state=WorkerState("a", paused_until=at(60)), current=current).state.next_run_at == at(60)
    until_resumed = WorkerState("a", paused_until=NOW.replace(year=9999, month=12, day=31))
    assert end(run=loop_run(), state=until_resumed, current=current).state.next_run_at is None


def test_a_disabled_loop_has_no_next_time():
    off = WorkerState("a", is_enabled=False, disabled_by="operator")
    assert end(run=loop_run(), state=off, current=config("continuous")).state.next_run_at is None


def test_a_worker_that_became_a_loop_while_its_scheduled_run_was_live_goes_on_as_a_loop():
    decided = end(run=a_run(trigger=Trigger.SCHEDULE), rules=config(), current=config("continuous"))
    assert decided.state.next_run_at == at(1)


def test_a_worker_that_is_a_loop_no_more_gets_no_next_time_from_its_last_loop_run():
    decided = end(run=loop_run(), rules=config("continuous"), current=config("triggered"))
    assert decided.state.next_run_at is None
