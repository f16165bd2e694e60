"""The examples of docs/limits.md, one after the other, on both databases."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import shlex
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from jobrunner import WorkerOrchestrator
from jobrunner.cli.main import main
from jobrunner.storage.nodes import join
from jobrunner.storage.reading.explain import explain
from jobrunner.storage.runs.claims import claim_due
from jobrunner.storage.runs.facts import Here
from jobrunner.storage.runs.looks import Claimer
from tests.runtime.conftest import House
from tests.support.stage import identity

PAGE = Path(__file__).resolve().parents[2] / "docs" / "limits.md"


def examples(language: str, heading: str) -> list[str]:
    """Return the blocks of a language under a heading."""
    section = PAGE.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(rf"^```{language}\n(.*?)^```", section, re.MULTILINE | re.DOTALL)


@pytest.fixture
async def orchestrator(house: House, monkeypatch: pytest.MonkeyPatch) -> WorkerOrchestrator:
    """The page's, with its workers and two that later sections trigger."""
    monkeypatch.setenv("JOBRUNNER_DATABASE_URL", house.url)
    names: dict[str, Any] = {}
    await run(examples("python", "Named limits")[0], names)
    made: WorkerOrchestrator = names["orchestrator"]

    async def index(page: int) -> None: ...

    async def report() -> None: ...

    made.register_worker("index", index, execution_mode="triggered")
    made.register_worker("report", report, execution_mode="triggered")
    await made.register_definitions()
    return made


async def run(example: str, names: dict[str, Any]) -> None:
    begun = eval(compile(example, str(PAGE), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), names)
    if inspect.isawaitable(begun):
        await begun


async def test_named_limits_are_declared_changed_and_taken_back(house: House, orchestrator: WorkerOrchestrator):
    limit = "SELECT max_running, rate, overrides FROM {p}limits WHERE name = 'stripe-api'"
    assert await house.rows("SELECT worker, limit_name FROM {p}worker_limits ORDER BY worker") == [
        {"worker": name, "limit_name": "stripe-api"} for name in ("charge", "refund")
    ]
    seen = []
    (commands,) = examples("sh", "Named limits")
    for line in commands.splitlines():
        words = shlex.split(line, comments=True)[1:]
        assert await asyncio.to_thread(main, words) == 0, line
        (row,) = await house.rows(limit)
        seen.append((row["max_running"], row["rate"]))
    assert seen == [(4, "100/1m"), (4, "100/1m"), (1, "10/1m"), (1, None), (4, "100/1m"), (4, "100/1m")]
    assert await house.rows("SELECT max_running FROM {p}limits WHERE name = 'disk'") == [{"max_running": 2}]
    await run(examples("python", "Named limits")[1], {"orchestrator": orchestrator})
    assert (await house.rows(limit))[0]["overrides"] in ({}, "{}")
    actions = [row["action"] for row in await house.rows("SELECT action FROM {p}audit_log ORDER BY id")]
    assert [action for action in actions if action.startswith("limit_")][-2:] == ["limit_set", "limit_unset"]


async def test_the_query_tells_how_full_a_limit_is(house: House, orchestrator: WorkerOrchestrator):
    (query,) = examples("sql", "Named limits")
    async with house.db.write() as conn:
        if not house.db.is_sqlite:
            await conn.execute(sa.text("SET LOCAL search_path = jobrunner"))
        rows = (await conn.execute(sa.text(query))).all()
    assert [tuple(row) for row in rows] == [("stripe-api", 4, 0)]


async def test_duplicates_do_what_the_page_says(house: House, orchestrator: WorkerOrchestrator):
    (example,) = examples("python", "Duplicates")
    await run(example, {"orchestrator": orchestrator})
    rows = await house.rows("SELECT worker, payload, due_at, waits_since FROM {p}runs ORDER BY worker")
    assert [row["worker"] for row in rows] == ["index", "report"]
    assert rows[0]["payload"] in ({"page": 2}, '{"page": 2}', '{"page":2}')
    waits = house.time(rows[1]["due_at"]) - house.time(rows[1]["waits_since"])
    assert 10 < waits.total_seconds() < 20
    (command,) = examples("sh", "Duplicates")
    assert await asyncio.to_thread(main, shlex.split(command)[1:]) == 0
    (later,) = await house.rows("SELECT due_at FROM {p}runs WHERE worker = 'report'")
    assert house.time(later["due_at"]) > house.time(rows[1]["due_at"])


@pytest.fixture
async def limited(orchestrator: WorkerOrchestrator) -> WorkerOrchestrator:
    """The orchestrator with the workers of the sections on keys, rates and order."""
    names: dict[str, Any] = {"orchestrator": orchestrator}
    for heading in ("Per key", "Rates", "Fair and ordered"):
        (example,) = examples("python", heading)
        await run(example, names)
    await orchestrator.register_definitions()
    return orchestrator


async def test_a_run_of_plain_sql_has_the_key_of_its_payload(house: House, limited: WorkerOrchestrator):
    (script,) = examples("sql", "Per key")
    async with house.db.write() as conn:
        if not house.db.is_sqlite:
            await conn.execute(sa.text("SET LOCAL search_path = jobrunner"))
        *inserts, query = script.strip().rstrip(";").split(";\n")
        for insert in inserts:
            await conn.exec_driver_sql(insert)
        keys = [row.limit_key for row in await conn.execute(sa.text(query))]
    assert keys == ["42", "vip"]


async def test_what_has_no_key_and_what_is_too_long_for_one_is_as_the_page_says(
    house: House, limited: WorkerOrchestrator
):
    wanted: list[str | None] = []
    values: list[tuple[Any, str | None]] = [(None, None), ([1], None), ("a" * 300, "a" * 200), (7, "7")]
    for value, key in values:
        await limited.trigger_worker("import", {"customer": {"id": value}, "file": "x"})
        wanted.append(key)
    await limited.trigger_worker("import", {"customer": {}, "file": "x"})
    rows = await house.rows("SELECT limit_key FROM {p}runs WHERE worker = 'import' ORDER BY id")
    assert [row["limit_key"] for row in rows] == [*wanted, None]


async def test_keys_and_rates_hold_what_the_page_says(house: House, limited: WorkerOrchestrator):
    for _ in range(2):
        await limited.trigger_worker("import", {"customer": {"id": 42}, "file": "x"})
    await limited.trigger_worker("import", {"customer": {"id": 43}, "file": "x"})
    for _ in range(4):
        await limited.trigger_worker("notify", {"user": "ada"})
    for number in range(2):
        await limited.trigger_worker("crawl", {"url": str(number)})
        await limited.trigger_worker("apply", {"account": "7", "change": number})
    here = Here(["import", "notify", "crawl", "apply"])
    now = datetime.now(UTC)
    async with house.db.write() as conn:
        await join(conn, house.db.dialect, identity("n1", max_concurrent=50), here.handlers or (), now)
    claimed = await claim_due(house.db, Claimer("n1", here), 50, lambda: now)
    started = Counter(claim.run.worker for claim in claimed.claims)
    assert started == {"import": 2, "notify": 3, "crawl": 1, "apply": 1}
    said = {name: (await explain(house.db, name, now))["why"] for name in started}
    held = next(claim.run.id for claim in claimed.claims if claim.run.limit_key == "42")
    assert said["import"] == f"key customer.id=42: run {held} is active"
    assert said["notify"].startswith("rate 3/1h of key user=ada: opens ")
    assert said["crawl"].startswith("rate 60/1m, evenly: opens ")
    assert said["apply"].startswith("key account=7: run ")
