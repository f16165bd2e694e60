"""Flows: the order of steps, and what becomes of those that wait."""

from __future__ import annotations

import pytest

from jobrunner.errors import InvalidFlow
from jobrunner.model.flow import Step
from jobrunner.model.run import EndsRun
from jobrunner.policy.flows import MOST_BEFORE, Edge, follow, in_order


def ended(run_id: int, after: int, how: EndsRun, if_failed: str = "cancel") -> Edge:
    return Edge(run_id, after, if_failed, is_live=False, ends_run=how, name=f"s{after}")


def live(run_id: int, after: int, if_failed: str = "cancel") -> Edge:
    return Edge(run_id, after, if_failed, is_live=True, name=f"s{after}")


NAMES = {number: f"s{number}" for number in range(10)}


def test_a_step_waits_until_the_last_before_it_has_ended():
    good = ended(3, 1, EndsRun.SUCCEEDED)
    assert follow([good, live(3, 2)], NAMES).released == ()
    assert follow([good, ended(3, 2, EndsRun.SUCCEEDED)], NAMES).released == (3,)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (EndsRun.EXHAUSTED, "step s1 (run 1) of its flow exhausted its attempts"),
        (EndsRun.DISCARDED, "step s1 (run 1) of its flow was discarded"),
        (EndsRun.CANCELLED, "step s1 (run 1) of its flow was cancelled"),
    ],
)
def test_a_failure_cancels_at_once_although_others_are_still_live(how: EndsRun, said: str):
    followed = follow([ended(3, 1, how), live(3, 2)], NAMES)
    assert (followed.released, followed.cancelled) == ((), {3: said})


def test_a_cancelled_step_cancels_those_after_it_or_lets_them_run():
    edges = [ended(3, 1, EndsRun.EXHAUSTED), live(4, 3), live(5, 4), live(6, 4, "run"), live(7, 4, "run"), live(7, 2)]
    followed = follow(edges, NAMES)
    assert followed.cancelled == {
        3: "step s1 (run 1) of its flow exhausted its attempts",
        4: "step s3 (run 3) of its flow was cancelled",
        5: "step s4 (run 4) of its flow was cancelled",
    }
    assert followed.released == (6,)  # 7 waits for 2 as well


def test_a_failure_on_an_edge_that_says_run_keeps_nobody():
    assert follow([ended(3, 1, EndsRun.EXHAUSTED, "run"), live(3, 2)], NAMES).released == ()
    assert follow([ended(3, 1, EndsRun.EXHAUSTED, "run")], NAMES).released == (3,)


def test_an_end_that_was_pruned_keeps_nobody():
    assert follow([Edge(3, 1, "cancel", is_live=False)], NAMES).released == (3,)


def test_a_chain_of_thousands_is_cancelled_to_its_end():
    edges = [ended(1, 0, EndsRun.EXHAUSTED), *(live(number + 1, number) for number in range(1, 5000))]
    assert len(follow(edges, NAMES).cancelled) == 5000


def steps(*described: tuple[str, tuple[str, ...]]) -> list[Step]:
    return [Step(name, name=name, after=after) for name, after in described]


def names(found: list[Step]) -> list[str]:
    return [step.name for step in found]


def test_each_step_comes_after_those_it_waits_for_and_the_first_has_one_after_it():
    given = steps(("d", ("b", "c")), ("alone", ()), ("b", ("a",)), ("c", ("a",)), ("a", ()))
    assert names(in_order(given)) == ["a", "alone", "b", "c", "d"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "a flow has at least one step"),
        (steps(("a", ()), ("a", ())), "two steps are called 'a'; give each a name of its own, as name="),
        (
            steps(("extract", ()), ("load", ("extrct",))),
            "step 'load' waits for 'extrct', which is no step of the flow; did you mean 'extract'?",
        ),
        (
            steps(("a", ("c",)), ("b", ("a",)), ("c", ("b",))),
            "steps wait for each other in a circle: a -> c -> b -> a; take one `after` away",
        ),
        (steps(("a", ("a",))), "steps wait for each other in a circle: a -> a; take one `after` away"),
        ([Step("a", name="a", if_failed="stop")], "step 'a': if_failed is 'cancel' or 'run', not 'stop'"),
        (
            [Step("a", name="a", after=tuple(map(str, range(MOST_BEFORE + 1))))],
            "step 'a' waits for 1,001 steps; the most is 1,000",
        ),
    ],
)
def test_what_does_not_hold_together_is_refused_in_one_line(given: list[Step], said: str):
    with pytest.raises(InvalidFlow) as refused:
        in_order(given)
    assert str(refused.value) == said
