"""Triggers, on both databases: the caller's transaction, payloads that do not fit, keys, and who may trigger."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from enum import Enum
from typing import Any, Literal
from uuid import UUID

import pytest
import sqlalchemy as sa
from pydantic import BaseModel, Field
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from jobrunner import RunContext, WorkerOrchestrator
from jobrunner.errors import InvalidPayload, InvalidSetting, InvalidWorker, Refused, UsageError
from jobrunner.storage.database import sqlite_driver
from jobrunner.telemetry import events as e
from tests.cli.program import ROOT
from tests.runtime.conftest import House

TRIGGERED: dict[str, Any] = {"execution_mode": "triggered", "max_retries": 0}


async def nothing() -> None: ...


@pytest.fixture
async def orchestrator(house: House) -> WorkerOrchestrator:
    """A node with a worker `it` that takes anything."""
    made = house.orchestrator()
    made.register_worker("it", nothing, **TRIGGERED)
    await made.start()
    return made


# --- the caller's transaction -------------------------------------------------------------------------------------


@contextlib.contextmanager
def sync_engine(url: str) -> Iterator[sa.Engine]:
    made = sa.make_url(url)
    driver = "sqlite" if made.get_backend_name() == "sqlite" else "postgresql+psycopg"
    engine = sa.create_engine(made.set(drivername=driver))
    yield engine
    engine.dispose()


def async_url(url: str) -> sa.URL:
    made = sa.make_url(url)
    return made.set(drivername="sqlite+aiosqlite" if made.get_backend_name() == "sqlite" else "postgresql+asyncpg")


@pytest.mark.parametrize("kind", ["connection", "session"])
async def test_an_async_caller_that_rolls_back_makes_no_run_and_one_that_commits_makes_one(
    house: House, orchestrator: WorkerOrchestrator, kind: str
):
    engine = create_async_engine(async_url(house.url))
    for is_committed in (False, True):
        async with engine.connect() as connection:
            caller: Any = connection if kind == "connection" else AsyncSession(connection)
            await orchestrator.trigger_worker("it", connection=caller)
            await orchestrator.trigger_many("it", [None, None], connection=caller)
            if kind == "session":
                await caller.flush()
            await (connection.commit() if is_committed else connection.rollback())
            if kind == "session":
                await caller.close()
        if not is_committed:
            await orchestrator.wait_idle()
            assert await house.history() == []
    await engine.dispose()
    await orchestrator.wait_idle()
    await house.attempts(3)
    assert len(await house.history()) == 3


@pytest.mark.parametrize("kind", ["connection", "session"])
async def test_a_synchronous_caller_does_so_in_its_own_thread_and_driver(
    house: House, orchestrator: WorkerOrchestrator, kind: str
):
    def call(is_committed: bool) -> None:
        with sync_engine(house.url) as engine, engine.connect() as connection:
            caller: Any = connection if kind == "connection" else Session(connection)
            orchestrator.trigger_sync("it", {}, key="k", connection=caller)
            if is_committed:
                connection.commit()
            else:
                connection.rollback()

    await asyncio.to_thread(call, False)
    await orchestrator.wait_idle()
    assert await house.history() == []
    await asyncio.to_thread(call, True)
    await orchestrator.wait_idle()
    await house.attempts(1)
    assert len(await house.history()) == 1


async def test_connections_that_cannot_be_used_are_refused(house: House, orchestrator: WorkerOrchestrator):
    other = create_async_engine("sqlite+aiosqlite://" if not house.db.is_sqlite else "postgresql+asyncpg://a@b/c")
    with pytest.raises(UsageError, match="but jobrunner's database is"):
        await orchestrator.trigger_worker("it", connection=AsyncSession(other))
    with pytest.raises(UsageError, match="must be a SQLAlchemy connection"):
        await orchestrator.trigger_worker("it", connection=object())
    with pytest.raises(Refused, match="running event loop"):
        orchestrator.trigger_sync("it")
    engine = create_async_engine(async_url(house.url))
    async with engine.connect() as connection:
        with pytest.raises(Refused, match="synchronous connection"):
            await asyncio.to_thread(orchestrator.trigger_sync, "it", connection=connection)
    await engine.dispose()
    await other.dispose()


async def test_on_postgres_an_open_transaction_of_a_caller_blocks_nobody(postgres_url: str):
    house = House(postgres_url)
    orchestrator = house.orchestrator()
    orchestrator.register_worker("it", nothing, **TRIGGERED)
    orchestrator.register_worker("every", nothing, interval_seconds=0.05)
    await orchestrator.start()
    engine = create_async_engine(async_url(postgres_url))
    async with engine.connect() as connection:
        await orchestrator.trigger_worker("it", connection=connection)
        await orchestrator.trigger_worker("it")
        await house.attempts(1, "it")  # another run of the same worker
        before = len(house.ended("every"))
        await house.attempts(before + 5, "every")
        await orchestrator.disable_worker("it")
        await orchestrator.enable_worker("it")
        await connection.commit()
    await house.attempts(2, "it")
    await engine.dispose()
    await house.close()


async def test_on_sqlite_a_caller_that_has_written_holds_the_file_and_the_node_waits_and_says_so_once(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sqlite_driver, "BUSY_TIMEOUT_SECONDS", 0.2)
    house = House(sqlite_url)
    orchestrator = house.orchestrator(tick_interval=0.05)
    orchestrator.register_worker("it", nothing, **TRIGGERED)
    orchestrator.register_worker("every", nothing, interval_seconds=0.1)
    await orchestrator.start()
    await house.attempts(1, "every")
    let_go, has_written = threading.Event(), threading.Event()

    def call() -> None:
        with sync_engine(sqlite_url) as engine, engine.begin() as connection:
            orchestrator.trigger_sync("it", connection=connection)
            has_written.set()
            let_go.wait(20)

    caller = asyncio.ensure_future(asyncio.to_thread(call))
    await asyncio.to_thread(has_written.wait, 10)
    await house.until(lambda: any(isinstance(event, e.DatabaseLost) for event in house.seen))
    ended = len(house.ended())
    await asyncio.sleep(1)
    assert len(house.ended()) == ended
    let_go.set()
    await caller
    await house.attempts(1, "it")
    await house.until(lambda: any(isinstance(event, e.DatabaseBack) for event in house.seen))
    lost = [event for event in house.seen if isinstance(event, e.DatabaseLost)]
    assert len(lost) == 1
    assert "locked" in lost[0].error
    sql = "SELECT 1 FROM {p}run_history WHERE outcome = 'missed' AND worker = 'every' AND occurrences >= 5"
    await house.until_row(sql)  # nothing is lost: what could not start meanwhile is known
    await house.close()


# --- payloads -----------------------------------------------------------------------------------------------------


class Colour(Enum):
    RED = "red"


@dataclass
class Address:
    street: str
    number: int


class Item(BaseModel):
    sku: str
    amount: int = Field(gt=0)


async def order(
    run: RunContext,
    customer: str,
    items: list[Item],
    address: Address | None = None,
    colour: Colour = Colour.RED,
    speed: Literal["slow", "fast"] = "slow",
    day: date = date(2026, 1, 1),
    at: datetime | None = None,
    price: float = 1.0,
    tags: dict[str, int] | None = None,
    id: UUID | None = None,
    is_gift: bool = False,
    count: int = 1,
) -> None: ...


GOOD: dict[str, Any] = {"customer": "ada", "items": [{"sku": "a", "amount": 1}]}
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, "customer"),
    "missing": ({"customer": "ada"}, "items"),
    "null": ({**GOOD, "customer": None}, "customer"),
    "number for text": ({**GOOD, "customer": 5}, "customer"),
    "text for number": ({**GOOD, "count": "5"}, "count"),
    "fraction for whole": ({**GOOD, "count": 1.5}, "count"),
    "truth for number": ({**GOOD, "count": True}, "count"),
    "number for truth": ({**GOOD, "is_gift": 1}, "is_gift"),
    "text for fraction": ({**GOOD, "price": "1.0"}, "price"),
    "object for list": ({**GOOD, "items": {"sku": "a"}}, "items"),
    "wrong in a list": ({**GOOD, "items": [{"sku": "a", "amount": 1}, {"sku": "b", "amount": 0}]}, "items.1.amount"),
    "missing in a list": ({**GOOD, "items": [{"sku": "a"}]}, "items.0.amount"),
    "nested text": ({**GOOD, "address": {"street": "Main", "number": "5"}}, "address.number"),
    "nested missing": ({**GOOD, "address": {"street": "Main"}}, "address.number"),
    "no such choice": ({**GOOD, "colour": "blue"}, "colour"),
    "no such literal": ({**GOOD, "speed": "warp"}, "speed"),
    "no day": ({**GOOD, "day": "2026-02-30"}, "day"),
    "no time": ({**GOOD, "at": "yesterday"}, "at"),
    "no id": ({**GOOD, "id": "not-a-uuid"}, "id"),
    "wrong in a map": ({**GOOD, "tags": {"a": "1"}}, "tags.a"),
    "unknown": ({**GOOD, "colr": "red"}, "colr"),
    "list for text": ({**GOOD, "customer": ["ada"]}, "customer"),
}


async def test_twenty_kinds_of_bad_payloads_are_refused_and_by_sql_end_as_letters_that_name_the_field(house: House):
    assert len(BAD) >= 20
    orchestrator = house.orchestrator()
    orchestrator.register_worker("order", order, max_running=5, **TRIGGERED)
    await orchestrator.start()
    await orchestrator.trigger_worker("order", GOOD)
    for payload, field in BAD.values():
        with pytest.raises(InvalidPayload) as refused:
            await orchestrator.trigger_worker("order", payload)
        assert str(refused.value).startswith(f"{field}: ")
    insert = sa.text(f"INSERT INTO {house.db.schema_prefix}runs (worker, payload) VALUES ('order', :payload)")
    if not house.db.is_sqlite:
        insert = sa.text(str(insert).replace(":payload", "CAST(:payload AS jsonb)"))
    async with house.db.write() as conn:
        for payload, _ in BAD.values():
            await conn.execute(insert, {"payload": json.dumps(payload)})
    await orchestrator.trigger_worker("order", GOOD)
    await house.attempts(2 + len(BAD))
    letters = await house.rows("SELECT error, error_type, status, attempts FROM {p}dead_letters ORDER BY run_id")
    assert len(letters) == len(BAD)
    for letter, (_, field) in zip(letters, BAD.values(), strict=True):
        assert letter["error"].startswith(f"{field}: "), letter["error"]
        assert (letter["error_type"], letter["status"], letter["attempts"]) == ("InvalidPayload", "open", 1)
    state = await house.state("order")
    assert (state["consecutive_failures"], bool(state["is_enabled"])) == (0, True)
    ended = {row["ends_run"] for row in await house.history() if row["outcome"] == "failed"}
    assert ended == {"discarded"}


def nested(depth: int) -> dict[str, Any]:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return {"n": value}


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"delay": 1, "at": datetime.now(UTC)}, "at or delay"),
        ({"at": datetime(2026, 1, 1)}, "aware"),  # noqa: DTZ001 - that is what is refused
        ({"at": "2h"}, "at must be an aware time"),
        ({"force": "no"}, "force must be True or False"),
        ({"key_scope": ["live"], "key": "k"}, "neither 'waiting' nor 'live'"),
        ({"delay": "soon"}, "delay must be"),
        ({"delay": float("nan")}, "delay must be"),
        ({"key": "k", "key_scope": "forever"}, "neither 'waiting' nor 'live'"),
        ({"priority": "URGENT"}, "URGENT"),
        ({"key": ""}, "key"),
        ({"at": datetime(1969, 12, 31, tzinfo=UTC)}, "between 1970 and 9999"),
        ({"at": datetime.max.replace(tzinfo=UTC)}, "between 1970 and 9999"),
        ({"delay": 9000 * 365 * 86400}, "leads past the year 9999"),
        ({"payload": nested(700)}, "nested 701 deep"),
    ],
    ids=[
        "both",
        "naive",
        "at",
        "force",
        "scopes",
        "text",
        "nan",
        "scope",
        "priority",
        "key",
        "1969",
        "last",
        "delay",
        "nested",
    ],
)
async def test_options_that_cannot_be_used_are_refused(sqlite_url: str, options: dict[str, Any], problem: str):
    orchestrator = WorkerOrchestrator(sqlite_url)
    orchestrator.register_worker("it", nothing, **TRIGGERED)
    with pytest.raises((InvalidSetting, InvalidPayload, UsageError), match=problem):
        await orchestrator.trigger_worker("it", **options)


async def test_a_name_that_is_no_text_is_refused(sqlite_url: str):
    orchestrator: Any = WorkerOrchestrator(sqlite_url)
    for name in (5, None, ["it"], "a\0b"):
        for trigger in (orchestrator.trigger_worker(name), orchestrator.trigger_many(name, [{}])):
            with pytest.raises(InvalidSetting, match="name must be text"):
                await trigger


# --- keys, and processes without handlers -------------------------------------------------------------------------


async def test_of_many_triggers_one_that_does_not_fit_refuses_all(house: House):
    maker = house.orchestrator()

    async def it(n: int) -> None: ...

    maker.register_worker("it", it, payload={"n": 7}, **TRIGGERED)
    await maker.start()
    await maker.disable_worker("it")
    for wrong in ({"n": "1"}, {"m": 1}, {}, {"n": {1}}, [1], {"n": 1, "x": "\0"}):
        with pytest.raises(InvalidPayload, match="payload 2 of 3: "):
            await maker.trigger_many("it", iter([{"n": 1}, wrong, None]))  # type: ignore[arg-type]
    with pytest.raises(InvalidPayload, match="payload 1 of 1: n: Input should be "):
        await maker.trigger_many("it", [{"n": "x"}])
    with pytest.raises(InvalidSetting, match="payloads must be several"):
        await maker.trigger_many("it", 5)  # type: ignore[arg-type]
    with pytest.raises(InvalidWorker):
        await maker.trigger_many("it", [{"n": 1}], priority="URGENT")
    assert await house.rows("SELECT id FROM {p}runs") == []
    ids = await maker.trigger_many("it", ({"n": n} if n else None for n in range(3)), priority="LOW")
    assert [row["id"] for row in await house.rows("SELECT id FROM {p}runs WHERE priority = 0 ORDER BY id")] == ids
    await maker.enable_worker("it")
    await house.attempts(3)
    rows = sorted(await house.history(), key=lambda row: int(row["run_id"]))
    payloads = [json.loads(p) if isinstance(p, str) else p for p in (row["payload"] for row in rows)]
    assert payloads == [{"n": 7}, {"n": 1}, {"n": 2}]


RACER = """
import asyncio, sys
from jobrunner import WorkerOrchestrator

async def main():
    orchestrator = WorkerOrchestrator(sys.argv[1])  # knows no handler
    print("ready", flush=True)
    sys.stdin.readline()
    for number in range(20):
        run_id = await orchestrator.trigger_worker("it", {"n": number}, key=f"key-{number}")
        print(number, run_id, flush=True)

asyncio.run(main())
"""


async def test_eight_processes_without_handlers_race_for_the_same_keys(house: House):
    maker = house.orchestrator()

    async def it(n: int) -> None: ...

    maker.register_worker("it", it, **TRIGGERED)
    await maker.start()
    await maker.disable_worker("it")
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, house.url],
            env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(8)
    ]

    def race() -> list[str]:
        for racer in racers:
            assert racer.stdout is not None
            assert racer.stdout.readline() == "ready\n"
        for racer in racers:
            assert racer.stdin is not None
            racer.stdin.write("\n")
            racer.stdin.flush()
        return [line for racer in racers for line in racer.communicate(timeout=60)[0].splitlines()]

    answers = await asyncio.to_thread(race)
    assert len(answers) == 8 * 20
    assert len(set(answers)) == 20  # everyone was told the same id for the same key
    rows = await house.rows("SELECT id, key FROM {p}runs")
    assert len(rows) == 20
    await maker.enable_worker("it")
    await house.attempts(20)
    assert {row["outcome"] for row in await house.history()} == {"succeeded"}
