"""APScheduler 3 with its SQLAlchemy job store on SQLite: jobs with a date that has come, its default thread pool."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
from apscheduler.schedulers.background import BackgroundScheduler

from tests.bench.peers.common import Result

_calls: list[float] = []
_wanted = 0
_all_called = threading.Event()


def noop() -> None:
    _calls.append(time.time())
    if len(_calls) == _wanted:
        _all_called.set()


def _scheduler(url: str, threads: int) -> BackgroundScheduler:
    return BackgroundScheduler(
        jobstores={"default": SQLAlchemyJobStore(url=f"sqlite:///{url}")},
        executors={"default": ThreadPoolExecutor(threads)},
        job_defaults={"misfire_grace_time": None, "coalesce": True, "max_instances": 1},
        timezone=UTC,
    )


def prepare(url: str, options: Result) -> Result:
    scheduler = _scheduler(url, 10)
    scheduler.start(paused=True)
    due = datetime.now(UTC)
    for _ in range(options.get("jobs", 0)):
        scheduler.add_job(noop, "date", run_date=due)
    scheduler.shutdown()
    return {}


def drain(url: str, options: Result) -> Result:
    """From the first call to the moment when the store is empty: it deletes a job as it hands it to the pool."""
    global _wanted  # noqa: PLW0603 - the store pickles jobs, so they are functions of the module
    _wanted = options["jobs"]
    scheduler = _scheduler(url, options["concurrency"])
    scheduler.start()
    _all_called.wait()
    while scheduler.get_jobs():
        time.sleep(0.001)
    ended = time.time()
    scheduler.shutdown()
    return {"rate": _wanted / (ended - _calls[0]), "seconds": ended - _calls[0], "jobs": _wanted}


def schedule(url: str, options: Result) -> Result:
    """It does not tell a job its time: lateness is measured from the second in which the job was due, in order."""
    scheduler = _scheduler(url, options["concurrency"])
    scheduler.start(paused=True)
    start = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=10)
    for i in range(options["workers"]):
        scheduler.add_job(tick, "interval", seconds=1, start_date=start, id=f"every-second-{i}", args=[i])
    began = max(start.timestamp(), float(int(time.time()) + 1))
    scheduler.resume()
    time.sleep(max(0.0, began + options["seconds"] - time.time()))
    fired = {i: list(times) for i, times in _fired.items()}
    scheduler.shutdown(wait=False)
    late = [at - (start.timestamp() + n) for times in fired.values() for n, at in enumerate(times)]
    return {"ran": len(late), "late": late}


_fired: dict[int, list[float]] = {}


def tick(i: int) -> None:
    _fired.setdefault(i, []).append(time.time())
