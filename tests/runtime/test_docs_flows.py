"""The examples of docs/flows.md, one after the other."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from jobrunner import RunContext
from tests.runtime.conftest import House

PAGE = Path(__file__).resolve().parents[2] / "docs" / "flows.md"
NOW_ON_SQLITE = "strftime('%Y-%m-%d %H:%M:%f000', 'now')"


def examples(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)


async def run(example: str, names: dict[str, Any]) -> None:
    begun = eval(compile(example, str(PAGE), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), names)
    if inspect.isawaitable(begun):
        await begun


async def test_every_example_does_what_the_page_says(house: House, monkeypatch: pytest.MonkeyPatch):
    orchestrator = house.orchestrator()
    app = types.ModuleType("app")
    app.__dict__["orchestrator"] = orchestrator
    monkeypatch.setitem(sys.modules, "app", app)
    often: dict[str, Any] = {"execution_mode": "triggered", "max_running": 9, "max_retries": 0}
    batch, tree, flow, report = examples("python")
    # What the page shows of handlers is defined first, as the program that it is about would.
    names: dict[str, Any] = {"orchestrator": orchestrator, "RunContext": RunContext}
    await run(tree, names)
    await run(report, names)

    async def extract(run: RunContext) -> dict[str, int]:
        return {"rows": 3}

    async def load() -> None:
        raise ValueError("the disk is full")

    async def resize(image: str) -> None: ...

    async def nothing(run: RunContext) -> None: ...

    async def reported(run: RunContext) -> str | None:
        return await names["report"](run) if run.step else None

    for name, code in (("extract", extract), ("load", load), ("resize", resize), ("report", reported)):
        orchestrator.register_worker(name, code, **often)
    for name in ("publish", "tell", "clean"):
        orchestrator.register_worker(name, nothing, **often)
    orchestrator.register_worker("walk", names["walk"], **often)
    await orchestrator.start()
    async with asyncio.timeout(60):
        await run(batch, names)
        await house.attempts(1, "publish")
        await house.attempts(1, "report")
        assert len(house.ended("resize")) == 3
        assert house.ended("tell") == []

        async with orchestrator.batch(on_finish="tell") as walking:
            await walking.trigger("walk", {"folder": "/"})
        await house.attempts(1, "tell")
        assert len(house.ended("walk")) == 7

        await run(flow, names)
        assert names["run"].result == "3 rows, load exhausted"
        await by_hand(house)


async def by_hand(house: House) -> None:
    """Do what the page shows for plain SQL, in its own words."""
    ended = len(house.ended("report"))
    for block in examples("sql"):
        text = block if not house.db.is_sqlite else block.replace("CURRENT_TIMESTAMP", NOW_ON_SQLITE)
        assert house.db.is_sqlite is False or NOW_ON_SQLITE in PAGE.read_text()
        async with house.db.write() as conn:
            if not house.db.is_sqlite:
                await conn.exec_driver_sql("SET LOCAL search_path TO jobrunner")
            for statement in filter(str.strip, text.split(";\n")):
                await conn.exec_driver_sql(statement)
    await house.attempts(ended + 1, "report")
    await house.attempts(2, "load")
    rows = await house.rows("SELECT step FROM {p}run_history WHERE step IN ('by-hand', 'then') ORDER BY id")
    assert [row["step"] for row in rows] == ["by-hand", "then"]
