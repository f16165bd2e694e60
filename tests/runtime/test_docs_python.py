"""The examples of docs/python.md, one after the other, on the README's workers."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import sys
import types
from pathlib import Path

import pytest

from tests.runtime.conftest import House

PAGE = Path(__file__).resolve().parents[2] / "docs" / "python.md"


async def fetch_data() -> None: ...


async def send_email(to: str) -> str:
    return f"sent to {to}"


async def pay_bill(amount: int) -> None:
    if amount == 0:
        raise ValueError("nothing to pay")


async def test_every_example_does_what_the_page_says(
    house: House, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    orchestrator = house.orchestrator()
    orchestrator.register_worker("fetch-data", fetch_data, interval_seconds=3600)
    for name, code in (("send-email", send_email), ("pay-bill", pay_bill)):
        orchestrator.register_worker(name, code, execution_mode="triggered", max_retries=0)
    app = types.ModuleType("app")
    app.__dict__["orchestrator"] = orchestrator
    monkeypatch.setitem(sys.modules, "app", app)
    await orchestrator.start()
    names: dict[str, object] = {}
    examples = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(examples) == 6
    async with asyncio.timeout(60):
        for example in examples:
            code = compile(example, str(PAGE), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            begun = eval(code, names)
            if inspect.isawaitable(begun):
                await begun
    assert "sent to ada@example.org" in capsys.readouterr().out
    assert [end.outcome.kind.value for end in house.ended("pay-bill")] == ["failed", "succeeded"]
    config = await house.rows("SELECT overrides FROM {p}workers WHERE name = 'fetch-data'")
    assert config[0]["overrides"] in ({}, "{}")
