"""What a trigger is given in types is what the handler is called with: for every type, whatever its value."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from pathlib import Path, PurePosixPath
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import Base64Bytes, BaseModel, Field

from jobrunner.errors import InvalidPayload
from jobrunner.runtime.handlers import read_handler
from jobrunner.runtime.payloads import read_payload
from jobrunner.runtime.results import storable_result


class Colour(Enum):
    RED = "red"
    GREEN = 2


class Level(IntEnum):
    LOW = 1
    HIGH = 2


class Speed(StrEnum):
    SLOW = "slow"


@dataclasses.dataclass(frozen=True)
class Point:
    x: int
    at: datetime
    of: UUID | None = None


@dataclasses.dataclass(frozen=True)
class Point3(Point):
    z: int = 0


class Item(BaseModel):
    sku: UUID
    price: Decimal = Field(alias="unitPrice")
    where: Point | None = None


class Order(BaseModel):
    items: list[Item]
    colour: Colour = Colour.RED
    by_day: dict[date, Decimal] = {}


OFFSETS = st.none() | st.integers(-23 * 60, 23 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
MOMENTS = st.datetimes(timezones=OFFSETS)
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
POINTS = st.builds(Point, st.integers(), MOMENTS, st.none() | st.uuids())
PRICES = st.decimals(allow_nan=False, allow_infinity=False)
ITEMS = st.builds(lambda sku, price, where: Item(sku=sku, unitPrice=price, where=where), st.uuids(), PRICES, POINTS)
ORDERS = st.builds(
    lambda items, colour, by_day: Order(items=items, colour=colour, by_day=by_day),
    st.lists(ITEMS, max_size=3),
    st.sampled_from(Colour),
    st.dictionaries(st.dates(), PRICES, max_size=3),
)
KINDS: dict[str, tuple[Any, st.SearchStrategy[Any]]] = {
    "uuid": (UUID, st.uuids()),
    "datetime": (datetime, MOMENTS),
    "date": (date, st.dates()),
    "time": (time, st.times()),
    "timedelta": (timedelta, st.timedeltas()),
    "decimal": (Decimal, PRICES),
    "enum": (Colour, st.sampled_from(Colour)),
    "int enum": (Level, st.sampled_from(Level)),
    "text enum": (Speed, st.sampled_from(Speed)),
    "path": (Path, TEXT.map(Path)),
    "pure path": (PurePosixPath, TEXT.map(PurePosixPath)),
    "bytes": (bytes, TEXT.map(str.encode)),
    "any bytes": (Base64Bytes, st.binary(max_size=20)),
    "dataclass": (Point, POINTS),
    "model": (Order, ORDERS),
    "list": (list[UUID | None], st.lists(st.none() | st.uuids(), max_size=3)),
    "tuple": (tuple[date, Decimal], st.tuples(st.dates(), PRICES)),
    "set": (set[UUID], st.sets(st.uuids(), max_size=3)),
    "dict": (dict[str, list[Point]], st.dictionaries(TEXT, st.lists(POINTS, max_size=2), max_size=2)),
    "dict by uuid": (dict[UUID, datetime], st.dictionaries(st.uuids(), MOMENTS, max_size=3)),
    "optional": (datetime | None, st.none() | MOMENTS),
    "union": (Point | UUID | int | None, st.none() | st.integers() | st.uuids() | POINTS),
    "union of times": (date | datetime, st.dates() | MOMENTS),
    "union of models": (Item | Order | Colour, ITEMS | ORDERS | st.sampled_from(Colour)),
}


def taking(kind: Any) -> Any:
    async def it(value: Any) -> None: ...

    it.__annotations__["value"] = kind
    return read_handler("it", it)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_every_type_comes_back_as_it_was_given(kind: str, data: st.DataObject):
    annotation, values = KINDS[kind]
    value = data.draw(values)
    handler = taking(annotation)
    plain, text = read_payload({"value": value}, handler)
    assert json.loads(text) == plain  # plain JSON, as a simulation and `run.payload` have it
    (read,) = handler.arguments(json.loads(text)).values()
    assert (read, type(read)) == (value, type(value))
    if isinstance(value, datetime):
        assert read.utcoffset() == value.utcoffset()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "any bytes"])
@given(data=st.data())
def test_a_result_says_a_value_as_a_payload_does(kind: str, data: st.DataObject):
    annotation, values = KINDS[kind]
    value = data.draw(values)
    plain, _ = read_payload({"value": value}, taking(annotation))
    kept, remark = storable_result({"value": value})
    assert remark is None
    if kind == "set":  # in no order
        plain["value"], kept["value"] = sorted(plain["value"]), sorted(kept["value"])
    assert json.loads(json.dumps(kept)) == json.loads(json.dumps(plain))


@given(st.data())
def test_any_value_under_any_annotation_comes_back_or_is_refused_by_its_name(data: st.DataObject):
    annotation, _ = KINDS[data.draw(st.sampled_from(sorted(KINDS)))]
    _, values = KINDS[data.draw(st.sampled_from(sorted(KINDS)))]
    value = data.draw(values)
    try:
        json.dumps(value)
    except TypeError:
        pass
    else:
        assume(False)  # JSON already: the check reads it, as it is
    handler = taking(annotation)
    try:
        _, text = read_payload({"value": value}, handler)
    except InvalidPayload as refused:
        assert str(refused).startswith("value")
        assert "\n" not in str(refused)
        return
    read = handler.arguments(json.loads(text))["value"]
    assert read == value


def refusal(kind: Any, value: Any) -> str:
    with pytest.raises(InvalidPayload) as refused:
        read_payload({"value": value}, taking(kind))
    return str(refused.value)


BERLIN = ZoneInfo("Europe/Berlin")


@pytest.mark.parametrize(
    ("kind", "value", "says"),
    [
        (UUID, datetime(2026, 1, 1, tzinfo=UTC), "value: Input should be a valid UUID"),
        (str, UUID(int=1), "value: a UUID would be read back as a str"),
        (Any, UUID(int=1), "value: a UUID would be read back as a str"),
        (dict[str, Any], {"a": [1, {"b": date(2026, 1, 1)}]}, "value.a.1.b: a date would be read back as a str"),
        (date, datetime(2026, 1, 1), "value: Input should be a valid date"),  # noqa: DTZ001 - naive
        (Point, Point3(1, datetime(2026, 1, 1, tzinfo=UTC)), "value: a Point3 would be read back as a Point"),
        (list[UUID], [UUID(int=1), 5], "value.1: "),
        (Point, {"x": "1", "at": datetime(2026, 1, 1, tzinfo=UTC)}, "value.x: Input should be a valid integer"),
        (bytes, b"\xff", "value: its bytes are no UTF-8 text"),
        (Any, {"a": object()}, "value.a: an object cannot be written as JSON"),
        (Decimal, Decimal("NaN"), "value: Input should be a finite number"),
        (datetime, datetime(1890, 1, 1, tzinfo=BERLIN), "value: 1890-01-01 00:00:00+00:53:28 would be read back as"),
    ],
    ids=str.split("uuid text any nested date subclass list mixed bytes object nan offset"),
)
def test_what_would_not_come_back_is_refused_in_one_line_that_names_the_place(kind: Any, value: Any, says: str):
    said = refusal(kind, value)
    assert said.startswith(says)
    assert "\n" not in said


def test_a_time_keeps_its_offset_but_not_the_name_of_its_zone_and_one_without_stays_without():
    handler = taking(datetime)
    second = datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN, fold=1)
    _, text = read_payload({"value": second}, handler)
    assert text == '{"value": "2026-10-25T02:30:00+01:00"}'
    naive = datetime(2026, 10, 25, 2, 30)  # noqa: DTZ001 - that is the point
    _, text = read_payload({"value": naive}, handler)
    assert handler.arguments(json.loads(text)) == {"value": naive}


def test_a_handler_without_annotations_for_it_takes_json_only_and_unknown_code_whatever_can_be_written():
    with pytest.raises(InvalidPayload, match=r"^a\.0: a UUID is no JSON, and .* has no annotation"):
        read_payload({"a": [UUID(int=1)]}, read_handler("it", lambda: None))
    with pytest.raises(InvalidPayload, match=r"^rest: a UUID would be read back as a str"):
        read_payload({"rest": UUID(int=1)}, read_handler("it", _open))
    assert read_payload({"a": [UUID(int=1)]}, None)[0] == {"a": ["00000000-0000-0000-0000-000000000001"]}
    with pytest.raises(InvalidPayload, match=r"^a\.b: an object cannot be written as JSON"):
        read_payload({"a": {"b": object()}}, None)


def _open(**rest: Any) -> None: ...


def test_what_is_json_is_given_on_as_it_is():
    payload = {"value": "2026-01-01"}
    assert read_payload(payload, taking(date))[0] is payload
