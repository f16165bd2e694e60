"""A load of workers with limits of every kind on several real nodes, some of which are killed or stopped at random."""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from jobrunner.storage.schema.migrate import upgrade_database
from tests.support.checker import check
from tests.support.cluster import ROOT, Cluster, cluster
from tests.support.postgres import LocalPostgres

SHARED = "INSERT INTO {p}limits (name, max_running, rate) VALUES ('shared', 6, '60/1s')"
OPTIONS: dict[str, Any] = {
    "scenario": "limited",
    "lease": 2.0,
    "tick_interval": 1,
    "max_concurrent": 20,
    "elsewhere": True,
}
_SHARES = ("keyed",) * 11 + ("rated",) * 3 + ("each",) * 2 + ("order", "fair", "paid", "billed")
_A_STATEMENT = 500


def trigger(c: Cluster, runs: int, keys: int, draw: random.Random) -> list[int]:
    """Trigger so many runs of all the workers, in plain SQL; return their ids."""
    accepted: list[int] = []
    for begin in range(0, runs, _A_STATEMENT):
        rows = []
        for _ in range(begin, min(begin + _A_STATEMENT, runs)):
            payload = json.dumps({"customer": draw.randrange(keys), "seconds": draw.choice((0.0, 0.01, 0.05))})
            rows.append(f"('{draw.choice(_SHARES)}', '{payload}')")
        sql = f"INSERT INTO {{p}}runs (worker, payload) VALUES {', '.join(rows)} RETURNING id"
        accepted += [row["id"] for row in c.rows(sql)]
    return accepted


def harass(c: Cluster, seconds: float, nodes: int, draw: random.Random) -> tuple[int, int, int]:
    """Kill and stop nodes until all has ended, or `seconds` are over; return kills, stops, and the runs left."""
    until, kills, stops = time.monotonic() + seconds, 0, 0
    while (left := c.value("SELECT count(*) FROM {p}runs")) and time.monotonic() < until:
        time.sleep(draw.uniform(0.3, 1.5))
        alive = [node for node in c.nodes if node.process.poll() is None]
        victim = draw.choice(alive)
        if draw.random() < 0.6:
            victim.kill()
            kills += 1
        else:
            victim.signal(signal.SIGSTOP)
            time.sleep(draw.choice((0.2, 1.0, OPTIONS["lease"] * 1.5)))
            victim.signal(signal.SIGCONT)
            stops += 1
        c.start(nodes - sum(node.process.poll() is None for node in c.nodes), wait=False)
    return kills, stops, left


def verdict(c: Cluster, accepted: list[int]) -> list[str]:
    """Say what history shows that may not be: by the independent checker, and by `jobrunner db verify`."""
    command = [sys.executable, "-m", "jobrunner", "db", "verify", "--database-url", c.url]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    said = [] if done.returncode == 0 else [f"db verify exits {done.returncode}", *done.stdout.splitlines()[:5]]
    return check(c.url, accepted=accepted) + said


def large(database: str, nodes: int, runs: int, keys: int, seconds: float) -> bool:
    """Play the load once on a database of its own; print a line, and say whether all is well."""
    with tempfile.TemporaryDirectory(prefix="jobrunner-limits-") as name, ExitStack() as stack:
        folder, url = Path(name), f"sqlite+aiosqlite:///{name}/jobrunner.db"
        if database == "postgres":
            server = LocalPostgres()
            stack.callback(server.close)
            url = server.create_database()
        upgrade_database(url)
        draw = random.Random(0)
        c = stack.enter_context(cluster(url, folder, **OPTIONS))
        c.rows(SHARED)
        c.start(1)  # registers the workers
        c.start(nodes - 1, wait=False)
        began = time.monotonic()
        accepted = trigger(c, runs, keys, draw)
        kills, stops, left = harass(c, seconds, nodes, draw)
        problems = [f"{left} runs have not ended"] if left else []
        problems += verdict(c, accepted)
        said = "; ".join(["FAILED", *problems[:5]]) if problems else "ok"
        took = f"{time.monotonic() - began:.0f} s, {kills} SIGKILL, {stops} SIGSTOP"
        print(f"limits on {database}: {nodes} nodes, {runs} runs, {keys} keys, {took}: {said}", flush=True)
        return not problems


def main(given: list[str]) -> None:
    """Play it on both databases, or on one."""
    parser = argparse.ArgumentParser(prog="scripts/chaos --limits", description=__doc__)
    parser.add_argument("--database", choices=["sqlite", "postgres"], action="append")
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--runs", type=int, default=20_000)
    parser.add_argument("--keys", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=1800.0, help="within which all is to end")
    options = parser.parse_args(given)
    load = (options.nodes, options.runs, options.keys, options.seconds)
    results = [large(database, *load) for database in options.database or ["sqlite", "postgres"]]
    sys.exit(0 if all(results) else 1)
