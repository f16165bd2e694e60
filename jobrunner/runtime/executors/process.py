"""Process: a function in an operating-system process of its own, from a pool of warm ones, killed for good.

The node keeps idle processes for the next task, each for a minute; one whose handler was stopped, ran out of memory, or
left the process other than it was (`traces.py`) is not used again: it has ended, with all that runs in it, before the
run's end is told. A process that ends before its handler does, by a crash, `os._exit` or a signal, is a failed attempt
of that handler only. What the child does is in `child.py`; each is under a guard (`guard.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import pickle
import threading
from multiprocessing import forkserver
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any

from jobrunner.errors import Discard, RetryAfter, Snooze
from jobrunner.runtime.executors.child import End, PortableError, Task, child_main
from jobrunner.runtime.executors.code import LONGEST_GRACE_SECONDS, NotStarted, ProcessDied, start_thread
from jobrunner.runtime.executors.guards import Line, name_of_exit
from jobrunner.runtime.results import RemoteError
from jobrunner.storage.database import forks
from jobrunner.telemetry import json_lines

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobrunner.model.flow import Before
    from jobrunner.runtime.context import RunContext
    from jobrunner.runtime.executors.code import Ended

_READ_BYTES = 64 * 1024
_MOST_LEFT_BYTES = 1024 * 1024  # of output that is read after the end: a stray may go on writing for ever
_SPARE_DESCRIPTORS = 16  # a start takes seven, and the database wants one now and then
IDLE_SECONDS = 60.0  # after which a process that nobody needed is ended
_forkserver = multiprocessing.get_context("forkserver")
_one_at_a_time = threading.Lock()  # multiprocessing looks after its children in every start, and not thread-safely


def _check_spare_descriptors(any_open: int) -> None:
    """Raise `OSError` unless a start will not run out of descriptors half-way: the fork server would die of it."""
    opened: list[int] = []
    try:
        while len(opened) < _SPARE_DESCRIPTORS:
            opened.append(os.dup(any_open))
    finally:
        for descriptor in opened:
            os.close(descriptor)


def _hear(kind: str, told: Any, context: RunContext) -> None:
    """Note the progress of a handler, or write what its code has logged into this process's log."""
    log = json_lines.installed()
    if kind == "progress":
        context.latest_progress = told
    elif kind == "log" and log is not None:
        log.relay(told)


def _revived(error: PortableError, memory_limit_mb: int | None) -> BaseException:
    if error.signal is not None:
        kind, seconds, reason = error.signal
        if kind == "Discard":
            return Discard(reason or "discarded by its handler")
        return Snooze(seconds, reason) if kind == "Snooze" else RetryAfter(seconds, reason)
    message = error.message
    if error.kind == "MemoryError" and memory_limit_mb is not None:
        message = f"over its memory limit of {memory_limit_mb} MiB{': ' + message if message else ''}"
    return RemoteError(error.kind, error.kinds, message, error.traceback)


class Child:
    """One process of the pool, seen from the node. Its methods that wait are called in threads."""

    def __init__(self) -> None:
        self.line = Line()
        self.pipe, far_pipe = _forkserver.Pipe()
        self.output, far_output = _forkserver.Pipe(duplex=False)
        self.idle_since: float | None = None
        for own in (self.pipe, self.output):
            forks.keep_private(own, type(own).fileno)
        self._process = _forkserver.Process(target=child_main, args=(far_pipe, far_output, self.line.far))
        try:
            with _one_at_a_time:
                _check_spare_descriptors(self.pipe.fileno())
                self._process.start()
        except BaseException:
            self._let_go()
            raise
        finally:
            far_pipe.close()
            far_output.close()
            self.line.far.close()

    def is_alive(self) -> bool:
        """Say whether the process can be given a task."""
        return not (self.line.has_news() or self.pipe.poll())  # an idle one has nothing to say

    def wait_ready(self) -> None:
        """Wait until the process is there."""
        try:
            self.pipe.recv()
        except (EOFError, OSError):
            raise ProcessDied(f"its process could not start: it {self.last_words()}") from None

    def last_words(self) -> str:
        """Say how a process ended whose pipe has closed."""
        self.line.kill()
        self.line.wait_over()
        code = self.line.code
        return "ended with " + ("a signal" if code is None else name_of_exit(code))

    def carry_out(self, task: Task, context: RunContext, on_started: Callable[[], None]) -> End | None:
        """Run a task to its end and return how it ended; None if the process died."""
        try:
            self.pipe.send(task)
        except OSError:
            return None
        line = self.line.fileno()
        while True:
            ready = wait([self.pipe, self.output, line])
            if self.output in ready:
                self._read_output(context)
            if self.pipe in ready:
                try:
                    kind, *told = self.pipe.recv()
                except Exception:  # noqa: BLE001 - the end of the pipe, or of what was being sent
                    break
                if kind == "started":
                    on_started()
                elif kind == "end":
                    self._drain_output(context)
                    return told[0]  # type: ignore[no-any-return]  # what the child sends
                else:
                    _hear(kind, told[0], context)
            elif line in ready:
                break
        self._drain_output(context)
        return None

    def _read_output(self, context: RunContext) -> int:
        try:
            chunk = os.read(self.output.fileno(), _READ_BYTES)
        except OSError:
            return 0
        if chunk:
            context.output.write_bytes(chunk)
        return len(chunk)

    def _drain_output(self, context: RunContext) -> None:
        left = _MOST_LEFT_BYTES
        while left > 0 and self.output.poll(0):
            count = self._read_output(context)
            if not count:
                return
            left -= count

    def close(self) -> None:
        """End the process with all that it started, wait until nobody is left, and give back what it held."""
        self.line.kill()
        self.line.wait_over()
        self._let_go()
        wait([self._process.sentinel], 2.0)  # until the fork server has noticed
        with _one_at_a_time, contextlib.suppress(ValueError):  # it has not: then this is left to the interpreter
            self._process.close()

    def _let_go(self) -> None:
        self.line.close()
        self.pipe.close()
        self.output.close()


class ProcessPool:
    """The node's warm processes."""

    def __init__(self) -> None:
        self._idle: list[Child] = []
        self._lock = threading.Lock()
        self._is_closed = False

    def warm(self, modules: list[str]) -> None:
        """Start the fork server, with the handlers' modules imported."""
        _forkserver.set_forkserver_preload(["__main__", __name__, *modules])
        forkserver.ensure_running()
        # Its line to the node, whose closing ends it, and which is opened anew if it must be started again.
        forks.keep_private(forkserver._forkserver, lambda server: server._forkserver_alive_fd)

    def take(self) -> Child:
        """Return an idle process, or a new one that is ready."""
        while True:
            with self._lock:
                child = self._idle.pop() if self._idle else None
            if child is None:
                break
            if child.is_alive():
                return child
            self.discard(child)
        try:
            child = Child()
        except (OSError, EOFError, RuntimeError, MemoryError) as error:  # nothing to spare, or the fork server is gone
            raise NotStarted(f"no process: {str(error) or type(error).__name__}") from error
        try:
            child.wait_ready()
        except BaseException:
            self.discard(child)
            raise
        return child

    def give_back(self, child: Child) -> None:
        """Keep a process for the next task."""
        child.idle_since = None
        with self._lock:
            if not self._is_closed:
                self._idle.append(child)
                return
        self.discard(child)

    def take_expired(self, now: float) -> list[Child]:
        """Take out those seen idle for a minute, by monotonic seconds; the last given back is the first taken again."""
        with self._lock:
            for child in self._idle:
                child.idle_since = now if child.idle_since is None else child.idle_since
            expired = [c for c in self._idle if c.idle_since is not None and now - c.idle_since >= IDLE_SECONDS]
            self._idle = [child for child in self._idle if child not in expired]
        return expired

    def discard(self, child: Child) -> None:
        """End a process."""
        child.close()

    def close(self) -> None:
        """End all idle processes."""
        with self._lock:
            self._is_closed = True
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
        self._line: Line | None = None  # while a signal is this run's to send
        self._lock = threading.Lock()
        self._wants_stop = False
        self.has_returned = False
        start_thread(self._body, task.run.worker)

    def _body(self) -> None:
        outcome: Ended
        try:
            outcome = self._carry_out()
        except BaseException as error:  # noqa: BLE001 - no process to be had is a failed attempt too
            outcome = (None, error)
        self._post(self._settle, outcome)
        del outcome  # an error's traceback holds this frame, which must not hold the error

    def _post(self, call: Callable[..., None], *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(call, *arguments)

    def _settle(self, outcome: Ended) -> None:
        if not self.ended.done():
            self.ended.set_result(outcome)

    def _note_started(self) -> None:
        if self.started is not None and not self.started.done():
            self.started.set_result(None)

    def _carry_out(self) -> Ended:
        child = self._pool.take()
        with self._lock:
            self._line = child.line
            is_wanted = not self._wants_stop
        end = None
        if is_wanted:
            end = child.carry_out(self._task, self._context, lambda: self._post(self._note_started))
        last_words = "" if end is not None else child.last_words()  # while the line may still be told to kill
        self.has_returned = end is not None
        with self._lock:
            self._line = None  # from here on the process may run somebody else's code
            was_stopped = self._wants_stop
        if end is not None and not was_stopped and not end.is_spent:
            self._pool.give_back(child)
        else:
            self._pool.discard(child)  # only then the code has ended
        if end is None:
            return None, ProcessDied(f"its process {last_words}")
        self._context.result_remark = end.remark
        error = end.error
        return end.result, None if error is None else _revived(error, self._task.memory_limit_mb)

    def ask_to_stop(self) -> None:
        """Send SIGTERM to the process and all that it started."""
        with self._lock:
            self._wants_stop = True
            if self._line is not None:
                self._line.ask_to_stop()

    def kill(self) -> None:
        """Send them SIGKILL."""
        with self._lock:
            if self._line is not None:
                self._line.kill()


def task_of(
    label: str,
    run: Any,
    deadline: Any,
    arguments: dict[str, Any],
    *,
    takes_run: bool,
    memory_limit_mb: int | None,
    captures_logs: bool = False,
    trace_context: str | None = None,
    sends_logs: bool = False,
    before: Before | None = None,
) -> Task:
    """Make the task for a handler by its label, `module:qualname`. Raises what pickling the arguments does."""
    module, _, qualname = label.partition(":")
    more = captures_logs, trace_context, sends_logs, before
    return Task(module, qualname, takes_run, pickle.dumps(arguments), run, deadline, memory_limit_mb, *more)


def importable(function: Callable[..., Any]) -> str | None:
    """Say why another process could not find `function` by its name; None if it can."""
    qualname = getattr(function, "__qualname__", "")
    if not qualname or "<" in qualname:
        return "isolation 'process' needs a function at the top level of a module, which another process can import"
    if getattr(function, "__module__", None) == "__main__":
        return "isolation 'process' needs a function of a module that can be imported, not of the script itself"
    return None
