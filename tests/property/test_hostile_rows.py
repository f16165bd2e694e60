"""One row hurts one run: whatever a client writes, nodes live, healthy work is on time, and every bad row is told."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from jobrunner import WorkerOrchestrator
from jobrunner.model.unreadable import Unreadable
from jobrunner.storage.database.database import Database
from jobrunner.storage.reading.explain import explain
from jobrunner.storage.reading.status import read_status
from jobrunner.storage.tables import define as t
from jobrunner.telemetry import events as e
from tests.cli.program import jobrunner
from tests.support.hostile import VICTIMS, Hostility, open_client

ROWS, BATCH = 5000, 250
PATIENCE_SECONDS = 60.0
READS = (
    "status",
    "runs",
    "history --limit 2000",
    "dead-letters list --all --limit 2000",
    "upcoming --limit 200",
    "admin list",
    "admin nodes --all",
    "admin audit --limit 2000",
    f"explain {VICTIMS[0]}",
    f"admin show {VICTIMS[1]}",
)


async def nothing() -> None: ...


def workers(orchestrator: WorkerOrchestrator) -> None:
    orchestrator.register_worker("pulse", nothing, interval_seconds=0.5)
    orchestrator.register_worker("mail", nothing, execution_mode="triggered", max_running=5)
    for place, name in enumerate(VICTIMS):
        mode: dict[str, Any] = (
            {"interval_seconds": 1},
            {"execution_mode": "triggered"},
            {"execution_mode": "continuous"},
        )[place % 3]
        orchestrator.register_worker(name, nothing, max_retries=1, retry_delay_seconds=0.1, cooldown_seconds=1, **mode)


@pytest.mark.parametrize("seed", [1])
async def test_5000_hostile_rows_end_no_node_and_delay_nobody_else(database_url: str, seed: int, tmp_path: Path):
    orchestrator = WorkerOrchestrator(database_url, tick_interval=1.0, lease=6.0, drain_timeout=1.0)
    crashes: list[Any] = []
    orchestrator.events.subscribe(lambda event: crashes.append(event) if isinstance(event, e.NodeCrashed) else None)
    workers(orchestrator)
    await orchestrator.start()
    db = Database.open(database_url)
    client = await open_client(database_url)
    hostility = Hostility(db.is_sqlite, seed)
    try:
        for _ in range(ROWS // BATCH):
            for _ in range(BATCH):
                await hostility.write(client)
                await asyncio.sleep(0)
            await healthy_work_is_done(orchestrator, db)
            assert crashes == []
        assert hostility.accepted > ROWS / 20, hostility.errors
        await every_bad_run_is_told(db)
        assert await latest_of(db, "pulse") < timedelta(seconds=20)
    finally:
        await client.close()
        await orchestrator.stop()
        await db.close()
    assert crashes == []
    for words in READS:
        for more in ("", " --json"):
            ended = jobrunner(f"{words}{more} --database-url {database_url}", tmp_path)
            assert ended.returncode == 0, (words, more, ended.stderr[-2000:])
    await a_fresh_node_starts(database_url)


async def healthy_work_is_done(orchestrator: WorkerOrchestrator, db: Database) -> None:
    run_id = await orchestrator.trigger_worker("mail")
    ended = sa.select(t.run_history.c.outcome).where(t.run_history.c.run_id == run_id, t.run_history.c.worker == "mail")
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            async with db.peek() as conn:
                outcomes = (await conn.execute(ended)).scalars().all()
            if outcomes:
                assert outcomes == ["succeeded"]
                return
            await asyncio.sleep(0.02)


async def every_bad_run_is_told(db: Database) -> None:
    """A run that cannot be read has ended with a letter that says so, or waits for a worker that says why it does."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            async with db.peek() as conn:
                waiting = (await conn.execute(sa.select(t.runs.c.worker, t.runs.c.payload))).all()
                await read_status(conn)
            bad = {row.worker for row in waiting if isinstance(row.payload, Unreadable)}
            silent = [name for name in sorted(bad) if not await has_a_shut_gate(db, name)]
            if not silent:
                break
            await asyncio.sleep(0.1)
    async with db.peek() as conn:
        told = sa.select(t.dead_letters.c.error).where(t.dead_letters.c.error_type == "Unreadable")
        errors = (await conn.execute(told)).scalars().all()
    assert errors
    assert all(error.startswith("its payload cannot be read: ") for error in errors)
    for name in VICTIMS:
        await has_a_shut_gate(db, name)


async def has_a_shut_gate(db: Database, name: str) -> bool:
    answer = await explain(db, name, datetime.now(UTC))
    return any(not gate["open"] and gate["reason"] for gate in answer["gates"])


async def latest_of(db: Database, worker: str) -> timedelta:
    h = t.run_history
    async with db.peek() as conn:
        rows = await conn.execute(
            sa.select(h.c.scheduled_for, h.c.started_at).where(h.c.worker == worker, h.c.outcome == "succeeded")
        )
        return max(started - due for due, started in rows)


async def a_fresh_node_starts(database_url: str) -> None:
    """None of the rows keeps the next node from its start, also not with new definitions."""
    orchestrator = WorkerOrchestrator(database_url, tick_interval=1.0, lease=6.0, drain_timeout=1.0, version=2)
    workers(orchestrator)
    await orchestrator.start()
    db = Database.open(database_url)
    try:
        await healthy_work_is_done(orchestrator, db)
    finally:
        await orchestrator.stop()
        await db.close()
