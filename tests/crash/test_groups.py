"""Batches and flows under `kill -9`: each callback is made once, each step waits for all before it, whatever dies."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
from typing import Any

import pytest
import sqlalchemy as sa

from jobrunner import WorkerOrchestrator, step
from jobrunner.storage.database.database import Database
from tests.crash.conftest import Program
from tests.support.checker import check

MEMBERS = int(os.environ.get("JOBRUNNER_TEST_MEMBERS", "2000"))
STEPS = int(os.environ.get("JOBRUNNER_TEST_STEPS", "60"))
PATIENCE_SECONDS = 90.0 * max(1.0, MEMBERS / 2000)

WORK = """
import asyncio, os, random
from jobrunner import Discard, RunContext, WorkerOrchestrator

orchestrator = WorkerOrchestrator(tick_interval=1.0, max_concurrent=40, drain_timeout=2.0)
often = dict(execution_mode="triggered", max_retries=100, retry_delay_seconds=0.05, retry_max_delay_seconds=0.1)


@orchestrator.worker("member", max_running=60, **often)
async def member(run: RunContext, grows: bool = False) -> None:
    if grows:
        await orchestrator.trigger_worker("member", {}, batch=run.batch_id, key=f"child-of-{run.id}", key_scope="live")
    await asyncio.sleep(random.uniform(0, 0.05))


@orchestrator.worker("step", max_running=9, max_consecutive_failures=1000, **often)
async def one_step(run: RunContext, fails: bool = False) -> dict:
    await asyncio.sleep(random.uniform(0, 0.1))
    if fails:
        raise Discard("as it should")
    return {"told": sorted(run.outcomes)}


for name in ("good", "bad", "over"):
    @orchestrator.worker(name, max_running=9, **often)
    async def callback() -> None: ...
"""


async def _rows(db: Database, sql: str) -> list[Any]:
    async with db.peek() as conn:
        return list((await conn.execute(sa.text(sql.format(p=db.schema_prefix)))).all())


async def _kill_until_idle(program: Program, db: Database, rng: random.Random) -> None:
    """Keep two nodes running, killing one of them now and then, twice at least, until nothing is live any more."""
    kills = 0
    processes: list[subprocess.Popen[bytes]] = []
    async with asyncio.timeout(PATIENCE_SECONDS):
        while (
            kills < 2
            or await _rows(db, "SELECT id FROM {p}runs LIMIT 1")
            or await _rows(db, "SELECT id FROM {p}batches WHERE finished_at IS NULL LIMIT 1")
        ):
            processes = [process for process in processes if process.poll() is None]
            while len(processes) < 2:
                processes.append(program.start())
            await asyncio.sleep(rng.uniform(0.5, 2.5))
            if kills < 8:
                kills += 1
                victim = rng.choice(processes)
                victim.send_signal(signal.SIGKILL)
                await asyncio.to_thread(victim.wait)
    for process in processes:
        if process.poll() is None:
            # One that was started a moment ago has not come to the point where it would leave in peace.
            assert await asyncio.to_thread(program.end, process) in {0, -signal.SIGTERM}


@pytest.mark.crash
@pytest.mark.slow
async def test_a_batch_is_called_back_once_however_many_nodes_are_killed(program: Program):
    program.write(WORK)
    program.ask("db", "upgrade")
    program.ask("register", "work")
    outside = WorkerOrchestrator(program.url)
    async with outside.batch("good", "bad", "over") as batch:
        await batch.trigger_many("member", [{}] * (MEMBERS - 50))
        await batch.trigger_many("member", [{"grows": True}] * 50)
    async with outside.batch(on_success="good", on_finish="over"):
        pass
    db = Database.open(program.url)
    try:
        await _kill_until_idle(program, db, random.Random(7))
        called = await _rows(
            db,
            "SELECT worker, count(DISTINCT run_id) FROM {p}run_history WHERE worker <> 'member' GROUP BY worker"
            " ORDER BY worker",
        )
        assert [tuple(row) for row in called] == [("good", 2), ("over", 2)]
        ((ended,),) = await _rows(
            db, f"SELECT count(*) FROM {{p}}run_history WHERE batch_id = {batch.id} AND ends_run = 'succeeded'"
        )
        assert ended >= MEMBERS + 50  # a member that was killed after it had added one adds another
    finally:
        await db.close()
        await outside.stop()
    program.ask("db", "verify")
    assert check(program.url) == []


@pytest.mark.crash
@pytest.mark.slow
async def test_each_step_of_a_random_flow_waits_for_all_before_it_however_many_nodes_are_killed(program: Program):
    rng = random.Random(60)
    program.write(WORK)
    program.ask("db", "upgrade")
    program.ask("register", "work")
    before: dict[str, list[str]] = {}
    failing = {f"s{n}" for n in range(STEPS) if rng.random() < 0.08}
    runs_anyway = {f"s{n}" for n in range(STEPS) if rng.random() < 0.4}
    for n in range(STEPS):
        others = [f"s{m}" for m in range(max(0, n - 12), n)]
        before[f"s{n}"] = rng.sample(others, min(len(others), rng.randrange(0, 4)))
    outside = WorkerOrchestrator(program.url)
    steps = [
        step(
            "step",
            {"fails": name in failing},
            name=name,
            after=before[name],
            if_failed="run" if name in runs_anyway else "cancel",
        )
        for name in before
    ]
    ids = await outside.flow(rng.sample(steps, len(steps)))
    db = Database.open(program.url)
    try:
        await _kill_until_idle(program, db, random.Random(9))
        ends = await _rows(
            db,
            "SELECT step, run_id, ends_run, reason, finished_at FROM {p}run_history WHERE ends_run IS NOT NULL",
        )
        starts = await _rows(
            db, "SELECT step, min(started_at) FROM {p}run_history WHERE started_at IS NOT NULL GROUP BY step"
        )
    finally:
        await db.close()
        await outside.stop()
    assert {row.step: row.run_id for row in ends} == ids
    assert len(ends) == STEPS
    end, began = {row.step: row for row in ends}, dict(tuple(row) for row in starts)
    for name, others in before.items():
        has_bad = any(end[other].ends_run != "succeeded" for other in others)
        if has_bad and name not in runs_anyway:
            assert end[name].ends_run == "cancelled", name
            assert name not in began
            assert any(f"step {other} (run {ids[other]}) of its flow was" in end[name].reason for other in others)
            continue
        assert end[name].ends_run == ("discarded" if name in failing else "succeeded"), name
        for other in others:
            assert end[other].finished_at <= began[name], (other, name)
    assert {"cancelled", "discarded", "succeeded"} == {row.ends_run for row in ends}
    program.ask("db", "verify")
    assert check(program.url) == []
