"""Many timeouts on few timers."""

from __future__ import annotations

import asyncio
from functools import partial

from jobrunner.runtime.timeouts import Timeouts


async def test_each_is_called_in_its_time_and_once():
    loop = asyncio.get_running_loop()
    timeouts = Timeouts()
    called: list[tuple[str, float]] = []
    began = loop.time()

    def note(name: str) -> None:
        called.append((name, loop.time() - began))

    timeouts.add(0.1, partial(note, "first"))
    timeouts.add(0.02, partial(note, "short"))
    await asyncio.sleep(0.05)
    timeouts.add(0.1, partial(note, "second"))
    await asyncio.sleep(0.15)
    timeouts.add(0.02, partial(note, "short again"))
    await asyncio.sleep(0.1)
    assert [name for name, _ in called] == ["short", "first", "second", "short again"]
    for (_, at), least in zip(called, (0.02, 0.1, 0.15, 0.22), strict=True):
        assert at >= least - 0.001


async def test_what_was_taken_off_is_not_called_and_leaves_nothing():
    timeouts = Timeouts()
    called: list[str] = []
    calls = [partial(called.append, name) for name in "abc"]
    for call in calls:
        timeouts.add(0.02, call)
    timeouts.remove(0.02, calls[0])
    timeouts.remove(0.02, calls[0])
    timeouts.remove(7, calls[0])
    await asyncio.sleep(0.05)
    assert sorted(called) == ["b", "c"]
    assert timeouts._waiting == {}


async def test_one_that_takes_off_another_that_is_due_with_it():
    timeouts = Timeouts()
    called: list[str] = []
    last = partial(called.append, "last")
    timeouts.add(0.01, lambda: timeouts.remove(0.01, last))
    timeouts.add(0.01, last)
    await asyncio.sleep(0.04)
    assert called == []
