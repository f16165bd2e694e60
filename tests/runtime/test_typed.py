"""Typed in, typed out, and a run's own log, on both databases: on the loop, in a thread and in a process."""

from __future__ import annotations

import io
import json
import logging
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from jobrunner import RunContext, WorkerOptions, WorkerOrchestrator
from jobrunner.errors import InvalidPayload, InvalidWorker
from jobrunner.runtime import logs
from jobrunner.testing import simulate
from tests.cli.program import ROOT
from tests.runtime.conftest import House
from tests.support import tasks
from tests.support.tasks import Parcel

ONCE: WorkerOptions = {"execution_mode": "triggered", "max_retries": 0}
MOMENT = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
PARCEL = Parcel(UUID(int=7), MOMENT, Decimal("1.50"))
SAID = {"id": str(UUID(int=7)), "at": "2026-03-01T12:30:00Z", "weight": "1.50", "shade": "dark"}
HANDLERS: list[Any] = [
    (tasks.same_parcel_async, "inline"),
    (tasks.same_parcel, "thread"),
    (tasks.same_parcel, "process"),
]


def document(value: Any) -> Any:
    """Read a JSON column: SQLite gives its text, PostgreSQL its value."""
    return json.loads(value) if isinstance(value, str) else value


async def test_what_is_given_in_types_arrives_so_and_is_returned_so_wherever_the_code_runs(house: House):
    orchestrator = house.orchestrator()
    for function, isolation in HANDLERS:
        orchestrator.register_worker(isolation, function, isolation=isolation, **ONCE)
    await orchestrator.start()
    payload = {"parcel": PARCEL, "others": [PARCEL, PARCEL], "path": Path("a/b")}
    for _, isolation in HANDLERS:
        await orchestrator.trigger_worker(isolation, payload)
        await orchestrator.trigger_many(isolation, [payload, {**payload, "others": []}])
    await house.attempts(9)
    for row in await house.history():
        assert (row["outcome"], row["reason"], row["error"]) == ("succeeded", None, None)
        others = document(row["payload"])["others"]
        assert document(row["payload"]) == {"parcel": SAID, "others": others, "path": "a/b"}
        result = document(row["result"])
        assert result["parcel"] == SAID
        assert result["others"] == others
        assert (result["path"], result["id"], result["ids"]) == ("a/b", SAID["id"], {SAID["id"]: SAID["at"]})
    with pytest.raises(InvalidPayload, match=r"^payload 2 of 2: others\.1\.weight: "):
        bad = Parcel(UUID(int=1), MOMENT, Decimal("nan"))
        await orchestrator.trigger_many("thread", [payload, {**payload, "others": [PARCEL, bad]}])
    assert await house.rows("SELECT id FROM {p}runs") == []


async def test_a_process_that_has_not_the_code_triggers_in_types_too(house: House):
    node = house.orchestrator()
    node.register_worker("it", tasks.same_parcel, **ONCE)
    await node.start()
    web = WorkerOrchestrator(house.url)
    payload = {"parcel": PARCEL, "others": [], "path": Path("a")}
    await web.trigger_worker("it", payload)
    (ended,) = await house.attempts(1)
    assert ended.outcome.kind == "succeeded"
    with pytest.raises(InvalidPayload, match=r"^path: an object cannot be written as JSON"):
        await web.trigger_worker("it", {**payload, "path": object()})
    await web.stop()


async def test_a_simulation_takes_types(sqlite_url: str):
    orchestrator = WorkerOrchestrator(sqlite_url)
    seen = []

    async def it(at: datetime) -> datetime:
        seen.append(at)
        return at

    @orchestrator.worker("first", interval_seconds=86400)
    async def first() -> None:
        await orchestrator.trigger_worker("it", {"at": MOMENT})

    orchestrator.register_worker("it", it, **ONCE)
    told = await simulate(orchestrator, days=0.5)
    assert seen == [MOMENT]
    (row,) = told.of("it")
    assert (row["payload"], row["result"]) == ({"at": "2026-03-01T12:30:00Z"}, "2026-03-01T12:30:00Z")


# --- a run's own log ----------------------------------------------------------------------------------------------


@pytest.fixture
def app_log() -> Iterator[io.StringIO]:
    """What a handler of the program's own writes."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("app: %(message)s"))
    tasks.shop.addHandler(handler)
    yield stream
    tasks.shop.removeHandler(handler)


@pytest.mark.parametrize("isolation", ["inline", "thread", "process"])
async def test_two_runs_at_once_keep_each_its_own_records_and_the_program_gets_all(
    house: House, app_log: io.StringIO, monkeypatch: pytest.MonkeyPatch, isolation: Any
):
    monkeypatch.setattr(logging, "raiseExceptions", False)  # one record's arguments do not fit
    before = (list(logging.getLogger().handlers), logging.getLogger().level, tasks.shop.level, tasks.shop.propagate)
    orchestrator = house.orchestrator(capture_logs=True)
    function: Any = tasks.say_async if isolation == "inline" else tasks.say
    orchestrator.register_worker("it", function, isolation=isolation, max_running=2, **ONCE)
    orchestrator.register_worker("quiet", function, isolation=isolation, capture_logs=False, **ONCE)
    await orchestrator.start()
    await orchestrator.trigger_many("it", [{"who": "ada"}, {"who": "bob"}])
    await orchestrator.trigger_worker("quiet", {"who": "eve"})
    await house.attempts(3)
    for row in await house.history("it"):
        who = document(row["payload"])["who"]
        lines = row["output"].splitlines()
        assert row["outcome"] == "succeeded"
        level = "" if isolation == "process" else "WARNING tests.shop: "  # there, Python shows it, and that is kept
        assert lines[0] == f"{level}{who} begins"
        assert {f"{level}{who} {number}" for number in range(20)} <= set(lines)
        assert len([line for line in lines if who in line and line.split()[-1].isdigit()]) == 20
        assert not ({"ada", "bob", "eve"} - {who}) & set(row["output"].split())
        assert "not let through" not in row["output"]
        if isolation == "inline":
            assert lines[-1] == f"WARNING tests.shop: {who} in a thread"
        elif isolation == "process":
            assert f"{who} failed" in lines
            assert f"ValueError: of {who}" in lines
        else:
            assert f"ERROR tests.shop: {who} failed" in lines
            assert f"ValueError: of {who}" in lines
            assert lines[-1] == "WARNING tests.shop: <a record that cannot be written: TypeError>"
    (quiet,) = await house.history("quiet")
    if isolation != "process":
        assert quiet["output"] is None
        told = app_log.getvalue()
        assert all(f"app: {who} begins\n" in told for who in ("ada", "bob", "eve"))
    root = logging.getLogger()
    assert (list(root.handlers), root.level, tasks.shop.level, tasks.shop.propagate) == before


SHOP = """
import logging, os

log = logging.getLogger("shop")
how = os.environ["HOW"]
if how != "bare":
    file = None if how == "stderr" else "shop.log"
    logging.basicConfig(level="INFO", format="mine: %(message)s", filename=file)

def it():
    log.info("an info")
    log.warning("a warning")

"""
PROGRAM = """
import asyncio, logging, sys
import shop
from jobrunner import WorkerOrchestrator

async def main():
    orchestrator = WorkerOrchestrator(sys.argv[1], capture_logs=True)
    orchestrator.register_worker("it", shop.it, execution_mode="triggered", isolation=sys.argv[2])
    await orchestrator.start()
    await orchestrator.trigger_worker("it")
    await orchestrator.wait_idle()
    await orchestrator.stop()

if __name__ == "__main__":
    asyncio.run(main())
"""


@pytest.mark.parametrize("isolation", ["thread", "process"])
@pytest.mark.parametrize("how", ["stderr", "file", "bare"])
def test_where_logging_goes_is_the_program_s_own_and_nothing_is_kept_twice(
    sqlite_url: str, tmp_path: Path, isolation: str, how: str
):
    (tmp_path / "shop.py").write_text(SHOP)
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, "program.py", sqlite_url, isolation]
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}", "HOW": how}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env, cwd=tmp_path)

    def told(text: str) -> list[str]:
        return [line for line in text.splitlines() if line.endswith((" info", " warning"))]

    mine, kept = ["mine: an info", "mine: a warning"], ["INFO shop: an info", "WARNING shop: a warning"]
    with closing(sqlite3.connect(tmp_path / "jobrunner.db")) as connection:
        (output,) = connection.execute("SELECT output FROM run_history").fetchone()
    shown = {"stderr": mine, "file": [], "bare": ["a warning"]}[how]
    assert told(done.stderr) == (shown if isolation == "thread" else [])
    if how == "file":
        assert told((tmp_path / "shop.log").read_text()) == mine
    if isolation == "process" and how != "file":
        assert output.splitlines() == shown  # a process's stderr is the run's output
    else:
        assert output.splitlines() == (kept[1:] if how == "bare" else kept)


async def test_what_is_logged_elsewhere_or_by_a_node_is_in_no_run_s_output(house: House):
    orchestrator = house.orchestrator()

    async def it(run: RunContext) -> None:
        logging.getLogger("jobrunner").warning("a node speaks")
        logging.getLogger("other").warning("the run speaks")

    orchestrator.register_worker("it", it, capture_logs=True, **ONCE)
    await orchestrator.start()
    await orchestrator.trigger_worker("it")
    logging.getLogger("other").warning("the program speaks")
    await house.attempts(1)
    (row,) = await house.history()
    assert row["output"] == "WARNING other: the run speaks"


def test_capture_logs_is_true_or_false(sqlite_url: str):
    wrong: Any = "yes"
    with pytest.raises(InvalidWorker, match="capture_logs must be true or false, not 'yes'"):
        WorkerOrchestrator(sqlite_url).register_worker("it", tasks.say, capture_logs=wrong, **ONCE)
    logs.see_all()
    seen = logging.Logger.callHandlers
    logs.see_all()
    assert logging.Logger.callHandlers is seen
