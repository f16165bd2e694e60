"""What the whole bench does with its time, and what it says of drains beside the database's bare rate."""

from __future__ import annotations

import pytest

from tests.bench import plan
from tests.bench.bench import Bench
from tests.bench.cases.raw import BARE, beside_drains
from tests.bench.figures import Row


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


def go(monkeypatch, parts, is_quick=False):
    """Run a plan of (name, planned seconds, real seconds); return its rows and the repeats of each part."""
    clock, bench, repeats = Clock(), Bench(is_quick=is_quick), {}

    def measure(name, real):
        def measured():
            repeats[name] = bench.repeats
            clock.now += real
            return [Row(name, "", "done")]

        return measured

    monkeypatch.setattr(plan, "time", clock)
    monkeypatch.setattr(plan, "ALL_SECONDS", 1120.0)
    monkeypatch.setattr(
        plan, "parts", lambda _: [(name, planned, measure(name, real)) for name, planned, real in parts]
    )
    return {row.case: row.figure for row in plan.run(bench)}, repeats


def test_the_parts_of_the_whole_table_fit_into_its_time(monkeypatch):
    monkeypatch.setattr(plan, "_peers", lambda *_: [])
    found = list(plan.parts(Bench()))
    assert sum(seconds for _, seconds, _ in found) <= 1.1 * plan.ALL_SECONDS
    names = [name for name, _, _ in found]
    assert len(set(names)) == len(names)
    assert {"open transaction", "history, postgres", "history, sqlite"} <= set(names)


def test_repeats_are_saved_while_the_rest_is_planned_to_take_too_long(monkeypatch):
    parts = [("slow", 100, 700), ("next", 450, 100), ("last", 200, 100)]
    rows, repeats = go(monkeypatch, parts)
    assert set(rows.values()) == {"done"}
    assert repeats == {"slow": 3, "next": 1, "last": 3}


def test_what_no_longer_fits_is_named_and_what_is_short_still_runs(monkeypatch):
    rows, _ = go(monkeypatch, [("slow", 500, 1080), ("long", 100, 100), ("short", 10, 10)])
    assert rows == {"slow": "done", "long": "left out: the time was up", "short": "done"}


@pytest.mark.parametrize("is_quick", [False, True])
def test_a_part_that_breaks_is_a_row_that_says_so(monkeypatch, capsys, is_quick):
    def broken(_):
        def measure():
            raise RuntimeError("no such thing")

        return [("broken", 1, measure)]

    monkeypatch.setattr(plan, "parts", broken)
    rows = plan.run(Bench(is_quick=is_quick))
    assert rows[0].figure == "could not be measured: RuntimeError"
    assert rows[0].is_ok is False
    assert "no such thing" in capsys.readouterr().err


def test_a_drain_says_what_share_of_the_bare_rate_it_is():
    rows = [
        Row("drain 10,000, 50 at once, postgres", "", "5", raw={"ours": [4.0, 5.0, 6.0]}),
        Row("drain 10,000, 500 at once, postgres", "", "10", why="noisy", raw={"ours": [10.0]}),
        Row("drain 10,000, 50 at once, sqlite, FULL", "", "10", raw={"ours": [10.0]}),
        Row(f"{BARE} in batches of 500, postgres", "", "50", raw={"raw": [50.0], "database": "postgres"}),
        Row("idle, postgres", "", "0"),
    ]
    fifty, five_hundred, on_sqlite, bare, idle = beside_drains(rows)
    assert fifty.why == "10% of the bare rate"
    assert five_hundred.why == "noisy; 20% of the bare rate"
    assert on_sqlite == rows[2]
    assert (bare.peer, bare.ratio) == ("our best: 10 /s (drain 10,000, 500 at once, postgres)", 0.2)
    assert idle == rows[4]
