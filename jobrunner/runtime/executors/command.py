"""Command: a program, without or (by explicit choice) with a shell, in a process group of its own.

It gets the payload as JSON on standard input and `JOBRUNNER_RUN_ID`, `JOBRUNNER_WORKER` and `JOBRUNNER_ATTEMPT` in its
environment. Exit code 0 is success. The end of what it writes to standard output and error is kept. When it is stopped,
all that it started is stopped with it; what it leaves behind in the background when it ends by itself may live on.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import selectors
import signal
import subprocess
import tempfile
import threading
import time
import uuid
from typing import TYPE_CHECKING, Any

from jobrunner.runtime.executors.code import LONGEST_GRACE_SECONDS, SHORT_OF, CommandFailed, NotStarted, start_thread
from jobrunner.runtime.executors.groups import Family, name_of_exit

if TYPE_CHECKING:
    from jobrunner.runtime.context import RunContext
    from jobrunner.runtime.executors.code import Ended
    from jobrunner.runtime.executors.groups import GroupWatcher

_READ_BYTES = 64 * 1024
_LOOK_SECONDS = 0.05
_LAST_WORDS_SECONDS = 0.2  # what a background process that holds the pipe says later is not this run's
_pause = threading.Event()  # never set: a thread's sleep


class CommandCode:
    """A program, started from a thread of its own, which reads its output."""

    started: asyncio.Future[None] | None = None
    can_be_killed = True
    grace_seconds = LONGEST_GRACE_SECONDS

    def __init__(self, handler: str, context: RunContext, memory_limit_mb: int | None, watcher: GroupWatcher) -> None:
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[Ended] = self._loop.create_future()
        self._handler = handler
        self._context = context
        self._memory_limit_mb = memory_limit_mb
        self._watcher = watcher
        self._family: Family | None = None
        self._mark = f"JOBRUNNER_ATTEMPT_MARK={uuid.uuid4().hex}"
        self._lock = threading.Lock()
        self._wants_stop = False
        self._was_killed = False
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
        with self._lock:
            if self._wants_stop:
                raise CommandFailed("the command was stopped before it began")
            process = self._start()
            self._family = Family(process.pid, self._mark)
        self._watch(process)
        try:
            self._read(process)
            code = process.wait()
            self.has_returned = True
            self._wait_family()
        finally:
            if process.stdout is not None:
                process.stdout.close()
            self._watcher.remove(process.pid)
        if code != 0:
            capped = "" if self._memory_limit_mb is None else f" under its memory limit of {self._memory_limit_mb} MiB"
            raise CommandFailed(f"the command ended with {name_of_exit(code)}{capped}")

    def _watch(self, process: subprocess.Popen[bytes]) -> None:
        """Have the process watched; one that is not must not run on."""
        try:
            self._watcher.add(process.pid)
        except OSError as error:
            self.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
            raise NotStarted(f"nothing to watch its process: {error}") from error

    def _start(self) -> subprocess.Popen[bytes]:
        try:
            return self._open()
        except OSError as error:
            if error.errno in SHORT_OF:
                raise NotStarted(f"no process: {error}") from error
            raise

    def _open(self) -> subprocess.Popen[bytes]:
        with tempfile.TemporaryFile() as payload:  # a file: a command need not read its input
            payload.write(json.dumps(self._context.payload).encode() + b"\n")
            payload.seek(0)
            return subprocess.Popen(  # noqa: S603 - what the operator asked for
                arguments_of(self._handler, self._memory_limit_mb),
                stdin=payload,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self._environment()},
                start_new_session=True,
                bufsize=0,
            )

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        """Read the output to its end, or until the command has ended and nothing more comes."""
        if process.stdout is None:
            return
        stop_at: float | None = None
        with selectors.PollSelector() as selector:  # it needs no descriptor of its own
            selector.register(process.stdout, selectors.EVENT_READ)
            while stop_at is None or time.monotonic() < stop_at:
                is_ready = selector.select(_LOOK_SECONDS)
                if is_ready:
                    chunk = os.read(process.stdout.fileno(), _READ_BYTES)
                    if not chunk:
                        return
                    self._context.output.write_bytes(chunk)
                if stop_at is None and process.poll() is not None:
                    stop_at = time.monotonic() + _LAST_WORDS_SECONDS

    def _wait_family(self) -> None:
        """After a stop was asked for, wait until all that it started is gone, too."""
        while self._wants_stop and self._family is not None and self._family.is_alive():
            if self._was_killed:
                self._family.signal(signal.SIGKILL)
            _pause.wait(_LOOK_SECONDS)

    def _environment(self) -> dict[str, str]:
        name, _, value = self._mark.partition("=")
        return {
            name: value,
            "JOBRUNNER_RUN_ID": str(self._context.id),
            "JOBRUNNER_WORKER": self._context.worker,
            "JOBRUNNER_ATTEMPT": str(self._context.attempt),
        }

    def ask_to_stop(self) -> None:
        """Send SIGTERM to the family."""
        with self._lock:
            self._wants_stop = True
            if self._family is not None:
                self._family.signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL to the family."""
        self._was_killed = True
        if self._family is not None:
            self._family.signal(signal.SIGKILL)


def arguments_of(handler: str, memory_limit_mb: int | None) -> list[str]:
    """Return the argument list of a command worker's stored handler: JSON of `command` and `shell`."""
    stored: dict[str, Any] = json.loads(handler)
    command = stored["command"]
    arguments = ["/bin/sh", "-c", command] if stored.get("shell") else list(command)
    if memory_limit_mb is None:
        return arguments
    limit = f'ulimit -d {memory_limit_mb * 1024} && exec "$@"'
    return ["/bin/sh", "-c", limit, "jobrunner", *arguments]
