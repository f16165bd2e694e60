"""The checker of promises finds each kind of violation in rows made by hand, and none where there is none."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from tests.support.checker import Tables, violations

NOW = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


class Story:
    """Tables that grow as things happen; `ids` and fences count up as the database would."""

    def __init__(self) -> None:
        self.tables = Tables()
        self.fences: dict[str, int] = {}

    def worker(self, name: str, *, max_running: int = 1, streak: int = 0, since: int = 0) -> Story:
        self.tables.workers.append({"name": name, "max_running": max_running})
        self.tables.states.append(
            {"worker": name, "consecutive_failures": streak, "streak_since_id": since, "last_fence": 10**6}
        )
        return self

    def fence(self, worker: str) -> int:
        self.fences[worker] = self.fences.get(worker, 0) + 1
        return self.fences[worker]

    def attempt(
        self,
        run_id: int | None,
        start: float | None,
        end: float,
        outcome: str = "succeeded",
        ends: str | None = None,
        *,
        worker: str = "a",
        attempt: int | None = 1,
        **more,
    ) -> Story:
        self.tables.history.append(
            {
                "id": len(self.tables.history) + 1,
                "run_id": run_id,
                "fence": None if start is None else self.fence(worker),
                "worker": worker,
                "trigger": "manual",
                "attempt": attempt,
                "outcome": outcome,
                "ends_run": ends or (outcome if outcome in {"succeeded", "cancelled"} else None),
                "is_forced": False,
                "scheduled_for": at(0),
                "due_at": at(0),
                "started_at": None if start is None else at(start),
                "finished_at": at(end),
                **more,
            }
        )
        return self

    def live(self, run_id: int, start: float | None = None, *, worker: str = "a", attempt: int = 1, **more) -> Story:
        is_active = start is not None
        self.tables.runs.append(
            {
                "id": run_id,
                "worker": worker,
                "trigger": "manual",
                "state": "running" if is_active else "pending",
                "attempt": attempt,
                "is_forced": False,
                "scheduled_for": at(0),
                "due_at": at(0),
                "slot": 0 if is_active else None,
                "fence": self.fence(worker) if is_active else None,
                "node_id": "n" if is_active else None,
                "started_at": None if start is None else at(start),
                **more,
            }
        )
        return self

    def letter(self, run_id: int, **more) -> Story:
        letter = {"id": len(self.tables.letters) + 1, "run_id": run_id, "worker": "a", "attempts": 1}
        self.tables.letters.append({**letter, "status": "open", "replay_run_id": None, **more})
        return self

    def blocks(self, worker: str, other: str) -> Story:
        self.tables.blocks.append({"worker": worker, "blocks": other})
        return self

    def depends(self, worker: str, other: str) -> Story:
        self.tables.dependencies.append({"worker": worker, "depends_on": other})
        return self

    def found(self, accepted=()) -> list[str]:
        return violations(self.tables, accepted)

    def one(self, promise: int, words: str) -> None:
        """Exactly one violation, of that promise, in those words."""
        found = self.found()
        assert len(found) == 1, found
        assert found[0].startswith(f"promise {promise}: ")
        assert words in found[0]


def exhausted(story: Story, run_id: int, start: float, end: float, **more) -> Story:
    return story.attempt(run_id, start, end, "failed", "exhausted", **more).letter(run_id)


# --- nothing to find ----------------------------------------------------------------------------------------------


def test_an_empty_database_keeps_all_promises():
    assert Story().found() == []


def test_an_ordinary_life_keeps_all_promises():
    story = Story().worker("a", streak=1).worker("b").blocks("a", "b").depends("b", "a")
    story.attempt(1, 0, 1)
    story.attempt(2, 2, 3, "failed").attempt(2, 8, 9, "snoozed", attempt=2).attempt(2, 20, 21, attempt=2)
    story.attempt(3, 21, 22, worker="b")
    story.attempt(4, 30, 31, "lost").attempt(4, 40, 41, "interrupted", attempt=2)
    exhausted(story, 4, 50, 51, attempt=2)
    story.attempt(5, None, 52, "cancelled").attempt(None, None, 53, "missed", attempt=None)
    story.live(6).live(7, 60)
    assert story.found(accepted=range(1, 8)) == []


# --- 1 ------------------------------------------------------------------------------------------------------------


def test_a_run_that_is_live_and_ended_is_found():
    Story().worker("a").attempt(1, 0, 1).live(1).one(1, "run 1 is in 2 places")


def test_a_run_that_ended_twice_is_found():
    Story().worker("a").attempt(1, 0, 1).attempt(1, 2, 3).one(1, "run 1 is in 2 places")


def test_a_run_that_is_neither_live_nor_ended_is_found():
    Story().worker("a").attempt(1, 0, 1, "failed").one(1, "run 1 is in 0 places")


def test_an_exhausted_run_without_a_letter_is_found():
    Story().worker("a", streak=1).attempt(1, 0, 1, "failed", "exhausted").one(1, "run 1 has 0 dead letters")


def test_a_letter_of_a_run_that_succeeded_is_found():
    Story().worker("a").attempt(1, 0, 1).letter(1).one(1, "run 1 has 1 dead letters instead of 0")


def test_a_second_letter_is_found():
    exhausted(Story().worker("a", streak=1), 1, 0, 1).letter(1).one(1, "run 1 has 2 dead letters instead of 1")


def test_a_letter_without_any_run_is_found():
    assert len(Story().worker("a").letter(9).found()) == 2


def test_a_discarded_run_needs_a_letter_too():
    Story().worker("a").attempt(1, 0, 1, "failed", "discarded").one(1, "run 1 has 0 dead letters")


def test_a_replay_that_made_no_run_is_found():
    story = Story().worker("a", streak=1).attempt(1, 0, 1, "failed", "exhausted")
    story.letter(1, status="replayed", replay_run_id=77).one(1, "run 77, is nowhere")


def test_an_accepted_run_that_is_nowhere_is_found():
    assert Story().found(accepted=[3]) == ["promise 1: run 3 was accepted and is nowhere"]


# --- 2 ------------------------------------------------------------------------------------------------------------


def test_one_fence_on_two_claims_is_found():
    Story().worker("a").attempt(1, 0, 1, fence=5).attempt(2, 2, 3, fence=5).one(2, "fence 5 of a is on 2 claims")


def test_a_live_claim_with_a_fence_of_history_is_found():
    story = Story().worker("a").attempt(1, 0, 1, "interrupted", fence=5).live(1, 2, fence=5)
    assert any("fence 5 of a is on 2 claims" in line for line in story.found())


def test_a_fence_that_was_never_drawn_is_found():
    Story().worker("a").attempt(1, 0, 1, fence=10**7).one(2, "was never drawn")


def test_two_runs_in_one_slot_are_found():
    Story().worker("a", max_running=2).live(1, 0).live(2, 1).one(2, "slot 0 of a holds 2 runs")


def test_half_a_claim_is_found():
    Story().worker("a").live(1, 0, node_id=None).one(2, "run 1 is running without a whole claim")


def test_a_gap_in_the_numbers_of_attempts_is_found():
    story = Story().worker("a").attempt(1, 0, 1, "failed").attempt(1, 2, 3, attempt=3)
    story.one(2, "a succeeded attempt is number 3, after 1 used up")


def test_a_repeated_number_of_an_attempt_is_found():
    story = Story().worker("a").attempt(1, 0, 1, "failed").attempt(1, 2, 3, "failed").live(1, attempt=3)
    story.one(2, "a failed attempt is number 1, after 1 used up")


def test_an_interrupted_attempt_that_used_up_a_try_is_found():
    Story().worker("a").attempt(1, 0, 1, "interrupted").live(1, attempt=2).one(2, "live run 1 is at attempt 2, after 0")


def test_fences_of_one_run_that_do_not_grow_are_found():
    story = Story().worker("a").attempt(1, 0, 1, "failed", fence=9).attempt(1, 2, 3, attempt=2, fence=4)
    story.one(2, "fence 4 came after 9")


# --- 3 ------------------------------------------------------------------------------------------------------------


def test_counterparts_that_overlap_are_found_in_either_direction():
    for pair in (("a", "b"), ("b", "a")):
        story = Story().worker("a").worker("b").blocks(*pair)
        story.attempt(1, 0, 10).attempt(2, 9, 11, worker="b").one(3, "a and b overlap: run 1")


def test_a_counterpart_inside_a_longer_run_is_found_behind_a_shorter_one():
    story = Story().worker("a", max_running=2).worker("b").blocks("a", "b")
    story.attempt(1, 0, 100).attempt(2, 1, 2).attempt(3, 50, 51, worker="b").one(3, "a and b overlap: run 1")


def test_a_counterpart_of_no_duration_inside_a_run_is_found():
    story = Story().worker("a").worker("b").blocks("a", "b")
    story.attempt(1, 0, 10).attempt(2, 5, 5, worker="b").one(3, "overlap")


def test_a_counterpart_that_starts_while_a_live_run_is_active_is_found():
    story = Story().worker("a").worker("b").blocks("a", "b")
    story.attempt(2, 9, 11, worker="b").live(1, 0).one(3, "to now")


def test_counterparts_that_touch_do_not_overlap():
    story = Story().worker("a").worker("b").blocks("a", "b")
    assert story.attempt(1, 0, 10).attempt(2, 10, 11, worker="b").found() == []


def test_more_runs_at_once_than_max_running_are_found():
    story = Story().worker("a", max_running=2)
    story.attempt(1, 0, 10).attempt(2, 1, 9).attempt(3, 8, 12).one(3, "a: 3 of at most 2 ran when run 3")


def test_as_many_runs_at_once_as_max_running_are_fine():
    story = Story().worker("a", max_running=2)
    assert story.attempt(1, 0, 10).attempt(2, 1, 9).attempt(3, 9, 12).found() == []


# --- 4 ------------------------------------------------------------------------------------------------------------


def dependent() -> Story:
    return Story().worker("a").worker("b").depends("b", "a")


def test_a_start_before_the_dependency_ever_succeeded_is_found():
    dependent().attempt(2, 1, 2, worker="b").one(4, "though a had never succeeded")


def test_a_start_after_the_dependency_failed_is_found():
    story = Story().worker("a", streak=1).worker("b").depends("b", "a").attempt(1, 0, 1)
    exhausted(story, 2, 2, 3).attempt(3, 4, 5, worker="b").one(4, "though a had last exhausted")


def test_a_start_while_the_dependency_was_active_is_found():
    story = dependent().attempt(1, 0, 1).attempt(2, 5, 9).attempt(3, 6, 7, worker="b")
    story.one(4, "b started run 3 at 12:00:06.000000, though a was active: run 2")


def test_a_live_start_while_the_dependency_is_active_is_found():
    dependent().attempt(1, 0, 1).live(2, 5).live(3, 6, worker="b").one(4, "though a was active: run 2")


def test_a_start_while_a_retry_of_the_dependency_waited_is_found():
    story = dependent().attempt(1, 0, 1).attempt(2, 2, 3, "failed").attempt(3, 5, 6, worker="b")
    story.attempt(2, 8, 9, attempt=2).one(4, "though a had a retry waiting")


def test_a_start_while_a_retry_of_the_dependency_still_waits_is_found():
    story = dependent().attempt(1, 0, 1).attempt(2, 2, 3, "failed").live(2, attempt=2)
    story.attempt(3, 5, 6, worker="b").one(4, "though a had a retry waiting")


def test_forced_runs_are_apart():
    assert dependent().attempt(2, 1, 2, worker="b", is_forced=True).found() == []


def test_what_is_cancelled_discarded_or_missed_does_not_unmeet_a_dependency():
    story = dependent().attempt(1, 0, 1).attempt(2, None, 2, "cancelled")
    story.attempt(3, 2, 3, "failed", "discarded").letter(3)
    assert story.attempt(4, 5, 6, worker="b").found() == []


def test_a_start_at_the_moment_of_the_success_is_fine():
    assert dependent().attempt(1, 0, 1).attempt(2, 1, 2, worker="b").found() == []


# --- 5 ------------------------------------------------------------------------------------------------------------


def test_a_streak_that_history_does_not_bear_out_is_found():
    Story().worker("a", streak=2).one(5, "a has consecutive_failures 2, history says 0")
    exhausted(Story().worker("a"), 1, 0, 1).one(5, "a has consecutive_failures 0, history says 1")


def test_a_success_ends_a_streak_and_an_enabling_begins_it_anew():
    story = exhausted(exhausted(Story().worker("a", streak=1), 1, 0, 1).attempt(2, 2, 3), 3, 4, 5)
    assert story.found() == []
    story = exhausted(exhausted(Story().worker("a", streak=1, since=1), 1, 0, 1), 2, 2, 3)
    assert story.found() == []


def test_discarded_and_cancelled_runs_leave_a_streak_alone():
    story = exhausted(Story().worker("a", streak=1), 1, 0, 1).attempt(2, None, 2, "cancelled")
    assert story.attempt(3, 3, 4, "failed", "discarded").letter(3).found() == []


# --- 7 ------------------------------------------------------------------------------------------------------------


def test_two_runs_for_one_firing_are_found():
    story = Story().worker("a").attempt(1, 0, 1, trigger="schedule").attempt(2, 2, 3, trigger="schedule")
    story.one(7, "a fired for 2026-03-02 12:00:00+00:00 as run 1, run 2")


def test_a_live_run_for_a_firing_that_was_served_is_found():
    Story().worker("a").attempt(1, 0, 1, trigger="schedule").live(2, trigger="schedule").one(7, "run 1, run 2")


def test_several_attempts_of_one_firing_are_fine():
    story = Story().worker("a").attempt(1, 0, 1, "failed", trigger="schedule")
    assert story.attempt(1, 2, 3, attempt=2, trigger="schedule").found() == []


def test_triggers_may_share_a_time():
    assert Story().worker("a").attempt(1, 0, 1).attempt(2, 2, 3).found() == []


def test_a_firing_that_ran_and_is_called_missed_is_found():
    story = Story().worker("a").attempt(1, 0, 1, trigger="schedule")
    missed: dict[str, Any] = {"trigger": "schedule", "scheduled_for": at(-60), "due_at": at(60), "attempt": None}
    story.attempt(None, None, 5, "missed", **missed).one(7, "which history row 2 calls missed")
