"""A node is killed with a thousand runs left; another is started at once on the same host.

Compared with a node that is started on a thousand runs that merely wait: what the death before costs.
"""

from __future__ import annotations

import time

from tests.bench import contest, product
from tests.bench.bench import Bench, figure, say
from tests.bench.figures import Row, is_at_least
from tests.bench.product import Node, Setup, until
from tests.bench.stores import Connection

LEFT = 1_000
SHARE = 0.95


def run(bench: Bench) -> list[Row]:
    return rows(bench, bench.database)


def rows(bench: Bench, kind: str) -> list[Row]:
    setup = bench.setup("noop")
    before = 4_000
    templates = {n: bench.template(kind, setup, n) for n in (LEFT, LEFT + before)}
    turns = {
        "fresh": lambda: float(bench.on_copy(kind, templates[LEFT], lambda url: _restarted(url, setup, 0))),
        "killed": lambda: float(
            bench.on_copy(kind, templates[LEFT + before], lambda url: _restarted(url, setup, before))
        ),
    }
    samples = contest.take_turns(turns, min(2, bench.repeats))
    fresh, killed = (figure(name, "s", samples[name]) for name in turns)
    share = fresh.value / killed.value
    say(f"recovery, {kind}: {killed} after a kill, {fresh} without")
    return [
        Row(
            f"kill -9 with {LEFT:,} runs left: from the next start to the last end, {kind}",
            f"≥ {SHARE:.0%} of the rate without",
            str(killed),
            f"without: {fresh}",
            share,
            is_at_least(share, SHARE),
            raw=dict(samples),
        )
    ]


def _restarted(url: str, setup: Setup, before: int) -> float:
    """Let a node do `before` of the runs and kill it; return the seconds in which the next one does the rest."""
    with Connection(url) as connection:
        p = connection.p
        last = f"SELECT id FROM {p}run_history ORDER BY id DESC LIMIT 1"
        if before:
            first = Node(url, setup)
            try:
                until(lambda: (connection.value(last) or 0) >= before, [first], 60, every=0.001)
            finally:
                first.kill()
        left = connection.value(f"SELECT count(*) FROM {p}runs")
        began = time.time()
        with Node(url, setup) as node:
            ended = until(lambda: connection.value(f"SELECT count(*) FROM {p}runs") == 0, [node], 60)
        product.check_all_ended(connection, before + LEFT)
    return (ended - began) * LEFT / left if left else float("nan")
