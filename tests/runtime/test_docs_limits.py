"""The examples of docs/limits.md, one after the other, on both databases."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from jobrunner import WorkerOrchestrator
from jobrunner.cli.main import main
from tests.runtime.conftest import House

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
