"""Command: a program, without or (by explicit choice) with a shell, in a session of its own, under a guard.

It gets the payload as JSON on standard input and `JOBRUNNER_RUN_ID`, `JOBRUNNER_WORKER` and `JOBRUNNER_ATTEMPT` in its
environment, which is the node's without any other `JOBRUNNER_` variable: the database's URL, tokens and keys are not
its own. `TRACEPARENT` and `TRACESTATE` are there where the run belongs to a trace. Exit code 0 is success. The end of
what it writes to standard output and error is kept. When it is stopped, all that it started is stopped with it. What it
leaves behind in the background when it ends by itself may live on, as long as the node does.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import selectors
import tempfile
import threading
import time
from typing import TYPE_CHECKING, Any

from jobrunner.runtime.executors.code import LONGEST_GRACE_SECONDS, SHORT_OF, CommandFailed, NotStarted, start_thread
from jobrunner.runtime.executors.guards import name_of_exit, without_ours
from jobrunner.telemetry import tracing

if TYPE_CHECKING:
    from jobrunner.model.flow import Before
    from jobrunner.runtime.context import RunContext
    from jobrunner.runtime.executors.code import Ended
    from jobrunner.runtime.executors.guards import Guards, Line

_READ_BYTES = 64 * 1024
MOST_SAID = 100 * 1024
"""Bytes in one variable of the environment; Linux takes 128 KiB."""
_LAST_WORDS_SECONDS = 0.2  # what a background process that holds the pipe says later is not this run's


class CommandCode:
    """A program, started from a thread of its own, which reads its output."""

    started: asyncio.Future[None] | None = None
    can_be_killed = True
    grace_seconds = LONGEST_GRACE_SECONDS

    def __init__(self, handler: str, context: RunContext, memory_limit_mb: int | None, guards: Guards) -> None:
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[Ended] = self._loop.create_future()
        self._handler = handler
        self._context = context
        self._memory_limit_mb = memory_limit_mb
        self._guards = guards
        self._line: Line | None = None
        self._lock = threading.Lock()
        self._wants_stop = False
        self.has_returned = False
        start_thread(self._body, context.worker)

    def _body(self) -> None:
        outcome: Ended = (None, None)
        try:
            self._carry_out()
        except BaseException as error:  # noqa: BLE001 - a program that is not there is a failed attempt too
            outcome = (None, error)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._settle, outcome)
        del outcome  # an error's traceback holds this frame, which must not hold the error

    def _settle(self, outcome: Ended) -> None:
        if not self.ended.done():
            self.ended.set_result(outcome)

    def _carry_out(self) -> None:
        line, output = self._start()
        try:
            with self._lock:
                self._line = line
                if self._wants_stop:
                    line.ask_to_stop()
            self._read(line, output)
            self.has_returned = line.code is not None
            if self._wants_stop or line.code is None:
                line.wait_over()  # until all that it started is gone, too
        finally:
            os.close(output)
            with self._lock:
                self._line = None
            self._guards.leave(line)
        self._judge(line.code)

    def _judge(self, code: int | None) -> None:
        if code is None:
            raise CommandFailed("the command was killed, since the process that guards it was")
        if code != 0:
            capped = "" if self._memory_limit_mb is None else f" under its memory limit of {self._memory_limit_mb} MiB"
            raise CommandFailed(f"the command ended with {name_of_exit(code)}{capped}")

    def _start(self) -> tuple[Line, int]:
        """Return the command's line, and what it writes."""
        if self._wants_stop:
            raise CommandFailed("the command was stopped before it began")
        arguments = arguments_of(self._handler, self._memory_limit_mb)
        try:
            return self._open(arguments)
        except OSError as error:
            if error.errno is None or error.errno in SHORT_OF:
                raise NotStarted(f"no process: {error}") from error
            raise

    def _open(self, arguments: list[str]) -> tuple[Line, int]:
        output, far_output = os.pipe()
        try:
            with tempfile.TemporaryFile() as payload:  # a file: a command need not read its input
                payload.write(json.dumps(self._context.payload).encode() + b"\n")
                payload.seek(0)
                line = self._guards.start(arguments, self._environment(), payload.fileno(), far_output)
        except BaseException:
            os.close(output)
            raise
        finally:
            os.close(far_output)
        return line, output

    def _read(self, line: Line, output: int) -> None:
        """Read the output to its end, or until the command has ended and nothing more comes."""
        stop_at: float | None = None
        has_output = True
        with selectors.PollSelector() as selector:  # it needs no descriptor of its own
            selector.register(output, selectors.EVENT_READ)
            selector.register(line, selectors.EVENT_READ)
            while stop_at is None or (has_output and time.monotonic() < stop_at):
                for key, _ in selector.select(None if stop_at is None else max(0.0, stop_at - time.monotonic())):
                    if key.fileobj is line:
                        self._listen(selector, line)
                    elif not self._copy(output):
                        selector.unregister(output)
                        has_output = False
                if stop_at is None and (line.code is not None or line.is_over):
                    stop_at = time.monotonic() + _LAST_WORDS_SECONDS

    def _listen(self, selector: selectors.BaseSelector, line: Line) -> None:
        line.read()
        if line.is_over:
            selector.unregister(line)

    def _copy(self, output: int) -> bool:
        chunk = os.read(output, _READ_BYTES)
        self._context.output.write_bytes(chunk)
        return bool(chunk)

    def _environment(self) -> dict[str, str]:
        return {
            **tracing.without_context(without_ours(os.environ)),
            **tracing.as_environment(self._context.trace_context),
            "JOBRUNNER_RUN_ID": str(self._context.id),
            "JOBRUNNER_WORKER": self._context.worker,
            "JOBRUNNER_ATTEMPT": str(self._context.attempt),
            **_of_its_flow(self._context.before),
        }

    def ask_to_stop(self) -> None:
        """Send SIGTERM to the command and all that it started."""
        with self._lock:
            self._wants_stop = True
            if self._line is not None:
                self._line.ask_to_stop()

    def kill(self) -> None:
        """Send them SIGKILL."""
        with self._lock:
            if self._line is not None:
                self._line.kill()


def _of_its_flow(before: Before) -> dict[str, str]:
    """Return what a step is told of those before it. Of what is too long for the environment, the results go first."""
    if not before.outcomes:
        return {}
    said = {"JOBRUNNER_RESULTS": json.dumps(before.results), "JOBRUNNER_OUTCOMES": json.dumps(before.outcomes)}
    return {name: text for name, text in said.items() if len(text) <= MOST_SAID}


def arguments_of(handler: str, memory_limit_mb: int | None) -> list[str]:
    """Return the argument list of a command worker's stored handler: JSON of `command` and `shell`."""
    stored: dict[str, Any] = json.loads(handler)
    command = stored["command"]
    arguments = ["/bin/sh", "-c", command] if stored.get("shell") else list(command)
    if memory_limit_mb is None:
        return arguments
    limit = f'ulimit -d {memory_limit_mb * 1024} && exec "$@"'
    return ["/bin/sh", "-c", limit, "jobrunner", *arguments]
