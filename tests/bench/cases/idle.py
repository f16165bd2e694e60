"""A node with a thousand workers of which none is due: what it costs to do nothing."""

from __future__ import annotations

import re
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from tests.bench.bench import Bench, say
from tests.bench.cases.latency import wait_ready
from tests.bench.figures import Row
from tests.bench.product import Node, Setup
from tests.bench.stores import Connection, PostgresStore

STATEMENTS_PER_SECOND, CPU_PERCENT, MIB = 0.5, 0.5, 80.0
_STATEMENT = re.compile(r"LOG:  (?:statement|execute [^:]*): ")


def run(bench: Bench) -> list[Row]:
    return rows(bench, bench.database)


def both(bench: Bench) -> list[Row]:
    """On either database, at the same time: neither does anything that the other could notice."""
    kinds = ("postgres", "sqlite")
    for kind in kinds:
        _template(bench, kind, 1000)
    with ThreadPoolExecutor(len(kinds)) as pool:
        return [row for found in pool.map(partial(rows, bench), kinds) for row in found]


def _template(bench: Bench, kind: str, workers: int) -> tuple[Setup, str]:
    setup = bench.setup(f"idle:{workers}", max_concurrent=5)
    return setup, bench.template(kind, setup, 0)


def rows(bench: Bench, kind: str, workers: int = 1000) -> list[Row]:
    """Measured from outside: CPU and memory of the process, statements as the server logs them."""
    seconds = bench.seconds or (8.0 if bench.is_quick else 40.0)
    setup, template = _template(bench, kind, workers)
    store = bench.store(kind)
    url = store.create(template)
    try:
        if isinstance(store, PostgresStore):
            name = url.rsplit("/", 1)[1]
            store.server.execute(f"ALTER DATABASE \"{name}\" SET log_statement = 'all'")
        with Node(url, setup) as node:
            with Connection(url) as connection:
                wait_ready(connection, [node])
            time.sleep(6.0)  # past what a node does once at its start
            log, cpu = _log(store), node.cpu_seconds()
            time.sleep(seconds)
            cpu, said = node.cpu_seconds() - cpu, _log(store)[len(log) :]
            memory = node.rss_mib()
            node.check()
    finally:
        store.drop(url)
    percent = 100 * cpu / seconds
    figure = f"{percent:.2f} % CPU, {memory:.0f} MiB"
    is_ok = percent <= CPU_PERCENT and memory <= MIB
    target = f"≤ {CPU_PERCENT:g} % CPU, ≤ {MIB:g} MiB"
    raw: dict[str, Any] = {"cpu_percent": percent, "rss_mib": memory, "seconds": seconds}
    if isinstance(store, PostgresStore):
        statements = len(_STATEMENT.findall(said)) / seconds
        figure = f"{statements:.2f} statements/s, {figure}"
        target = f"≤ {STATEMENTS_PER_SECOND:g} statements/s, {target}"
        is_ok = is_ok and statements <= STATEMENTS_PER_SECOND
        raw |= {"statements_per_second": statements, "log": said.splitlines()[-200:]}
    say(f"idle, {kind}: {figure}")
    return [Row(f"idle, {workers:,} workers none due, {kind}", target, figure, is_ok=is_ok, raw=raw)]


def _log(store: object) -> str:
    return store.server.log if isinstance(store, PostgresStore) else ""
