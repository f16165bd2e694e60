"""docs/logs.md: its tables name what the schema names, and its recipes work as they stand."""

from __future__ import annotations

import json
import logging
import re
import sys
import types
from typing import Any

import pytest

from jobrunner.telemetry import tracing
from tests.cli.program import ROOT
from tests.support import tasks

PAGE = (ROOT / "docs" / "logs.md").read_text()
SCHEMA = json.loads((ROOT / "jobrunner" / "telemetry" / "log_line.schema.json").read_text())


def rows(head: str) -> list[list[str]]:
    """Return the cells of the table with that head."""
    _, _, rest = PAGE.partition(head)
    table = rest.split("\n\n")[0].strip().splitlines()[1:]
    return [line.strip("| ").split(" | ") for line in table]


def block(word: str) -> str:
    return next(
        found for found in re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL) if word in found
    )


def test_the_tables_name_every_field_and_every_event():
    fields = {name for row in rows("| field | |\n") for name in re.findall(r"`(\w+)`", row[0])}
    assert fields == set(SCHEMA["properties"])
    events = {
        name
        for row in rows("| event | level | fields beside those of every line |\n")
        for name in re.findall(r"`(\w+)`", row[0])
    }
    assert events == set(SCHEMA["properties"]["event"]["enum"])


def test_the_fields_that_an_event_must_have_are_in_its_row():
    needed = {each["if"]["properties"]["event"]["const"]: each["then"]["required"] for each in SCHEMA["allOf"]}
    of_the_run = {"worker", "run_id", "attempt", "fence", "node"}
    for names, _, said in rows("| event | level | fields beside those of every line |\n"):
        for name in re.findall(r"`(\w+)`", names):
            known = set(re.findall(r"`(\w+)`", said)) | (of_the_run if "those of the run" in said else set())
            assert set(needed.get(name, ())) <= known, name


def test_the_context_that_the_page_shows_is_one():
    shown = re.findall(r"'(00-[^']+)'", PAGE)
    assert shown
    assert all(tracing.ids_in(context) is not None for context in shown)


def test_the_handler_that_the_page_shows_writes_json(capsys: pytest.CaptureFixture[str]):
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        exec(block("JsonLines"), {})
        logging.getLogger("app").warning("hello")
    finally:
        root.handlers[:] = before
        root.setLevel(level)
    assert json.loads(capsys.readouterr().err)["message"] == "hello"


async def test_every_firing_of_a_schedule_is_one_check_in(house, monkeypatch):
    said: list[tuple[Any, ...]] = []

    def capture_checkin(
        monitor_slug: str | None = None,
        check_in_id: str | None = None,
        status: str | None = None,
        duration: float | None = None,
        monitor_config: dict[str, Any] | None = None,
    ) -> str:
        said.append((monitor_slug, check_in_id, status, monitor_config))
        return check_in_id or f"check-in {len(said)}"

    crons = types.ModuleType("sentry_sdk.crons")
    crons.__dict__["capture_checkin"] = capture_checkin
    monkeypatch.setitem(sys.modules, "sentry_sdk", types.ModuleType("sentry_sdk"))
    monkeypatch.setitem(sys.modules, "sentry_sdk.crons", crons)
    orchestrator = house.orchestrator()
    exec(block("capture_checkin"), {"orchestrator": orchestrator})

    async def fails() -> None:
        raise ValueError("no luck")

    orchestrator.register_worker("well", tasks.nothing, interval_seconds=600)
    orchestrator.register_worker("badly", fails, interval_seconds=600, max_retries=1, retry_delay_seconds=0.0)
    orchestrator.register_worker("asked", tasks.nothing, execution_mode="triggered")
    await orchestrator.start()
    await orchestrator.trigger_worker("asked")
    await house.attempts(1, "well")
    await house.attempts(2, "badly")
    await house.attempts(1, "asked")
    config = {
        "schedule": {"type": "interval", "value": 10, "unit": "minute"},
        "timezone": "UTC",
        "max_runtime": 1,
    }
    for worker, end in (("well", "ok"), ("badly", "error")):
        first, last = [each for each in said if each[0] == worker]
        assert first == (worker, None, "in_progress", config)
        assert last == (worker, f"check-in {said.index(first) + 1}", end, None)
    assert {each[0] for each in said} == {"well", "badly"}
