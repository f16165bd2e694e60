"""What limits cost: those who have them, and those beside them."""

from __future__ import annotations

from tests.bench import product
from tests.bench.bench import Bench, figure, say
from tests.bench.cases.scale import fill_runs
from tests.bench.contest import take_turns
from tests.bench.figures import Figure, Row, is_at_least, ratio
from tests.bench.product import Setup
from tests.bench.stores import Connection

KEYS = 10_000
ENQUEUE = """
import asyncio, json, sys, time
from tests.bench.workers import orchestrator
async def fill(count, keys):
    payloads = [{"customer": number % keys} for number in range(count)]
    began = time.perf_counter()
    await orchestrator.trigger_many("noop", payloads)
    return time.perf_counter() - began
print(json.dumps(asyncio.run(fill(int(sys.argv[1]), int(sys.argv[2])))))
"""


def run(bench: Bench) -> list[Row]:
    return rows(bench, bench.database)


def rows(bench: Bench, kind: str) -> list[Row]:
    return [*_drains(bench, kind), _enqueue(bench, kind), _beside(bench, kind)]


def _fill(url: str, setup: Setup, count: int) -> float:
    return float(product.run_python(ENQUEUE, url, setup, count, KEYS))


def _template(bench: Bench, kind: str, setup: Setup, waiting: int) -> str:
    store = bench.store(kind)
    url = product.prepare(store, setup)
    if waiting:
        _fill(url, setup, waiting)
    store.settle(url)
    return url


def _drains(bench: Bench, kind: str) -> list[Row]:
    """A worker without limits, with a rate that stays open, and with a key of which one run may be active."""
    waiting = 5_000 if bench.is_quick else 20_000
    setups = {name: bench.setup(name) for name in ("plain", "rated", "keyed")}
    templates = {name: _template(bench, kind, setup, waiting) for name, setup in setups.items()}

    def rate(name: str) -> float:
        done = bench.on_copy(kind, templates[name], lambda url: product.drain(url, setups[name], waiting))
        say(f"limits, {kind}: drain of {name} {done['rate']:,.0f}/s")
        return float(done["rate"])

    contestants = {name: (lambda name=name: rate(name)) for name in setups}
    samples = take_turns(contestants, bench.repeats)  # type: ignore[arg-type]
    found = {name: figure(name, "/s", values) for name, values in samples.items()}
    return [
        _row(f"drain {waiting:,} under a rate that stays open, {kind}", 0.5, found["rated"], found["plain"]),
        _row(f"drain {waiting:,} of {KEYS:,} keys, one of each at once, {kind}", 0.85, found["keyed"], found["plain"]),
    ]


def _row(case: str, least: float, ours: Figure, without: Figure) -> Row:
    share = ratio(ours, without)
    raw = {"with": ours.samples, "without": without.samples}
    is_ok = share is not None and is_at_least(share, least)
    return Row(case, f"≥ {least:g} of that without", str(ours), f"without: {without}", share, is_ok, raw=raw)


def _enqueue(bench: Bench, kind: str) -> Row:
    count = 20_000 if bench.is_quick else 100_000
    setups = {name: bench.setup(name) for name in ("plain", "keyed")}
    templates = {name: _template(bench, kind, setup, 0) for name, setup in setups.items()}

    def rate(name: str) -> float:
        return bench.on_copy(kind, templates[name], lambda url: count / _fill(url, setups[name], count))

    samples = take_turns({name: (lambda name=name: rate(name)) for name in setups}, bench.repeats)  # type: ignore[arg-type]
    found = {name: figure(name, "rows/s", values) for name, values in samples.items()}
    say(f"limits, {kind}: enqueue {found['plain']} without keys, {found['keyed']} with")
    return _row(f"trigger_many of {count:,} with {KEYS:,} keys, {kind}", 0.9, found["keyed"], found["plain"])


def _beside(bench: Bench, kind: str) -> Row:
    """Others, beside a worker whose rate is shut and which has very many waiting."""
    backlog, waiting = (30_000, 5_000) if bench.is_quick else (300_000, 20_000)
    setup = bench.setup("shut-rate,plain")
    alone = _template(bench, kind, setup, waiting)
    beside = _template(bench, kind, setup, waiting)
    with Connection(beside) as connection:
        fill_runs(connection, "shut", backlog)
        connection.rows(
            f"INSERT INTO {connection.p}run_history (run_id, fence, worker, trigger, outcome, ends_run, attempt,"
            " is_rated, started_at, finished_at)"
            " SELECT 0, 0, 'shut', 'manual', 'succeeded', 'succeeded', 1, true, due_at, due_at"
            f" FROM {connection.p}runs WHERE worker = 'shut' LIMIT 1"
        )
    bench.store(kind).settle(beside)

    def rate(template: str) -> float:
        return float(bench.on_copy(kind, template, lambda url: product.drain(url, setup, waiting))["rate"])

    samples = take_turns({"alone": lambda: rate(alone), "beside": lambda: rate(beside)}, bench.repeats)
    found = {name: figure(name, "/s", values) for name, values in samples.items()}
    say(f"limits, {kind}: drain {found['alone']} alone, {found['beside']} beside a rate that is shut")
    return _row(f"drain {waiting:,} beside {backlog:,} under a shut rate, {kind}", 0.9, found["beside"], found["alone"])
