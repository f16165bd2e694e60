"""From a trigger to the start of its run: another process inserts into the database of an idle node.

Both ends read the wall clock of this machine: the sender before it inserts, the handler as its first act.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from typing import Any

from tests.bench import contest, product
from tests.bench.bench import Bench, figure, say
from tests.bench.contest import Peer
from tests.bench.figures import Figure, Row, is_at_most, percentile
from tests.bench.product import ROOT, Node
from tests.bench.stores import Connection, plain_url

TARGETS = {"postgres": (3.0, 10.0), "sqlite": (10.0, 30.0)}
"""p50 and p99 in milliseconds."""
SENDER = """
import json, sys, time
from tests.bench.stores import Connection
connection = Connection(sys.argv[1])
for gap in json.loads(sys.argv[2]):
    time.sleep(gap)
    connection.rows(
        f"INSERT INTO {connection.p}runs (worker, payload) VALUES ('stamp', '{json.dumps({'sent': time.time_ns()})}')"
    )
"""


def gaps(count: int) -> list[float]:
    """Waits between triggers in seconds: random, so that nothing periodic hides, and the same for all."""
    chance = random.Random(7)
    return [chance.uniform(0.02, 0.11) for _ in range(count)]


def ours(bench: Bench, kind: str, count: int) -> list[float]:
    """Milliseconds from insert to start, of `count` triggers to a node with nothing else to do."""
    setup = bench.setup("stamp")
    template = bench.template(kind, setup, 0)
    return list(bench.on_copy(kind, template, lambda url: on_database(url, setup, count)))


def on_database(url: str, setup: product.Setup, count: int) -> list[float]:
    with Connection(url) as connection, Node(url, setup) as node:
        wait_ready(connection, [node])
        time.sleep(1.0)
        send(url, count)
        ended = f"SELECT count(*) FROM {connection.p}run_history WHERE worker = 'stamp' AND ends_run = 'succeeded'"
        product.until(lambda: connection.value(ended) >= count, [node], seconds=30, every=0.05)
        rows = connection.rows(f"SELECT result FROM {connection.p}run_history WHERE worker = 'stamp' ORDER BY id")
    return [_json(value)["ns"] / 1e6 for (value,) in rows]


def send(url: str, count: int) -> None:
    command = [sys.executable, "-c", SENDER, url, json.dumps(gaps(count))]
    subprocess.run(command, cwd=ROOT, check=True, timeout=60 + count)


def wait_ready(connection: Connection, nodes: list[Node], seconds: float = 120) -> float:
    """Wait until all nodes have joined, which is when they begin to tick; return when the last did."""
    ticking = f"SELECT count(*) FROM {connection.p}nodes WHERE state = 'active'"

    def is_ready() -> bool:
        try:
            return bool(connection.value(ticking) >= len(nodes))
        except Exception:  # the schema is not there yet
            return False

    return product.until(is_ready, nodes, seconds)


def theirs(bench: Bench, kind: str, peer: Peer, count: int) -> list[float]:
    template = bench.peer_template(kind, peer, 0)

    def measure(url: str) -> list[float]:
        words: dict[str, Any] = {"count": count, "concurrency": 10}
        server = subprocess.Popen(
            contest.command(peer, "serve", plain_url(url), words),
            cwd=ROOT,
            env=contest.surroundings(),
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert server.stdout is not None
            server.stdout.readline()  # "ready"
            time.sleep(2.0)
            contest.call(peer, "send", plain_url(url), {"gaps": gaps(count)})
            out, _ = server.communicate(timeout=30)
        finally:
            server.kill()
            server.wait()
        return [ns / 1e6 for ns in json.loads(out.strip().splitlines()[-1])["ns"]]

    return list(bench.on_copy(kind, template, measure))


def run(bench: Bench) -> list[Row]:
    return rows(bench, bench.database, bench.peers(bench.database))


def rows(bench: Bench, kind: str, peers: list[Peer]) -> list[Row]:
    """A row with the target, beside each peer."""
    count = 60 if bench.is_quick else 200
    mine = figure("jobrunner", "ms", ours(bench, kind, count))
    say(f"latency, {kind}: jobrunner {pair(mine)}")
    p50, p99 = TARGETS[kind]
    is_ok = is_at_most(percentile(mine.samples, 50), p50) and is_at_most(percentile(mine.samples, 99), p99)
    found = []
    for peer in [each for each in peers if each.program in ("pgqueuer_", "oban_") and not each.options]:
        try:
            found.append(figure(peer.name, "ms", theirs(bench, kind, peer, count)))
            say(f"latency, {kind}: {peer.name} {pair(found[-1])}")
        except (RuntimeError, subprocess.TimeoutExpired, ValueError) as error:
            say(f"{peer.name} is left out: {error}")
    return [
        Row(
            f"trigger to start from another process, idle node, {kind}",
            f"p50 ≤ {p50:g} ms, p99 ≤ {p99:g} ms",
            pair(mine),
            "; ".join(f"{each.name} {pair(each)}" for each in found),
            percentile(mine.samples, 50) / percentile(found[0].samples, 50) if found else None,
            is_ok,
            raw={"ours": mine.samples, **{each.name: each.samples for each in found}},
        )
    ]


def pair(of: Figure) -> str:
    return f"p50 {percentile(of.samples, 50):.1f}, p99 {percentile(of.samples, 99):.1f} ms"


def _json(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value
