"""What is said of nodes: who lives, who is silent, and why none takes a worker's runs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from jobrunner.policy.liveness import NodesHeard, silent_seconds

NOW = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(("ago", "silent"), [(0, None), (30, None), (31, 31), (-3600, None)])
def test_a_node_is_silent_after_its_lease(ago: float, silent: float | None):
    assert silent_seconds(NOW - timedelta(seconds=ago), 30, NOW) == silent


@pytest.mark.parametrize(
    ("heard", "said"),
    [
        (NodesHeard(), "no node is running; `jobrunner run MODULE` starts one"),
        (
            NodesHeard(silent={"f745d8d8-1": 95.2}),
            "no node lives: node f745d8d8 was last heard of 95 s ago; `jobrunner run MODULE` starts one",
        ),
        (
            NodesHeard(active=("a", "b")),
            "no live node has the handler: nodes a, b run other workers only (another MODULE, or --workers)",
        ),
        (
            NodesHeard(active=("a",), draining=("d",), silent={"s": 7200.0}),
            "no live node has the handler: node a runs other workers only (another MODULE, or --workers); node d drains;"
            " node s was last heard of 2 h ago",
        ),
        (NodesHeard(draining=("d", "e")), "no node takes runs: nodes d, e drain"),
        (
            NodesHeard(silent=dict.fromkeys("abcde", 600.0)),
            "no node lives: node a was last heard of 10 min ago, node b was last heard of 10 min ago, node c was last"
            " heard of 10 min ago and 2 more; `jobrunner run MODULE` starts one",
        ),
    ],
)
def test_why_no_node_takes_a_workers_runs(heard: NodesHeard, said: str):
    assert heard.why_no_handler() == said
