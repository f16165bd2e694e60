"""What a handler's schema refuses, the handler refuses: random payloads, judged by both."""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import decimal
import enum
import functools
import ipaddress
import json
import pathlib
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import pytest
from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen, MultipleOf
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import (
    AfterValidator,
    AliasChoices,
    AnyUrl,
    Base64Bytes,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainValidator,
    RootModel,
    SecretStr,
    Strict,
    StringConstraints,
    WithJsonSchema,
    WrapValidator,
    model_validator,
)
from pydantic.dataclasses import dataclass as checked_dataclass
from typing_extensions import TypedDict

from jobrunner.errors import InvalidPayload
from jobrunner.policy.payload_schema import check_fits
from jobrunner.runtime.handlers import read_handler


class Colour(enum.Enum):
    RED = 1
    BLUE = "blue"
    ON = True


class Level(enum.IntEnum):
    LOW = 0
    HIGH = 1


class Right(enum.IntFlag):
    READ = 1
    WRITE = 2


class Lenient(enum.Enum):
    A = "a"

    @classmethod
    def _missing_(cls, value: object) -> Any:
        return cls.A


class Moment(enum.Enum):
    THEN = dt.date(2020, 1, 1)


class Pair(NamedTuple):
    a: int
    b: str


@dataclasses.dataclass
class Plain:
    a: int
    b: str = "b"
    c: int = dataclasses.field(default=1, init=False)


@dataclasses.dataclass
class Simple:
    a: int
    b: str | None = None


@checked_dataclass(config=ConfigDict(extra="allow"))
class Checked:
    a: int


class Dict(TypedDict, total=False):
    a: int


class Model(BaseModel):
    a: int
    b: Model | None = None


class Forbidding(BaseModel):
    model_config = ConfigDict(extra="forbid", json_schema_extra={"required": ["z"]})
    a: int = 3


class Aliased(BaseModel):
    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True, extra="forbid")
    a: int = Field(alias="b")


class OneAlias(BaseModel):
    a: int = Field(alias="b")


class Choosing(BaseModel):
    a: int = Field(validation_alias=AliasChoices("b", "c"))


class Before(BaseModel):
    a: int

    @model_validator(mode="before")
    @classmethod
    def read(cls, given: Any) -> Any:
        return {"a": given} if isinstance(given, int) else given


class Starting(BaseModel):
    a: int

    def __init__(self, **given: Any) -> None:
        super().__init__(a=1, **{name: value for name, value in given.items() if name != "a"})


class Stripping(BaseModel):
    model_config = ConfigDict(str_strip_whitespace=True, str_max_length=1, coerce_numbers_to_str=True)
    a: str


class Lax(BaseModel):
    model_config = ConfigDict(strict=False, ser_json_timedelta="float")
    a: Annotated[int, Strict(False)] = 1
    b: dt.timedelta = dt.timedelta(1)


class Cat(BaseModel):
    a: Literal["cat"]


class Dog(BaseModel):
    a: Literal["dog"]
    b: int = 1


class Root(RootModel[list[int]]):
    pass


def lenient(value: Any, _inner: Any) -> Any:
    return value


KINDS: list[Any] = [
    *(int, float, bool, str, bytes, decimal.Decimal, dt.datetime, dt.date, dt.time, dt.timedelta, uuid.UUID),
    *(pathlib.Path, Colour, Level, Right, Lenient, Moment, Pair, Plain, Simple, Checked, Dict, Model, Forbidding),
    *(Aliased, OneAlias, Choosing, Before, Starting, Stripping, Lax, Root, Any, AnyUrl, Base64Bytes, SecretStr),
    *(ipaddress.IPv4Address, complex, re.Pattern, Iterable[int], Sequence[int], Mapping[str, int], None, object),
    *(list[int], set[int], frozenset[str], tuple[int, ...], tuple[int, str], dict[str, int], dict[int, int], dict),
    *(collections.deque[int], collections.OrderedDict[str, int], collections.Counter[str], list[Model]),
    *(int | None, int | str, Model | list[int], Cat | Dog, Annotated[Cat | Dog, Discriminator("a")]),
    *(Literal[1, "a", True], Literal[Level.HIGH], Literal[None, "x"]),
    *(Annotated[int, Ge(0)], Annotated[int, Lt(2)], Annotated[float, Gt(0.5), Le(1.5)], Annotated[int, MultipleOf(2)]),
    *(Annotated[decimal.Decimal, Ge(decimal.Decimal("0.1"))], Annotated[float, MultipleOf(0.1)]),
    *(Annotated[str, MinLen(2)], Annotated[str, MaxLen(2)], Annotated[bytes, MinLen(2)], Annotated[bytes, MaxLen(2)]),
    *(Annotated[set[int], MaxLen(1)], Annotated[list[int], MinLen(1), MaxLen(2)], Annotated[dict[str, int], MinLen(1)]),
    *(Annotated[str, StringConstraints(strip_whitespace=True, max_length=1, pattern=r"^\S?\z")],),
    *(Annotated[str, StringConstraints(to_upper=True, min_length=1)], Annotated[dict[str, int], MaxLen(1)]),
    *(Annotated[int, AfterValidator(abs), Ge(0)], Annotated[str, AfterValidator(lambda text: text * 3), MinLen(3)]),
    *(
        Annotated[int, BeforeValidator(int)],
        Annotated[int, PlainValidator(str)],
        Annotated[int, WrapValidator(lenient)],
    ),
    *(Annotated[str, WithJsonSchema({"type": "integer"})], Annotated[int, Field(json_schema_extra={"maximum": -9})]),
    *(Annotated[pathlib.Path, MinLen(3)], Annotated[Base64Bytes, MinLen(3)]),
]
SAID = [
    *(None, True, False, 0, 1, 2, 5, -1, -3, 0.5, 1.0, 1.5, 1e3, 0.30000000000000004, 10**30, 1e300),
    *("", "a", "b", "x", "blue", "cat", "1", " 1 ", "é", "éé", "\U0001f600", "1e5", "NaN", "1+2j", "YWJj", "^a$"),
    *("2020-01-01", "2020-01-01T00:00:00Z", "12:00", "PT5S", "http://a.b", "127.0.0.1", str(uuid.UUID(int=1))),
    *([], [1], [1, 1], [1, 2, 3], [1, "a"], ["a"], [[1]], [None], [{"a": 1}]),
    *({}, {"a": 1}, {"a": "x"}, {"b": 1}, {"c": 1}, {"a": 1, "b": "x"}, {"a": 1, "b": None}, {"a": 1, "b": {"a": 2}}),
    *({"a": "cat"}, {"a": "dog", "b": 2}, {"a": " 1 "}, {"a": 1, "c": 2}, {"b": 2, "z": 1}, {"1": 1, "2": 2}),
]
LEAVES = st.sampled_from(SAID) | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=4)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc1"), inner, max_size=3)
)


@functools.cache
def handler_of(kind: Any, default: bool) -> Any:
    def required(field: Any) -> None: ...

    def optional(field: Any = None) -> None: ...

    function: Any = optional if default else required
    function.__annotations__ = {"field": kind}
    return read_handler("it", function)


def verdicts(handler: Any, payload: dict[str, Any]) -> tuple[bool, bool]:
    """Say whether the schema and the handler let a payload pass."""
    passed = []
    for check in (
        lambda: check_fits("it", payload, handler.payload_schema),
        lambda: handler.check(json.dumps(payload)),
    ):
        try:
            check()
            passed.append(True)
        except (InvalidPayload, TypeError):  # a validator of the program's own may raise what it likes
            passed.append(False)
    return passed[0], passed[1]


@settings(max_examples=1500)
@given(kind=st.sampled_from(KINDS), value=VALUES, default=st.booleans(), more=st.sampled_from([{}, {"extra": 1}]))
def test_what_the_schema_refuses_the_handler_refuses(kind, value, default, more):
    handler = handler_of(kind, default)
    for payload in ({"field": value, **more}, more):
        by_schema, by_handler = verdicts(handler, payload)
        assert by_schema or not by_handler


@pytest.mark.parametrize("number", range(len(KINDS)))
def test_what_the_schema_refuses_the_handler_refuses_of_every_known_value(number):
    handler = handler_of(KINDS[number], default=False)
    for value in SAID:
        by_schema, by_handler = verdicts(handler, {"field": value})
        assert by_schema or not by_handler, value


def test_of_the_usual_types_the_schema_refuses_nearly_all_that_the_handler_does():
    refused = missed = 0
    for kind in (int, float, bool, str, Simple, Model, list[int], dict[str, int], int | None, Annotated[int, Ge(0)]):
        handler = handler_of(kind, default=False)
        for value in SAID:
            by_schema, by_handler = verdicts(handler, {"field": value})
            refused += not by_handler
            missed += by_schema and not by_handler
    assert refused > 300
    assert missed / refused < 0.05
