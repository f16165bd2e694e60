"""The far side of isolation `process`: what runs in a process of the pool.

A child leads a process group of its own. Its standard output and error are a pipe to the node, which keeps the tail as
the run's output. Over a second pipe it gets tasks, one after the other, and says `ready`, `started`, `progress` and
`end`. Everything that travels back is plain (text, JSON, numbers): an error's class, or a result's, may not exist or
not unpickle on the other side.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import importlib
import inspect
import os
import pickle
import resource
import signal
import sys
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jobrunner.runtime.context import RunContext, shown
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

if TYPE_CHECKING:
    from datetime import datetime
    from multiprocessing.connection import Connection

    from jobrunner.model.run import Run

_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Task:
    """What a child is told: the function by name, and the run. `arguments` is a pickled dict."""

    module: str
    qualname: str
    takes_run: bool
    arguments: bytes
    run: Run
    deadline: datetime
    memory_limit_mb: int | None


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
    """How a task ended. `remark` says why a result is not kept."""

    result: Any = None
    remark: str | None = None
    error: PortableError | None = None


class _ChildContext(RunContext):
    """The run as code in a child sees it: what it says is printed, progress goes over the pipe."""

    def __init__(self, run: Run, deadline: datetime, pipe: Connection) -> None:
        super().__init__(run, deadline)
        self._pipe = pipe
        self._sending = threading.Lock()

    def log(self, message: object) -> None:
        print(shown(message), flush=True)  # noqa: T201 - the child's output is the run's

    def progress(self, fraction: float, message: str = "") -> None:
        super().progress(fraction, message)
        with self._sending:
            self._pipe.send(("progress", self.latest_progress))


def child_main(pipe: Connection, output: Connection) -> None:
    """Run tasks until the node closes the pipe."""
    with contextlib.suppress(PermissionError):
        os.setsid()  # a group of its own, which a Ctrl-C in the node's terminal does not reach
    _adopt_orphans()
    for stream in (1, 2):
        os.dup2(output.fileno(), stream)
    # By lines, so that what was printed before a crash is kept; whatever the locale, what cannot be encoded is escaped.
    sys.stdout = open(1, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115 - as long as the process
    sys.stderr = open(2, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115 - as long as the process
    pipe.send(("ready", os.getpid()))
    while True:
        try:
            task = pipe.recv()
        except (EOFError, OSError):
            return
        _run_task(pipe, task)


def _adopt_orphans() -> None:
    """Become the parent of descendants whose own has ended, where the system offers it: so none is lost sight of."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _run_task(pipe: Connection, task: Task) -> None:
    context = _ChildContext(task.run, task.deadline, pipe)

    def on_term(_number: int, _frame: object) -> None:
        context.request_stop()
        raise SystemExit(143)

    signal.signal(signal.SIGTERM, on_term)
    _limit_memory(task.memory_limit_mb)
    try:
        value = _call(pipe, task, context)
        end = _end(value, context)
    except BaseException as error:  # noqa: BLE001 - every way out of a handler is recorded
        end = End(error=_portable(error))
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _limit_memory(None)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # the handler may have closed or replaced it
            stream.flush()
    _reap()
    pipe.send(("end", end))


def _end(value: Any, context: RunContext) -> End:
    problem = never_begun(value)
    if problem is not None:
        raise TypeError(problem)
    return End(*storable_result(context.result if value is None else value))


def _reap() -> None:
    """Take leave of the dead children that nobody else will ask after."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _call(pipe: Connection, task: Task, context: RunContext) -> Any:
    function: Any = importlib.import_module(task.module)
    for part in task.qualname.split("."):
        function = getattr(function, part)
    arguments = pickle.loads(task.arguments)  # noqa: S301 - the node's own
    positional = (context,) if task.takes_run else ()
    pipe.send(("started",))
    if inspect.iscoroutinefunction(function):
        return asyncio.run(function(*positional, **arguments))
    return function(*positional, **arguments)


def _limit_memory(megabytes: int | None) -> None:
    """Cap what the process may allocate (its data, not the libraries it maps); None takes the cap away."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    soft = hard if megabytes is None else megabytes * 1024 * 1024
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _portable(error: BaseException) -> PortableError:
    asked = signal_in(error)
    told: tuple[str, float, str | None] | None = None
    if asked is not None:
        name = next(kind.__name__ for kind in SIGNALS if issubclass(type(asked), kind))
        told = (name, wanted_seconds(asked), reason_of(asked))
    return PortableError(kind_of(error), kinds_of(error), message_of(error), traceback_of(error) or "", told)
