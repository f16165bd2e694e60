"""The far side of isolation `process`: what runs in a process of the pool.

A child is in a session of its own, under a guard. Its standard output and error are a pipe to the node, which keeps the
tail as the run's output. Over a second pipe it gets tasks, one after the other, and says `ready`, `started`, `progress`
and `end`. Everything that travels back is plain (text, JSON, numbers): an error's class, or a result's, may not exist
or not unpickle on the other side.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
import logging
import os
import pickle
import resource
import signal
import sys
import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from jobrunner.runtime import forks, logs
from jobrunner.runtime.context import RunContext, shown
from jobrunner.runtime.executors import guard
from jobrunner.runtime.executors.traces import Traces
from jobrunner.runtime.raised import (
    SIGNALS,
    kind_of,
    kinds_of,
    message_of,
    reason_of,
    signal_in,
    traceback_of,
    wanted_seconds,
)
from jobrunner.runtime.results import never_begun, storable_result
from jobrunner.storage.database.forks import keep_private
from jobrunner.telemetry import tracing
from jobrunner.telemetry.current import current_run
from jobrunner.telemetry.json_lines import JsonLines

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator, Mapping
    from datetime import datetime
    from multiprocessing.connection import Connection

    from jobrunner.model.flow import Before
    from jobrunner.model.run import Run


@dataclass(frozen=True)
class Task:
    """What a child is told: the function by name, and the run. `arguments` is a pickled dict.

    `before`: what a step of a flow is told of those before it. `trace_context` is that of the attempt's span, which the
    node makes. `sends_logs`: the node writes its log as JSON, and what the code logs with it.
    """

    module: str
    qualname: str
    takes_run: bool
    arguments: bytes
    run: Run
    deadline: datetime
    memory_limit_mb: int | None
    captures_logs: bool = False
    trace_context: str | None = None
    sends_logs: bool = False
    before: Before | None = None


@dataclass(frozen=True)
class PortableError:
    """An error as it travels. `kinds` names its class and those it derives from, `module.Class`."""

    kind: str
    kinds: tuple[str, ...]
    message: str
    traceback: str
    signal: tuple[str, float, str | None] | None


@dataclass(frozen=True)
class End:
    """How a task ended. `remark` says why a result is not kept; `is_spent`, that the process must not be used again."""

    result: Any = None
    remark: str | None = None
    error: PortableError | None = None
    is_spent: bool = False


class _ChildContext(RunContext):
    """The run as code in a child sees it: what it says is printed, progress goes over the pipe."""

    def __init__(self, run: Run, deadline: datetime, pipe: Connection, before: Before | None) -> None:
        super().__init__(run, deadline, before)
        self._pipe = pipe
        self._sending = threading.Lock()

    def log(self, message: object) -> None:
        self.write(shown(message))

    def write(self, line: str) -> None:
        """Add a line to the child's output, which is the run's."""
        print(line, flush=True)  # noqa: T201 - as the docstring says

    def send_log(self, line: str) -> None:
        """Send a line for the node's log."""
        with self._sending:
            self._pipe.send(("log", line))

    def end(self, end: End) -> None:
        """Send how the task ended; a thread that the code has left may be sending, too."""
        with self._sending:
            self._pipe.send(("end", end))

    def progress(self, fraction: float, message: str = "") -> None:
        super().progress(fraction, message)
        with self._sending:
            self._pipe.send(("progress", self.latest_progress))


def child_main(pipe: Connection, output: Connection, control: socket.socket) -> None:
    """Become the keeper of the guard of a process that runs tasks until the node closes the pipe."""
    with contextlib.suppress(PermissionError):
        os.setsid()  # what a Ctrl-C in the node's terminal does not reach
    guard.adopt_orphans()
    its_guard = os.fork()
    if its_guard:
        pipe.close()
        output.close()
        guard.keep(its_guard)  # with `control` open, whose end tells the node that nobody is left
        os._exit(0)
    guard.adopt_orphans()
    me = os.getpid()
    main = os.fork()
    if main:
        pipe.close()
        output.close()
        guard.be_deaf()
        guard.Guard(control.fileno(), main, may_leave=False).run()
        os._exit(0)
    control.close()
    guard.die_with(me)
    _serve(pipe, output)


def _serve(pipe: Connection, output: Connection) -> None:
    os.setsid()
    guard.adopt_orphans()  # so that none is lost sight of who lives on when a task has ended
    keep_private(pipe, type(pipe).fileno)
    forks.protect_handlers()
    for stream in (1, 2):
        os.dup2(output.fileno(), stream)
    output.close()
    # By lines, so that what was printed before a crash is kept; whatever the locale, what cannot be encoded is escaped.
    sys.stdout = open(1, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115 - as long as the process
    sys.stderr = open(2, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115 - as long as the process
    made = Traces.seen()
    pipe.send(("ready", os.getpid()))
    while True:
        try:
            task = pipe.recv()
        except (EOFError, OSError):
            return
        _run_task(pipe, task, made)


def _run_task(pipe: Connection, task: Task, made: Traces) -> None:
    me = os.getpid()
    context = _ChildContext(task.run, task.deadline, pipe, task.before)

    def on_term(_number: int, _frame: object) -> None:
        context.request_stop()
        raise SystemExit(143)

    signal.signal(signal.SIGTERM, on_term)
    limits = resource.getrlimit(resource.RLIMIT_DATA)
    if task.memory_limit_mb is not None:
        _limit_memory(task.memory_limit_mb * 1024 * 1024, limits[1])
    if task.captures_logs:
        logs.see_all()
    try:
        said = logs.said_to(context if task.captures_logs else None, frozenset({1, 2}))
        with said, _traced(task), _logged(task, context):
            value = _call(pipe, task, context)
        end = _end(value, context)
    except BaseException as error:  # noqa: BLE001 - every way out of a handler is recorded
        forks.leave_if_forked(me, error)
        end = End(error=_portable(error))
    forks.leave_if_forked(me, None)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if task.memory_limit_mb is not None:
        _limit_memory(*limits)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # the handler may have closed or replaced it
            stream.flush()
    is_out_of_memory = end.error is not None and end.error.kind == "MemoryError"
    is_spent = is_out_of_memory or _has_children() or Traces.seen() != made
    context.end(replace(end, is_spent=is_spent))


@contextlib.contextmanager
def _traced(task: Task) -> Iterator[None]:
    """Inside the block, hand the trace on: to OpenTelemetry in this process, and to processes that the code starts."""
    given = tracing.as_environment(task.trace_context)
    before = {
        name: os.environ[name] for name in (tracing.PARENT_VARIABLE, tracing.STATE_VARIABLE) if name in os.environ
    }
    token = current_run.set((task.run, tracing.ids_in(task.trace_context)))
    _set_environment(given)
    try:
        with tracing.handed_over(task.trace_context):
            yield
    finally:
        current_run.reset(token)
        _set_environment(before)


class _LogSender(logging.Handler):
    """Sends records to the node as lines of JSON; what Python shows where nobody set up logging is shown as before."""

    def __init__(self, context: _ChildContext) -> None:
        super().__init__()
        self._context = context
        self.setFormatter(JsonLines())

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._context.send_log(self.format(record))
        except Exception:  # noqa: BLE001 - the node is gone
            return
        shown = logging.lastResort
        if shown is not None and record.levelno >= shown.level:
            shown.handle(record)


@contextlib.contextmanager
def _logged(task: Task, context: _ChildContext) -> Iterator[None]:
    """Inside the block, send what is logged to the node, unless the program has handlers of its own."""
    root = logging.getLogger()
    if not task.sends_logs or root.handlers:
        yield
        return
    sender = _LogSender(context)
    root.addHandler(sender)
    try:
        yield
    finally:
        root.removeHandler(sender)


def _set_environment(variables: Mapping[str, str]) -> None:
    for name in (tracing.PARENT_VARIABLE, tracing.STATE_VARIABLE):
        if name in variables:
            os.environ[name] = variables[name]
        else:
            os.environ.pop(name, None)


def _end(value: Any, context: RunContext) -> End:
    problem = never_begun(value)
    if problem is not None:
        raise TypeError(problem)
    return End(*storable_result(context.result if value is None else value))


def _has_children() -> bool:
    """Say whether a child is left, after taking leave of the dead that nobody else will ask after."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def _call(pipe: Connection, task: Task, context: RunContext) -> Any:
    function: Any = importlib.import_module(task.module)
    for part in task.qualname.split("."):
        function = getattr(function, part)
    arguments = pickle.loads(task.arguments)  # noqa: S301 - the node's own
    positional = (context,) if task.takes_run else ()
    pipe.send(("started",))
    if inspect.iscoroutinefunction(function):
        return asyncio.run(_protected(function, positional, arguments))
    return function(*positional, **arguments)


async def _protected(function: Any, positional: tuple[Any, ...], arguments: dict[str, Any]) -> Any:
    loop = asyncio.get_running_loop()
    forks.protect(loop)
    try:
        return await function(*positional, **arguments)
    finally:
        forks.unprotect(loop)


def _limit_memory(soft: int, hard: int) -> None:
    """Cap what the process may allocate: its data, in bytes, not the libraries it maps."""
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _portable(error: BaseException) -> PortableError:
    asked = signal_in(error)
    told: tuple[str, float, str | None] | None = None
    if asked is not None:
        name = next(kind.__name__ for kind in SIGNALS if issubclass(type(asked), kind))
        told = (name, wanted_seconds(asked), reason_of(asked))
    return PortableError(kind_of(error), kinds_of(error), message_of(error), traceback_of(error) or "", told)
