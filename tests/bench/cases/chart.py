"""The picture in README.md and docs/bench.md: how drain rate and lateness go with load."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from tests.bench.bench import Bench, say
from tests.bench.cases.drain import Drain
from tests.bench.cases.open_transaction import Pace, paced
from tests.bench.contest import take_turns
from tests.bench.figures import Row, percentile
from tests.bench.product import ROOT

FILE = ROOT / "tests/bench/chart.svg"
COLOURS = {"postgres": "#336791", "sqlite": "#2a9d55", "pgqueuer": "#b0563a", "huey": "#c9a227"}


@dataclass
class Series:
    """Points of one line."""

    name: str
    x: list[float] = field(default_factory=list)
    y: list[float] = field(default_factory=list)


def run(bench: Bench) -> list[Row]:
    """Measure both panels, draw them, and say where."""
    drains, lateness = _drains(bench), _lateness(bench)
    draw(drains, lateness, FILE)
    raw = {each.name: {"x": each.x, "y": each.y} for each in [*drains, *lateness]}
    return [Row("chart", "", str(FILE.relative_to(ROOT)), raw=raw)]


def _drains(bench: Bench) -> list[Series]:
    """Runs a second by how many wait, of ours and of the fastest peers on each database."""
    sizes = (500, 3_000) if bench.is_quick else (1_000, 5_000, 10_000, 50_000)
    found = []
    for kind, names in (("postgres", ("pgqueuer",)), ("sqlite", ("huey",))):
        peers = [peer for peer in _with(bench, names, kind) if not peer.options]
        lines = [Series(f"jobrunner, {kind}"), *(Series(f"{peer.name}, {kind}") for peer in peers)]
        for size in sizes:
            it = Drain(kind, 50, size)
            contestants = {lines[0].name: partial(it.ours, bench)}
            for peer, line in zip(peers, lines[1:], strict=True):
                if size <= peer.most:
                    contestants[line.name] = partial(it.theirs, bench, peer)
            samples = take_turns(contestants, 1)
            for line in lines:
                for rate in samples.get(line.name, ()):
                    line.x.append(size)
                    line.y.append(rate)
        found += lines
    return found


def _with(bench: Bench, names: tuple[str, ...], kind: str) -> list[Any]:
    return replace(bench, against=names).peers(kind)


def _lateness(bench: Bench) -> list[Series]:
    """Milliseconds from due to start by how many runs come a second, as long as the node keeps up."""
    seconds = bench.seconds or (4.0 if bench.is_quick else 8.0)
    loads = (100, 300) if bench.is_quick else (100, 300, 1_000, 2_000, 4_000, 8_000)
    setup = bench.setup("noop", max_concurrent=200)
    found = []
    for kind in ("postgres", "sqlite"):
        lines = [Series(f"p50, {kind}"), Series(f"p99, {kind}")]
        for load in loads:
            store = bench.store(kind)
            url = store.create(bench.template(kind, setup, 0))
            try:
                steady = paced(url, setup, Pace(load, seconds))
            finally:
                store.drop(url)
            say(f"chart, {kind}: {load} asked, {steady}")
            if steady.rate < 0.9 * load:
                break
            for line, percent in zip(lines, (50, 99), strict=True):
                line.x.append(load)
                line.y.append(percentile(steady.late, percent))
        found += lines
    return found


def draw(drains: list[Series], lateness: list[Series], path: Path) -> None:
    """Two panels; on white, so that they can be read in a dark page too."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "jobrunner"  # the same figures give the same file
    mpl.rcParams["svg.fonttype"] = "none"  # text stays text
    from matplotlib import pyplot, ticker

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), facecolor="white")
    for axes, lines, title, x, y in (
        (left, drains, "Drain, 50 at once", "runs waiting", "runs/s"),
        (right, lateness, "Lateness under steady load", "runs/s asked for", "ms from due to start"),
    ):
        for line in [each for each in lines if each.x]:
            words = line.name.replace(",", "").split()
            colour = COLOURS.get(words[0]) or COLOURS[words[-1]]
            dashed = "--" if words[0] == "p99" else "-"
            axes.plot(line.x, line.y, dashed, marker="o", markersize=4, color=colour, label=line.name)
        axes.set_xscale("log")
        if axes is right:
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0, top=1.1 * max([1.0, *(value for line in lines for value in line.y)]))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:,g}"))
            axis.set_minor_formatter(ticker.NullFormatter())
        axes.set_title(title)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.grid(visible=True, which="both", alpha=0.25)
        if any(line.x for line in lines):
            axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
