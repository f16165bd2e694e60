"""Traces: from a trigger to the code of its attempts, on both databases, on the long way and the fast path."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from jobrunner import Discard, Snooze, WorkerConfig, WorkerExecutionMode
from jobrunner.errors import WorkerNotFound
from jobrunner.model.worker import Isolation
from jobrunner.storage.runs.enqueue import Request, enqueue
from jobrunner.storage.workers import commands
from jobrunner.telemetry import tracing
from tests.support import tasks

OTHER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Spans:
    """The spans that have ended, and a tracer of the program's own."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = self.provider.get_tracer("program")

    @property
    def ended(self) -> list[Any]:
        return list(self._exporter.get_finished_spans())

    def named(self, name: str) -> list[Any]:
        return [span for span in self.ended if span.name == name]

    def one(self, name: str) -> Any:
        (span,) = self.named(name)
        return span


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Spans:
    """A provider of traces, installed for the test's time."""
    made = Spans()
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", made.provider)
    return made


def trace_of(span: Any) -> int:
    return span.get_span_context().trace_id


def is_child_of(span: Any, parent: Any) -> bool:
    return span.parent is not None and span.parent.span_id == parent.get_span_context().span_id


@pytest.mark.parametrize("triggers", [1, 40])
async def test_a_trigger_in_a_request_is_one_trace_through_to_the_handlers_span(house, spans, triggers):
    orchestrator = house.orchestrator(max_concurrent=8)
    seen: list[int] = []

    @orchestrator.worker("send", execution_mode="triggered", max_running=40)
    async def send(to: str) -> None:
        with spans.tracer.start_as_current_span("smtp"):
            seen.append(trace.get_current_span().get_span_context().trace_id)

    app = FastAPI()

    @app.post("/sign-up")
    async def sign_up(to: str) -> int:
        with spans.tracer.start_as_current_span("signing up"):
            return await orchestrator.trigger_worker("send", {"to": to})

    await orchestrator.start()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        answers = await asyncio.gather(*(client.post("/sign-up?to=ada") for _ in range(triggers)))
    await house.attempts(triggers)
    requests = {span.get_span_context().trace_id: span for span in spans.named("signing up")}
    assert len(requests) == triggers == len(seen)
    for name, parent in (("send send", "signing up"), ("process send", "send send"), ("smtp", "process send")):
        above = {trace_of(span): span for span in spans.named(parent)}
        assert len(spans.named(name)) == triggers
        assert all(is_child_of(span, above[trace_of(span)]) for span in spans.named(name))
    assert set(seen) == set(requests)
    ids = {str(answer.json()) for answer in answers}
    assert {span.attributes["messaging.message.id"] for span in spans.named("process send")} == ids
    rows = await house.history("send")
    assert {row["trace_context"].split("-")[1] for row in rows} == {f"{number:032x}" for number in seen}


@pytest.mark.parametrize("is_fast", [False, True])
async def test_the_long_way_and_the_fast_path_give_the_code_its_trace(house, spans, is_fast):
    orchestrator = house.orchestrator()
    if not is_fast:  # a dependency keeps a worker off the fast path

        @orchestrator.worker("before", execution_mode="triggered")
        async def before() -> None: ...

    @orchestrator.worker("a", execution_mode="triggered", depends_on=[] if is_fast else ["before"])
    async def a() -> None: ...

    await orchestrator.start()
    if not is_fast:
        await orchestrator.trigger_worker("before")
        await house.attempts(1, "before")
    for count in range(1, 6):
        await orchestrator.trigger_worker("a")
        await house.attempts(count, "a")
    sent = {trace_of(span): span for span in spans.named("send a")}
    assert len(sent) == 5
    assert all(is_child_of(span, sent[trace_of(span)]) for span in spans.named("process a"))


async def test_spans_have_the_kinds_and_attributes_of_the_conventions(house, spans):
    orchestrator = house.orchestrator()

    @orchestrator.worker("a", execution_mode="triggered")
    async def a() -> None: ...

    await orchestrator.start()
    run_id = await orchestrator.trigger_worker("a")
    await house.attempts(1)
    sent, done = spans.one("send a"), spans.one("process a")
    assert (sent.kind, done.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER)
    for span, operation in ((sent, "send"), (done, "process")):
        assert (
            dict(span.attributes).items()
            >= {
                "messaging.system": "jobrunner",
                "messaging.destination.name": "a",
                "messaging.operation.name": operation,
                "messaging.operation.type": operation,
                "messaging.message.id": str(run_id),
            }.items()
        )
    assert (done.attributes["jobrunner.outcome"], done.status.status_code) == ("succeeded", StatusCode.UNSET)


async def test_a_retry_is_a_trace_of_its_own_with_a_link_and_errors_are_recorded(house, spans):
    orchestrator = house.orchestrator()

    @orchestrator.worker("a", execution_mode="triggered", max_retries=1, retry_delay_seconds=0.0)
    async def a() -> None:
        raise ValueError("no luck")

    await orchestrator.start()
    await orchestrator.trigger_worker("a")
    await house.attempts(2)
    sent, (first, second) = spans.one("send a"), spans.named("process a")
    assert is_child_of(first, sent)
    assert not first.links
    assert second.parent is None
    assert trace_of(second) != trace_of(sent)
    assert [link.context.span_id for link in second.links] == [sent.get_span_context().span_id]
    for span in (first, second):
        assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "no luck")
        assert span.attributes["error.type"] == "ValueError"
        (event,) = span.events
        assert event.attributes["exception.message"] == "no luck"
        assert "raise ValueError" in event.attributes["exception.stacktrace"]


async def test_a_firing_is_a_root_without_a_link_also_where_a_span_is_current(house, spans):
    orchestrator = house.orchestrator()
    orchestrator.register_worker("tick", tasks.nothing, interval_seconds=3600)
    with spans.tracer.start_as_current_span("start"):
        await orchestrator.start()
    await house.attempts(1)
    span = spans.one("process tick")
    assert (span.parent, span.links) == (None, ())


async def test_a_run_that_starts_late_is_linked(house, spans):
    orchestrator = house.orchestrator()
    orchestrator.register_worker("a", tasks.nothing, execution_mode="triggered")
    await orchestrator.register_definitions()
    await orchestrator.trigger_worker("a")
    await house.sql("UPDATE {p}runs SET created_at = '2020-01-01 00:00:00.000000'")
    await orchestrator.start()
    await house.attempts(1)
    sent, done = spans.one("send a"), spans.one("process a")
    assert done.parent is None
    assert [link.context.trace_id for link in done.links] == [trace_of(sent)]


@pytest.mark.parametrize("raising", [Snooze(0.0), Discard("no")])
async def test_what_was_snoozed_is_linked_when_it_starts_again(house, spans, raising):
    orchestrator = house.orchestrator()
    calls: list[int] = []

    @orchestrator.worker("a", execution_mode="triggered")
    async def a() -> None:
        calls.append(1)
        if len(calls) == 1:
            raise raising

    await orchestrator.start()
    await orchestrator.trigger_worker("a")
    count = 2 if isinstance(raising, Snooze) else 1
    await house.attempts(count)
    first, *later = spans.named("process a")
    assert is_child_of(first, spans.one("send a"))
    assert first.status.status_code is (StatusCode.UNSET if later else StatusCode.ERROR)
    assert [len(span.links) for span in later] == [1] * (count - 1)


@pytest.mark.parametrize(
    ("said", "is_read"),
    [
        (OTHER, True),
        (f"{OTHER} congo=t61rcWkgMzE,rojo=00f067aa0ba902b7", True),
        (f"cc{OTHER[2:]}-more", True),
        ("", False),
        ("nonsense", False),
        (f"ff{OTHER[2:]}", False),
        (f"{OTHER}-more", False),
        (OTHER.upper(), False),
        (OTHER.replace("0af7651916cd43dd8448eb211c80319c", "0" * 32), False),
        (OTHER.replace("b7ad6b7169203331", "0" * 16), False),
    ],
)
async def test_a_plain_insert_may_name_a_trace_and_what_cannot_be_read_is_ignored(house, spans, said, is_read):
    orchestrator = house.orchestrator()
    orchestrator.register_worker("a", tasks.nothing, execution_mode="triggered")
    await orchestrator.start()
    await house.sql(f"INSERT INTO {{p}}runs (worker, trace_context) VALUES ('a', '{said}')")
    await house.attempts(1)
    span = spans.one("process a")
    if is_read:
        assert f"{trace_of(span):032x}" == "0af7651916cd43dd8448eb211c80319c"
        assert f"{span.parent.span_id:016x}" == "b7ad6b7169203331"
        assert bool(span.get_span_context().trace_state) is ("congo" in said)
    else:
        assert span.parent is None
    assert [row["trace_context"] for row in await house.history()] == [said]


async def test_trigger_many_is_one_span_whose_context_all_runs_have(house, spans):
    orchestrator = house.orchestrator()
    orchestrator.register_worker("a", tasks.nothing, execution_mode="triggered", max_running=3)
    await orchestrator.start()
    await orchestrator.trigger_many("a", [{}, {}, {}])
    await house.attempts(3)
    sent = spans.one("send a")
    assert sent.attributes["messaging.batch.message_count"] == 3
    assert all(is_child_of(span, sent) for span in spans.named("process a"))


async def test_trigger_sync_in_a_handlers_thread_continues_the_handlers_trace(house, spans):
    orchestrator = house.orchestrator()
    orchestrator.register_worker("b", tasks.nothing, execution_mode="triggered")

    @orchestrator.worker("a", execution_mode="triggered")
    def a() -> None:
        orchestrator.trigger_sync("b")

    await orchestrator.start()
    await orchestrator.trigger_worker("a")
    await house.attempts(1, "b")
    assert {trace_of(span) for span in spans.ended} == {trace_of(spans.one("send a"))}
    assert is_child_of(spans.one("send b"), spans.one("process a"))


async def test_a_trigger_that_is_refused_is_recorded(house, spans):
    orchestrator = house.orchestrator()
    with pytest.raises(LookupError):
        await orchestrator.trigger_worker("nobody")
    span = spans.one("send nobody")
    assert span.status.status_code is StatusCode.ERROR
    assert span.events[0].name == "exception"


async def test_a_process_and_what_it_starts_get_the_attempts_context(house, spans):
    orchestrator = house.orchestrator()
    orchestrator.register_worker("p", tasks.environment, execution_mode="triggered", isolation="process")
    await orchestrator.start()
    first = await orchestrator.trigger_worker("p", {"name": "TRACEPARENT"})
    run = await orchestrator.wait_for_run(first, timeout=30)
    (span,) = spans.named("process p")
    own = span.get_span_context()
    assert run.result == f"00-{own.trace_id:032x}-{own.span_id:016x}-{own.trace_flags:02x}"


async def test_a_command_gets_the_context_in_its_environment(house, spans, monkeypatch):
    monkeypatch.setenv("TRACEPARENT", "the node's own")
    orchestrator = house.orchestrator(allow_commands=True)
    await orchestrator.start()
    command = json.dumps({"command": ["sh", "-c", "echo ${TRACEPARENT-none}"], "shell": False})
    mode = WorkerExecutionMode.TRIGGERED
    config = WorkerConfig("c", handler=command, execution_mode=mode, isolation=Isolation.COMMAND)
    await commands.add(house.db, config, orchestrator.clock.now(), "test")
    await orchestrator.trigger_worker("c")
    (end,) = await house.attempts(1)
    own = spans.one("process c").get_span_context()
    assert end.outcome.output == f"00-{own.trace_id:032x}-{own.span_id:016x}-{own.trace_flags:02x}"


async def test_a_processor_that_raises_harms_no_run(house, spans):
    class Broken(SimpleSpanProcessor):
        def on_start(self, *args, **more):
            raise RuntimeError("broken")

    orchestrator = house.orchestrator()
    orchestrator.register_worker("a", tasks.nothing, execution_mode="triggered")
    await orchestrator.register_definitions()
    await orchestrator.trigger_worker("a")
    spans.provider.add_span_processor(Broken(InMemorySpanExporter()))
    await orchestrator.start()
    (end,) = await house.attempts(1)
    assert end.ends_run == "succeeded"


@pytest.mark.parametrize("moment", ["on_start", "on_end"])
async def test_a_processor_that_raises_keeps_no_trigger_from_being_told(house, spans, moment):
    def broken(*_args, **_more):
        raise RuntimeError("broken")

    processor = SimpleSpanProcessor(InMemorySpanExporter())
    setattr(processor, moment, broken)
    spans.provider.add_span_processor(processor)
    orchestrator = house.orchestrator()
    orchestrator.register_worker("a", tasks.nothing, execution_mode="triggered")
    await orchestrator.register_definitions()
    before = trace.get_current_span()
    run_ids = [await orchestrator.trigger_worker("a"), *await orchestrator.trigger_many("a", [None, None])]
    assert len(set(run_ids)) == 3
    assert trace.get_current_span() is before
    with pytest.raises(WorkerNotFound):
        await orchestrator.trigger_worker("nobody")


async def test_without_a_provider_nothing_is_made_and_a_context_goes_through(house, monkeypatch):
    assert tracing.tracer() is None
    orchestrator = house.orchestrator()
    orchestrator.register_worker("p", tasks.environment, execution_mode="triggered", isolation="process")
    await orchestrator.start()
    async with house.db.write() as conn:
        request = Request("p", {"name": "TRACEPARENT"}, trace_context=OTHER)
        run_id = await enqueue(conn, house.db.dialect, request, orchestrator.clock.now())
    run = await orchestrator.wait_for_run(run_id, timeout=30)
    assert run.result == OTHER
    (end,) = house.ended()
    assert end.trace == tracing.TraceIds(OTHER[3:35], OTHER[36:52])


def test_a_program_that_does_not_trace_imports_no_opentelemetry():
    import subprocess

    code = (
        "import asyncio, sys, jobrunner\n"
        "o = jobrunner.WorkerOrchestrator('sqlite:///:memory:')\n"
        "import jobrunner.cli.run, jobrunner.cli.trigger, jobrunner.runtime.executors.child\n"
        "from jobrunner.telemetry import tracing\n"
        "assert tracing.tracer() is None\n"
        "sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({}, None),
        ({"TRACEPARENT": OTHER}, OTHER),
        ({"TRACEPARENT": OTHER, "TRACESTATE": "a=b"}, f"{OTHER} a=b"),
        ({"TRACEPARENT": OTHER, "TRACESTATE": "a=" + "b" * 1000}, OTHER),
        ({"TRACEPARENT": "x", "TRACESTATE": "a=b"}, None),
    ],
)
def test_a_context_of_the_environment_is_read_as_far_as_it_can_be(environment, found):
    assert tracing.in_environment(environment) == found
    assert found is None or tracing.ids_in(found) is not None


async def test_a_trigger_that_is_told_whether_it_is_new_is_traced_too(house, spans):
    orchestrator = house.orchestrator()
    orchestrator.register_worker("a", tasks.nothing, execution_mode="triggered")
    await orchestrator.start()
    run_id, is_new = await orchestrator.trigger_told("a")
    await house.attempts(1)
    assert is_new
    assert is_child_of(spans.one("process a"), spans.one("send a"))
    assert spans.one("send a").attributes["messaging.message.id"] == str(run_id)
