"""The log as JSON: every line is an object of the documented shape, from real nodes and from each kind of event."""

from __future__ import annotations

import importlib.resources
import json
import logging
import signal
import typing
from contextlib import contextmanager
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any

import jsonschema
import pytest

from jobrunner.cli.log_output import set_up_logging
from jobrunner.model.run import Outcome, OutcomeKind, Run, RunState, Trigger
from jobrunner.model.worker import WorkerState
from jobrunner.telemetry import events as e
from jobrunner.telemetry.current import current_run
from jobrunner.telemetry.event_fields import EVENT_FIELDS, event_name
from jobrunner.telemetry.json_lines import JsonHandler, JsonLines, RunFields
from jobrunner.telemetry.logs import log_event
from jobrunner.telemetry.tracing import TraceIds
from tests.cli.program import jobrunner, start_jobrunner

SCHEMA = json.loads((importlib.resources.files("jobrunner") / "telemetry" / "log_line.schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
CONTEXT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
RUN = Run(
    7,
    "mail",
    Trigger.MANUAL,
    RunState.RUNNING,
    1,
    NOW,
    NOW,
    {},
    None,
    2,
    False,
    0,
    5,
    "node-1",
    NOW,
    trace_context=None,
)
FAILED = Outcome(OutcomeKind.FAILED, NOW, duration_ms=12, error_type="ValueError", error="no\nluck")
EVENTS: list[e.Event] = [
    e.NodeStarted("node-1", 3, "sqlite:///x.db"),
    e.NodeDraining("node-1", 2, 25.0),
    e.NodeStopped("node-1", 0),
    e.RunStarted(RUN, trace=TraceIds("a" * 32, "b" * 16)),
    e.RunEnded(RUN, FAILED, "exhausted", None),
    e.RunEnded(RUN, FAILED, None, NOW),
    e.RunEnded(RUN, Outcome(OutcomeKind.SUCCEEDED, NOW, duration_ms=1), "succeeded", None),
    e.RunTakenAway(RUN),
    e.CircuitOpened(WorkerState("mail", is_enabled=False, disabled_reason="5 runs failed")),
    e.DatabaseLost("connection refused"),
    e.DatabaseBack(2.5),
    e.NodeCrashed("node-1", RuntimeError("what now")),
    e.NodeLost("node-2", "no beat for 30 s"),
    e.LoopBlocked(1.5, ("mail", "post")),
    e.Warned("take care"),
]


def check(text: str) -> dict[str, Any]:
    line: dict[str, Any] = json.loads(text)
    VALIDATOR.validate(line)
    return line


@contextmanager
def written(name: str) -> Any:
    """The lines that a logger makes inside the block; pytest, which formats records too, does not see them."""
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record):
            lines.append(self.format(record))

    handler, logger = Keep(), logging.getLogger(name)
    handler.setFormatter(JsonLines())
    level, propagates = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagates


def test_the_schema_is_one_and_names_every_event_and_every_field():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    classes = set(typing.get_args(e.Event)) - {e.Timed}  # which is for metrics, and no line
    assert {type(event) for event in EVENTS} == classes
    names = {event_name(event) for event in EVENTS}
    assert names | {"log"} == set(SCHEMA["properties"]["event"]["enum"])
    assert {"ts", "level", "event", "logger", "message", "traceback", "extra", *EVENT_FIELDS} == set(
        SCHEMA["properties"]
    )


@pytest.mark.parametrize("event", EVENTS, ids=[f"{n}-{event_name(event)}" for n, event in enumerate(EVENTS)])
def test_every_event_is_a_line_of_the_documented_shape(event):
    with written("jobrunner") as lines:
        log_event(event)
    line = check(lines[-1])
    assert (line["event"], line["logger"]) == (event_name(event), "jobrunner")
    told = {field.name for field in fields(event)}
    if "run" in told:
        assert (line["worker"], line["run_id"], line["attempt"], line["fence"], line["node"]) == (
            "mail",
            7,
            2,
            5,
            "node-1",
        )
    if isinstance(event, e.RunEnded) and event.outcome is FAILED:
        assert (line["outcome"], line["duration_ms"], line["error"]) == ("failed", 12, "no\nluck")
        assert line.get("ends_run") == event.ends_run
        assert line.get("retry_at") == (None if event.retry_at is None else "2026-03-01T12:00:00.000Z")


class Mute:
    def __str__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("message", "arguments", "extra"),
    [
        ("plain", (), {}),
        ("two\nlines\u2028 and a half of a character: \ud800", (), {}),
        ("too few: %s %s", (1,), {}),
        ("mute: %s", (Mute(),), {}),
        ("extra", (), {"customer": 42, "when": NOW, "deep": {"a": [1, float("nan")]}, "mute": Mute(), "event": "mine"}),
        ("a field of ours", (), {"worker": "mine", "run_id": "x"}),
    ],
    ids=["plain", "odd characters", "too few", "mute", "extra", "ours"],
)
def test_whatever_a_program_logs_is_a_line(message, arguments, extra):
    with written("app") as lines:
        logging.getLogger("app").warning(message, *arguments, extra=extra)
    (text,) = lines
    assert "\n" not in text
    line = check(text)
    assert (line["event"], line["level"], line["logger"]) == ("log", "WARNING", "app")
    assert set(line.get("extra", {})) == set(extra)


def test_an_exception_that_is_logged_tells_its_class_its_words_and_its_place():
    with written("app") as lines:
        try:
            int("no luck")
        except ValueError:
            logging.getLogger("app").exception("that failed")
    line = check(lines[0])
    assert (line["error_type"], line["error"]) == (
        "ValueError",
        "invalid literal for int() with base 10: 'no luck'",
    )
    assert 'int("no luck")' in line["traceback"]


def test_a_record_that_another_thread_writes_is_known_by_the_filter():
    record = logging.makeLogRecord({"name": "app", "msg": "hello"})
    token = current_run.set((RUN, None))
    RunFields().filter(record)
    current_run.reset(token)
    assert check(JsonLines().format(record))["run_id"] == 7


@pytest.mark.parametrize("is_json", [True, False])
def test_handlers_of_the_program_stay_also_where_json_is_asked_for(is_json, capsys):
    root, ours = logging.getLogger(), logging.getLogger("jobrunner")
    kept = [(log, log.level, log.handlers[:]) for log in (root, ours)]
    try:
        for log, _, _ in kept:
            log.handlers.clear()
        if not is_json:
            root.addHandler(logging.NullHandler())
        set_up_logging("INFO", is_said=False, log_format="json")
        assert [isinstance(handler, JsonHandler) for handler in root.handlers] == [is_json]
        assert ("stay as they are" in capsys.readouterr().err) is not is_json
    finally:
        for log, level, handlers in kept:
            log.setLevel(level)
            log.handlers[:] = handlers


PROGRAM = """
import asyncio, logging, threading
from jobrunner import RunContext, WorkerOrchestrator

orchestrator = WorkerOrchestrator(max_concurrent=4)
log = logging.getLogger("app")
log.setLevel(logging.INFO)

@orchestrator.worker("inline", execution_mode="triggered", hidden_fields=["card", "deep.pin"])
async def inline(card: str, deep: dict) -> None:
    log.info("from the loop", extra={"customer": 42})

@orchestrator.worker("thread", execution_mode="triggered")
def thread() -> None:
    log.info("from a thread")

@orchestrator.worker("process", execution_mode="triggered", isolation="process")
def process(run: RunContext) -> None:
    log.info("from a process")
    log.warning("and a warning")
    print("printed")

@orchestrator.worker("fails", execution_mode="triggered", max_retries=1, retry_delay_seconds=0.1,
                     max_consecutive_failures=1, hidden_fields=["card"])
async def fails(card: int) -> None:
    try:
        raise ValueError("two\\nlines")
    except ValueError:
        log.exception("that failed")
        raise

@orchestrator.worker("tick", interval_seconds=3600)
async def tick() -> None: ...
"""


@pytest.mark.parametrize("level", ["INFO", "DEBUG"])
def test_each_line_of_a_nodes_json_log_has_the_documented_shape(tmp_path, level, database_url, monkeypatch):
    monkeypatch.setenv("JOBRUNNER_DATABASE_URL", database_url)
    monkeypatch.setenv("JOBRUNNER_LOG_FORMAT", "json")
    (tmp_path / "work.py").write_text(PROGRAM)
    secret = "4111111111111111"
    assert jobrunner("register work", tmp_path).returncode == 0
    for worker in ("inline", "thread", "process", "fails"):
        payload = {"inline": {"card": secret, "deep": {"pin": secret}}, "fails": {"card": int(secret)}}.get(worker, {})
        monkeypatch.setenv("TRACEPARENT", CONTEXT)
        done = jobrunner(f"trigger {worker} --payload '{json.dumps(payload)}'", tmp_path)
        assert done.returncode == 0, done.stderr
    monkeypatch.delenv("TRACEPARENT")
    ended = jobrunner(f"run work --until-idle --log-level {level}", tmp_path)
    assert ended.returncode == 5, ended.stderr
    assert secret not in ended.stderr
    lines = [check(line) for line in ended.stderr.splitlines()[:-1]]  # the last is the command's own
    assert "exhausted" in ended.stderr.splitlines()[-1]
    events = [line["event"] for line in lines]
    assert events.count("run_ended") == 6
    assert {"node_started", "node_draining", "node_stopped", "circuit_opened", "log"} <= set(events)
    assert ("run_started" in events) is (level == "DEBUG")
    (node,) = {line["node"] for line in lines if line["event"] == "node_started"}
    said = {line["message"]: line for line in lines if line["logger"] == "app"}
    assert {*said} == {"from the loop", "from a thread", "from a process", "and a warning", "that failed"}
    for message, worker in (("from the loop", "inline"), ("from a thread", "thread"), ("from a process", "process")):
        line = said[message]
        assert (line["worker"], line["attempt"], line["node"]) == (worker, 1, node)
        assert (line["trace_id"], line["span_id"]) == (CONTEXT[3:35], CONTEXT[36:52])
        (end,) = [other for other in lines if other["event"] == "run_ended" and other["worker"] == worker]
        assert {name: line[name] for name in ("run_id", "fence")} == {name: end[name] for name in ("run_id", "fence")}
        assert end["trace_id"] == line["trace_id"]
    assert said["from the loop"]["extra"] == {"customer": 42}
    assert said["that failed"]["error"] == "two\nlines"


def test_a_node_that_is_told_to_stop_says_so_in_json(tmp_path):
    (tmp_path / "work.py").write_text(PROGRAM)
    node = start_jobrunner("run work --log-format json", tmp_path)
    assert node.stderr is not None
    first = check(node.stderr.readline())
    assert first["event"] == "node_started"
    node.send_signal(signal.SIGTERM)
    _, err = node.communicate(timeout=30)
    assert [check(line)["event"] for line in err.splitlines()][-2:] == ["node_draining", "node_stopped"]


def test_a_log_format_that_is_none_is_refused(tmp_path):
    (tmp_path / "work.py").write_text(PROGRAM)
    refused = jobrunner("run work --log-format xml", tmp_path)
    assert refused.returncode == 2
    assert "log_format: must be text or json, not 'xml'" in refused.stderr
