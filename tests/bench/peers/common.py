"""What the peers' programs share; nothing but the standard library, for it runs in every peer's environment.

Each program is a module with some of these coroutine functions or functions, of a URL and of options:

`prepare` makes the tables and enqueues `jobs`; `drain` works them off, `concurrency` at once, and returns a `rate`;
`serve` runs `count` jobs and returns how late each began, `send` enqueues them with `gaps` in seconds between;
`schedule` has `workers` due every second for `seconds`, and returns how late each began.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

Result = dict[str, Any]


class Counter:
    """Counts calls of the job; `done` is set by the last."""

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self.calls = 0
        self.first = 0.0
        self.done = asyncio.Event()

    def hit(self) -> None:
        if self.calls == 0:
            self.first = time.time()
        self.calls += 1
        if self.calls == self.jobs:
            self.done.set()

    def result(self, began: float, ended: float) -> Result:
        return {"rate": self.jobs / (ended - began), "seconds": ended - began, "jobs": self.jobs}
