"""SIGKILL at each named point between claim, start, finish and commit: after a restart nothing is lost or doubled."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from jobrunner import WorkerOrchestrator
from tests.support.checker import check
from tests.support.cluster import Cluster, cluster, executions, until
from tests.support.node import POINTS, simple

NOTHING_CLAIMED = {"claim, before the write", "claim, before the commit"}
SOME_WRITTEN = {"finish, after the commit", "turn, after the commit of ends"}
NOBODY_KNOWS = {"turn, sent off with ends"}
RESCUES = {"rescue, before the commit", "rescue, after the commit", "declared lost, before the commit"}
RUNS = 3

pytestmark = pytest.mark.crash


def die(c: Cluster, point: str) -> None:
    """Start a node that dies at `point`, and wait until it has."""
    (node,) = c.start(wait=False, die_at=point)
    assert node.wait() == -signal.SIGKILL, node.log


def register(url: str) -> None:
    async def join_and_leave() -> None:
        orchestrator = WorkerOrchestrator(url)
        simple(orchestrator)
        await orchestrator.start()
        await orchestrator.stop()

    asyncio.run(join_and_leave())


def finish(c: Cluster) -> None:
    (node,) = c.start(wait=False, until_idle=True)
    assert node.wait() == 0, node.log


@pytest.mark.parametrize("point", sorted(set(POINTS) - RESCUES))
def test_killed_at_a_point_of_a_run(database_url: str, tmp_path: Path, point: str):
    with cluster(database_url, tmp_path, notes=tmp_path / "notes") as c:
        register(database_url)
        c.trigger("work", count=RUNS)
        accepted = [row["id"] for row in c.rows("SELECT id FROM {p}runs")]
        die(c, point)
        # On a busy machine handlers do not end together: some runs may be written while others still run.
        held = c.value("SELECT count(*) FROM {p}runs WHERE state <> 'pending'")
        finish(c)
        assert check(database_url, accepted=accepted) == []
        ends = c.history("ends_run = 'succeeded'")
        assert sorted(row["run_id"] for row in ends) == accepted
        lost = c.history("outcome = 'lost'")
        assert len(lost) == held
        if point in NOTHING_CLAIMED:
            assert held == 0
        elif point in SOME_WRITTEN:
            assert held < RUNS
        elif point not in NOBODY_KNOWS:
            assert held > 0
        assert len(c.history()) == RUNS + len(lost)
        done = executions(tmp_path / "notes")
        assert {e.run_id for e in done} == set(accepted)
        assert len(done) <= RUNS + len(lost)


@pytest.mark.parametrize("point", sorted(RESCUES))
def test_killed_at_a_point_of_a_rescue(database_url: str, tmp_path: Path, point: str):
    with cluster(database_url, tmp_path, notes=tmp_path / "notes") as c:
        (first,) = c.start()
        c.trigger("work", '{"seconds": 30}', count=RUNS)
        accepted = [row["id"] for row in c.rows("SELECT id FROM {p}runs")]
        until(lambda: c.value("SELECT count(*) FROM {p}runs WHERE state = 'running'") == RUNS, what="all runs run")
        first.kill()
        c.rows("""UPDATE {p}runs SET payload = '{"seconds": 0}'""")
        die(c, point)
        finish(c)
        assert check(database_url, accepted=accepted) == []
        outcomes = [(row["run_id"], row["outcome"], row["attempt"]) for row in c.history()]
        expected = [(run_id, "lost", 1) for run_id in accepted] + [(run_id, "succeeded", 2) for run_id in accepted]
        assert sorted(outcomes) == sorted(expected)
