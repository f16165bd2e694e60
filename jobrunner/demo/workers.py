"""The demo's workers, as a program of yours might have them.

A run is executed at least once, so each of them writes in a way that may be repeated: what it writes carries the run's
id, and a second time replaces the first.
"""

from __future__ import annotations

import asyncio
import csv
import json
import random
import time
from http.client import HTTPConnection
from typing import TYPE_CHECKING

from jobrunner.demo.file import read, write
from jobrunner.model.worker import JobPriority
from jobrunner.runtime.clock import SystemClock
from jobrunner.runtime.context import RunContext

if TYPE_CHECKING:
    from pathlib import Path

    from jobrunner.runtime.orchestrator import WorkerOrchestrator

_KEEP_READING = "INSERT OR REPLACE INTO demo_readings VALUES (?, ?, ?, strftime('%Y-%m-%d %H:%M:%f', 'now'))"
_SUM_UP = """
INSERT OR REPLACE INTO demo_summary
SELECT sensor, count(*), min(value), round(avg(value), 1), max(value), ? FROM demo_readings GROUP BY sensor
"""
_FORGET_OLD = "DELETE FROM demo_readings WHERE read_at < strftime('%Y-%m-%d %H:%M:%f', 'now', '-8 seconds')"
_PUT_OUT = "INSERT OR REPLACE INTO demo_outbox VALUES (?, ?, ?, strftime('%Y-%m-%d %H:%M:%f', 'now'))"
_SEED = 3  # the report then fails first and recovers, and never four times in a row


class Example:
    """The workers. `site` is the host and port they fetch from, `path` the file they write to."""

    def __init__(self, site: tuple[str, int], path: Path) -> None:
        self._site = site
        self._path = path
        self._luck = random.Random(_SEED)  # noqa: S311 - bad luck on purpose, the same in every demo

    def register(self, orchestrator: WorkerOrchestrator) -> None:
        """Give the orchestrator the workers, with all that they are to keep to."""
        add = orchestrator.register_worker
        add("fetch-data", self.fetch_data, interval_seconds=2, timeout_seconds=5, priority=JobPriority.HIGH)
        add("process-data", self.process_data, interval_seconds=3, depends_on=["fetch-data"])
        add("cleanup", self.cleanup, interval_seconds=4, blocks=["process-data"])
        add("flaky-report", self.flaky_report, interval_seconds=4, max_retries=3, retry_delay_seconds=0.5)
        add(
            "broken-import",
            self.broken_import,
            interval_seconds=1,
            max_retries=1,
            retry_delay_seconds=2.2,
            max_consecutive_failures=3,
        )
        add(
            "send-email",
            self.send_email,
            execution_mode="triggered",
            max_running=3,
            max_retries=1,
            retry_delay_seconds=1,
        )
        add("watch-queue", self.watch_queue, execution_mode="continuous", interval_seconds=1)

    async def fetch_data(self, run: RunContext) -> dict[str, int]:
        """Fetch readings over HTTP and keep them."""
        document = json.loads(await asyncio.to_thread(self._get, "/readings.json"))
        rows = [(run.id, reading["sensor"], reading["value"]) for reading in document["readings"]]
        await asyncio.to_thread(write, self._path, _KEEP_READING, *rows)
        run.log(f"stored {len(rows)} readings")
        return {"stored": len(rows)}

    def process_data(self, run: RunContext) -> None:
        """Sum up what was fetched. Never before a fetch succeeded, and never while one runs."""
        write(self._path, _SUM_UP, (run.id,))
        time.sleep(0.4)  # so that it can be seen running

    def cleanup(self) -> dict[str, int]:
        """Delete readings older than eight seconds. Never while `process-data` runs."""
        deleted = write(self._path, _FORGET_OLD)
        time.sleep(0.6)
        return {"deleted": deleted}

    def flaky_report(self, run: RunContext) -> dict[str, float]:
        """Report the averages, if the one who is to read them answers: half of the times, by chance."""
        if self._luck.random() < 0.5:
            raise ConnectionError(f"the report's reader did not answer attempt {run.attempt}")
        return {row["sensor"]: row["average"] for row in read(self._path, "SELECT sensor, average FROM demo_summary")}

    def broken_import(self) -> dict[str, float]:
        """Import a file that has a fault in its third line, and always will."""
        values = {}
        lines = csv.reader(self._get("/export.csv").decode().splitlines())
        next(lines)
        for number, (sensor, value) in enumerate(lines, start=2):
            try:
                values[sensor] = float(value)
            except ValueError:
                raise ValueError(f"line {number} of export.csv: {value!r} is no number") from None
        return values

    async def send_email(self, run: RunContext, to: str, subject: str = "Hello") -> None:
        """Put a letter into the outbox. Its payload is checked against these parameters before it starts."""
        await SystemClock().sleep(0.8)
        await asyncio.to_thread(write, self._path, _PUT_OUT, (run.id, to, subject))

    def watch_queue(self) -> dict[str, int]:
        """Count the runs that wait; round and round."""
        (row,) = read(self._path, "SELECT count(*) AS waiting FROM runs WHERE state = 'pending'")
        return {"waiting": row["waiting"]}

    def _get(self, page: str) -> bytes:
        connection = HTTPConnection(*self._site, timeout=5)
        try:
            connection.request("GET", page)
            response = connection.getresponse()
            body = response.read()
        finally:
            connection.close()
        if response.status != 200:
            raise ConnectionError(f"{page}: HTTP {response.status}")
        return body
