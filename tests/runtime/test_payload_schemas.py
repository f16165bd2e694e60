"""Handlers' payloads as JSON Schema: what a node writes of them, and who refuses by it."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import subprocess
import sys
import threading
from typing import Any

import pytest
from pydantic import BaseModel, Field

from jobrunner import RunContext, WorkerOrchestrator
from jobrunner.errors import InvalidPayload, InvalidWorker
from jobrunner.policy import definitions
from jobrunner.policy.payload_schema import check_fits
from jobrunner.runtime.payload_schemas import MOST_BYTES
from jobrunner.storage.workers import payloads
from jobrunner.storage.workers.payloads import refuse_misfit
from tests.support import tasks


@dataclasses.dataclass
class Address:
    street: str
    number: int = 1


class Person(BaseModel):
    name: str = Field(min_length=1, description="As on the card.")
    friends: list[Person] = []


def deliver(run: RunContext, to: Address, by: Person, at: str = "noon", count: int | None = None) -> None: ...


def schema_of(orchestrator: WorkerOrchestrator, name: str) -> dict[str, Any]:
    return orchestrator.workers[name].payload_schema


async def test_a_node_writes_what_its_handlers_take(house):
    orchestrator = house.orchestrator()
    orchestrator.register_worker("deliver", deliver, execution_mode="triggered")
    orchestrator.register_worker("nothing", tasks.nothing, execution_mode="triggered")
    await orchestrator.start()
    rows = await house.rows("SELECT name, payload_schema FROM {p}workers ORDER BY name")
    said = [json.loads(text) if isinstance(text := row["payload_schema"], str) else text for row in rows]
    assert said[1] == {}
    assert said[0]["required"] == ["to", "by"]
    assert said[0]["additionalProperties"] is False
    assert said[0]["$defs"]["Person"]["properties"]["name"] == {
        "description": "As on the card.",
        "minLength": 1,
        "title": "Name",
        "type": "string",
    }
    assert '"default"' not in json.dumps(said)


@pytest.mark.parametrize(
    ("payload", "problems"),
    [
        ({"to": {"street": 1, "nmber": 2}, "by": {"name": "x"}}, ["to.street: must be text", "to.nmber: is not known"]),
        ({"to": {"street": "x"}, "by": {"name": "x"}, "count": "secret"}, ["count: must be a whole number or null"]),
        (
            {"to": {"street": "x"}, "by": {"name": "", "friends": [{}]}},
            ["by.name: must be at least 1 characters", "by.friends.0.name: is missing"],
        ),
        ({"to": {"street": "x"}, "by": {"name": "x"}, "tow": 1}, ["tow: is not known"]),
        (None, ["to: is missing", "by: is missing"]),
        ({"to": {"street": "x"}, "by": {"name": "x", "more": 1}, "at": "ten"}, []),
    ],
)
async def test_who_has_no_code_is_told_which_field_does_not_fit(house, payload, problems):
    orchestrator = house.orchestrator()
    orchestrator.register_worker("deliver", deliver, execution_mode="triggered", payload={"at": "night"})
    await orchestrator.register_definitions()
    await refuse_misfit(house.db, "nobody", payload)
    if not problems:
        return await refuse_misfit(house.db, "deliver", payload)
    with pytest.raises(InvalidPayload) as refused:
        await refuse_misfit(house.db, "deliver", payload)
    shown = str(refused.value).removesuffix(" (the payload does not fit the handler of 'deliver')")
    assert sorted(shown.split("; ")) == sorted(problems)
    return None


async def test_while_a_large_payload_is_checked_others_write_and_the_loop_goes_on(house, monkeypatch):
    orchestrator = house.orchestrator()
    orchestrator.register_worker("deliver", deliver, execution_mode="triggered", payload={"at": "night"})
    await orchestrator.register_definitions()
    began, may_end = threading.Event(), threading.Event()

    def slow(*_arguments: object) -> None:
        began.set()
        assert may_end.wait(20)
        raise InvalidPayload("it does not fit")

    monkeypatch.setattr(payloads, "check_fits", slow)
    asking = asyncio.ensure_future(house.orchestrator().trigger_told("deliver", {"at": "x" * 100_000}))
    assert await asyncio.to_thread(began.wait, 20)
    async with asyncio.timeout(10), house.db.write():  # SQLite has one such lock
        may_end.set()
    with pytest.raises(InvalidPayload, match="it does not fit"):
        await asking


def test_no_more_is_looked_for_than_is_told():
    looked = 0

    class Many(list[object]):
        def __iter__(self):
            nonlocal looked
            for item in super().__iter__():
                looked += 1
                yield item

    schema = {"properties": {"to": {"type": "array", "items": {"type": "integer"}}}}
    with pytest.raises(InvalidPayload, match=r"to\.4: must be a whole number; and more \(the payload"):
        check_fits("mail", {"to": Many(["x"] * 1000)}, schema)
    assert looked < 10


@pytest.mark.parametrize("has_code", [True, False])
async def test_a_letter_is_not_replayed_with_what_its_handler_refuses(house, has_code):
    orchestrator = house.orchestrator()

    @orchestrator.worker("pay", execution_mode="triggered", max_retries=0)
    async def pay(amount: int) -> None:
        if amount < 1:
            raise ValueError(amount)

    await orchestrator.start()
    await orchestrator.trigger_worker("pay", {"amount": 0})
    (end,) = await house.attempts(1)
    (letter,) = await house.rows("SELECT id FROM {p}dead_letters")
    asking = orchestrator if has_code else house.orchestrator()
    for payload in ({"amount": "five"}, {"amuont": 5}, {}):
        with pytest.raises(InvalidPayload, match="amount"):
            await asking.replay(letter["id"], payload)
    assert [row["status"] for row in await house.rows("SELECT status FROM {p}dead_letters")] == ["open"]
    await asking.replay(letter["id"], {"amount": 5})
    await house.attempts(2)
    assert end.ends_run == "exhausted"


PROGRAM = """
import json, socket, sys, time, enum
from dataclasses import dataclass, field
from jobrunner import WorkerOrchestrator
from jobrunner.policy import definitions

class Kind(enum.Enum):
    A = "a"
    B = "b"

@dataclass
class Part:
    kinds: frozenset[Kind] = frozenset(Kind)
    names: set[str] = field(default_factory=lambda: {"x", "y", "z"})

orchestrator = WorkerOrchestrator("sqlite:///x.db")

@orchestrator.worker("a", execution_mode="triggered")
def a(part: Part, tags: frozenset[str] = frozenset({"a", "b"}), at: float = time.time(), at2: str = repr(object())):
    pass

print(definitions.definition_hash(definitions.to_document(orchestrator.workers["a"])))
"""


def test_the_same_code_has_the_same_hash_whenever_and_wherever_it_starts(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    hashes = set()
    for seed in ("0", "1", "2"):
        environment = {"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)}
        done = subprocess.run(
            [sys.executable, "program.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        )
        hashes.add(done.stdout)
    assert len(hashes) == 1


async def test_a_schema_is_the_codes_alone(house):
    orchestrator = house.orchestrator()
    with pytest.raises(InvalidWorker, match="unknown option payload_schema"):
        orchestrator.register_worker("a", tasks.nothing, payload_schema={})
    orchestrator.register_worker("a", tasks.nothing)
    await orchestrator.register_definitions()
    with pytest.raises(InvalidWorker, match="payload_schema"):
        await orchestrator.set_override("a", payload_schema={"type": "object"})
    assert "payload_schema" not in definitions.OVERRIDABLE


def test_a_schema_that_would_be_too_large_is_left_open():
    fields = ", ".join(f"a_field_of_a_rather_long_name_{number}: int" for number in range(500))
    names: dict[str, Any] = {}
    exec(f"def large({fields}): ...", names)
    orchestrator = WorkerOrchestrator("sqlite:///x.db")
    orchestrator.register_worker("large", names["large"], execution_mode="triggered")
    assert schema_of(orchestrator, "large") == {}
    assert MOST_BYTES < 64 * 1024


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "nonsense"},
        {"$ref": "#/$defs/missing"},
        {"$ref": "https://example.org/schema.json"},
        {"$ref": "#"},
        {"properties": 5},
        {"required": 7},
        {"enum": None},
        {"pattern": "("},
        {"minimum": "x"},
        [],
        "text",
        None,
    ],
)
def test_a_schema_that_cannot_be_read_refuses_nothing(schema):
    check_fits("a", {"x": 1}, schema)
    check_fits("a", {"x": 1}, {"properties": {"x": schema}})
