"""The options of a worker: known to a type checker, listed in docs/options.md, and lengths of time in three ways."""

from __future__ import annotations

import dataclasses
import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from jobrunner import Dependency, RetryAfter, Snooze, WorkerConfig, WorkerOptions, WorkerOrchestrator
from jobrunner.config import Settings
from jobrunner.errors import InvalidSetting, InvalidWorker
from jobrunner.runtime.options import OPTIONS
from tests.cli.program import ROOT
from tests.runtime.conftest import House

CODE = {"retry_on", "retry_delay", "capture_logs"}
WAYS = [300, 300.0, timedelta(minutes=5), "5m", "300", "300s"]


async def nothing() -> None: ...


@pytest.fixture
def orchestrator(sqlite_url: str) -> WorkerOrchestrator:
    return WorkerOrchestrator(sqlite_url)


def test_the_options_are_the_fields_of_a_definition_and_what_is_kept_with_the_code():
    fields = {field.name for field in dataclasses.fields(WorkerConfig)} - {"name", "handler", "payload_schema"}
    assert set(OPTIONS) == fields | CODE


def test_the_documentation_lists_every_option_with_its_default():
    table = (ROOT / "docs/options.md").read_text().split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| .+ \| (.+?) \| [^|]+ \|$", table, re.MULTILINE)
    assert [name for name, _ in rows] == list(OPTIONS)
    defaults = {field.name: field.default for field in dataclasses.fields(WorkerConfig)}
    for name, said in rows:
        default = defaults.get(name)
        if isinstance(default, bool):
            assert said == str(default), name
        elif isinstance(default, int | float) and not hasattr(default, "name"):
            assert said == f"{default:g}", name
        elif isinstance(default, str) and said.startswith("`"):
            assert said.strip("`") == (getattr(default, "value", default) or '""'), name


def test_a_type_checker_finds_a_wrong_name_and_a_wrong_type(tmp_path: Path):
    program = tmp_path / "program.py"
    program.write_text(
        "from datetime import timedelta\n"
        "from jobrunner import Dependency, WorkerOptions, WorkerOrchestrator\n"
        "o = WorkerOrchestrator('sqlite:///x.db', tick_interval='2s', lease=timedelta(seconds=30))\n"
        "shared: WorkerOptions = {'timeout_seconds': '5m', 'priority': 'HIGH'}\n"
        "older = Dependency('b', condition='fresh', max_age_seconds='1h')\n"
        "@o.worker('a', interval_seconds=timedelta(minutes=1), max_retries=4, depends_on=['b', older])\n"
        "def a() -> None: ...\n"
        "@o.worker('b', max_retires=4)\n"
        "def b() -> None: ...\n"
        "o.register_worker('c', b, max_retries='4')\n"
        "o.register_worker('d', b, misfire='run_twice')\n"
        "o.register_worker('e', b, **shared)\n"
    )
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    lines = re.findall(r"program\.py:(\d+): error: (.*)", done.stdout)
    assert [line for line, _ in lines] == ["8", "10", "11"], done.stdout + done.stderr
    assert 'Unexpected keyword argument "max_retires"' in lines[0][1]
    assert 'expected "int"' in lines[1][1]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("max_retires", "unknown option max_retires; did you mean max_retries?"),
        ("timeout", "unknown option timeout; did you mean timeout_seconds?"),
        ("colour", "unknown option colour; there are execution_mode, "),
    ],
)
def test_a_wrong_name_is_told_with_the_near_one(orchestrator: WorkerOrchestrator, given: str, says: str):
    wrong: dict[str, Any] = {given: 4}
    with pytest.raises(InvalidWorker, match=re.escape(says)):
        orchestrator.register_worker("it", nothing, **wrong)
    with pytest.raises(InvalidWorker, match=re.escape(says)):
        orchestrator.worker("it", **wrong)(nothing)


@pytest.mark.parametrize("option", [name for name in OPTIONS if name.endswith("_seconds")])
def test_every_option_in_seconds_takes_a_timedelta_and_text_too(orchestrator: WorkerOrchestrator, option: str):
    for number, given in enumerate(WAYS):
        options: Any = {option: given}
        assert getattr(orchestrator.register_worker(f"it-{number}", nothing, **options), option) == 300
    for wrong in ("soon", timedelta(seconds=-5), True, "-5"):
        options = {option: wrong}
        with pytest.raises(InvalidWorker, match=option):
            orchestrator.register_worker("wrong", nothing, **options)


def test_the_age_of_a_dependency_too(orchestrator: WorkerOrchestrator):
    given: Any
    for number, given in enumerate(["1h", timedelta(hours=1), 3600]):
        edges: list[Any] = [Dependency("a", max_age_seconds=given), {"depends_on": "b", "max_age_seconds": given}]
        config = orchestrator.register_worker(f"it-{number}", nothing, depends_on=edges)
        assert [edge.max_age_seconds for edge in config.depends_on] == [3600, 3600]
    with pytest.raises(InvalidWorker, match="max_age_seconds: 'soon' is no duration"):
        orchestrator.register_worker("it", nothing, depends_on=[Dependency("a", max_age_seconds="soon")])


@pytest.mark.parametrize("setting", ["tick_interval", "drain_timeout", "lease"])
def test_settings_too(setting: str):
    for given in WAYS:
        assert getattr(Settings.load({}, **{setting: given}), setting) == 300
    for wrong in ("soon", timedelta(seconds=-5), True):
        with pytest.raises(InvalidSetting, match=setting):
            Settings.load({}, **{setting: wrong})


async def test_the_delay_of_a_trigger_too(house: House):
    orchestrator = house.orchestrator()
    orchestrator.register_worker("it", nothing, execution_mode="triggered")
    await orchestrator.start()
    begun = datetime.now(UTC)
    ids = [await orchestrator.trigger_worker("it", delay=delay) for delay in (3600, timedelta(hours=1), "1h", "60m")]
    rows = await house.rows("SELECT id, due_at FROM {p}runs ORDER BY id")
    assert [row["id"] for row in rows] == ids
    for row in rows:
        assert timedelta(0) <= house.time(row["due_at"]) - begun - timedelta(hours=1) < timedelta(seconds=60)
    for wrong in ("soon", float("nan"), True, timedelta.max):
        with pytest.raises(InvalidSetting, match=r"delay must be|a delay of .* leads past the year 9999"):
            await orchestrator.trigger_worker("it", delay=wrong)
    for negative in (-5, timedelta(seconds=-1)):
        with pytest.raises(InvalidSetting, match="delay must not be negative"):
            await orchestrator.trigger_worker("it", delay=negative)
    assert len(await house.rows("SELECT id FROM {p}runs")) == len(ids)
    for wrong in ("soon", -5):
        with pytest.raises(InvalidSetting, match="drain_timeout: "):
            await orchestrator.stop(wrong)
    await orchestrator.stop("1s")


@pytest.mark.parametrize("signal", [Snooze, RetryAfter])
def test_what_a_handler_raises_takes_no_text(signal: Callable[[Any], Exception]):
    assert signal(timedelta(minutes=1)).args[0] == 60
    with pytest.raises(TypeError):
        signal("3600")


def test_a_worker_s_own_payload_may_hold_types(orchestrator: WorkerOrchestrator):
    async def it(at: datetime) -> None: ...

    moment = datetime(2026, 3, 1, tzinfo=UTC)
    config = orchestrator.register_worker("it", it, payload={"at": moment})
    assert config.payload == {"at": "2026-03-01T00:00:00Z"}
    with pytest.raises(InvalidWorker, match=r"at\.x: an object cannot be written as JSON"):
        orchestrator.register_worker("other", it, payload={"at": {"x": object()}})


def test_every_way_to_register_is_typed():
    for method in (WorkerOrchestrator.worker, WorkerOrchestrator.register_worker):
        assert "Unpack[WorkerOptions]" in str(inspect.signature(method).parameters["options"].annotation)
    assert WorkerOptions.__total__ is False
