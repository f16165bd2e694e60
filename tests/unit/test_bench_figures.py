"""What the bench makes of its samples: percentiles, medians with spread, rows and tables."""

from __future__ import annotations

import io
import math

import pytest
from rich.console import Console

from tests.bench.contest import PEERS, peers, take_turns
from tests.bench.figures import Figure, Row, is_at_least, is_at_most, markdown, number, percentile, ratio, show


@pytest.mark.parametrize(
    ("percent", "expected"),
    [(50, 50), (99, 99), (100, 100), (1, 1), (0, 1), (0.5, 1)],
)
def test_a_percentile_is_a_value_that_was_measured(percent, expected):
    assert percentile(range(100, 0, -1), percent) == expected


def test_a_percentile_of_nothing_is_no_number():
    assert math.isnan(percentile([], 50))


def test_a_figure_is_the_median_with_its_spread():
    assert str(Figure("jobrunner", "/s", (12_000.0, 9_000.0, 10_500.0))) == "10,500 /s (9,000 to 12,000)"
    assert str(Figure("jobrunner", "ms", (1.234,))) == "1.23 ms"
    assert str(Figure("huey", "/s", ())) == "huey: not measured"


def test_a_target_is_not_kept_by_what_was_not_measured():
    assert not is_at_least(math.nan, 1)
    assert not is_at_most(math.nan, 1)
    assert is_at_least(1, 1)
    assert is_at_most(1, 1)


def test_a_ratio_needs_both_sides():
    ours = Figure("jobrunner", "/s", (300.0,))
    assert ratio(ours, Figure("huey", "/s", (100.0, 90.0, 110.0))) == 3
    assert ratio(ours, None) is None
    assert ratio(ours, Figure("huey", "/s", ())) is None


def test_numbers_have_three_digits_that_matter():
    assert [number(each) for each in (20_123.4, 99.95, 1.2345, math.nan)] == ["20,123", "100", "1.23", "-"]


def test_the_table_says_which_target_was_missed():
    rows = [Row("drain", "≥ 2", "3", "huey 1", 3.0, True), Row("idle", "≤ 1", "2", is_ok=False, why="shared")]
    text = io.StringIO()
    show(rows, Console(file=text, width=120))
    assert "below" in text.getvalue()
    assert "yes" in text.getvalue()
    assert markdown(rows).splitlines()[2:] == [
        "| drain | ≥ 2 | 3 | huey 1 | 3.00 | yes |",
        "| idle | ≤ 1 | 2 [shared] |  |  | below |",
    ]


def test_contestants_take_turns_and_one_that_breaks_is_left_out(capsys):
    order = []

    def good() -> float:
        order.append("good")
        return 1.0

    def bad() -> float:
        order.append("bad")
        raise RuntimeError("cannot be had")

    assert take_turns({"good": good, "bad": bad}, 2) == {"good": [1.0, 1.0], "bad": []}
    assert order == ["good", "bad", "good"]
    assert "bad is left out: cannot be had" in capsys.readouterr().err


def test_a_peer_is_named_with_all_its_ways():
    assert {peer.name for peer in peers(["pgqueuer"], "postgres")} == {"pgqueuer", "pgqueuer+uvloop"}
    assert {peer.name for peer in peers(["apscheduler"], "sqlite")} == {"apscheduler3", "apscheduler4"}
    assert peers(["pgqueuer"], "sqlite") == []
    assert all("==" in package for peer in PEERS for package in peer.packages)
