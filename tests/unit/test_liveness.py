"""What is said of nodes: who lives, who is silent, and why none takes a worker's runs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from jobrunner.policy.liveness import NodesHeard, silent_seconds

NOW = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(("ago", "silent"), [(0, None), (35, None), (36, 36), (-3600, None)])
def test_a_node_is_silent_after_its_lease(ago: float, silent: float | None):
    assert silent_seconds(NOW - timedelta(seconds=ago), 30, NOW) == silent


OTHERS = "other workers only (another MODULE, or --workers)"
START = "`jobrunner run MODULE` starts one"


@pytest.mark.parametrize(
    ("heard", "said"),
    [
        (NodesHeard(), f"no node is running; {START}"),
        (NodesHeard(silent={"f745d8d8-1": 95.2}), f"no node lives: node f745d8d8 was last heard of 95 s ago; {START}"),
        (NodesHeard(active=("a", "b")), f"no live node has the handler: nodes a, b run {OTHERS}"),
        (
            NodesHeard(active=("a",), draining=("d",), silent={"s": 7200.0}),
            f"no live node has the handler: node a runs {OTHERS}; node d drains; node s was last heard of 2 h ago",
        ),
        (NodesHeard(draining=("d", "e")), "no node takes runs: nodes d, e drain"),
    ],
)
def test_why_no_node_takes_a_workers_runs(heard: NodesHeard, said: str):
    assert heard.why_no_handler() == said


def test_of_many_silent_nodes_three_are_named():
    heard = NodesHeard(silent=dict.fromkeys("abcde", 600.0))
    each = ", ".join(f"node {name} was last heard of 10 min ago" for name in "abc")
    assert heard.show_silent() == f"{each} and 2 more"
