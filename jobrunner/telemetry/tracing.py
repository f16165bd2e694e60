"""Traces by OpenTelemetry, through its API alone: from the trigger of a run to the code of its attempts.

A trigger is a PRODUCER span `send {worker}`, whose context is kept in `runs.trace_context`. An attempt is a CONSUMER
span `process {worker}`, inside which the handler's code runs:

- the first one is a child of the trigger's span, so that both are one trace;
- one that starts more than an hour after its trigger would stretch that trace: it begins one of its own, with a link;
- so does every further attempt; a firing of a schedule begins one without a link.

Names and attributes are those of OpenTelemetry's conventions for messaging. Where the program has installed no provider
of traces nothing is made, and OpenTelemetry is not even imported: `tracer` looks whether somebody else has.

`trace_context` is text: W3C's `traceparent` and, after a space, its `tracestate`. Any client may write it; what cannot
be read is no context.
"""

from __future__ import annotations

import re
import sys
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from jobrunner.model.run import OutcomeKind

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from opentelemetry.trace import Link, Span, SpanContext, Tracer

    from jobrunner.model.run import Outcome, Run

LONGEST_PARENT = timedelta(hours=1)
"""After so long an attempt is no child of its trigger any more."""
LONGEST_CONTEXT = 1000
PARENT_VARIABLE, STATE_VARIABLE = "TRACEPARENT", "TRACESTATE"
"""The environment's variables that hand a context to a process, as OpenTelemetry's own tools name them."""
_NAME = "jobrunner"
_PARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})(?P<trace>[0-9a-f]{32})-(?!0{16})(?P<span>[0-9a-f]{16})-(?P<flags>[0-9a-f]{2})"
    r"(?P<more>-.*)?\Z"  # of a version later than 00
)
_made: dict[str, Any] = {}
_ERRORS = frozenset({OutcomeKind.FAILED, OutcomeKind.TIMED_OUT, OutcomeKind.LOST})


@dataclass(frozen=True, slots=True)
class TraceIds:
    """The trace and the span that something belongs to, in hexadecimal."""

    trace_id: str
    span_id: str


def tracer() -> Tracer | None:
    """Return what makes spans, or None where the program has installed no provider."""
    api = sys.modules.get("opentelemetry.trace")
    if api is None:
        return None
    provider = api.get_tracer_provider()
    if isinstance(provider, api.ProxyTracerProvider):  # stands in for the one that nobody has installed
        return None
    if _made.get("by") is not provider:
        _made.update(by=provider, tracer=provider.get_tracer(_NAME))
    return _made["tracer"]  # type: ignore[no-any-return]  # a module is looked up by its name


def ids_in(trace_context: object) -> TraceIds | None:
    """Return the ids that a kept context names, or None if there is none that can be read."""
    found = _read(trace_context)
    return None if found is None else TraceIds(found[0]["trace"], found[0]["span"])


def _read(trace_context: object) -> tuple[re.Match[str], str] | None:
    """Return the parts of `traceparent`, and the text of `tracestate`."""
    if not isinstance(trace_context, str) or len(trace_context) > LONGEST_CONTEXT:
        return None
    parent, _, state = trace_context.strip().partition(" ")
    found = _PARENT.match(parent)
    if found is None or (parent.startswith("00") and found["more"] is not None):
        return None
    return found, state.strip()


def in_environment(environment: Mapping[str, str]) -> str | None:
    """Return the context that whoever started this process has handed over, as `trace_context` keeps it."""
    parent = environment.get(PARENT_VARIABLE, "")
    for whole in (f"{parent} {environment.get(STATE_VARIABLE, '')}".strip(), parent):
        if _read(whole) is not None:
            return whole
    return None


def as_environment(trace_context: str | None) -> dict[str, str]:
    """Return the variables that hand a context to a process."""
    found = _read(trace_context)
    if found is None or trace_context is None:
        return {}
    variables = {PARENT_VARIABLE: trace_context.strip().partition(" ")[0]}
    return variables | ({STATE_VARIABLE: found[1]} if found[1] else {})


def without_context(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without the context that this process was started in: no run belongs to it."""
    return {name: value for name, value in environment.items() if name not in {PARENT_VARIABLE, STATE_VARIABLE}}


def _written(context: SpanContext) -> str | None:
    """Write a span's context as `trace_context` keeps it; a state that is too long is left out."""
    if not context.is_valid:
        return None
    parent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags) & 0xFF:02x}"
    whole = f"{parent} {context.trace_state.to_header()}".strip()
    return whole if len(whole) <= LONGEST_CONTEXT else parent


def _span_context(trace_context: object) -> SpanContext | None:
    """Return a kept context as OpenTelemetry's own, which comes from elsewhere."""
    found = _read(trace_context)
    if found is None:
        return None
    from opentelemetry import trace  # noqa: PLC0415 - only a program that traces has it

    parts, state = found
    return trace.SpanContext(
        int(parts["trace"], 16),
        int(parts["span"], 16),
        is_remote=True,
        trace_flags=trace.TraceFlags(int(parts["flags"], 16)),
        trace_state=trace.TraceState.from_header([state]) if state else trace.TraceState(),
    )


def _attributes(worker: str, operation: str) -> dict[str, Any]:
    return {
        "messaging.system": _NAME,
        "messaging.destination.name": worker,
        "messaging.operation.name": operation,
        "messaging.operation.type": operation,
    }


@dataclass(slots=True)
class Sending:
    """A trigger that is traced: `trace_context` goes with its runs; `sent` notes their ids once they are there."""

    trace_context: str | None = None
    span: Span | None = field(default=None, repr=False)

    def sent(self, run_ids: Sequence[int]) -> None:
        """Note which runs were made."""
        if self.span is None:
            return
        with suppress(Exception):  # the runs are there, whatever the program's tracing makes of it
            if len(run_ids) == 1:
                self.span.set_attribute("messaging.message.id", str(run_ids[0]))
            else:
                self.span.set_attribute("messaging.batch.message_count", len(run_ids))


@contextmanager
def sending(by: Tracer | None, worker: str, caller: str | None = None) -> Iterator[Sending]:
    """Trace a trigger of `worker`, inside the block; an error is recorded and raised.

    `caller` is a context that was handed to this process; a span that is current is nearer. What the program's own
    tracing raises keeps no run from being made, nor from being told.
    """
    span = context = None
    if by is not None:
        with suppress(Exception):
            span = _start_sending(by, worker, caller)
            context = _written(span.get_span_context())
    if span is None:
        yield Sending(caller)
        return
    from opentelemetry import trace  # noqa: PLC0415 - only a program that traces has it
    from opentelemetry.context import attach, detach  # noqa: PLC0415 - likewise

    token = attach(trace.set_span_in_context(span))
    try:
        yield Sending(context, span)
    except Exception as error:
        with suppress(Exception):
            span.record_exception(error)
            span.set_status(trace.Status(trace.StatusCode.ERROR, f"{type(error).__name__}: {error}"))
        raise
    finally:
        detach(token)
        with suppress(Exception):
            span.end()


def _start_sending(by: Tracer, worker: str, caller: str | None) -> Span:
    from opentelemetry import trace  # noqa: PLC0415 - only a program that traces has it

    parent = None
    given = None if trace.get_current_span().get_span_context().is_valid else _span_context(caller)
    if given is not None:
        parent = trace.set_span_in_context(trace.NonRecordingSpan(given))
    kind, attributes = trace.SpanKind.PRODUCER, _attributes(worker, "send")
    return by.start_span(f"send {worker}", parent, kind=kind, attributes=attributes)


def processing(run: Run) -> Processing | None:
    """Begin what is traced of an attempt; None where there is no provider and the run belongs to no trace."""
    by = tracer()
    return None if by is None and run.trace_context is None else Processing(by, run)


class Processing:
    """What is traced of an attempt, from the start of its code to its end: no span, where there is no provider.

    `ids` name its span, or else its trigger's; `trace_context` is what it hands on, to a process or a command.
    """

    __slots__ = ("_span", "ids", "trace_context")

    def __init__(self, by: Tracer | None, run: Run) -> None:
        self._span: _Span | None = None
        if by is not None:
            with suppress(Exception):  # the program's own processor of spans must not keep a run from its start
                self._span = _Span(by, run)
        if self._span is not None:
            self.ids, self.trace_context = self._span.ids, self._span.trace_context
        else:
            self.ids = ids_of(run)
            self.trace_context = None if self.ids is None else run.trace_context

    def current(self) -> AbstractContextManager[None]:
        """Make its span the current one inside the block, and in the code that is started in it."""
        return nullcontext() if self._span is None else self._span.current()

    def end(self, outcome: Outcome | None) -> None:
        """Record how the attempt ended; None: its run was taken away, so that its outcome is somebody else's."""
        if self._span is not None:
            with suppress(Exception):  # as at its start
                self._span.end(outcome)


class _Span:
    def __init__(self, by: Tracer, run: Run) -> None:
        from opentelemetry import trace  # noqa: PLC0415 - only a program that traces has it
        from opentelemetry.context import Context  # noqa: PLC0415 - likewise

        asked = _span_context(run.trace_context)
        parent = Context()  # nothing of what is current where a node claims
        links: list[Link] = []
        if asked is not None and is_child(run):
            parent = trace.set_span_in_context(trace.NonRecordingSpan(asked), parent)
        elif asked is not None:
            links.append(trace.Link(asked))
        attributes = _attributes(run.worker, "process") | {
            "messaging.message.id": str(run.id),
            "jobrunner.attempt": run.attempt,
            "jobrunner.trigger": str(run.trigger),
        }
        name, kind = f"process {run.worker}", trace.SpanKind.CONSUMER
        self._span = by.start_span(name, parent, kind=kind, attributes=attributes, links=links)
        self._context = trace.set_span_in_context(self._span, parent)
        own = self._span.get_span_context()
        self.trace_context = _written(own)
        self.ids = TraceIds(f"{own.trace_id:032x}", f"{own.span_id:016x}") if own.is_valid else None

    @contextmanager
    def current(self) -> Iterator[None]:
        from opentelemetry.context import attach, detach  # noqa: PLC0415 - only a program that traces has it

        token = attach(self._context)
        try:
            yield
        finally:
            detach(token)

    def end(self, outcome: Outcome | None) -> None:
        from opentelemetry.trace import Status, StatusCode  # noqa: PLC0415 - only a program that traces has it

        span = self._span
        span.set_attribute("jobrunner.outcome", "taken_away" if outcome is None else str(outcome.kind))
        if outcome is not None and outcome.kind in _ERRORS:
            said = {"type": outcome.error_type, "message": outcome.error, "stacktrace": outcome.traceback}
            span.add_event("exception", {f"exception.{name}": text for name, text in said.items() if text})
            span.set_attribute("error.type", outcome.error_type or str(outcome.kind))
            span.set_status(Status(StatusCode.ERROR, outcome.error))
        span.end()


def is_child(run: Run) -> bool:
    """Say whether an attempt belongs to the trace of its run's trigger: the first, if it does not start too late."""
    if run.attempt != 1 or run.started_at is None or run.first_started_at != run.started_at:
        return False
    return run.created_at is None or run.started_at - run.created_at <= LONGEST_PARENT


def ids_of(run: Run) -> TraceIds | None:
    """Return the trace that an attempt belongs to where no span of it is known: its trigger's, or none."""
    return ids_in(run.trace_context) if run.trace_context is not None and is_child(run) else None


@contextmanager
def handed_over(trace_context: str | None) -> Iterator[None]:
    """Make a context that another process has handed over the current one, inside the block."""
    context = None if tracer() is None else _span_context(trace_context)
    if context is None:
        yield
        return
    from opentelemetry import trace  # noqa: PLC0415 - only a program that traces has it
    from opentelemetry.context import attach, detach  # noqa: PLC0415 - likewise

    token = attach(trace.set_span_in_context(trace.NonRecordingSpan(context)))
    try:
        yield
    finally:
        detach(token)
