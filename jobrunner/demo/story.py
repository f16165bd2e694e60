"""The course of the demo: start a node, give it work of every kind, stop it, and ask the tables what happened."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from jobrunner.demo import report
from jobrunner.demo.file import make_fresh, read, write
from jobrunner.demo.screen import STATUS, open_screen
from jobrunner.demo.site import open_site
from jobrunner.demo.workers import Example
from jobrunner.errors import InvalidPayload
from jobrunner.runtime.clock import SystemClock
from jobrunner.runtime.orchestrator import WorkerOrchestrator

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from contextlib import AbstractContextManager

    from jobrunner.demo.screen import Screen

    Beside = Callable[[WorkerOrchestrator], AbstractContextManager[None]]

DEFAULT_FILE = Path("jobrunner-demo.db")
DEFAULT_SECONDS = 20.0
LEAST_SECONDS = 12.0
_PATIENCE_SECONDS = 20.0  # how much longer a busy machine is given to get through the story
_FRAME_SECONDS = 0.25
_DRAIN_SECONDS = 5.0
_PLAIN_WIDTH = 120
_LETTERS_SECONDS = 8.0  # between one batch of letters and the next, where the demo goes on
_BAD_PAYLOADS = ('{"to": 42}', '{"subject": "to nobody"}')


def main(
    file: Path | None = None,
    seconds: float = DEFAULT_SECONDS,
    console: Console | None = None,
    beside: Beside | None = None,
) -> int:
    """Run the demo for about `seconds` on a fresh SQLite file; return the exit code, 0 if all happened as promised.

    Args:
        file: where; None: `jobrunner-demo.db` in this folder.
        seconds: how long, about.
        console: where to print.
        beside: what is to be open while the node runs, as a server of pages. The demo then goes on until somebody stops
            it, whatever `seconds` says, and promises nothing: it is in the hands of who looks at it.

    Raises:
        JobrunnerError: the file cannot be used.
    """
    path = DEFAULT_FILE if file is None else file
    console = console or _console()
    make_fresh(path)
    lasts = f"for about {seconds:g} seconds" if beside is None else "until Ctrl-C"
    console.print(f"The demo runs {lasts} on a fresh SQLite file, {path}", highlight=False)
    with _quiet_log(), open_site() as site:
        story = _Story(site, path, seconds if beside is None else math.inf, console)
        with contextlib.nullcontext() if beside is None else beside(story.orchestrator):
            was_stopped = asyncio.run(story.tell())
    if beside is not None:
        report.show_answers(console, path)
        report.show_what_next(console, path)
        return 0
    is_true = report.show(console, path, was_stopped=was_stopped)
    return 0 if is_true or was_stopped else 1


def _console() -> Console:
    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _PLAIN_WIDTH
    return console


@contextlib.contextmanager
def _quiet_log() -> Iterator[None]:
    """Keep the node's log lines off the screen: the view says the same."""
    logger = logging.getLogger("jobrunner")
    before = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = before


class _Story:
    def __init__(self, site: tuple[str, int], path: Path, seconds: float, console: Console) -> None:
        self._path = path
        self._seconds = seconds
        self._console = console
        self._clock = SystemClock()
        self._began = self._clock.monotonic()
        self._stop = asyncio.Event()
        self.orchestrator = WorkerOrchestrator(f"sqlite:///{path}", drain_timeout=_DRAIN_SECONDS)
        Example(site, path).register(self.orchestrator)

    @property
    def _elapsed(self) -> float:
        return self._clock.monotonic() - self._began

    async def tell(self) -> bool:
        """Let it all happen; say whether somebody stopped it early."""
        with _signals(self._stop):
            await self.orchestrator.start()
            screen = open_screen(self._console, self._path, self._seconds, lambda: read(self._path, STATUS))
            self.orchestrator.events.subscribe(lambda event: screen.event(self._elapsed, event))
            feeding = asyncio.ensure_future(self._feed(screen))
            try:
                await self._watch(screen, feeding)
            finally:
                screen.close()
                feeding.cancel()
                await asyncio.wait({feeding})
                await self.orchestrator.stop()
        return self._stop.is_set()

    async def _watch(self, screen: Screen, feeding: asyncio.Future[None]) -> None:
        """Keep the view up to date until the time is over, and the story told or out of patience."""
        while not self._stop.is_set():
            screen.show(self._elapsed)
            if feeding.done():
                feeding.result()
            late = self._elapsed - self._seconds
            if late > _PATIENCE_SECONDS or (late > 0 and feeding.done() and report.is_told(self._path)):
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_FRAME_SECONDS):
                    await self._stop.wait()

    async def _feed(self, screen: Screen) -> None:
        """Trigger `send-email`, in all the ways there are, one after the other."""
        acts: list[tuple[float, Callable[[], Awaitable[str]]]] = [
            (1.0, self._trigger_many),
            (2.5, self._insert_bad_ones),
            (4.0, self._try_a_bad_one),
            (5.5, self._trigger_twice_by_key),
            (8.0, self._trigger_many),
        ]
        for at, act in acts:
            await self._clock.sleep(at - self._elapsed)
            screen.say(self._elapsed, await act())
        while math.isinf(self._seconds):
            await self._clock.sleep(_LETTERS_SECONDS)
            screen.say(self._elapsed, await self._trigger_many())

    async def _trigger_many(self) -> str:
        people = ("ada", "bob", "cem", "dot")
        payloads: list[dict[str, Any] | None] = [{"to": f"{name}@example.org"} for name in people]
        run_ids = await self.orchestrator.trigger_many("send-email", payloads)
        return f"triggered send-email {len(run_ids)} times: runs {', '.join(map(str, run_ids))}"

    async def _insert_bad_ones(self) -> str:
        """Trigger as any program in any language can: with SQL, and so past the check of payloads."""
        sql = "INSERT INTO runs (worker, payload) VALUES ('send-email', ?)"
        await asyncio.to_thread(write, self._path, sql, *((payload,) for payload in _BAD_PAYLOADS))
        return f"inserted runs of send-email with plain SQL, and payloads that do not fit: {', '.join(_BAD_PAYLOADS)}"

    async def _try_a_bad_one(self) -> str:
        try:
            run_id = await self.orchestrator.trigger_worker("send-email", {"too": "ada@example.org"})
        except InvalidPayload as error:
            return f"a payload that does not fit is refused: {error}"
        raise RuntimeError(f"a payload that does not fit was accepted, as run {run_id}")

    async def _trigger_twice_by_key(self) -> str:
        payload = {"to": "eve@example.org", "subject": "Only once"}
        first, second = [
            await self.orchestrator.trigger_worker("send-email", payload, key="welcome-eve", delay=1.0)
            for _ in range(2)
        ]
        return f"triggered send-email twice with the key welcome-eve: run {first}, and run {second} again"


@contextlib.contextmanager
def _signals(stop: asyncio.Event) -> Iterator[None]:
    """Ctrl-C, or being asked to end, ends the demo early and in order."""
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM)
    for number in numbers:
        loop.add_signal_handler(number, stop.set)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
