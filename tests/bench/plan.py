"""All rows of the table in docs/bench.md: `--all` in under twenty minutes, `--quick` in under three.

What takes long comes last, so that a slow machine leaves out as little as it must.

`--quick` takes fewer and smaller measurements of the rows that can be had in seconds, and names those it leaves out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from tests.bench.bench import Bench, say
from tests.bench.cases import drain, enqueue, history, idle, latency, open_transaction, raw, recovery, scale, schedule
from tests.bench.cases.drain import Drain
from tests.bench.contest import Peer
from tests.bench.figures import Figure, Row, is_at_least, ratio

Part = tuple[str, float, Callable[[], list[Row]]]
"""A name, the seconds that it takes in a slow hour with all its repeats (none when quick), and the measurement."""
POSTGRES_PEERS = ("pgqueuer", "procrastinate", "oban")
SQLITE_PEERS = ("huey", "apscheduler")


def parts(bench: Bench) -> Iterator[Part]:
    """The rows of the table, each with what it takes to measure it."""
    postgres, sqlite = _peers(bench, POSTGRES_PEERS, "postgres"), _peers(bench, SQLITE_PEERS, "sqlite")
    pgqueuer = [peer for peer in postgres if peer.program == "pgqueuer_"]
    with_uvloop = [peer for peer in pgqueuer if peer.options]
    quick = bench.is_quick
    yield "drain, PostgreSQL", 45, lambda: _fifty(bench, pgqueuer if quick else postgres)
    yield "drain, 500 at once", 15, lambda: _five_hundred(bench, with_uvloop)
    if not quick:
        yield "drain, many waiting", 100, lambda: _many_waiting(bench, with_uvloop)
    yield "drain, SQLite", 45, lambda: _sqlite(bench, sqlite[:1] if quick else sqlite)
    if not quick:
        yield "drain, two nodes", 20, lambda: _two_nodes(bench)
    for kind in ("postgres", "sqlite"):
        yield f"raw, {kind}", 5, partial(raw.rows, bench, kind)
    for kind, seconds, peers in (("postgres", 55, [] if quick else postgres), ("sqlite", 20, [])):
        yield f"latency, {kind}", seconds, partial(latency.rows, bench, kind, peers)
    for kind in ("postgres", "sqlite"):
        yield f"trigger_many, {kind}", 15, partial(_one, enqueue.many, bench, kind)
        yield f"eight processes, {kind}", 20, partial(_one, enqueue.crowded, bench, kind)
    aps3 = [peer for peer in sqlite if peer.program == "apscheduler3"]  # the alpha of 4 takes a minute more
    for kind, peers in (("postgres", [] if quick else postgres), ("sqlite", [] if quick else aps3)):
        yield f"schedule, {kind}", 70, partial(schedule.rows, bench, kind, peers)
    yield "idle", 55, lambda: idle.both(bench)
    if not quick:
        yield from _long(bench)
    for kind in ("postgres", "sqlite"):  # the first to be left out
        yield f"recovery, {kind}", 20 if kind == "postgres" else 12, partial(recovery.rows, bench, kind)


def _long(bench: Bench) -> Iterator[Part]:
    """What needs much that is there first."""
    for kind, seconds in (("postgres", 80), ("sqlite", 60)):
        yield f"many workers, {kind}", seconds, partial(scale.many_workers, bench, kind)
    yield "open transaction", 300, lambda: open_transaction.rows(bench)
    for kind, seconds in (("postgres", 65), ("sqlite", 45)):
        yield f"crowd, {kind}", seconds, partial(scale.crowd, bench, kind)
    for kind in ("postgres", "sqlite"):
        yield f"history, {kind}", 115 if kind == "postgres" else 85, partial(history.rows, bench, kind)


def _one(measure: Callable[[Bench, str], Row], bench: Bench, kind: str) -> list[Row]:
    return [measure(bench, kind)]


LEFT_OUT_WHEN_QUICK = (
    "50,000 and 500,000 waiting, two nodes, 100,000 workers, backlogs, a long history, an open transaction"
)


ALL_SECONDS, QUICK_SECONDS = 1310.0, 165.0


def run(bench: Bench) -> list[Row]:
    """Measure all parts; one that breaks is a row that says so, and the rest goes on.

    On a slow machine each is measured once while the rest is planned to take more than there is, and what there is no
    time for is named.
    """
    rows: list[Row] = []
    limit = QUICK_SECONDS if bench.is_quick else ALL_SECONDS
    all_parts, ends, repeats = list(parts(bench)), time.monotonic() + limit, bench.repeats
    planned = sum(seconds for _, seconds, _ in all_parts)
    pace = limit / planned if bench.is_quick else 1.0
    for name, seconds, measure in all_parts:
        began = time.monotonic()
        bench.repeats = 1 if pace * planned > 1.1 * (ends - began) else repeats
        planned -= seconds
        if began + 0.8 * pace * seconds > ends:
            rows.append(Row(name, "", "left out: the time was up"))
            continue
        try:
            rows += measure()
        except Exception as error:  # the table must not be lost for one part
            say(f"{name}: {error}")
            rows.append(Row(name, "", f"could not be measured: {type(error).__name__}", is_ok=False))
        say(f"[{name}: {time.monotonic() - began:.0f} s, {pace * seconds:.0f} planned]")
    if bench.is_quick:
        rows.append(Row("left out by --quick", "", LEFT_OUT_WHEN_QUICK))
    return raw.beside_drains(rows)


def _peers(bench: Bench, names: tuple[str, ...], kind: str) -> list[Peer]:
    wanted = [name for name in names if not bench.against or name in bench.against]
    return replace(bench, against=tuple(wanted)).peers(kind)


def _best(figures: dict[str, Figure]) -> Figure | None:
    """The fastest of the peers that were measured."""
    return max((each for each in figures.values() if each.samples), key=lambda each: each.value, default=None)


def _others(figures: dict[str, Figure]) -> str:
    ordered = sorted((each for each in figures.values() if each.samples), key=lambda each: -each.value)
    return "; ".join(f"{each.name} {each}" for each in ordered)


def _judged(case: str, target: str, figures: dict[str, Figure], is_ok: Callable[[Figure, Figure | None], bool]) -> Row:
    """A row of ours, beside all peers; the ratio is to the fastest of them."""
    ours = figures.pop("jobrunner")
    best = _best(figures)
    raw = {name: each.samples for name, each in figures.items()}
    return Row(
        case,
        target,
        str(ours),
        _others(figures),
        ratio(ours, best),
        is_ok(ours, best),
        raw={"ours": ours.samples, **raw},
    )


def _is_times(times: float) -> Callable[[Figure, Figure | None], bool]:
    return lambda ours, best: best is not None and is_at_least(ours.value, times * best.value)


def _fifty(bench: Bench, peers: list[Peer]) -> list[Row]:
    """Beside PgQueuer on asyncio's own loop, as it is unless uvloop is installed for it; ours gains nothing by it."""
    it = Drain("postgres", 50)
    figures = drain.measure(bench, it, [peer for peer in peers if not peer.options])
    return [_judged(it.name, "≥ 1.3 times PgQueuer", figures, _is_times(1.3))]


def _five_hundred(bench: Bench, peers: list[Peer]) -> list[Row]:
    it = Drain("postgres", 500)
    figures = drain.measure(bench, it, peers)
    target = "≥ 20,000/s where PgQueuer with uvloop does 14,000 (1.43 times)"
    return [_judged(it.name, target, figures, _is_times(20 / 14))]


def _many_waiting(bench: Bench, peers: list[Peer]) -> list[Row]:
    once, twice = replace(bench, repeats=1), replace(bench, repeats=min(2, bench.repeats))
    few = drain.measure(twice, Drain("postgres", 500), [])["jobrunner"]
    rows = []
    for waiting, times, beside in ((50_000, twice, peers), (500_000, once, [])):
        it = Drain("postgres", 500, waiting)
        figures = drain.measure(times, it, beside)
        row = _judged(it.name, f"no slower than with 10,000 ({few})", figures, lambda ours, _: _is_as_fast(ours, few))
        rows.append(row)
    return rows


def _is_as_fast(ours: Figure, few: Figure) -> bool:
    """5 % is what two medians of the same thing differ by here."""
    return is_at_least(ours.value, 0.95 * few.value)


def _sqlite(bench: Bench, peers: list[Peer]) -> list[Row]:
    rows = []
    for synchronous, times, beside in (("FULL", 3, peers), ("NORMAL", 5, peers[:1])):
        it = Drain("sqlite", 50, synchronous=synchronous)
        figures = drain.measure(replace(bench, repeats=1) if bench.is_quick else bench, it, beside)
        huey = figures.get("huey")
        row = _judged(it.name, f"≥ {times} times Huey", figures, lambda ours, _, h=huey, n=times: _is_times(n)(ours, h))  # type: ignore[misc]
        rows.append(replace(row, ratio=ratio(Figure("", "", row.raw["ours"]), huey)))
    return rows


def _two_nodes(bench: Bench) -> list[Row]:
    """Each with fewer slots than the machine could fill; more cores than two are needed for it to be about more."""
    times = replace(bench, repeats=min(2, bench.repeats))
    one, two = (drain.measure(times, Drain("postgres", 50, 20_000, nodes=nodes), [])["jobrunner"] for nodes in (1, 2))
    share = ratio(two, one)
    is_ok = share is not None and is_at_least(share, 1.5)
    raw = {"one": one.samples, "ours": two.samples}
    case = "drain 20,000, 50 at once, postgres, 2 nodes"
    return [Row(case, "≥ 1.5 times one node while a core is free", str(two), f"one node: {one}", share, is_ok, raw=raw)]
