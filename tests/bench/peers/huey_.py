"""Huey on SQLite at its defaults: `SqliteHuey` as it comes (write-ahead log, synchronous FULL), one worker thread."""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from typing import Any

from huey import SqliteHuey


def drain(url: str, options: dict[str, Any]) -> dict[str, Any]:
    jobs = options["jobs"]
    huey = SqliteHuey(filename=url)
    called = 0
    first = last = 0.0
    all_called = threading.Event()

    @huey.task()
    def noop() -> None:
        nonlocal called, first, last
        if called == 0:
            first = time.perf_counter()
        called += 1
        if called == jobs:
            last = time.perf_counter()
            all_called.set()

    for _ in range(jobs):
        noop()
    consumer = huey.create_consumer(**options.get("consumer", {}))
    consumer.start()
    all_called.wait()
    consumer.stop(graceful=True)
    return {"rate": jobs / (last - first), "seconds": last - first, "jobs": jobs}


def main() -> None:
    logging.disable(logging.CRITICAL)
    phase, url, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    print(json.dumps({"prepare": lambda *_: {}, "drain": drain}[phase](url, options)))


if __name__ == "__main__":
    main()
