"""The house: orchestrators on a fresh database, and short words for what happens in them.

Tests wait for what is to happen, not for time to pass: `await house.until(...)` looks again after each event of any
orchestrator, and every 10 ms for what no event tells of.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa

from jobrunner import WorkerOrchestrator
from jobrunner.storage.database.database import Database
from jobrunner.telemetry import events as e
from jobrunner.testing import ManualClock

PATIENCE_SECONDS = 30.0


class House:
    """See the module. Nothing but a wake-up or a due time makes its nodes tick: `tick_interval` is 60 s."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.db = Database.open(url)
        self.seen: list[e.Event] = []
        self._orchestrators: list[WorkerOrchestrator] = []
        self._happened = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def orchestrator(self, **settings: Any) -> WorkerOrchestrator:
        """A new orchestrator; the house stops it after the test."""
        made = WorkerOrchestrator(self.url, **{"tick_interval": 60.0, "drain_timeout": 0.0, **settings})
        made.events.subscribe(self._note)
        self._orchestrators.append(made)
        return made

    def _note(self, event: e.Event) -> None:
        self.seen.append(event)
        self._loop.call_soon_threadsafe(self._happened.set)

    async def until(self, is_so: Callable[[], Any]) -> None:
        """Wait until `is_so()`."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not is_so():
                self._happened.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._happened.wait(), 0.01)

    async def until_row(self, sql: str, **parameters: Any) -> dict[str, Any]:
        """Wait until a query finds a row: for what no event tells of."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not (found := await self.rows(sql, **parameters)):
                await asyncio.sleep(0.01)
        return found[0]

    def ended(self, worker: str | None = None) -> list[e.RunEnded]:
        """The ends of attempts so far, in the order they were written."""
        ends = [event for event in self.seen if isinstance(event, e.RunEnded)]
        return [end for end in ends if worker in {None, end.run.worker}]

    async def attempts(self, count: int, worker: str | None = None) -> list[e.RunEnded]:
        """Wait until `count` attempts have ended and are written."""
        await self.until(lambda: len(self.ended(worker)) >= count)
        return self.ended(worker)

    async def rows(self, sql: str, **parameters: Any) -> list[dict[str, Any]]:
        """Read rows with plain SQL; `{p}` stands for the schema."""
        async with self.db.peek() as conn:
            found = await conn.execute(sa.text(sql.format(p=self.db.schema_prefix)), parameters)
            return [dict(row) for row in found.mappings()]

    async def history(self, worker: str | None = None) -> list[dict[str, Any]]:
        """All attempts, oldest first."""
        rows = await self.rows("SELECT * FROM {p}run_history ORDER BY id")
        return [row for row in rows if worker in {None, row["worker"]}]

    async def state(self, worker: str) -> dict[str, Any]:
        """A worker's `worker_state` row."""
        (row,) = await self.rows("SELECT * FROM {p}worker_state WHERE worker = :name", name=worker)
        return row

    async def sql(self, statement: str) -> None:
        """Change something with plain SQL."""
        async with self.db.write() as conn:
            await conn.exec_driver_sql(statement.replace("{p}", self.db.schema_prefix))

    def time(self, value: Any) -> datetime:
        """Read a time column that came through plain SQL."""
        return value if isinstance(value, datetime) else datetime.fromisoformat(value).replace(tzinfo=UTC)

    async def settled(self, orchestrator: WorkerOrchestrator, clock: ManualClock) -> None:
        """Wait until the orchestrator has done all there is to do and waits for the clock."""
        node = orchestrator._node
        assert node is not None
        await self.until(lambda: not node.held and not node._ticker.is_ticking and clock.sleepers >= 2)

    async def close(self) -> None:
        for orchestrator in self._orchestrators:
            await orchestrator.stop()
        await self.db.close()


@pytest.fixture
async def house(database_url: str) -> AsyncIterator[House]:
    house = House(database_url)
    yield house
    await house.close()
