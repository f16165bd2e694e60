"""What the console costs on a large database: each page, twenty open tabs, and what these take from the runs.

- **Pages.** A page that was made a moment ago is kept, under its address, who asks, and the theme's cookie as it was
  sent. So each ask sends another value of that cookie: a value that is no theme changes nothing else. Hence every page
  measured was read from the database and made anew.
- **Tabs.** Twenty tabs of seven browsers, three at most a browser, so that each has a stream. They do what the script
  of a page does: at each `changed` they ask for their page anew, with the tag of the one they have.
- **Statements.** The server counts those that it asks for those who look (`jobrunner_http_statements_total`). It runs
  with `JOBRUNNER_METRICS_DB=false`, so that a scrape asks the database nothing: of the difference of two scrapes
  nothing has to be taken off.

Streams begin with a credit of forty statements for what happens after a quiet time. Beside work it is used up first;
then the statements are counted, since what goes on all day is meant. As pages may be told to ask but every 20 s, only a
time of some multiple of that tells a rate: the 40 s of the full size, not those of `--quick`.
"""

from __future__ import annotations

import http.client
import itertools
import json
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from tests.bench.bench import Bench, say
from tests.bench.cases.large import Large, served, times_later
from tests.bench.cases.open_transaction import Pace, Steady, paced
from tests.bench.figures import Row, is_at_most, percentile
from tests.bench.stores import Connection

ANSWER_SECONDS = 0.2
TIMES = 20
TABS = 20
STATEMENTS_PER_SECOND, CPU_PERCENT = 1.0, 2.0
PAGES = (
    "/",
    "/workers",
    "/workers?q=health:failing",
    "/workers/far-5",
    "/workers/far-5?at=2h",
    "/runs",
    "/runs/{live}",
    "/runs/{ended}",
    "/history",
    "/history?q=outcome:failed",
    "/dead-letters",
    "/dead-letters/{letter}",
    "/upcoming",
    "/nodes",
    "/audit",
    "/alerts",
    "/bulk",
    "/tv",
)
_COUNTED = re.compile(r"^jobrunner_http_statements_total (\S+)$", re.MULTILINE)
TABS_CODE = """
import json, os, sys, threading, time, urllib.error, urllib.request
base, tabs = sys.argv[1], int(sys.argv[2])
seen = {"changes": 0, "fresh": 0, "same": 0, "streams": 0, "errors": []}
lock = threading.Lock()

def note(name):
    with lock:
        seen[name] += 1

def ask(cookie, tag, is_refresh):
    headers = {"Cookie": cookie}
    if is_refresh:
        headers["Jobrunner-Refresh"] = "true"
    if tag:
        headers["If-None-Match"] = tag
    try:
        with urllib.request.urlopen(urllib.request.Request(base + "/", headers=headers), timeout=30) as answer:
            answer.read()
            note("fresh")
            return answer.headers["ETag"]
    except urllib.error.HTTPError as error:
        if error.code != 304:
            raise
        note("same")
        return tag

def live(number):
    cookie = f"jobrunner_browser=bench-{number // 3}"
    try:
        ask(cookie, None, False)
        tag = None  # the script does not know the tag of the page that it came with
        request = urllib.request.Request(base + "/stream", headers={"Cookie": cookie})
        with urllib.request.urlopen(request, timeout=60) as stream:
            if stream.status != 200:
                raise RuntimeError(f"the stream answered {stream.status}")
            note("streams")
            for line in stream:
                if line.startswith(b"event: changed"):
                    note("changes")
                    tag = ask(cookie, tag, True)
                elif line.startswith(b"event: lost"):
                    raise RuntimeError("the server says that it has lost the database")
        raise RuntimeError("the stream ended")
    except Exception as error:
        with lock:
            seen["errors"].append(repr(error))

for number in range(tabs):
    threading.Thread(target=live, args=(number,), daemon=True).start()
deadline = time.monotonic() + 30
while seen["streams"] + len(seen["errors"]) < tabs and time.monotonic() < deadline:
    time.sleep(0.05)
print("open", flush=True)
sys.stdin.readline()
with lock:
    print(json.dumps(seen), flush=True)
    os._exit(0)
"""


@dataclass(frozen=True)
class Cost:
    """What a span of time has cost: statements a second for those who look, and the server's share of a core in %."""

    statements: float
    cpu: float
    seconds: float

    def __str__(self) -> str:
        return f"{self.statements:.2f} statements/s, {self.cpu:.1f} % CPU"


def run(bench: Bench) -> list[Row]:
    return rows(bench, bench.database)


def rows(bench: Bench, kind: str) -> list[Row]:
    seconds = bench.seconds or (8.0 if bench.is_quick else 40.0)
    with served(bench, kind, "console", {"JOBRUNNER_METRICS_DB": "false"}) as large:
        quiet_alone = _cost(large, seconds)
        with _tabs(large.base) as seen:
            _cost(large, 3.0)  # the first page of each tab
            quiet = _cost(large, seconds)
        found = [_tabs_row(large, "on a quiet database", quiet_alone, quiet, seen)]
        alone, busy_alone = _beside_work(large, seconds)
        with _tabs(large.base) as seen:
            beside, busy = _beside_work(large, seconds)
        found.append(_tabs_row(large, "beside 200 runs/s", busy_alone, busy, seen))
        return [_pages(large), *found, _late_row(large, alone, beside)]


def _pages(large: Large) -> Row:
    """Ask for every page; raise if one does not answer 200."""
    paths = [page.format(**_ids(large)) for page in PAGES]
    missing = [said for said in map(_refusal, (large.base + path for path in paths)) if said]
    if missing:
        raise RuntimeError("pages of the console do not answer 200: " + "; ".join(missing))
    numbers, took = itertools.count(1), {}
    for path in paths:
        samples = [_asked(large.base + path, f"jobrunner_theme=bench-{next(numbers)}") for _ in range(TIMES)]
        took[path] = percentile(samples, 95)
        say(f"console, {large.kind}: {path} p95 {took[path] * 1000:.0f} ms")
    worst = max(took, key=lambda path: took[path])
    return Row(
        f"{len(paths)} pages of the console: {large.what}",
        f"p95 ≤ {ANSWER_SECONDS * 1000:.0f} ms",
        f"the slowest, {worst}: p95 {took[worst] * 1000:.0f} ms",
        is_ok=is_at_most(took[worst], ANSWER_SECONDS),
        raw=took,
    )


def _ids(large: Large) -> dict[str, int]:
    """Return the ids of a live run, of one that has ended, and of an open letter."""
    with Connection(large.url) as connection:
        p = connection.p
        return {
            "live": connection.value(f"SELECT max(id) FROM {p}runs"),
            "ended": connection.value(f"SELECT run_id FROM {p}run_history ORDER BY id DESC LIMIT 1"),
            "letter": connection.value(f"SELECT max(id) FROM {p}dead_letters"),
        }


def _refusal(url: str) -> str | None:
    """Ask once, which also reads from the disk what is read but once; return what was answered if it is no page."""
    try:
        _asked(url, "")
    except urllib.error.HTTPError as error:
        return f"{url} answers {error.code}"
    except RuntimeError as error:
        return str(error)
    return None


def _asked(url: str, cookie: str) -> float:
    """Return the seconds from the question to the last byte of the answer."""
    request = urllib.request.Request(url, headers={"Cookie": cookie, "Accept": "text/html"})
    began = time.perf_counter()
    with urllib.request.urlopen(request, timeout=30) as answer:
        answer.read()
    took = time.perf_counter() - began
    if answer.status != http.client.OK or answer.url != url:
        raise RuntimeError(f"{url} answers {answer.status} from {answer.url}")
    return took


def _statements(base: str) -> float:
    with urllib.request.urlopen(f"{base}/metrics", timeout=30) as answer:
        found = _COUNTED.search(answer.read().decode())
    if found is None:
        raise RuntimeError("/metrics does not tell jobrunner_http_statements_total")
    return float(found[1])


def _cost(large: Large, seconds: float) -> Cost:
    """Watch the server for so long."""
    began, statements, cpu = time.monotonic(), _statements(large.base), large.cpu_seconds()
    time.sleep(seconds)
    cpu, statements = large.cpu_seconds() - cpu, _statements(large.base) - statements
    elapsed = time.monotonic() - began
    return Cost(statements / elapsed, 100 * cpu / elapsed, elapsed)


def _beside_work(large: Large, seconds: float) -> tuple[Steady, Cost]:
    """Work at 200 runs a second, and watch the server meanwhile, once the streams' credit is used up."""
    settle = min(15.0, 2 * seconds)
    with ThreadPoolExecutor(1) as pool, Connection(large.url) as connection:
        newest = f"SELECT max(id) FROM {connection.p}run_history"
        before = connection.value(newest)
        working = pool.submit(paced, large.url, large.setup, Pace(rate=200, seconds=settle + seconds + 1))
        while connection.value(newest) == before and not working.done():
            time.sleep(0.1)
        time.sleep(settle)
        cost = _cost(large, seconds)
        return working.result(), cost


@contextmanager
def _tabs(base: str) -> Iterator[dict[str, Any]]:
    """Have tabs open on the first page; what they saw is in the dictionary afterwards. Raises if one of them fails."""
    seen: dict[str, Any] = {}
    process = subprocess.Popen(
        [sys.executable, "-c", TABS_CODE, base, str(TABS)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield seen
        said, _ = process.communicate("\n", timeout=30)
        seen |= json.loads(said)
        if seen["errors"] or seen["streams"] != TABS:
            raise RuntimeError(f"of {TABS} tabs {seen['streams']} had a stream: {seen['errors'][:3]}")
    finally:
        process.kill()
        process.wait()


def _tabs_row(large: Large, when: str, without: Cost, cost: Cost, seen: dict[str, Any]) -> Row:
    more = cost.cpu - without.cpu
    say(f"console, {large.kind}: {TABS} tabs {when}: {cost}; none: {without}; {seen}")
    return Row(
        f"{TABS} tabs open on the first page {when}: {large.what}",
        f"≤ {STATEMENTS_PER_SECOND:g} statement/s, ≤ {CPU_PERCENT:g} % CPU more",
        f"{cost.statements:.2f} statements/s, {more:.1f} % CPU more",
        f"without: {without}",
        is_ok=is_at_most(cost.statements, STATEMENTS_PER_SECOND) and is_at_most(more, CPU_PERCENT),
        raw={"with": asdict(cost), "without": asdict(without), "tabs": seen},
    )


def _late_row(large: Large, alone: Steady, beside: Steady) -> Row:
    say(f"console, {large.kind}: {alone} alone, {beside} beside {TABS} tabs")
    times = times_later(beside, alone)
    return Row(
        f"200 runs/s beside {TABS} tabs open on the first page: {large.what}",
        "as late as without",
        str(beside),
        f"alone: {alone}",
        times,
        is_at_most(times, 2.0),
        why="the tabs, the server and the node share the machine's cores",
        raw={"alone": asdict(alone), "beside": asdict(beside)},
    )
