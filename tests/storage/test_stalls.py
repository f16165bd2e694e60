"""Connections that neither answer nor close: each wait has an end, and the next use opens another connection.

The proxy of these tests goes on acknowledging what it is sent, and forwards nothing.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from jobrunner.errors import DatabaseUnavailable
from jobrunner.storage.database import postgres_driver, postgres_watch, wakeups
from jobrunner.storage.database.database import Database
from jobrunner.storage.database.wakeups import PostgresWakeups
from jobrunner.storage.tables import define as t
from jobrunner.storage.turns.postgres import PostgresFastPath
from tests.support.proxy import StallingProxy, stalling

PATIENCE = 1.0
LONG_ENOUGH = 30.0  # for a wait of a second or two on a busy machine; without a deadline there is none that is enough
WORKER = {"handler": "h", "execution_mode": "triggered", "definition_hash": "x"}


@pytest.fixture
def proxy(postgres_url: str) -> Iterator[StallingProxy]:
    with stalling(postgres_url) as proxy:
        yield proxy


@pytest.fixture
async def db(proxy: StallingProxy) -> AsyncIterator[Database]:
    """A database behind the proxy, its first connection open."""
    db = Database.open(proxy.url, patience=PATIENCE)
    assert await names(db) == []
    yield db
    async with asyncio.timeout(LONG_ENOUGH):
        await db.close()


async def names(db: Database) -> list[str]:
    async with db.peek() as conn:
        return list((await conn.execute(sa.select(t.workers.c.name).order_by(t.workers.c.name))).scalars())


async def add_worker(db: Database, name: str) -> None:
    async with db.write() as conn:
        await conn.execute(sa.insert(t.workers), {**WORKER, "name": name})


async def names_without_proxy(url: str) -> list[str]:
    db = Database.open(url)
    found = await names(db)
    await db.close()
    return found


async def test_a_statement_without_an_answer_is_given_up_and_the_next_use_opens_another(db, proxy):
    proxy.stall_those_that_said("")
    async with asyncio.timeout(LONG_ENOUGH):
        with pytest.raises(DatabaseUnavailable, match="does not answer: a statement had no answer in time") as caught:
            await names(db)
        assert "\n" not in str(caught.value)
        assert db.dialect.is_disconnect(caught.value)
        assert await names(db) == []


async def test_a_pool_full_of_stalled_connections_costs_one_failure_not_one_each(db, proxy):
    async def hold(barrier: asyncio.Barrier) -> None:
        async with db.peek() as conn:
            await conn.execute(sa.select(1))
            await barrier.wait()

    barrier = asyncio.Barrier(5)
    await asyncio.gather(*(hold(barrier) for _ in range(5)))
    assert proxy.stall_those_that_said("") == 5
    async with asyncio.timeout(LONG_ENOUGH):
        with pytest.raises(DatabaseUnavailable):
            await names(db)
        for _ in range(5):
            assert await names(db) == []


@pytest.mark.parametrize("is_forwarded", [False, True])
async def test_a_commit_without_an_answer_ends_and_says_that_nothing_is_known(db, proxy, postgres_url, is_forwarded):
    proxy.stall_at("COMMIT;", forward=is_forwarded)
    async with asyncio.timeout(LONG_ENOUGH):
        with pytest.raises(DatabaseUnavailable, match="does not answer"):
            await add_worker(db, "w")
        assert proxy.sprung.is_set()
        assert await names_without_proxy(postgres_url) == ["w"] * is_forwarded
        await add_worker(db, "next")


async def test_a_rollback_without_an_answer_ends_and_the_error_of_the_block_is_told(db, proxy):
    proxy.stall_at("ROLLBACK;", forward=False)
    async with asyncio.timeout(LONG_ENOUGH):
        with pytest.raises(LookupError):
            async with db.write() as conn:
                await conn.execute(sa.insert(t.workers), {**WORKER, "name": "w"})
                raise LookupError
        assert proxy.sprung.is_set()
        assert await names(db) == []


@pytest.mark.parametrize("where", ["statement", "COMMIT"])
async def test_a_task_that_is_cancelled_on_a_stalled_connection_ends_soon(proxy, where):
    db = Database.open(proxy.url, patience=3600)
    proxy.stall_at("INSERT INTO" if where == "statement" else "COMMIT;", forward=False)
    writing = asyncio.create_task(add_worker(db, "w"))
    assert await asyncio.to_thread(proxy.sprung.wait, LONG_ENOUGH)
    writing.cancel()
    async with asyncio.timeout(LONG_ENOUGH):
        with pytest.raises(asyncio.CancelledError):
            await writing
        assert await names(db) == []
        await db.close()


async def test_a_server_that_takes_connections_and_says_nothing_is_given_up(proxy, monkeypatch):
    monkeypatch.setattr(postgres_driver, "CONNECT_TIMEOUT_SECONDS", PATIENCE)
    proxy.stall()
    db = Database.open(proxy.url)
    async with asyncio.timeout(LONG_ENOUGH):
        with pytest.raises(DatabaseUnavailable, match="does not answer: no connection within 1 s"):
            await names(db)
        proxy.resume()
        assert await names(db) == []
        await db.close()


async def test_closing_waits_for_no_stalled_connection(proxy):
    db = Database.open(proxy.url, patience=3600)

    async def hold(barrier: asyncio.Barrier) -> None:
        async with db.peek() as conn:
            await conn.execute(sa.select(1))
            await barrier.wait()

    barrier = asyncio.Barrier(5)
    await asyncio.gather(*(hold(barrier) for _ in range(5)))
    proxy.stall()
    opening = [asyncio.create_task(hold(asyncio.Barrier(1))) for _ in range(6)]
    await asyncio.sleep(0.1)  # one of them has had to open another connection
    for task in opening:
        task.cancel()
    async with asyncio.timeout(LONG_ENOUGH):
        await db.close()
        await asyncio.wait(opening)
    assert all(connection.is_closed() for connection in db._engines.opened)


async def test_a_server_process_that_was_stopped_is_given_up(db, postgres_url, postgres):
    async with db.peek() as conn:
        pid = (await conn.exec_driver_sql("SELECT pg_backend_pid()")).scalar_one()
    assert f"{pid}" in postgres.execute("SELECT pid FROM pg_stat_activity WHERE application_name = 'jobrunner'")
    os.kill(pid, signal.SIGSTOP)
    try:
        async with asyncio.timeout(LONG_ENOUGH):
            with pytest.raises(DatabaseUnavailable, match="does not answer"):
                await names(db)
            assert await names(db) == []
    finally:
        os.kill(pid, signal.SIGCONT)


async def test_a_statement_that_waits_for_a_lock_is_ended_by_the_server_which_says_why(db, postgres_url):
    await add_worker(db, "w")
    lock = sa.select(t.workers).with_for_update()
    other = Database.open(postgres_url)
    async with asyncio.timeout(LONG_ENOUGH), other.write() as holder:
        await holder.execute(lock)
        async with db.peek() as conn:
            before = (await conn.exec_driver_sql("SELECT pg_backend_pid()")).scalar_one()
        with pytest.raises(DatabaseUnavailable, match="statement timeout; nothing was written"):
            async with db.write() as conn:
                await conn.execute(lock)
        async with db.peek() as conn:
            assert (await conn.exec_driver_sql("SELECT pg_backend_pid()")).scalar_one() == before
    await other.close()


# --- uses that may take long --------------------------------------------------------------------------------------


@pytest.mark.parametrize("use", ["read", "write", "migrate"])
async def test_a_long_use_has_time_and_its_connection_has_deadlines_again_after_it(postgres_url, use):
    db = Database.open(postgres_url, patience=0.3, pool_size=1)
    begun: dict[str, Any] = {"migrate": db.migrate}
    open_use = begun.get(use) or (lambda: getattr(db, use)(is_long=True))
    async with asyncio.timeout(LONG_ENOUGH):
        async with open_use() as conn:
            await conn.exec_driver_sql("SELECT pg_sleep(1)")
        with pytest.raises(DatabaseUnavailable):
            async with db.peek() as conn:
                await conn.exec_driver_sql("SELECT pg_sleep(1)")
    await db.close()


async def test_a_long_use_whose_statement_the_server_never_got_is_given_up(db, proxy, monkeypatch):
    monkeypatch.setattr(postgres_watch, "IDLE_SECONDS", 0.5)
    proxy.stall_at("pg_sleep", forward=False)
    async with asyncio.timeout(LONG_ENOUGH):
        with pytest.raises(DatabaseUnavailable):
            async with db.read(is_long=True) as conn:
                await conn.exec_driver_sql("SELECT pg_sleep(0)")
        assert await names(db) == []


async def test_a_long_use_ends_when_there_is_no_other_connection_to_be_had(db, proxy, monkeypatch):
    monkeypatch.setattr(postgres_driver, "CONNECT_TIMEOUT_SECONDS", PATIENCE)
    async with asyncio.timeout(LONG_ENOUGH):
        with pytest.raises(DatabaseUnavailable):
            async with db.write(is_long=True) as conn:
                await conn.exec_driver_sql("SELECT 1")
                proxy.stall()
                await conn.exec_driver_sql("SELECT 2")


async def test_the_commit_of_a_long_use_has_a_deadline(db, proxy):
    proxy.stall_at("COMMIT;", forward=False)
    async with asyncio.timeout(LONG_ENOUGH):
        with pytest.raises(DatabaseUnavailable):
            async with db.write(is_long=True) as conn:
                await conn.execute(sa.insert(t.workers), {**WORKER, "name": "w"})


# --- connections of their own -------------------------------------------------------------------------------------


async def test_a_turn_without_an_answer_is_given_up_and_the_next_one_goes_elsewhere(db, proxy):
    fast_path = PostgresFastPath(db)
    (now,) = await _now(db)
    await fast_path.turn("n", now, 1, None, [])
    assert proxy.stall_those_that_said("take_turn") == 1
    async with asyncio.timeout(LONG_ENOUGH):
        with pytest.raises(DatabaseUnavailable, match="does not answer"):
            await fast_path.turn("n", now, 1, None, [])
        await fast_path.turn("n", now, 1, None, [])
    await fast_path.close()


async def _now(db: Database) -> Any:
    async with db.peek() as conn:
        return (await conn.exec_driver_sql("SELECT now()")).one()


@pytest.mark.parametrize("when", ["before it listens", "while it listens"])
async def test_a_listener_that_was_forgotten_listens_again(proxy, monkeypatch, when):
    monkeypatch.setattr(wakeups, "ASK_AGAIN_SECONDS", 0.2)
    monkeypatch.setattr(wakeups, "LISTENERS_PATIENCE_SECONDS", PATIENCE)
    if when == "before it listens":
        proxy.stall_at("LISTEN", forward=False)
    heard = asyncio.Event()
    db = Database.open(proxy.url)
    listening = PostgresWakeups(db.url, db.schema)
    await listening.start(heard.set)
    async with asyncio.timeout(LONG_ENOUGH):
        await heard.wait()
        if when == "while it listens":
            heard.clear()
            assert proxy.stall_those_that_said("LISTEN") == 1
            await heard.wait()
        await listening.stop()
    await db.close()
