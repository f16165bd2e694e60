"""`retry_on` and `retry_delay`: which errors are tried again, and when."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest

from jobrunner import Discard, RetryAfter
from jobrunner.errors import InvalidWorker
from jobrunner.runtime.results import RemoteError
from jobrunner.runtime.retry_rules import read_retry_rule
from tests.runtime.conftest import House
from tests.support import tasks

KEPT: dict[str, Any] = {}
FINAL = "not tried again: {} is not in retry_on"


class Unknown(OSError):
    pass


REMOTE = RemoteError("Gone", ("shop.errors.Gone", "builtins.OSError", "builtins.object"), "gone", "")


@pytest.mark.parametrize(
    ("on", "error", "is_tried"),
    [
        (None, ValueError(), True),
        (ValueError, ValueError(), True),
        (ValueError, KeyError(), False),
        ((OSError, "httpx.TimeoutException"), Unknown(), True),
        ("OSError", Unknown(), True),
        ("asyncio.TimeoutError", TimeoutError(), True),  # an alias
        ("json.JSONDecodeError", ValueError(), False),
        ("httpx.TimeoutException", ValueError(), False),
        ("shop.errors.Gone", REMOTE, True),
        ("Gone", REMOTE, True),
        (OSError, REMOTE, True),
        (ValueError, REMOTE, False),
    ],
    ids=[
        "any",
        "it",
        "other",
        "derived",
        "builtin",
        "alias",
        "subclass",
        "not imported",
        "full name",
        "short name",
        "remote base",
        "remote other",
    ],
)
def test_an_error_is_tried_again_if_it_is_one_of_them(on: Any, error: BaseException, is_tried: bool):
    assert ("is_final" not in read_retry_rule("it", on, None).judge(error, 1)) == is_tried


@pytest.mark.parametrize("on", [(), 5, [ValueError, 5], int, [ValueError()]], ids=str)
def test_what_is_no_exception_class_is_refused(on: Any):
    with pytest.raises(InvalidWorker, match="retry_on must be exception classes"):
        read_retry_rule("it", on, None)


@pytest.mark.parametrize("delay", [5, lambda: 1, lambda a, b, c: 1], ids=["number", "none", "three"])
def test_what_is_no_function_of_two_arguments_is_refused(delay: Any):
    with pytest.raises(InvalidWorker, match="retry_delay must be a function"):
        read_retry_rule("it", None, delay)


@pytest.mark.parametrize("seconds", [-1, math.nan, math.inf, "5", True], ids=str)
def test_a_delay_that_is_no_number_of_seconds_leaves_the_usual_one(seconds: Any):
    judged = read_retry_rule("it", None, lambda attempt, error: seconds).judge(ValueError(), 1)
    assert "delay_seconds" not in judged
    assert "the usual delay holds" in judged["reason"]


def test_a_delay_that_fails_leaves_the_usual_one():
    judged = read_retry_rule("it", None, lambda attempt, error: 1 / 0).judge(ValueError(), 1)
    assert judged == {"reason": "retry_delay failed, so the usual delay holds: ZeroDivisionError: division by zero"}


async def test_another_error_exhausts_the_run_at_once_and_counts(house: House):
    async def it() -> None:
        raise KeyError("no luck")

    orchestrator = house.orchestrator()
    orchestrator.register_worker("it", it, execution_mode="triggered", max_retries=3, retry_on=OSError)
    await orchestrator.start()
    await orchestrator.trigger_worker("it")
    (ended,) = await house.attempts(1)
    assert (ended.outcome.kind, ended.ends_run) == ("failed", "exhausted")
    (row,) = await house.history()
    assert row["reason"] == FINAL.format("KeyError")
    assert (await house.state("it"))["consecutive_failures"] == 1
    assert len(await house.rows("SELECT * FROM {p}dead_letters")) == 1


async def test_the_function_says_when_the_next_attempt_is_due(house: House):
    asked: list[tuple[int, str]] = []

    def later(attempt: int, error: BaseException) -> float:
        asked.append((attempt, str(error)))
        return 0.01

    async def it() -> None:
        raise OSError("no luck")

    orchestrator = house.orchestrator()
    orchestrator.register_worker(
        "it", it, execution_mode="triggered", max_retries=2, retry_delay=later, retry_on="OSError"
    )
    await orchestrator.start()
    await orchestrator.trigger_worker("it")
    await house.attempts(3)
    assert asked == [(1, "no luck"), (2, "no luck"), (3, "no luck")]
    assert [row["outcome"] for row in await house.history()] == ["failed"] * 3


@pytest.mark.parametrize("error", [RetryAfter(0.01), Discard()], ids=["RetryAfter", "Discard"])
async def test_what_the_handler_says_itself_goes_before(house: House, error: Exception):
    async def it() -> None:
        raise error

    orchestrator = house.orchestrator()
    orchestrator.register_worker("it", it, execution_mode="triggered", max_retries=1, retry_on=OSError)
    await orchestrator.start()
    await orchestrator.trigger_worker("it")
    ended = (await house.attempts(1))[0]
    assert ended.ends_run == (None if isinstance(error, RetryAfter) else "discarded")


async def test_a_timeout_is_tried_again_whatever_it_says(house: House):
    async def it() -> None:
        await asyncio.sleep(60)

    orchestrator = house.orchestrator()
    options: dict[str, Any] = {"timeout_seconds": 0.02, "retry_delay_seconds": 0, "max_retries": 1}
    orchestrator.register_worker("it", it, execution_mode="triggered", retry_on=KeyError, **options)
    await orchestrator.start()
    await orchestrator.trigger_worker("it")
    await house.attempts(2)
    assert [row["outcome"] for row in await house.history()] == ["timed_out", "timed_out"]


async def test_an_error_from_another_process_is_known_by_its_name(house: House):
    orchestrator = house.orchestrator()
    process: dict[str, Any] = {"isolation": "process", "execution_mode": "triggered", "max_retries": 1}
    process["retry_delay_seconds"] = 0
    orchestrator.register_worker("is", tasks.awkward, retry_on=tasks.Awkward, **process)
    orchestrator.register_worker("is-not", tasks.awkward, retry_on=OSError, **process)
    await orchestrator.start()
    await orchestrator.trigger_worker("is")
    await orchestrator.trigger_worker("is-not")
    await house.attempts(3)
    assert (len(await house.history("is")), len(await house.history("is-not"))) == (2, 1)
