"""Handlers: how a function's signature is read, and a payload checked against it."""

from __future__ import annotations

import dataclasses
import functools
from datetime import UTC, date, datetime
from enum import StrEnum
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

import jobrunner
from jobrunner import RunContext
from jobrunner.errors import InvalidPayload, InvalidWorker
from jobrunner.runtime.handlers import read_handler


def arguments(function: Any, payload: dict[str, Any]) -> dict[str, Any]:
    return read_handler("it", function).arguments(payload)


def refusal(function: Any, payload: dict[str, Any]) -> str:
    with pytest.raises(InvalidPayload) as refused:
        arguments(function, payload)
    return str(refused.value)


# --- who receives the run -----------------------------------------------------------------------------------------


def takes_nothing() -> None: ...


def takes_the_run(run: RunContext) -> None: ...


def takes_it_by_its_long_name(run: jobrunner.RunContext) -> None: ...


def takes_it_without_a_word(run) -> None: ...


def takes_it_positionally(run: RunContext, /, to: str) -> None: ...


def takes_fields(to: str, count: int = 1) -> None: ...


def takes_only_keywords(*, to: str) -> None: ...


def takes_both(run: RunContext, to: str) -> None: ...


@pytest.mark.parametrize(
    ("function", "takes_run"),
    [
        (takes_nothing, False),
        (takes_the_run, True),
        (takes_it_by_its_long_name, True),
        (takes_it_without_a_word, True),
        (takes_it_positionally, True),
        (takes_fields, False),
        (takes_only_keywords, False),
        (takes_both, True),
        (functools.partial(takes_both, to="a"), True),
        (lambda: None, False),
        (lambda run: None, True),
    ],
)
def test_the_run_comes_first_if_the_handler_wants_it(function: Any, takes_run: bool):
    assert read_handler("it", function).takes_run is takes_run


def test_the_run_is_known_when_only_a_type_checker_could_read_its_name():
    def it(run: RunContext) -> None: ...

    it.__annotations__["run"] = "somewhere.RunContext"
    assert read_handler("it", it).takes_run


class Callable_:
    async def __call__(self, run: RunContext, to: str) -> None: ...


class Service:
    async def work(self, run: RunContext, to: str) -> None: ...

    def sync(self, to: str) -> None: ...


@pytest.mark.parametrize(
    ("function", "is_async"),
    [
        (Callable_(), True),
        (Service().work, True),
        (Service().sync, False),
        (functools.partial(Service().work, to="a"), True),
        (takes_nothing, False),
    ],
)
def test_methods_partials_and_objects_are_handlers_too(function: Any, is_async: bool):
    handler = read_handler("it", function)
    assert handler.is_async is is_async
    assert handler.label.startswith("tests.runtime.test_handlers:")


@pytest.mark.parametrize("function", [None, "text", 5])
def test_what_is_no_function_is_refused(function: Any):
    with pytest.raises(InvalidWorker, match="not callable"):
        read_handler("it", function)


def test_parameters_that_no_payload_can_give_are_refused():
    def with_args(run: RunContext, *rest: int) -> None: ...

    def with_unknown(run: RunContext, to: NoSuchName) -> None: ...  # type: ignore[name-defined]  # noqa: F821 - that is the point

    def with_unreadable(run: RunContext, to: read_handler) -> None: ...  # type: ignore[valid-type]  # that is the point

    for function in (with_args, with_unknown, with_unreadable):
        with pytest.raises(InvalidWorker):
            read_handler("it", function)


def test_a_handler_may_name_what_is_defined_after_it():
    class Local(StrEnum):
        A = "a"

    def it(run: RunContext, which: Local) -> object:
        return Local, later

    assert arguments(it, {"which": "a"}) == {"which": Local.A}
    later = 1


# --- payloads -----------------------------------------------------------------------------------------------------


def test_fields_and_defaults():
    assert arguments(takes_fields, {"to": "a"}) == {"to": "a", "count": 1}
    assert arguments(takes_fields, {"to": "a", "count": 3}) == {"to": "a", "count": 3}


def test_a_handler_without_fields_takes_any_payload():
    assert arguments(takes_nothing, {"any": "thing"}) == {}
    assert arguments(takes_the_run, {"any": "thing"}) == {}


def test_a_handler_with_open_keywords_takes_what_is_left():
    def it(run: RunContext, to: str, **rest: Any) -> None: ...

    assert arguments(it, {"to": "a", "x": 1, "y": [2]}) == {"to": "a", "x": 1, "y": [2]}
    assert "to: " in refusal(it, {"x": 1})


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        ({}, "to: Field required"),
        ({"to": 5}, "to: "),
        ({"to": None}, "to: "),
        ({"to": "a", "count": "3"}, "count: "),
        ({"to": "a", "count": 1.5}, "count: "),
        ({"to": "a", "count": True}, "count: "),
        ({"to": "a", "more": 1}, "more: "),
    ],
)
def test_what_does_not_fit_is_refused_with_the_field_s_name(payload: dict[str, Any], says: str):
    said = refusal(takes_fields, payload)
    assert said.startswith(says)
    assert "does not fit tests.runtime.test_handlers:takes_fields" in said
    assert "\n" not in said


def test_no_more_problems_are_told_than_one_can_read():
    def it(a: int, b: int, c: int, d: int, e: int, f: int, g: int) -> None: ...

    assert "; and 2 more" in refusal(it, {})
    assert "f: " not in refusal(it, {})


class Colour(StrEnum):
    RED = "red"


@dataclasses.dataclass
class Point:
    x: int
    y: int = 0


class Order(BaseModel):
    id: int
    when: datetime


def test_annotations_may_be_anything_that_json_can_say():
    def it(
        when: datetime,
        day: date,
        colour: Colour,
        point: Point,
        order: Order,
        either: int | None,
        level: Literal["low", "high"],
        short: Annotated[str, Field(max_length=3)],
        many: list[Point] = [],  # noqa: B006 - a default that must not be shared
        pair: tuple[int, str] = (1, "a"),
    ) -> None: ...

    payload = {
        "when": "2026-03-02T12:00:00Z",
        "day": "2026-03-02",
        "colour": "red",
        "point": {"x": 1},
        "order": {"id": 1, "when": "2026-03-02T12:00:00+00:00"},
        "either": None,
        "level": "low",
        "short": "abc",
    }
    first, second = arguments(it, payload), arguments(it, payload)
    assert first["when"] == datetime(2026, 3, 2, 12, tzinfo=UTC)
    assert (first["point"], first["colour"], first["day"]) == (Point(1), Colour.RED, date(2026, 3, 2))
    assert isinstance(first["order"], Order)
    first["many"].append(Point(9))
    assert second["many"] == []
    assert arguments(it, {**payload, "pair": [2, "b"]})["pair"] == (2, "b")
    assert "short: " in refusal(it, {**payload, "short": "abcd"})
    assert "level: " in refusal(it, {**payload, "level": "middle"})
    assert "point.x: " in refusal(it, {**payload, "point": {"x": "1"}})


@pytest.mark.filterwarnings("error")
def test_a_field_may_have_any_name_that_python_allows():
    def it(
        run: RunContext, schema: str, copy: int, json: str, model_config: str, dict: int, _private: int, self: str
    ) -> None: ...

    payload = {"schema": "a", "copy": 1, "json": "b", "model_config": "c", "dict": 2, "_private": 3, "self": "d"}
    assert arguments(it, payload) == payload
    assert "schema: " in refusal(it, {**payload, "schema": 1})
    assert "_private: " in refusal(it, {**payload, "_private": "x"})


def test_large_numbers_and_deep_payloads_are_read_or_refused_and_nothing_else():
    def it(value: Any) -> None: ...

    assert arguments(it, {"value": 10**30})["value"] == 10**30
    deep: Any = 1
    for _ in range(100_000):
        deep = [deep]
    for payload in ({"value": deep}, deep):
        with pytest.raises((InvalidPayload, RecursionError)):  # the one at the trigger, the other never gets so far
            arguments(it, payload)


# --- the same code ------------------------------------------------------------------------------------------------


def test_the_same_function_read_twice_is_the_same_code_and_another_is_not():
    first, again = read_handler("it", takes_fields), read_handler("it", takes_fields)
    other = read_handler("it", takes_both)
    assert first.same_code(again)
    assert not first.same_code(other)
