"""What a node knows of the fast path: when it looks, rests, and takes a turn."""

from __future__ import annotations

import math
from datetime import timedelta

import pytest

from jobrunner.model.worker import WorkerConfig, WorkerExecutionMode
from jobrunner.policy.fast_path import Eligible
from jobrunner.runtime.fast_path import LOCKED_PAUSE_SECONDS, FastPathKnowledge
from jobrunner.storage.turns.turn import LOOK_AGAIN_SECONDS, Turned
from tests.support.stage import T0

CONFIG = WorkerConfig("a", execution_mode=WorkerExecutionMode.TRIGGERED)


def known(*stuck: str) -> FastPathKnowledge:
    """Eligible is `a`, as a look at 100 s has found."""
    knowledge = FastPathKnowledge()
    knowledge.looked(100.0, Eligible({"a": CONFIG}, {"a": 1}, stuck), is_nothing_due=False)
    return knowledge


def turn(knowledge: FastPathKnowledge, turned: Turned, monotonic: float = 100.1) -> Eligible | None:
    knowledge.pass_begins(is_worth_a_turn=True)
    eligible = knowledge.next_turn(T0, 5, may_claim=True)
    if eligible is not None:
        knowledge.turn_sent(monotonic)
        knowledge.turn_came_back(eligible, turned)
    return eligible


def test_after_a_turn_that_says_that_was_all_there_is_rest_until_the_next_is_due():
    knowledge = known()
    assert turn(knowledge, Turned(is_all=True, next_due_at=T0 + timedelta(seconds=7)))
    assert knowledge.seconds_of_rest(T0, 100.1) == 7.0
    assert knowledge.seconds_of_rest(T0 + timedelta(seconds=9), 100.1) == 0.0
    assert turn(knowledge, Turned(is_all=True))
    assert knowledge.seconds_of_rest(T0, 100.1) == math.inf


@pytest.mark.parametrize("turned", [Turned(), Turned(has_other=True)])
def test_after_a_turn_that_cannot_say_so_a_look_follows(turned: Turned):
    knowledge = known()
    assert turn(knowledge, turned)
    assert knowledge.seconds_of_rest(T0, 100.1) is None
    assert not knowledge.settled


def test_who_is_held_up_pauses_and_takes_a_turn_again():
    knowledge = known()
    assert turn(knowledge, Turned(has_locked=True))
    assert knowledge.seconds_of_rest(T0, 100.1) == LOCKED_PAUSE_SECONDS
    knowledge.pass_begins(is_worth_a_turn=False)
    assert knowledge.next_turn(T0, 5, may_claim=True) is not None


def test_while_somebody_is_stuck_the_rest_ends_with_a_look_that_leaves_out_whom_turns_look_at():
    knowledge = known("s")
    assert turn(knowledge, Turned(is_all=True))
    assert knowledge.seconds_of_rest(T0, 100.1) == pytest.approx(LOOK_AGAIN_SECONDS - 0.1)
    assert knowledge.settled == {"a": CONFIG}
    late = 100.0 + LOOK_AGAIN_SECONDS
    knowledge.pass_begins(is_worth_a_turn=False)  # nothing has woken the node, and the look is due
    assert knowledge.next_turn(T0, 5, may_claim=True) is not None
    assert turn(knowledge, Turned(is_all=True), late)
    assert knowledge.seconds_of_rest(T0, late) is None
    assert (knowledge.is_at_rest, knowledge.settled) == (True, {"a": CONFIG})
    knowledge.looked(late, None, is_nothing_due=True)
    assert turn(knowledge, Turned(is_all=True), late + 1)
    assert knowledge.seconds_of_rest(T0, late + 1) == math.inf


def test_under_load_a_late_look_leaves_them_out_too_and_a_turn_follows():
    knowledge = known("s")
    late = 100.0 + LOOK_AGAIN_SECONDS
    assert turn(knowledge, Turned(has_locked=True), late)
    assert turn(knowledge, Turned()) is None
    assert (knowledge.is_at_rest, knowledge.settled) == (False, {"a": CONFIG})
