"""Command: a program, without or (by explicit choice) with a shell, in a process group of its own.

It gets the payload as JSON on standard input and `JOBRUNNER_RUN_ID`, `JOBRUNNER_WORKER` and `JOBRUNNER_ATTEMPT` in its
environment. Exit code 0 is success. The end of what it writes to standard output and error is kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from typing import TYPE_CHECKING, Any

from jobrunner.runtime.clock import SystemClock
from jobrunner.runtime.executors.code import LONGEST_GRACE_SECONDS, CommandFailed
from jobrunner.runtime.executors.groups import group_is_alive, name_of_exit, signal_family

if TYPE_CHECKING:
    from jobrunner.runtime.context import RunContext
    from jobrunner.runtime.executors.code import Ended
    from jobrunner.runtime.executors.groups import GroupWatcher

_READ_BYTES = 64 * 1024
_GROUP_CHECK_SECONDS = 0.05


class CommandCode:
    """A program, started."""

    started: asyncio.Future[None] | None = None
    can_be_killed = True
    grace_seconds = LONGEST_GRACE_SECONDS

    def __init__(self, handler: str, context: RunContext, memory_limit_mb: int | None, watcher: GroupWatcher) -> None:
        self.ended: asyncio.Future[Ended] = asyncio.get_running_loop().create_future()
        self._context = context
        self._watcher = watcher
        self._leader: int | None = None
        self._wants_stop = False
        self._was_killed = False
        self._task = asyncio.ensure_future(self._body(handler, memory_limit_mb))
        self._task.add_done_callback(self._on_done)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        if not self.ended.done():
            error = asyncio.CancelledError() if task.cancelled() else task.exception()
            self.ended.set_result((None, error))

    async def _body(self, handler: str, memory_limit_mb: int | None) -> None:
        process = await asyncio.create_subprocess_exec(
            *arguments_of(handler, memory_limit_mb),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, **self._environment()},
            start_new_session=True,
        )
        self._leader = process.pid
        self._watcher.add(process.pid)
        try:
            if self._wants_stop:
                self.ask_to_stop()
            feeding = asyncio.ensure_future(self._feed(process))
            reading = asyncio.ensure_future(self._read(process))
            code = await process.wait()
            await self._wait_group()
            # A grandchild that left the group may hold the pipe open; what it says later is not this run's.
            await asyncio.wait({reading}, timeout=0.5)
            for task in (feeding, reading):
                task.cancel()
        finally:
            self._watcher.remove(process.pid)
        if code != 0:
            raise CommandFailed(f"the command ended with {name_of_exit(code)}")

    async def _feed(self, process: asyncio.subprocess.Process) -> None:
        if process.stdin is not None:
            with contextlib.suppress(OSError):  # a command need not read its input
                process.stdin.write(json.dumps(self._context.payload).encode() + b"\n")
                await process.stdin.drain()
                process.stdin.close()

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        if process.stdout is not None:
            while chunk := await process.stdout.read(_READ_BYTES):
                self._context.output.write_bytes(chunk)

    async def _wait_group(self) -> None:
        """After a stop was asked for, wait until the whole group is gone; else a background child may live on."""
        while self._wants_stop and self._leader is not None and group_is_alive(self._leader):
            if self._was_killed:
                signal_family(self._leader, signal.SIGKILL)
            await SystemClock().sleep(_GROUP_CHECK_SECONDS)  # processes live in real time

    def _environment(self) -> dict[str, str]:
        return {
            "JOBRUNNER_RUN_ID": str(self._context.id),
            "JOBRUNNER_WORKER": self._context.worker,
            "JOBRUNNER_ATTEMPT": str(self._context.attempt),
        }

    def ask_to_stop(self) -> None:
        """Send SIGTERM to the group."""
        self._wants_stop = True
        if self._leader is not None:
            signal_family(self._leader, signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL to the group."""
        self._was_killed = True
        if self._leader is not None:
            signal_family(self._leader, signal.SIGKILL)


def arguments_of(handler: str, memory_limit_mb: int | None) -> list[str]:
    """Return the argument list of a command worker's stored handler: JSON of `command` and `shell`."""
    stored: dict[str, Any] = json.loads(handler)
    command = stored["command"]
    arguments = ["/bin/sh", "-c", command] if stored.get("shell") else list(command)
    if memory_limit_mb is None:
        return arguments
    limit = f'ulimit -d {memory_limit_mb * 1024} && exec "$@"'
    return ["/bin/sh", "-c", limit, "jobrunner", *arguments]
