"""A process that triggers but runs no node keeps its database open, for as long as its event loop lasts."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from jobrunner import WorkerOrchestrator
from jobrunner.errors import DatabaseError, JobrunnerError
from jobrunner.runtime import kept
from jobrunner.storage.database.database import Database
from tests.runtime.conftest import House


async def it() -> None: ...


@pytest.fixture
async def sender(house: House) -> WorkerOrchestrator:
    """An orchestrator that has not started; the worker `it` is in the database."""
    maker = house.orchestrator()
    maker.register_worker("it", it, execution_mode="triggered")
    await maker.start()
    await maker.stop()
    return house.orchestrator()


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> list[Database]:
    """The databases closed from now on."""
    found: list[Database] = []
    close = Database.close

    async def note(self: Database) -> None:
        await close(self)
        found.append(self)

    monkeypatch.setattr(Database, "close", note)
    return found


async def database_of(sender: WorkerOrchestrator) -> Any:
    async with sender._database() as db:
        return db


async def test_triggers_share_one_database(sender: WorkerOrchestrator, house: House):
    run_ids = await asyncio.gather(*(sender.trigger_worker("it") for _ in range(20)))
    first = await database_of(sender)
    run_ids += await sender.trigger_many("it", [None, None])
    await sender.disable_worker("it")
    assert await database_of(sender) is first
    assert len(await house.rows("SELECT id FROM {p}runs")) == len(set(run_ids)) == 22


async def test_the_end_of_the_loop_closes_it(sender: WorkerOrchestrator, closed: list[Database]):
    async def trigger_twice() -> Database:
        await sender.trigger_worker("it")
        db: Database = await database_of(sender)
        assert db not in closed
        return db

    assert await asyncio.to_thread(asyncio.run, trigger_twice()) in closed


async def test_stop_closes_it_and_the_next_use_opens_another(sender: WorkerOrchestrator, closed: list[Database]):
    first = await database_of(sender)
    await sender.stop()
    assert first in closed
    await sender.stop()
    await sender.trigger_worker("it")
    assert await database_of(sender) is not first


async def test_configured_anew_it_goes_to_the_new_database(
    sender: WorkerOrchestrator, closed: list[Database], tmp_path: Any
):
    first = await database_of(sender)
    sender.configure(database_url=f"sqlite:///{tmp_path / 'other.db'}")
    second = await database_of(sender)
    assert second.url != first.url
    async with asyncio.timeout(10):
        while first not in closed:
            await asyncio.sleep(0.01)


async def test_after_a_failure_to_open_it_is_tried_again(tmp_path: Any):
    folder = tmp_path / "later"
    sender = WorkerOrchestrator(f"sqlite:///{folder / 'it.db'}")
    failures = await asyncio.gather(*(sender.get_status() for _ in range(3)), return_exceptions=True)
    assert [type(failure) for failure in failures] == [DatabaseError] * 3
    folder.mkdir()
    assert (await sender.get_status())["workers"] == 0


async def test_a_schema_that_has_changed_is_refused(
    sender: WorkerOrchestrator, house: House, monkeypatch: pytest.MonkeyPatch
):
    await sender.trigger_worker("it")
    await house.sql("UPDATE {p}jobrunner_schema_version SET version_num = '9999'")
    monkeypatch.setattr(kept, "CHECK_AGAIN_SECONDS", 0.0)
    with pytest.raises(JobrunnerError, match="newer"):
        await sender.trigger_worker("it")
