"""The checker of promises finds each limit that was passed in rows made by hand, and none where there is none."""

from __future__ import annotations

from typing import Any

from tests.unit.test_checker import Story

KEYED: dict[str, Any] = {"limit_key": "customer"}


def story(shared: dict[str, Any] | None = None, **options: Any) -> Story:
    made = Story().worker("a", max_running=9).worker("b", max_running=9)
    made.tables.workers[0] |= options
    if shared is not None:
        made.tables.limits.append({"name": "stripe", "max_running": None, "rate": None, **shared})
        made.tables.worker_limits += [{"worker": name, "limit_name": "stripe"} for name in "ab"]
    return made


def test_more_of_a_key_at_once_are_found_and_other_keys_and_touching_runs_are_fine():
    made = story(**KEYED, max_running_per_key=1)
    made.attempt(1, 0, 10, limit_key="x").attempt(2, 5, 9, limit_key="y").attempt(3, 10, 12, limit_key="x")
    assert made.found() == []
    made.attempt(4, 11, 13, limit_key="x").one(3, "a, key x: 2 of at most 1 ran when run 4 started")


def test_a_live_run_holds_its_key_of_a_worker_that_is_ordered():
    made = story(**KEYED, ordered=True).live(1, 0, limit_key="x").live(2, 5, limit_key="y", slot=1)
    assert made.found() == []
    made.attempt(3, 7, 8, limit_key="x").one(3, "a, key x: 2 of at most 1 ran when run 3 started")


def test_more_starts_than_a_rate_allows_are_found_and_a_forced_one_passes_and_counts():
    made = story(rate="2/1m").attempt(1, 0, 1).attempt(2, 30, 31).attempt(3, 31, 32, is_forced=True).attempt(4, 91, 92)
    assert made.found() == []
    made.attempt(5, 91, 95, is_forced=True).attempt(6, 100, 101).one(3, "a: more than 2 started within 60 s, run 6")


def test_a_smooth_rate_is_the_rate_of_one():
    made = story(rate="6/m", smooth=True).attempt(1, 0, 1).attempt(2, 10, 11)
    assert made.found() == []
    made.attempt(3, 19.9, 21).one(3, "a: more than 1 started within 10 s, run 3")


def test_a_rate_per_key_counts_the_keys_own():
    made = story(**KEYED, rate_per_key="1/10s")
    made.attempt(1, 0, 1, limit_key="x").attempt(2, 1, 2, limit_key="y").attempt(3, 2, 3).attempt(4, 3, 4)
    assert made.found() == []
    made.attempt(5, 9, 10, limit_key="y").one(3, "a, key y: more than 1 started within 10 s, run 5")


def test_a_shared_limit_is_passed_by_workers_together():
    made = story({"max_running": 2}).attempt(1, 0, 10).attempt(2, 0, 10, worker="b").attempt(3, 10, 20)
    assert made.found() == []
    made.attempt(4, 9, 11, worker="b").one(3, "limit stripe: 3 of at most 2 ran when run 4 started")


def test_the_rate_of_a_shared_limit_counts_the_starts_of_all():
    made = story({"rate": "2/10s"}).attempt(1, 0, 1).attempt(2, 0, 1, worker="b").attempt(3, 10, 11)
    assert made.found() == []
    made.attempt(4, 9, 11, worker="b").one(3, "limit stripe: more than 2 started within 10 s")
