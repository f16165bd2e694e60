"""A program that triggers before any node has registered its workers: a web process after a deploy, a test."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from jobrunner import WorkerOrchestrator
from jobrunner.errors import InvalidWorker, Refused, SchemaMissing, WorkerNotFound
from jobrunner.testing import run_until_idle
from jobrunner.testing.plugin import temporary_database
from tests.cli.conftest import Cli
from tests.cli.test_grants import as_role
from tests.runtime.conftest import House
from tests.runtime.test_triggers import async_url, sync_engine

__all__ = ["as_role", "temporary_database"]  # fixtures
TRIGGERED: dict[str, Any] = {"execution_mode": "triggered", "max_retries": 0}


async def nothing() -> None: ...


def web(house: House, **settings: Any) -> WorkerOrchestrator:
    """An orchestrator that never starts a node."""
    made = house.orchestrator(**settings)
    made.register_worker("mail", nothing, **TRIGGERED)
    made.register_worker("after", nothing, interval_seconds=60, depends_on=["mail"])
    return made


async def names(house: House) -> list[str]:
    return [row["name"] for row in await house.rows("SELECT name FROM {p}workers ORDER BY name")]


async def waiting(house: House) -> int:
    return len(await house.rows("SELECT id FROM {p}runs WHERE worker = 'mail'"))


async def test_the_first_trigger_registers_the_orchestrators_own_workers(house: House):
    sender = web(house)
    first = await sender.trigger_worker("mail", key="k")
    assert await names(house) == ["after", "mail"]
    assert await sender.trigger_worker("mail", key="k") == first
    assert len(await sender.trigger_many("mail", [None, {}])) == 2
    assert await waiting(house) == 3


@pytest.mark.parametrize("how", ["many", "sync", "key"])
async def test_so_does_the_first_of_many_one_without_a_loop_and_one_with_a_key(house: House, how: str):
    sender = web(house)
    if how == "many":
        await sender.trigger_many("mail", [None])
    elif how == "key":
        await sender.trigger_worker("mail", key="k", key_scope="live")
    else:
        await asyncio.to_thread(sender.trigger_sync, "mail")
    assert await waiting(house) == 1


async def test_a_worker_of_nobody_is_still_unknown_and_registers_nothing(house: House):
    sender = web(house)
    for trigger in (sender.trigger_worker("nobody"), sender.trigger_many("nobody", [None])):
        with pytest.raises(WorkerNotFound, match="no worker named 'nobody'"):
            await trigger
    assert await names(house) == []


async def test_a_mistyped_worker_is_told_with_the_one_that_was_meant(house: House):
    sender, engine = web(house), create_async_engine(async_url(house.url))
    meant = "no worker named 'mial'; did you mean 'mail'?"
    with pytest.raises(WorkerNotFound, match=re.escape(meant)):  # of its own code: the database is empty
        await sender.trigger_worker("mial")
    await sender.register_definitions()
    other: Any = house.orchestrator()
    for ask in (
        other.trigger_worker,
        lambda name: other.trigger_many(name, [None]),
        other.history,
        other.enable_worker,
        other.pause_worker,
        lambda name: other.set_override(name, max_retries=1),
    ):
        with pytest.raises(WorkerNotFound, match=re.escape(meant)) as unknown:
            await ask("mial")
        assert unknown.value.worker == "mial"
    async with engine.connect() as connection:
        with pytest.raises(WorkerNotFound, match=re.escape(meant)):
            await other.trigger_worker("mial", connection=connection)
        await other.trigger_worker("mail", connection=connection)
        await connection.commit()
    await engine.dispose()
    assert await waiting(house) == 1
    refused = pytest.raises(WorkerNotFound, match=re.escape(meant))
    with sync_engine(house.url) as sync, sync.connect() as connection, refused:
        await asyncio.to_thread(other.trigger_sync, "mial", connection=connection)
    with pytest.raises(InvalidWorker, match="did you mean max_retries"):
        await other.set_override("mail", max_retires=1)
    sender.register_worker("next", nothing, depends_on=["aftre"], **TRIGGERED)
    with pytest.raises(InvalidWorker, match=r"depends on 'aftre', which is known neither .*; did you mean 'after'"):
        await sender.register_definitions()


async def test_a_trigger_adds_definitions_and_changes_none(house: House):
    newer = house.orchestrator()
    newer.register_worker("after", nothing, interval_seconds=7)
    await newer.register_definitions()
    await web(house).trigger_worker("mail")
    assert await names(house) == ["after", "mail"]
    (row,) = await house.rows("SELECT interval_seconds FROM {p}workers WHERE name = 'after'")
    assert row["interval_seconds"] == 7


async def test_definitions_that_do_not_hold_together_are_refused_and_make_no_run(house: House):
    sender = house.orchestrator()
    sender.register_worker("mail", nothing, depends_on=["nobody"], **TRIGGERED)
    with pytest.raises(InvalidWorker, match="nobody"):
        await sender.trigger_worker("mail")
    assert await names(house) == []


async def test_many_that_trigger_first_at_the_same_time_all_make_their_runs(house: House):
    senders = [WorkerOrchestrator(house.url) for _ in range(5)]
    for sender in senders:
        sender.register_worker("mail", nothing, **TRIGGERED)
    run_ids = await asyncio.gather(*(sender.trigger_worker("mail") for sender in senders for _ in range(3)))
    assert len(set(run_ids)) == await waiting(house) == 15
    for sender in senders:
        await sender.stop()


async def test_a_node_runs_what_was_triggered_before_it_started(house: House):
    await web(house).trigger_worker("mail")
    node = web(house)
    await node.start()
    await house.attempts(1, "mail")


@pytest.mark.parametrize("kind", ["connection", "session"])
async def test_in_a_callers_transaction_a_rollback_loses_no_registration_for_good(house: House, kind: str):
    sender, engine = web(house), create_async_engine(async_url(house.url))
    for is_committed in (False, True):
        async with engine.connect() as connection:
            await connection.execute(sa.text("CREATE TABLE IF NOT EXISTS orders (id INTEGER)"))
            await connection.execute(sa.text("INSERT INTO orders VALUES (1)"))  # on SQLite the write lock is ours
            caller: Any = connection if kind == "connection" else AsyncSession(connection)
            async with asyncio.timeout(4):
                await sender.trigger_worker("mail", connection=caller)
                await sender.trigger_many("mail", [None], connection=caller)
            await (connection.commit() if is_committed else connection.rollback())
            if kind == "session":
                await caller.close()
        assert await waiting(house) == (2 if is_committed else 0)
    await engine.dispose()
    assert await names(house) == ["after", "mail"]


@pytest.mark.parametrize("kind", ["connection", "session"])
async def test_a_synchronous_caller_registers_in_its_own_thread_too(house: House, kind: str):
    sender = web(house)

    def call(is_committed: bool) -> None:
        with sync_engine(house.url) as engine, engine.connect() as connection:
            connection.execute(sa.text("CREATE TABLE IF NOT EXISTS orders (id INTEGER)"))
            connection.execute(sa.text("INSERT INTO orders VALUES (1)"))
            caller: Any = connection if kind == "connection" else Session(connection)
            sender.trigger_sync("mail", connection=caller)
            if is_committed:
                connection.commit()
            else:
                connection.rollback()

    for is_committed in (False, True):
        await asyncio.wait_for(asyncio.to_thread(call, is_committed), 10)
    assert await waiting(house) == 1
    assert await names(house) == ["after", "mail"]


async def test_on_postgres_an_open_transaction_that_triggered_first_keeps_no_node_from_its_start(postgres_url: str):
    house = House(postgres_url)
    sender, engine = web(house), create_async_engine(async_url(postgres_url))
    async with engine.connect() as connection:
        await sender.trigger_worker("mail", connection=connection)
        node = house.orchestrator()
        node.register_worker("other", nothing, **TRIGGERED)
        async with asyncio.timeout(10):
            await node.start()
        await connection.commit()
    assert await waiting(house) == 1
    await engine.dispose()
    await house.close()


async def test_on_postgres_a_transaction_that_cannot_see_the_new_worker_is_told_to_begin_anew(postgres_url: str):
    house = House(postgres_url)
    sender = web(house)
    engine = create_async_engine(async_url(postgres_url), isolation_level="REPEATABLE READ")
    async with engine.connect() as connection:
        with pytest.raises(Refused, match="trigger it in a new one"):
            await sender.trigger_worker("mail", connection=connection)
        await connection.rollback()
        await sender.trigger_worker("mail", connection=connection)
        await connection.commit()
    assert await waiting(house) == 1
    await engine.dispose()
    await house.close()


def test_who_may_only_trigger_is_told_who_registers(
    as_role: Callable[[str], str], postgres_url: str, capsys: pytest.CaptureFixture[str]
):
    sender = WorkerOrchestrator(as_role("trigger"))
    sender.register_worker("mail", nothing, **TRIGGERED)
    with pytest.raises(WorkerNotFound, match=r"`jobrunner register MODULE` adds it.*permission denied"):
        sender.trigger_sync("mail")
    assert Cli(postgres_url, capsys).rows("workers") == []


def test_a_schema_that_is_missing_is_said_in_one_line(empty_postgres_url: str):
    sender = WorkerOrchestrator(empty_postgres_url)
    sender.register_worker("mail", nothing, **TRIGGERED)
    for trigger in (lambda: sender.trigger_sync("mail"), lambda: asyncio.run(sender.register_definitions())):
        with pytest.raises(SchemaMissing) as missing:
            trigger()
        assert str(missing.value).splitlines() == [str(missing.value)]


async def test_a_test_triggers_on_a_temporary_database_that_no_node_has_used(
    temporary_database: Callable[[WorkerOrchestrator], str], tmp_path: Path
):
    orchestrator = WorkerOrchestrator(f"sqlite:///{tmp_path / 'never.db'}")
    orchestrator.register_worker("mail", nothing, **TRIGGERED)
    temporary_database(orchestrator)
    run_id = await orchestrator.trigger_worker("mail")
    (attempt,) = await run_until_idle(orchestrator)
    assert (attempt["run_id"], attempt["outcome"]) == (run_id, "succeeded")
    assert not (tmp_path / "never.db").exists()


async def test_a_thread_triggers_first_while_a_node_of_other_workers_runs(house: House):
    node = house.orchestrator()
    node.register_worker("other", nothing, **TRIGGERED)
    await node.start()
    sender, done = web(house), threading.Event()

    def call() -> None:
        sender.trigger_sync("mail")
        done.set()

    await asyncio.to_thread(call)
    assert done.is_set()
    assert await waiting(house) == 1
