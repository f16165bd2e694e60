"""A thousand workers, each due every second: how many of the firings run, and how late."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.bench import contest, product
from tests.bench.bench import Bench, contest_url, say
from tests.bench.cases.latency import wait_ready
from tests.bench.contest import Peer
from tests.bench.figures import Row, is_at_most, percentile
from tests.bench.product import Node
from tests.bench.stores import Connection

P99_SECONDS = 0.05
WARM_UP_SECONDS = 3.0


@dataclass(frozen=True)
class Fired:
    """What became of the firings of a span of time."""

    wanted: int
    ran: int
    missed: int
    late: list[float]
    cpu: float = 0.0

    def __str__(self) -> str:
        text = f"{self.ran:,} of {self.wanted:,} ran"
        if self.missed:
            text += f", {self.missed:,} missed"
        p50, p99 = (percentile(self.late, each) * 1000 for each in (50, 99))
        return f"{text}, late p50 {p50:,.0f}, p99 {p99:,.0f} ms"


def ours(bench: Bench, kind: str, workers: str, per_second: int, seconds: float, slots: int) -> Fired:
    """Start a node, let it warm up, and look at the firings whose time lies in the next so many seconds."""
    store = bench.store(kind)
    url = store.create()
    setup = bench.setup(workers, max_concurrent=slots, more={"JOBRUNNER_DRAIN_TIMEOUT": "5"})
    try:
        product.upgrade(url, setup)
        with Node(url, setup) as node:
            time.sleep(0.5)
            with Connection(url) as connection:
                wait_ready(connection, [node])
                begins = datetime.now(UTC) + timedelta(seconds=WARM_UP_SECONDS)
                ends = begins + timedelta(seconds=seconds)
                time.sleep(WARM_UP_SECONDS)
                cpu = node.cpu_seconds()
                time.sleep(max(0.0, (ends - datetime.now(UTC)).total_seconds()))
                cpu = node.cpu_seconds() - cpu
                time.sleep(2.0)  # what is late now counts as well
                node.check()
            node.stop()
        with Connection(url) as connection:
            return _fired(connection, begins, ends, int(per_second * seconds), cpu)
    finally:
        store.drop(url)


def _fired(connection: Connection, begins: datetime, ends: datetime, wanted: int, cpu: float) -> Fired:
    p = connection.p
    span = [moment(connection, each) for each in (begins, ends)]
    rows = connection.rows(
        f"SELECT scheduled_for, started_at, result FROM {p}run_history"
        " WHERE outcome = 'succeeded' AND \"trigger\" = 'schedule' AND scheduled_for >= ? AND scheduled_for < ?",
        *span,
    )
    missed = connection.value(
        f"SELECT coalesce(sum(occurrences), 0) FROM {p}run_history"
        " WHERE outcome = 'missed' AND scheduled_for >= ? AND scheduled_for < ?",
        *span,
    )
    late = [(as_time(started) - as_time(due)).total_seconds() for due, started, _ in rows]
    return Fired(wanted, len(rows), int(missed), late, cpu)


def moment(connection: Connection, when: datetime) -> Any:
    return when.strftime("%Y-%m-%d %H:%M:%S.%f") if connection.is_sqlite else when


def as_time(value: Any) -> datetime:
    return datetime.fromisoformat(value) if isinstance(value, str) else value


def theirs(bench: Bench, kind: str, peer: Peer, workers: int, seconds: float) -> Fired:
    store = bench.store(kind)
    url = store.create()
    options = {"workers": workers, "seconds": seconds, "concurrency": 100}
    try:
        measured = contest.call(peer, "schedule", contest_url(url), options, seconds=seconds + 150)
    finally:
        store.drop(url)
    return Fired(int(workers * seconds), measured["ran"], 0, measured["late"])


def run(bench: Bench) -> list[Row]:
    return rows(bench, bench.database, bench.peers(bench.database))


def rows(bench: Bench, kind: str, peers: list[Peer]) -> list[Row]:
    """All due at the same moment, which the target is about; the peers; and, for half the time, spread by jitter."""
    whole = bench.seconds or (5.0 if bench.is_quick else 20.0)
    found = []
    for workers, how, seconds in (
        ("scheduled:1000", "all at once", whole),
        ("spread:1000", "spread by jitter_seconds=1", whole / 2),
    ):
        fired = ours(bench, kind, workers, 1000, seconds, slots=1000)
        say(f"schedule, {kind}, {how}: {fired}, {fired.cpu / seconds:.0%} of a core")
        late = percentile(fired.late, 99)
        is_ok = fired.ran >= fired.wanted and is_at_most(late, P99_SECONDS)
        found.append(
            Row(
                f"1,000 workers at 1 s for {seconds:g} s, {kind}, {how}",
                f"{fired.wanted:,} run, p99 ≤ {P99_SECONDS * 1000:g} ms",
                f"{fired}; {fired.cpu / seconds:.0%} CPU",
                is_ok=is_ok,
                raw={"late": fired.late, "ran": fired.ran, "missed": fired.missed, "cpu_seconds": fired.cpu},
            )
        )
        if bench.is_quick:
            break
    told, raw = [], {}
    for peer in [each for each in peers if each.program in ("apscheduler3", "apscheduler4", "procrastinate_")]:
        try:
            fired = theirs(bench, kind, peer, 1000, whole)
        except Exception as error:  # a peer that cannot is left out
            say(f"{peer.name} is left out: {error}")
            continue
        say(f"schedule, {kind}: {peer.name} {fired}")
        told.append(f"{peer.name} {fired}")
        raw[peer.name] = {"late": fired.late, "ran": fired.ran}
    first = found[0]
    found[0] = Row(first.case, first.target, first.figure, "; ".join(told), None, first.is_ok, raw={**first.raw, **raw})
    return found
