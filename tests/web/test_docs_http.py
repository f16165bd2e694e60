"""docs/http.md says what is: its routes, metrics and levels are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

from fastapi import FastAPI

from jobrunner import WorkerOrchestrator
from jobrunner.web.api.table import ROUTES
from tests.web.conftest import SETTINGS, Web

PAGE = (Path(__file__).parents[2] / "docs" / "http.md").read_text()


def test_every_route_of_the_api_is_on_the_page():
    words = set(re.findall(r"`(/api/[^`]*|…/\w+)`", PAGE))
    for route in ROUTES:
        path = route.path.replace("{name}", "NAME").replace("{id}", "ID")
        assert path in words or f"…/{path.rsplit('/', 1)[1]}" in words, path


async def test_every_metric_is_on_the_page_and_every_one_on_the_page_is_told(web: Web):
    async with web.client() as client:
        text = (await client.get("/metrics")).text
    told = {name.removesuffix("_total") for name in re.findall(r"^# TYPE (\w+) ", text, re.MULTILINE)}
    listed = {name.removesuffix("_total") for name in re.findall(r"`(jobrunner_\w+)(?:\{[\w,]+\})?`", PAGE)}
    of_a_node = {"jobrunner_slots", "jobrunner_tick_age_seconds"}  # there is none in this process
    assert listed - of_a_node == told


def test_the_examples_in_python_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JOBRUNNER_HTTP_TOKEN", SETTINGS["http_token"])
    names: dict[str, object] = {}
    for block in re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL):
        exec(block, names)
    assert isinstance(names["app"], FastAPI)
    assert isinstance(names["orchestrator"], WorkerOrchestrator)
