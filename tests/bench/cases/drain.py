"""How fast waiting runs are worked off: no-op runs, triggered before the node starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.bench import contest, product
from tests.bench.bench import Bench, contest_url, figure, say
from tests.bench.contest import Peer
from tests.bench.figures import Figure, Row, ratio


@dataclass(frozen=True)
class Drain:
    """One kind of drain. `jobs` of the `waiting` are measured, all if 0."""

    database: str
    concurrency: int = 50
    waiting: int = 10_000
    jobs: int = 0
    nodes: int = 1
    synchronous: str = "FULL"

    @property
    def name(self) -> str:
        words = [f"drain {self.waiting:,}", self.database]
        if self.jobs:
            words[0] = f"drain the first {self.jobs:,} of {self.waiting:,}"
        words[0] += f", {self.concurrency} at once"
        if self.database == "sqlite":
            words.append(self.synchronous)
        if self.nodes > 1:
            words.append(f"{self.nodes} nodes")
        return ", ".join(words)

    def ours(self, bench: Bench) -> float:
        setup = bench.setup(max_concurrent=self.concurrency, synchronous=self.synchronous)
        template = bench.template(self.database, setup, self.waiting)
        jobs = self.jobs or self.waiting
        measured = bench.on_copy(
            self.database, template, lambda url: product.drain(url, setup, jobs, self.nodes, seconds=600)
        )
        say(f"{self.name}: jobrunner {measured['rate']:,.0f}/s, {measured['cpu_seconds']:.1f} s of CPU")
        return float(measured["rate"])

    def theirs(self, bench: Bench, peer: Peer) -> float:
        jobs = min(self.jobs or self.waiting, peer.most)
        options = {"jobs": jobs, "concurrency": self.concurrency}
        template = bench.peer_template(self.database, peer, jobs)
        measured = bench.on_copy(
            self.database,
            template,
            lambda url: contest.call(peer, "drain", contest_url(url), options, seconds=300),
        )
        say(f"{self.name}: {peer.name} {measured['rate']:,.0f}/s ({measured['jobs']:,} jobs)")
        return float(measured["rate"])


def measure(bench: Bench, drain: Drain, peers: list[Peer]) -> dict[str, Figure]:
    """Measure ours and the peers in turn."""
    contestants: dict[str, Callable[[], float]] = {"jobrunner": lambda: drain.ours(bench)}
    for peer in peers:
        contestants[peer.name] = lambda peer=peer: drain.theirs(bench, peer)  # type: ignore[misc]
    samples = contest.take_turns(contestants, bench.repeats)
    return {name: figure(name, "/s", values) for name, values in samples.items()}


def row(case: str, target: str, ours: Figure, peer: Figure | None, is_ok: bool | None, **raw: Any) -> Row:
    return Row(
        case,
        target,
        str(ours),
        f"{peer.name} {peer}" if peer else "",
        ratio(ours, peer),
        is_ok,
        raw={"ours": ours.samples, "peer": peer.samples if peer else (), **raw},
    )


def run(bench: Bench) -> list[Row]:
    """The drain that the options ask for, beside each peer asked for."""
    drain = Drain(bench.database, bench.concurrency, bench.waiting, nodes=bench.nodes, synchronous=bench.synchronous)
    figures = measure(bench, drain, bench.peers(drain.database))
    ours = figures.pop("jobrunner")
    return [row(drain.name, "", ours, peer, None) for peer in figures.values()] or [
        row(drain.name, "", ours, None, None)
    ]
