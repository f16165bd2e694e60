"""A node that has the process to itself: signals that ask it to stop, and ending it when code will not end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import sys
import traceback
from typing import Any

from jobrunner.errors import JobrunnerError
from jobrunner.runtime import forks

SWITCH_SECONDS = 0.0005


def share_the_interpreter() -> None:
    """Have threads that compute give way ten times as often as Python's 5 ms.

    Each statement to the database goes through another thread and back, and at each change a thread that computes
    may keep the interpreter for this long: a tick of twenty statements would take a tenth of a second longer.
    """
    sys.setswitchinterval(min(sys.getswitchinterval(), SWITCH_SECONDS))


def set_aside_what_is_loaded() -> None:
    """Leave what there is now, all that a program has loaded, out of every collection: it is no garbage.

    What handlers leave behind is collected as often as Python does. A collection looks at what came later only: with
    1,000 workers that is a tenth of all objects, and of the time that the loop stands still. The last line has Python
    see it so. It looks at everything once a quarter more than the last time it did has come to live long; counting
    from what was set aside, handlers' garbage of hundreds of megabytes was too little to look.

    For a process that is a node's own; where an orchestrator is a guest in somebody's program, it changes nothing.
    """
    gc.collect()
    gc.freeze()
    gc.collect()


async def wait_for(event: asyncio.Event) -> None:
    """Wait for an event, as a coroutine that answers nothing."""
    await event.wait()


async def first_of(*awaited: Any) -> None:
    """Wait until one of `awaited` is done; cancel the coroutines that are not, leave futures alone."""
    own = {asyncio.ensure_future(item) for item in awaited if item is not None and not asyncio.isfuture(item)}
    given = {item for item in awaited if item is not None and asyncio.isfuture(item)}
    done, _ = await asyncio.wait(own | given, return_when=asyncio.FIRST_COMPLETED)
    for task in own - done:
        task.cancel()
    for task in own & done:
        task.result()


@contextlib.contextmanager
def stop_signals(stop_asked: asyncio.Event, stop_now: asyncio.Event) -> Any:
    """The first SIGTERM or SIGINT asks to stop, the second to stop now."""
    loop = asyncio.get_running_loop()
    forks.protect(loop)

    def on_signal() -> None:
        if stop_asked.is_set():
            stop_now.set()
        stop_asked.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
        forks.unprotect(loop)


def end_process(crash: BaseException | None) -> None:
    """End the process although code is still running in it: nothing else ends a thread."""
    if isinstance(crash, JobrunnerError):
        print(f"error: {crash}", file=sys.stderr)  # noqa: T201 - as the command line would say it
    elif crash is not None:
        traceback.print_exception(crash)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(crash.exit_code if isinstance(crash, JobrunnerError) else int(crash is not None))
