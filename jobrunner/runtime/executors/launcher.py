"""Choosing where a claim's code runs, and starting it there."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from jobrunner.model.worker import Isolation
from jobrunner.runtime import forks, logs
from jobrunner.runtime.executors.command import CommandCode
from jobrunner.runtime.executors.guards import Guards
from jobrunner.runtime.executors.inline import InlineCode
from jobrunner.runtime.executors.process import ProcessCode, ProcessPool, task_of
from jobrunner.runtime.executors.thread import ThreadCode
from jobrunner.runtime.executors.wrapped import WrappedCode
from jobrunner.telemetry import json_lines

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from jobrunner.runtime.context import RunContext
    from jobrunner.runtime.executors.code import Code
    from jobrunner.runtime.executors.process import Child
    from jobrunner.runtime.executors.wrapped import Middleware
    from jobrunner.runtime.handlers import Handler
    from jobrunner.storage.runs.claims import Claim


class Launcher:
    """A node's means of running code: the loop, threads, warm processes, commands. Made on the node's loop."""

    def __init__(self, layers: Sequence[Middleware] = ()) -> None:
        self._loop = asyncio.get_running_loop()
        forks.protect(self._loop)  # from what handlers fork
        self._layers = tuple(layers)
        self._guards = Guards()
        self._processes = ProcessPool()

    def warm(self, handlers: Iterable[Handler]) -> None:
        """Prepare processes for the handlers that run in one; nothing is started if there is none."""
        modules = sorted({handler.label.partition(":")[0] for handler in handlers})
        if modules:
            self._processes.warm(modules)

    def start(
        self, claim: Claim, handler: Handler | None, context: RunContext, arguments: Callable[[], dict[str, Any]]
    ) -> Code:
        """Start the code of a claim, inside the layers. `handler` is None for a command worker."""

        def start() -> Code:
            return self._start(claim, handler, context, arguments())

        if not self._layers:
            return start()
        is_process = claim.config.isolation is Isolation.PROCESS
        return WrappedCode(self._layers, context, start, has_start=is_process)

    def _start(self, claim: Claim, handler: Handler | None, context: RunContext, arguments: dict[str, Any]) -> Code:
        config = claim.config
        if handler is None:
            return CommandCode(config.handler, context, config.memory_limit_mb, self._guards)
        if config.isolation is Isolation.PROCESS:
            task = task_of(
                handler.label,
                claim.run,
                context.deadline,
                arguments,
                takes_run=handler.takes_run,
                memory_limit_mb=config.memory_limit_mb,
                captures_logs=handler.captures_logs,
                trace_context=context.trace_context,
                sends_logs=json_lines.installed() is not None,
                before=context.before,
            )
            return ProcessCode(self._processes, task, context)
        positional = (context,) if handler.takes_run else ()
        kind = InlineCode if handler.is_async else ThreadCode
        if not handler.captures_logs and not logs.is_kept():
            return kind(claim.run.worker, handler.function, positional, arguments)
        with logs.said_to(context.output if handler.captures_logs else None):  # what is started takes this along
            return kind(claim.run.worker, handler.function, positional, arguments)

    def look_after(self, now: float) -> None:
        """End processes that were idle for a minute, and replace a post that was killed; `now` is monotonic seconds.

        Called every second. What takes time is done in a thread.
        """
        expired = self._processes.take_expired(now)
        if expired or self._guards.needs_care():
            threading.Thread(target=self._look_after, args=(expired,), name="jobrunner:care", daemon=True).start()

    def _look_after(self, expired: Sequence[Child]) -> None:
        for child in expired:
            self._processes.discard(child)
        with suppress(OSError):  # no process to be had: the next second tries again, as does the next command
            self._guards.look_after()

    def close(self) -> None:
        """End the warm processes and all commands; code that still runs in one is killed."""
        self._processes.close()
        self._guards.close()
        forks.unprotect(self._loop)
