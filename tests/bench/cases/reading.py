"""What people and programs ask of a large database, over HTTP, and what that takes from the runs.

The database has 100,000 workers, ten million rows of history and 300,000 runs that wait. Each path is asked in turn;
its time is that of the whole answer on loopback. Then a node works at 200 runs a second: alone, and beside a scrape of
`/metrics` each second and 20 clients of the API that ask twice a second each.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request

from tests.bench.bench import Bench, say
from tests.bench.cases.large import Large, served, times_later
from tests.bench.cases.open_transaction import Pace, paced
from tests.bench.figures import Row, is_at_most, percentile

ANSWER_SECONDS = 0.2
TIMES = 20
PATHS = (
    "/metrics",
    "/api/workers?limit=50",
    "/api/workers?limit=50&q=health:failing",
    "/api/workers/far-5",
    "/api/workers/far-5/explain",
    "/api/runs?limit=50",
    "/api/history?limit=50",
    "/api/history?limit=50&q=worker:far-5",
    "/api/history?limit=50&q=outcome:failed",
    "/api/history?limit=50&q=payload.customer:42",
    "/api/history?limit=50&q=worker:far-1*+since:2h",
    "/api/dead-letters?limit=50",
    "/api/upcoming?limit=50",
    "/api/nodes",
    "/api/audit?limit=50",
)
CLIENT = """
import random, sys, time, urllib.request
base, seconds, paths = sys.argv[1], float(sys.argv[2]), sys.argv[3:]
end = time.monotonic() + seconds
while time.monotonic() < end:
    with urllib.request.urlopen(base + random.choice(paths), timeout=30) as answer:
        answer.read()
    time.sleep(0.5)
"""


def run(bench: Bench) -> list[Row]:
    return rows(bench, bench.database)


def rows(bench: Bench, kind: str) -> list[Row]:
    with served(bench, kind, "reading") as large:
        return [_answers(large), _beside(bench, large)]


def _asked(url: str) -> float:
    began = time.perf_counter()
    with urllib.request.urlopen(url, timeout=30) as answer:
        answer.read()
    return time.perf_counter() - began


def _answers(large: Large) -> Row:
    took = {}
    for path in PATHS:
        _asked(large.base + path)  # what is read once from the disk is no question's share
        samples = []
        for _ in range(TIMES):
            if path == "/metrics":
                time.sleep(0.3)
            samples.append(_asked(large.base + path))
        took[path] = percentile(samples, 95)
        say(f"reading, {large.kind}: {path} p95 {took[path] * 1000:.0f} ms")
    worst = max(took, key=lambda path: took[path])
    return Row(
        f"{len(PATHS)} questions over HTTP: {large.what}",
        f"p95 ≤ {ANSWER_SECONDS * 1000:.0f} ms",
        f"the slowest, {worst}: p95 {took[worst] * 1000:.0f} ms",
        is_ok=is_at_most(took[worst], ANSWER_SECONDS),
        raw=took,
    )


def _beside(bench: Bench, large: Large) -> Row:
    """Work at 200 runs a second, alone and beside all who ask."""
    pace = Pace(rate=200, seconds=5.0 if bench.is_quick else 15.0)
    alone = paced(large.url, large.setup, pace)
    seconds = str(pace.seconds + 4)
    asking = [
        subprocess.Popen([sys.executable, "-c", CLIENT, large.base, seconds, *PATHS[1:]], stdout=subprocess.DEVNULL)
        for _ in range(20)
    ]
    asking.append(subprocess.Popen([sys.executable, "-c", _SCRAPE, large.base, seconds], stdout=subprocess.DEVNULL))
    try:
        beside = paced(large.url, large.setup, pace)
    finally:
        for each in asking:
            each.kill()
            each.wait()
    say(f"reading, {large.kind}: {alone} alone, {beside} beside 20 clients")
    times = times_later(beside, alone)
    return Row(
        f"200 runs/s beside a scrape a second and 20 clients that ask twice a second: {large.what}",
        "as late as without",
        str(beside),
        f"alone: {alone}",
        times,
        is_at_most(times, 2.0),
        why="the clients, the server and the node share the machine's cores",
        raw=json.loads(json.dumps({"alone": vars(alone), "beside": vars(beside)})),
    )


_SCRAPE = """
import sys, time, urllib.request
end = time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    with urllib.request.urlopen(sys.argv[1] + "/metrics", timeout=30) as answer:
        answer.read()
    time.sleep(1)
"""
