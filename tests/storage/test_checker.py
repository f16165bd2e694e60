"""The checker reads both databases, and finds a violation there."""

from __future__ import annotations

from jobrunner.model.run import OutcomeKind
from tests.support.checker import check, read_tables
from tests.support.stage import Stage, scheduled, triggered


async def lived(stage: Stage) -> None:
    await stage.register(
        scheduled("a", interval_seconds=60, max_retries=1),
        triggered("b", depends_on=["a"], blocks=["c"], max_running=2),
        triggered("c", max_retries=0),
    )
    for kind in (OutcomeKind.SUCCEEDED, OutcomeKind.FAILED, OutcomeKind.LOST, OutcomeKind.SUCCEEDED):
        for name in "bc":
            await stage.trigger(name)
        for _ in range(3):
            await stage.run_once(kind)
            stage.after(7)
        stage.after(60)
    await stage.tick()


async def test_a_life_through_the_storage_functions_keeps_all_promises(stage: Stage):
    await lived(stage)
    tables = read_tables(stage.url)
    assert len(tables.history) > 10
    assert tables.letters
    assert tables.active
    assert check(stage.url) == []


async def test_a_violation_in_the_database_is_found(stage: Stage):
    await lived(stage)
    await stage.sql("UPDATE {p}worker_state SET consecutive_failures = 77 WHERE worker = 'a'")
    await stage.sql("DELETE FROM {p}dead_letters")
    found = check(stage.url)
    assert any(line.startswith("promise 5: a has consecutive_failures 77") for line in found)
    assert any(line.startswith("promise 1: ") and "0 dead letters instead of 1" in line for line in found)


async def test_runs_that_were_accepted_are_asked_for(stage: Stage):
    await stage.register(triggered("a"))
    run_id = await stage.trigger("a")
    assert check(stage.url, accepted=[run_id]) == []
    await stage.sql("DELETE FROM {p}runs")
    assert check(stage.url, accepted=[run_id]) == [f"promise 1: run {run_id} was accepted and is nowhere"]
