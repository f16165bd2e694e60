"""Nodes that run only some of their module's workers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from jobrunner import WorkerOrchestrator
from jobrunner.config import Settings
from jobrunner.errors import InvalidSetting
from jobrunner.storage.reading.explain import why_waits
from tests.cli.program import jobrunner
from tests.runtime.conftest import House

TRIGGERED: dict[str, Any] = {"execution_mode": "triggered", "max_retries": 0}
APP = """
from jobrunner import WorkerOrchestrator

orchestrator = WorkerOrchestrator({url!r})


@orchestrator.worker("send-mail", execution_mode="triggered")
async def send_mail() -> None: ...


@orchestrator.worker("send-text", execution_mode="triggered", isolation="process")
def send_text() -> None: ...


@orchestrator.worker("resize", execution_mode="triggered")
async def resize() -> None: ...
"""


async def nothing() -> None: ...


def all_three(house: House, **settings: Any) -> WorkerOrchestrator:
    made = house.orchestrator(**settings)
    for name in ("send-mail", "send-text", "resize"):
        made.register_worker(name, nothing, **TRIGGERED)
    return made


async def test_such_a_node_registers_all_workers_and_runs_those_that_match(house: House):
    senders = all_three(house, workers=["send-*"])
    await senders.start()
    assert len(await house.rows("SELECT name FROM {p}workers")) == 3
    for name in ("send-mail", "send-text", "resize"):
        await senders.trigger_worker(name)
    (left,) = await house.rows("SELECT id, worker FROM {p}runs WHERE worker = 'resize'")
    await senders.wait_idle()
    assert sorted(end.run.worker for end in house.ended()) == ["send-mail", "send-text"]
    why = await why_waits(house.db, left["id"], senders.clock.now())
    assert why is not None
    assert re.fullmatch(r"no live node has the handler: node \w{8} runs other workers only \(.*--workers\)", why)
    others = all_three(house)
    others.configure(workers="resize")
    await others.start()
    await house.attempts(1, "resize")


async def test_several_patterns_add_up(house: House):
    node = all_three(house, workers=["send-mail", "res*"])
    await node.start()
    rows = await house.rows("SELECT worker FROM {p}node_handlers ORDER BY worker")
    assert [row["worker"] for row in rows] == ["resize", "send-mail"]


async def test_a_pattern_that_matches_nothing_is_refused_before_anything_is_written(house: House):
    node = all_three(house, workers=["send-*", "sned-*"])
    with pytest.raises(InvalidSetting, match=r"'sned-\*' names none of the workers registered here: resize, send-mail"):
        await node.start()
    assert await house.rows("SELECT name FROM {p}workers") == []


@pytest.mark.parametrize("wrong", [[], "", [""], [3], 3, {"a": 1}], ids=str)
def test_what_is_no_pattern_is_no_setting(wrong: Any):
    with pytest.raises(InvalidSetting, match="workers: must be"):
        Settings.load({}, workers=wrong)


def test_the_variable_takes_several_with_commas():
    assert Settings.load({"JOBRUNNER_WORKERS": "send-*, resize"}).workers == ("send-*", "resize")
    assert Settings.load({}).workers is None


def test_the_command_line_takes_several_and_refuses_what_matches_nothing(database_url: str, tmp_path: Path):
    (tmp_path / "app.py").write_text(APP.format(url=database_url))
    done = jobrunner("run app --until-idle --workers 'send-*' --workers resize", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "runs 3 workers" in done.stderr
    done = jobrunner("run app --until-idle --workers send-text", tmp_path)
    assert "runs 1 worker on" in done.stderr
    refused = jobrunner("run app --until-idle --workers 'sned-*'", tmp_path)
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert line.startswith("error: workers: 'sned-*' names none of the workers registered here: ")
