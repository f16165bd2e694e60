"""Process: a handler in a real operating-system process, from a warm pool; killed for good when it must end.

The processes are `multiprocessing`'s, forked from its fork server, which has imported the handlers' modules and shares
no threads and locks with the node. Each runs one handler at a time and is reused until it is killed, dies, or runs out
of memory; a handler's time counts from when its code is called. Why not a ready-made pool: those at hand kill one
process and not its group, or cannot bring back what it printed, or poll when idle. Each child leads a process group and
is known to the node's watcher, so that neither it nor what it starts outlives the node.

The conversation, over one pipe a child: the node sends a `Task`; the child answers with ("started",), any number of
("progress", …) and one ("end", …). What the child's code prints comes over a second pipe. A child that ends without
"end" died: by a signal, or `os._exit`.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
import multiprocessing
import os
import resource
import signal
import threading
import traceback
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.forkserver import ensure_running
from typing import TYPE_CHECKING, Any

from jobrunner.errors import Discard, RetryAfter, Snooze
from jobrunner.runtime.context import RunContext
from jobrunner.runtime.executors.code import LONGEST_GRACE_SECONDS, ProcessDied
from jobrunner.runtime.executors.groups import group_is_alive, name_of_exit, signal_family

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime
    from multiprocessing.connection import Connection

    from jobrunner.model.run import Run
    from jobrunner.runtime.executors.code import Ended
    from jobrunner.runtime.executors.groups import GroupWatcher

_READ_BYTES = 64 * 1024
_SIGNALS = (Discard, Snooze, RetryAfter)
_forkserver = multiprocessing.get_context("forkserver")


@dataclass(frozen=True)
class Task:
    """What a child is told: the function by name, and the run."""

    module: str
    qualname: str
    takes_run: bool
    arguments: dict[str, Any]
    run: Run
    deadline: datetime
    memory_limit_mb: int | None


class _ChildContext(RunContext):
    """The run as code in a child sees it: what it says is printed, progress goes over the pipe."""

    def __init__(self, run: Run, deadline: datetime, pipe: Connection) -> None:
        super().__init__(run, deadline)
        self._pipe = pipe

    def log(self, message: object) -> None:
        print(message, flush=True)  # noqa: T201 - the child's output is the run's

    def progress(self, fraction: float, message: str = "") -> None:
        super().progress(fraction, message)
        self._pipe.send(("progress", self.latest_progress))


def _child_main(pipe: Connection, output: Connection) -> None:
    """Run tasks until the node closes the pipe."""
    with contextlib.suppress(PermissionError):
        os.setsid()  # a group of its own, which a Ctrl-C in the node's terminal does not reach
    for stream in (1, 2):
        os.dup2(output.fileno(), stream)
    pipe.send(("ready", os.getpid()))
    while True:
        try:
            task = pipe.recv()
        except (EOFError, OSError):
            return
        _run_task(pipe, task)


def _run_task(pipe: Connection, task: Task) -> None:
    context = _ChildContext(task.run, task.deadline, pipe)

    def on_term(_number: int, _frame: object) -> None:
        context.request_stop()
        raise SystemExit(143)

    signal.signal(signal.SIGTERM, on_term)
    _limit_memory(task.memory_limit_mb)
    end: tuple[str, Any, _Portable | None]
    try:
        end = ("end", _call(pipe, task, context), None)
    except BaseException as error:  # noqa: BLE001 - every way out of a handler is recorded
        end = ("end", None, _portable(error))
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _limit_memory(None)
    for stream in (1, 2):
        with contextlib.suppress(OSError):
            os.fsync(stream)
    try:
        pipe.send(end)
    except Exception as error:  # noqa: BLE001 - a result that cannot be pickled
        pipe.send(("end", _Unportable(str(error)), None))


class _Unportable:
    """A result that could not be brought back; the attempt records why."""

    def __init__(self, problem: str) -> None:
        self.problem = problem

    def __repr__(self) -> str:
        return f"<a result that cannot be brought back: {self.problem}>"


def _call(pipe: Connection, task: Task, context: _ChildContext) -> Any:
    function: Any = importlib.import_module(task.module)
    for part in task.qualname.split("."):
        function = getattr(function, part)
    positional = (context,) if task.takes_run else ()
    pipe.send(("started",))
    if inspect.iscoroutinefunction(function):
        return asyncio.run(function(*positional, **task.arguments))
    return function(*positional, **task.arguments)


def _limit_memory(megabytes: int | None) -> None:
    """Cap what the process may allocate (its data, not the libraries it maps); None takes the cap away."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    soft = hard if megabytes is None else megabytes * 1024 * 1024
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


@dataclass(frozen=True)
class _Portable:
    """An error as it travels: its own class may not exist, or not unpickle, on the other side."""

    kind: str
    message: str
    traceback: str
    signal: tuple[str, float, str | None] | None


def _portable(error: BaseException) -> _Portable:
    told: tuple[str, float, str | None] | None = None
    if isinstance(error, _SIGNALS):
        told = (type(error).__name__, float(getattr(error, "seconds", 0.0)), getattr(error, "reason", None))
    try:
        message = str(error)
    except Exception:  # noqa: BLE001 - a broken __str__ is the handler's
        message = ""
    return _Portable(type(error).__name__, message, "".join(traceback.format_exception(error)), told)


class RemoteError(Exception):
    """What a handler raised in another process, as text."""

    def __init__(self, kind: str, message: str, text: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.text = text


def _revived(error: _Portable, memory_limit_mb: int | None) -> BaseException:
    if error.signal is not None:
        kind, seconds, reason = error.signal
        if kind == "Discard":
            return Discard(reason or "discarded by its handler")
        return Snooze(seconds, reason) if kind == "Snooze" else RetryAfter(seconds, reason)
    message = error.message
    if error.kind == "MemoryError" and memory_limit_mb is not None:
        message = f"over its memory limit of {memory_limit_mb} MiB{': ' + message if message else ''}"
    return RemoteError(error.kind, message, error.traceback)


class Child:
    """One process of the pool, seen from the node. Its methods that wait are called in threads."""

    def __init__(self) -> None:
        self.pipe, far_pipe = _forkserver.Pipe()
        self.output, far_output = _forkserver.Pipe(duplex=False)
        self.process = _forkserver.Process(target=_child_main, args=(far_pipe, far_output))
        self.process.start()
        far_pipe.close()
        far_output.close()
        self.is_fresh = True

    @property
    def pid(self) -> int:
        """The process's id, and its group's."""
        return self.process.pid or 0

    def carry_out(
        self, task: Task, context: RunContext, on_started: Callable[[], None]
    ) -> tuple[Any, _Portable | None] | None:
        """Run a task to its end and return how it ended; None if the process died."""
        try:
            self.pipe.send(task)
        except OSError:
            return None
        while True:
            ready = wait([self.pipe, self.output, self.process.sentinel])
            if self.output in ready:
                self._read_output(context)
            if self.pipe in ready:
                try:
                    message = self.pipe.recv()
                except Exception:  # noqa: BLE001 - the end of the pipe, or of what was being sent
                    self.process.join(1.0)
                    return None
                if message[0] == "started":
                    on_started()
                elif message[0] == "progress":
                    context.latest_progress = message[1]
                elif message[0] == "end":
                    self._drain_output(context)
                    return message[1], message[2]
            elif self.process.sentinel in ready and self.output not in ready:
                self.process.join(1.0)
                return None

    def _read_output(self, context: RunContext) -> bool:
        try:
            chunk = os.read(self.output.fileno(), _READ_BYTES)
        except OSError:
            return False
        if chunk:
            context.output.write_bytes(chunk)
        return bool(chunk)

    def _drain_output(self, context: RunContext) -> None:
        while self.output.poll(0):
            if not self._read_output(context):
                return

    def close(self) -> None:
        """End the process, if it is still there, and give back what it held."""
        signal_family(self.pid, signal.SIGKILL)
        self.process.join(2.0)
        self.pipe.close()
        self.output.close()


class ProcessPool:
    """The node's warm processes."""

    def __init__(self, watcher: GroupWatcher) -> None:
        self._watcher = watcher
        self._idle: list[Child] = []
        self._lock = threading.Lock()

    def warm(self, modules: list[str]) -> None:
        """Start the fork server, with the handlers' modules imported."""
        _forkserver.set_forkserver_preload(["__main__", *modules])
        ensure_running()

    def take(self) -> Child:
        """Return an idle process, or a new one."""
        with self._lock:
            while self._idle:
                child = self._idle.pop()
                if child.process.is_alive():
                    return child
                self.discard(child)
        child = Child()
        self._watcher.add(child.pid)
        return child

    def give_back(self, child: Child) -> None:
        """Keep a process for the next task."""
        with self._lock:
            self._idle.append(child)

    def discard(self, child: Child) -> None:
        """End a process."""
        child.close()
        self._watcher.remove(child.pid)

    def close(self) -> None:
        """End all idle processes."""
        with self._lock:
            idle, self._idle = self._idle, []
        for child in idle:
            self.discard(child)


class ProcessCode:
    """A handler's code in a process of the pool."""

    can_be_killed = True
    grace_seconds = LONGEST_GRACE_SECONDS

    def __init__(self, pool: ProcessPool, task: Task, context: RunContext) -> None:
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[Ended] = self._loop.create_future()
        self.started: asyncio.Future[None] | None = self._loop.create_future()
        self._pool = pool
        self._task = task
        self._context = context
        self._child: Child | None = None
        self._wants_stop = threading.Event()
        self._kill = threading.Event()
        threading.Thread(target=self._body, name=f"jobrunner:{task.run.worker}", daemon=True).start()

    def _body(self) -> None:
        outcome: Ended
        try:
            outcome = self._carry_out()
        except BaseException as error:  # noqa: BLE001 - no process to be had is a failed attempt too
            outcome = (None, error)
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._settle, outcome)

    def _settle(self, outcome: Ended) -> None:
        if not self.ended.done():
            self.ended.set_result(outcome)

    def _on_started(self) -> None:
        def settle() -> None:
            if self.started is not None and not self.started.done():
                self.started.set_result(None)

        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(settle)

    def _carry_out(self) -> Ended:
        child = self._pool.take()
        if child.is_fresh:
            child.pipe.recv()  # "ready": it leads its group from here on
            child.is_fresh = False
        self._child = child
        if self._wants_stop.is_set():
            self.ask_to_stop()
        end = child.carry_out(self._task, self._context, self._on_started)
        if end is not None and not self._wants_stop.is_set() and not _is_out_of_memory(end[1]):
            self._pool.give_back(child)
        else:
            self._bury(child)
        if end is None:
            return None, ProcessDied(f"its process ended with {name_of_exit(child.process.exitcode or 0)}")
        value, error = end
        return value, None if error is None else _revived(error, self._task.memory_limit_mb)

    def _bury(self, child: Child) -> None:
        """End the process and wait until all of its group is gone: only then has the code ended."""
        self._pool.discard(child)
        while group_is_alive(child.pid):
            signal_family(child.pid, signal.SIGKILL)
            self._kill.wait(0.05)
            self._kill.clear()

    def ask_to_stop(self) -> None:
        """Send SIGTERM to the group."""
        self._wants_stop.set()
        if self._child is not None:
            signal_family(self._child.pid, signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL to the group."""
        self._kill.set()
        if self._child is not None:
            signal_family(self._child.pid, signal.SIGKILL)


def _is_out_of_memory(error: _Portable | None) -> bool:
    return error is not None and error.kind == "MemoryError"


def importable(function: Callable[..., Any]) -> str | None:
    """Say why another process could not find `function` by its name; None if it can."""
    qualname = getattr(function, "__qualname__", "")
    if not qualname or "<" in qualname:
        return "isolation 'process' needs a function at the top level of a module, which another process can import"
    if getattr(function, "__module__", None) == "__main__":
        return "isolation 'process' needs a function of a module that can be imported, not of the script itself"
    return None
