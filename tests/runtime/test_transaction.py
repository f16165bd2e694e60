"""`run.transaction()`, on both databases: the handler's writes and the end of its run are committed together."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import sqlalchemy as sa

from jobrunner import RunContext
from jobrunner.errors import ClaimLost
from jobrunner.telemetry import events as e
from tests.runtime.conftest import House

ONCE: dict[str, Any] = {"execution_mode": "triggered", "max_retries": 0}
INSERT = sa.text("INSERT INTO effects (run_id) VALUES (:id)")


@pytest.fixture
async def effects(house: House) -> House:
    async with house.db.write() as conn:
        await conn.exec_driver_sql("CREATE TABLE effects (run_id BIGINT PRIMARY KEY)")
    return house


async def count(house: House) -> int:
    (row,) = await house.rows("SELECT count(*) AS n FROM effects")
    return int(row["n"])


async def test_effect_and_end_are_committed_together(effects: House):
    seen: list[Any] = []

    async def it(run: RunContext) -> str:
        run.log("said")
        async with run.transaction() as connection:
            await connection.execute(INSERT, {"id": run.id})
            run.set_result({"rows": 1})
            seen.append((await count(effects), await effects.history()))
        seen.append((await count(effects), len(await effects.history()), await effects.rows("SELECT * FROM {p}runs")))
        return "what is returned comes too late"

    orchestrator = effects.orchestrator()
    orchestrator.register_worker("it", it, **ONCE)
    await orchestrator.start()
    run_id = await orchestrator.trigger_worker("it")
    (ended,) = await effects.attempts(1)
    assert seen == [(0, []), (1, 1, [])]
    (row,) = await effects.history()
    assert (row["run_id"], row["outcome"], row["ends_run"], row["output"]) == (run_id, "succeeded", "succeeded", "said")
    assert row["result"] in ({"rows": 1}, '{"rows":1}')
    assert (ended.run.id, ended.ends_run) == (run_id, "succeeded")
    state = await effects.state("it")
    assert (state["total_runs"], state["last_run_outcome"]) == (1, "succeeded")
    await orchestrator.trigger_worker("it")  # its slot is free again
    await effects.attempts(2)


async def test_an_error_in_the_block_rolls_back_and_is_the_attempts_own(effects: House):
    async def it(run: RunContext) -> None:
        async with run.transaction() as connection:
            await connection.execute(INSERT, {"id": run.id})
            raise ValueError("no luck")

    orchestrator = effects.orchestrator()
    orchestrator.register_worker("it", it, **ONCE)
    await orchestrator.start()
    await orchestrator.trigger_worker("it")
    await effects.attempts(1)
    (row,) = await effects.history()
    assert (row["outcome"], row["ends_run"], row["error"]) == ("failed", "exhausted", "no luck")
    assert await count(effects) == 0


async def test_an_error_after_the_block_changes_nothing_and_is_told(effects: House):
    async def it(run: RunContext) -> None:
        async with run.transaction() as connection:
            await connection.execute(INSERT, {"id": run.id})
        raise ValueError("too late")

    orchestrator = effects.orchestrator()
    orchestrator.register_worker("it", it, **ONCE)
    await orchestrator.start()
    await orchestrator.trigger_worker("it")
    await effects.attempts(1)
    assert [row["outcome"] for row in await effects.history()] == ["succeeded"]
    assert any("too late" in event.message for event in effects.seen if isinstance(event, e.Warned))


async def test_a_claim_that_is_gone_rolls_everything_back(effects: House):
    errors: list[BaseException] = []
    inside, go_on = asyncio.Event(), asyncio.Event()

    async def it(run: RunContext) -> None:
        try:
            async with run.transaction() as connection:
                inside.set()
                await go_on.wait()
                await connection.execute(INSERT, {"id": run.id})
                # As if another node had rescued it meanwhile; on SQLite nobody else could write.
                await connection.execute(sa.text(f"UPDATE {prefix}runs SET fence = fence + 1000"))
        except BaseException as error:
            errors.append(error)
            raise

    prefix = effects.db.schema_prefix
    orchestrator = effects.orchestrator()
    orchestrator.register_worker("it", it, **ONCE)
    await orchestrator.start()
    await orchestrator.trigger_worker("it")
    await asyncio.wait_for(inside.wait(), 10)
    go_on.set()
    await effects.attempts(1)
    assert isinstance(errors[0], ClaimLost)
    assert await count(effects) == 0


async def test_a_run_that_was_taken_away_does_not_even_begin(effects: House):
    errors: list[BaseException] = []

    async def it(run: RunContext) -> None:
        await effects.sql("UPDATE {p}runs SET fence = fence + 1000")
        try:
            async with run.transaction():
                errors.append(AssertionError("it began"))
        except ClaimLost as error:
            errors.append(error)
            raise

    orchestrator = effects.orchestrator()
    orchestrator.register_worker("it", it, **ONCE)
    await orchestrator.start()
    await effects.until_row("SELECT 1 FROM {p}nodes WHERE beat > 0")  # the next beat, which would see it, is far off
    await orchestrator.trigger_worker("it")
    await effects.until(lambda: any(isinstance(event, e.RunTakenAway) for event in effects.seen))
    assert [type(error) for error in errors] == [ClaimLost]
    assert await effects.history() == []
    await effects.sql("DELETE FROM {p}runs")


async def test_a_timeout_in_the_block_rolls_back(effects: House):
    async def it(run: RunContext) -> None:
        async with run.transaction() as connection:
            await connection.execute(INSERT, {"id": run.id})
            await asyncio.sleep(60)

    orchestrator = effects.orchestrator()
    orchestrator.register_worker("it", it, timeout_seconds=0.2, **ONCE)
    await orchestrator.start()
    await orchestrator.trigger_worker("it")
    await effects.attempts(1)
    assert [row["outcome"] for row in await effects.history()] == ["timed_out"]
    assert await count(effects) == 0


async def refused(house: House, handler: Any) -> str:
    orchestrator = house.orchestrator()
    orchestrator.register_worker("it", handler, **ONCE)
    orchestrator.register_worker("other", nothing, **ONCE)
    await orchestrator.start()
    await orchestrator.trigger_worker("it")
    await house.attempts(1, "it")
    (row,) = await house.history("it")
    assert (row["outcome"], row["error_type"]) == ("failed", "Refused")
    assert await count(house) == 0
    return str(row["error"])


async def nothing() -> None: ...


async def test_a_thread_is_told_that_it_has_none(effects: House):
    def it(run: RunContext) -> None:
        run.transaction()

    assert "needs an async def handler" in await refused(effects, it)


async def test_the_block_must_not_commit_itself(effects: House):
    async def it(run: RunContext) -> None:
        async with run.transaction() as connection:
            await connection.rollback()

    assert "must not commit or roll back itself" in await refused(effects, it)


async def test_a_second_transaction_is_refused(effects: House):
    async def it(run: RunContext) -> None:
        async with run.transaction():
            run.transaction()
            async with run.transaction():
                pass

    assert "open already" in await refused(effects, it)


async def test_a_trigger_in_the_block_takes_its_connection(effects: House):
    orchestrator = effects.orchestrator()

    async def it(run: RunContext) -> None:
        async with run.transaction() as connection:
            await connection.execute(INSERT, {"id": run.id})
            await orchestrator.trigger_worker("other", connection=connection)

    orchestrator.register_worker("it", it, **ONCE)
    orchestrator.register_worker("other", nothing, **ONCE)
    await orchestrator.start()
    await orchestrator.trigger_worker("it")
    await effects.attempts(1, "other")
    assert await count(effects) == 1


async def test_on_sqlite_another_write_in_the_block_is_refused_instead_of_waiting_for_ever(sqlite_url: str):
    house = House(sqlite_url)
    async with house.db.write() as conn:
        await conn.exec_driver_sql("CREATE TABLE effects (run_id BIGINT PRIMARY KEY)")
    orchestrator = house.orchestrator()

    async def it(run: RunContext) -> None:
        async with run.transaction():
            await orchestrator.trigger_worker("other")

    orchestrator.register_worker("it", it, **ONCE)
    orchestrator.register_worker("other", nothing, **ONCE)
    await orchestrator.start()
    await orchestrator.trigger_worker("it")
    await house.attempts(1)
    (row,) = await house.history()
    assert "pass connection=" in row["error"]
    await house.close()


async def test_many_at_once_end_each_in_its_own(effects: House):
    async def it(run: RunContext) -> None:
        async with run.transaction() as connection:
            await connection.execute(INSERT, {"id": run.id})

    orchestrator = effects.orchestrator(max_concurrent=20)
    orchestrator.register_worker("it", it, max_running=20, **ONCE)
    await orchestrator.start()
    await orchestrator.trigger_many("it", [None] * 60)
    await effects.attempts(60)
    assert await count(effects) == 60
    assert {row["outcome"] for row in await effects.history()} == {"succeeded"}
