"""`run.transaction()` under SIGKILL: one row of the handler's for each run that succeeded, neither more nor less."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import sqlalchemy as sa

from jobrunner.storage.database.database import Database
from tests.cli.program import ROOT

pytestmark = pytest.mark.crash
KILLS, RUNS = 10, 150
APP = """
import asyncio, sys
import sqlalchemy as sa
from jobrunner import RunContext, WorkerOrchestrator

orchestrator = WorkerOrchestrator(sys.argv[1], max_concurrent=4, tick_interval=0.1, sqlite_synchronous="NORMAL")
INSERT = sa.text("INSERT INTO effects (run_id) VALUES (:id)")


@orchestrator.worker("it", execution_mode="triggered", max_running=4, max_retries=1000, retry_delay_seconds=0,
                     max_consecutive_failures=1000)
async def it(run: RunContext) -> None:
    await asyncio.sleep(0.01)
    async with run.transaction() as connection:
        await connection.execute(INSERT, {"id": run.id})


print("up", flush=True)
asyncio.run(orchestrator.run())
"""


@pytest.mark.slow
async def test_a_kill_loop_leaves_as_many_rows_as_succeeded_runs(database_url: str, tmp_path: Path):
    (tmp_path / "app.py").write_text(APP)
    db = Database.open(database_url)
    async with db.write() as conn:
        await conn.exec_driver_sql("CREATE TABLE effects (run_id BIGINT)")  # no key: a second row would be seen
    from jobrunner import WorkerOrchestrator

    draw = random.Random(4)

    async def value(sql: str) -> int:
        async with db.peek() as conn:
            return int((await conn.execute(sa.text(sql.format(p=db.schema_prefix)))).scalar_one())

    ended = "SELECT count(*) FROM {p}run_history WHERE ends_run = 'succeeded'"
    kills = 0
    while True:
        node = subprocess.Popen(
            [sys.executable, "app.py", database_url],
            cwd=tmp_path,
            env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            if kills == 0:
                await _until(lambda: value("SELECT count(*) FROM {p}workers"), node)
                await WorkerOrchestrator(database_url).trigger_many("it", [None] * RUNS)
            before = await value(ended)
            goal = before + draw.randrange(1, RUNS // KILLS)

            async def is_there() -> bool:
                left = await value("SELECT count(*) FROM {p}runs")
                return left == 0 or (kills < KILLS and await value(ended) >= goal)

            await _until(is_there, node)
        finally:
            node.kill()
            node.communicate()
        kills += 1
        if kills > KILLS and await value("SELECT count(*) FROM {p}runs") == 0:
            break
    succeeded = await value(ended)
    assert succeeded > RUNS * 0.9  # one that was lost three times in a row is given up
    assert await value("SELECT count(*) FROM effects") == succeeded
    assert await value("SELECT count(DISTINCT run_id) FROM effects") == succeeded
    assert await value("SELECT count(*) FROM {p}dead_letters") == RUNS - succeeded
    await db.close()


async def _until(is_so, node: subprocess.Popen[str]) -> None:
    give_up = time.monotonic() + 60
    while not await is_so():
        assert time.monotonic() < give_up
        assert node.poll() is None, node.communicate()
        time.sleep(0.005)
