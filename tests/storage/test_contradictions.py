"""`db verify` on rows that contradict each other: each kind is planted and told, unless pruning explains it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import Any

import pytest

from jobrunner.model.run import EndsRun, OutcomeKind
from jobrunner.policy.ends import MAY_END
from jobrunner.storage import nodes
from jobrunner.storage.reading.findings import Scope
from jobrunner.storage.reading.verify import verify
from jobrunner.storage.runs import dead_letters
from jobrunner.storage.runs.finishes import Ended, finish
from jobrunner.storage.workers import operations
from jobrunner.storage.workers.definitions import read_one, write_overrides
from tests.support.planted import broken, furnished, only, plant, plant_letter
from tests.support.stage import ACTOR, T0, Stage, triggered


@pytest.fixture
async def workers(stage: Stage) -> Stage:
    return await furnished(stage)


@pytest.fixture
async def bare_workers(workers: Stage) -> Stage:
    """The same on a database whose constraints are gone: what they would refuse can be planted."""
    if workers.db.is_sqlite:
        await workers.sql("DROP TRIGGER runs_refuse_unknown_worker")
        return workers
    found = "SELECT conrelid::regclass::text AS name, conname FROM pg_constraint WHERE contype IN ('c', 'f')"
    for row in await workers.rows(
        f"{found} AND connamespace = CAST('jobrunner' AS regnamespace)".replace("::", "\\:\\:")
    ):
        await workers.sql(f"ALTER TABLE {row['name']} DROP CONSTRAINT {row['conname']}")
    return workers


async def change(stage: Stage, statement: str) -> None:
    """Change something whatever the constraints say; `{p}` stands for the schema."""
    if not stage.db.is_sqlite:
        await stage.sql(statement)
        return
    with closing(sqlite3.connect(str(stage.db.url.database), timeout=5)) as shell:
        shell.execute("PRAGMA ignore_check_constraints = ON")
        shell.execute(statement.replace("{p}", ""))
        shell.commit()


async def problems(stage: Stage) -> list[str]:
    return [violation.problem for violation in await broken(stage)]


# --- promise 1 ----------------------------------------------------------------------------------------------------

CANNOT_END = [
    (outcome, ends_run)
    for outcome in OutcomeKind
    for ends_run in (None, *EndsRun)
    if outcome is not OutcomeKind.MISSED and ends_run not in MAY_END[outcome]
]


@pytest.mark.parametrize(("outcome", "ends_run"), CANNOT_END)
async def test_an_attempt_that_cannot_end_its_run_so(
    bare_workers: Stage, outcome: OutcomeKind, ends_run: EndsRun | None
):
    ends = "NULL" if ends_run is None else f"'{ends_run}'"
    await change(
        bare_workers,
        "INSERT INTO {p}run_history (run_id, worker, trigger, attempt, outcome, ends_run, finished_at)"
        f" VALUES (1, 'a', 'manual', 1, '{outcome}', {ends}, '{T0:%Y-%m-%d %H:%M:%S.%f}')",
    )
    ended = "goes on" if ends_run is None else f"ended as {ends_run}"
    assert f"run 1 {ended} with an attempt that was {outcome}" in await problems(bare_workers)


async def test_an_attempt_after_the_end(workers: Stage):
    await plant(workers, 1, "a", 0, 1)
    await plant(workers, 1, "a", 2, 3, fence=11, outcome="interrupted", ends_run=None)
    await only(workers, 1, "run 1 has an attempt after its end")


async def test_a_run_of_two_workers(workers: Stage):
    await plant(workers, 1, "a", 0, 1, outcome="interrupted", ends_run=None)
    await plant(workers, 1, "wide", 2, 3, fence=11)
    await only(workers, 1, "run 1 is of wide and of a")


async def test_a_live_run_that_history_knows_of_another_worker(workers: Stage):
    run_id = await workers.trigger("a")
    await plant(workers, run_id, "y", 4, 5, outcome="interrupted", ends_run=None)
    await only(workers, 1, f"run {run_id} is of a and, in history, of y")


async def test_live_runs_and_relations_of_a_worker_that_does_not_exist(bare_workers: Stage):
    await change(bare_workers, "INSERT INTO {p}runs (worker, priority) VALUES ('nobody', 1)")
    await only(bare_workers, 1, "there is no worker nobody, but live runs of it: 1, the first is run 1")
    await change(bare_workers, "DELETE FROM {p}runs")
    if bare_workers.db.is_sqlite:
        await change(bare_workers, "DROP TRIGGER worker_dependencies_refuse_unknown")
    await change(bare_workers, "INSERT INTO {p}worker_dependencies (worker, depends_on) VALUES ('a', 'nobody')")
    await only(bare_workers, 1, "a depends on nobody, but there is no worker nobody")


async def test_a_letter_without_an_end_in_history(workers: Stage):
    await plant_letter(workers, 1)
    assert (await only(workers, 1, "run 1 has a dead letter, but no end in history")).rows == ("dead_letters.id=1",)
    workers.after(86400 * 31)
    assert await broken(workers) == []  # failures are kept for 30 days here


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ({"attempts": 2}, "letter 1 counts 2 attempts, run 1 ended at attempt 1"),
        ({"errors": [{"attempt": 1}, {"attempt": 2}]}, "letter 1 counts 1 attempts, but has 2 errors"),
        ({"worker": "wide"}, "letter 1 is of wide, its run 1 of a"),
    ],
)
async def test_a_letter_that_says_other_than_history(workers: Stage, more: dict[str, Any], problem: str):
    await workers.sql("UPDATE {p}worker_state SET consecutive_failures = 1 WHERE worker = 'a'")
    await plant(workers, 1, "a", 0, 1, outcome="failed", ends_run="exhausted")
    await plant_letter(workers, 1, **more)
    await only(workers, 1, problem)


async def test_a_letter_whose_replay_is_nowhere(workers: Stage):
    await plant(workers, 1000, "a", 0, 1, outcome="failed", ends_run="discarded")
    await plant_letter(workers, 1000)
    done = await dead_letters.replay(workers.db, dead_letters.Chosen((1,)), workers.now, ACTOR)
    (replayed,) = done.resolved
    assert await broken(workers) == []
    await workers.sql("DELETE FROM {p}runs")
    await only(workers, 1, f"letter 1 was replayed as run {replayed.run_id}, which is nowhere")
    workers.after(86400 * 40)
    assert await broken(workers) == []


async def test_a_live_replay_that_its_letter_does_not_name(workers: Stage):
    await plant(workers, 1000, "a", 0, 1, outcome="failed", ends_run="discarded")
    await plant_letter(workers, 1000)
    run_id = await workers.trigger("a", trigger="replay", replay_of=1)
    await only(workers, 1, f"run {run_id} replays letter 1, which does not name it")


# --- promise 2 ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outcome", ["succeeded", "interrupted", "snoozed", "cancelled"])
async def test_an_attempt_numbered_7_without_six_before_it(workers: Stage, outcome: str):
    (ends_run,) = MAY_END[OutcomeKind(outcome)] - {None}
    await plant(workers, 1, "a", 0, 1, attempt=7, outcome=outcome, ends_run=ends_run)
    await only(workers, 2, f"the attempts of run 1 are numbered 7 ({outcome});")
    workers.after(86400 * 31)
    assert await broken(workers) == []  # pruning may have taken those before


async def test_a_success_numbered_7_after_one_failure(workers: Stage):
    await plant(workers, 1, "a", 0, 1, outcome="failed", ends_run=None)
    await plant(workers, 1, "a", 2, 3, fence=11, attempt=7)
    await only(workers, 2, "the attempts of run 1 are numbered 1 (failed), 7 (succeeded);")


async def plant_tries(stage: Stage, run_id: int, count: int) -> None:
    """A run that was exhausted by its attempt number `count`."""
    for n in range(1, count + 1):
        ends_run = "exhausted" if n == count else None
        more = {"outcome": "timed_out", "ends_run": ends_run, "fence": run_id * 10 + n, "attempt": n}
        at = run_id * 100 + n * 10
        await plant(stage, run_id, "a", at, at + 1, **more)
    await plant_letter(stage, run_id, attempts=count)
    await stage.sql("UPDATE {p}worker_state SET consecutive_failures = consecutive_failures + 1 WHERE worker = 'a'")


async def test_more_attempts_than_a_worker_allows(workers: Stage):
    await plant_tries(workers, 1, 4)
    assert await broken(workers) == []
    await plant_tries(workers, 2, 5)
    await only(workers, 2, "run 2 goes on after attempt 4 timed_out, of 4 at most")


async def test_attempts_that_were_allowed_when_they_began(workers: Stage):
    await plant_tries(workers, 1, 4)
    async with workers.db.write() as conn:
        stored = await read_one(conn, workers.db.dialect, "a", lock=True)
        await write_overrides(conn, stored, {"max_retries": 0}, workers.now)
    assert await broken(workers) == []


async def test_an_attempt_claimed_while_its_definition_was_being_changed(workers: Stage):
    """The operator's clock was read before the lock was held; meanwhile a node claimed, by the old definition."""
    before = workers.now
    await workers.trigger("a")
    workers.after(5)
    run = await workers.start_one()
    await operations.set_values(workers.db, "a", {"max_retries": 0}, before, ACTOR)
    failed = workers.outcome(OutcomeKind.FAILED)
    await finish(workers.db, [Ended(run, failed, triggered("a", max_retries=3))], lambda: 0.0)
    assert await workers.column("SELECT attempt FROM {p}runs") == [2]
    assert await broken(workers) == []


async def test_a_live_run_whose_attempt_is_not_what_history_counts(workers: Stage):
    run_id = await workers.trigger("a")
    await workers.fail(await workers.start_one())
    assert await broken(workers) == []
    await workers.sql("UPDATE {p}runs SET attempt = 3")
    await only(workers, 2, f"run {run_id} is at attempt 3, but has used up 1")
    await workers.sql("UPDATE {p}runs SET attempt = 1")
    await only(workers, 2, f"run {run_id} is at attempt 1, but has used up attempt 1")


async def test_a_fence_that_goes_back_within_a_run(workers: Stage):
    await plant(workers, 1, "a", 0, 1, outcome="interrupted", ends_run=None, fence=12)
    await plant(workers, 1, "a", 2, 3, fence=11)
    await only(workers, 2, "run 1: its fence went back from 12 to 11")


async def test_a_fence_that_goes_back_under_a_live_run(workers: Stage):
    run_id = await workers.trigger("a")
    run = await workers.start_one()
    await plant(workers, run_id, "a", 0, 1, outcome="interrupted", ends_run=None, fence=(run.fence or 0) + 5)
    await only(workers, 2, f"run {run_id}: its fence went back from 6 to 1")


async def test_a_worker_whose_last_fence_went_back(workers: Stage):
    await plant(workers, 1000, "a", 0, 1, fence=12)
    await workers.sql("UPDATE {p}worker_state SET last_fence = 11 WHERE worker = 'a'")
    await only(workers, 2, "a: a claim has the fence 12, but the last one drawn is 11")
    await workers.sql("UPDATE {p}worker_state SET last_fence = 12 WHERE worker = 'a'")
    assert await broken(workers) == []
    await workers.trigger("a")
    await workers.start_one()
    await workers.sql("UPDATE {p}worker_state SET last_fence = 12 WHERE worker = 'a'")
    await only(workers, 2, "a: a claim has the fence 13, but the last one drawn is 12")


async def test_two_claims_of_a_worker_with_one_fence(workers: Stage):
    await plant(workers, 1, "a", 0, 1, fence=12)
    await plant(workers, 2, "wide", 0, 1, fence=12)
    assert await broken(workers) == []  # each worker draws its own
    await plant(workers, 3, "a", 2, 3, fence=11)
    await plant(workers, 4, "a", 4, 5, fence=12)
    await only(workers, 2, "a: two claims have the fence 12")


async def test_a_live_claim_of_a_node_that_does_not_exist(workers: Stage):
    await workers.trigger("a")
    run = await workers.start_one()
    assert await broken(workers) == []
    await workers.sql("DELETE FROM {p}node_handlers")
    await workers.sql("DELETE FROM {p}nodes")
    await only(workers, 2, f"run {run.id} is claimed by node n1, which does not exist")


async def test_a_live_claim_of_a_node_that_has_stopped(workers: Stage):
    await workers.trigger("a")
    run = await workers.start_one()
    await workers.sql("UPDATE {p}nodes SET state = 'stopped'")
    await only(workers, 2, f"run {run.id} is claimed by node n1, which has stopped")


async def test_what_a_node_left_behind_is_given_the_time_that_others_need_to_take_it(workers: Stage):
    await workers.trigger("a")
    run = await workers.start_one()
    async with workers.db.write() as conn:
        await nodes.set_state(conn, "n1", "stopped", workers.now)
    waits = []

    async def rest(seconds: float) -> None:
        waits.append(seconds)
        await workers.end(run, OutcomeKind.INTERRUPTED)

    scope = Scope(workers.now, 30, 30)
    assert [violation async for violation in verify(workers.db, scope, rest=rest)] == []
    assert len(waits) == 1


# --- promises 4 and 6 ---------------------------------------------------------------------------------------------


async def test_a_state_that_remembers_another_end_than_history(workers: Stage):
    await plant(workers, 1, "a", 0, 1)
    await workers.sql("UPDATE {p}worker_state SET last_run_outcome = 'succeeded' WHERE worker = 'a'")
    assert await broken(workers) == []
    await workers.sql("UPDATE {p}worker_state SET last_run_outcome = 'failed' WHERE worker = 'a'")
    await only(workers, 4, "a: its state says its last run failed, history says succeeded")


_TRIPPED = "is_enabled = false, disabled_by = 'circuit'"
CIRCUITS = {
    "circuit_state = 'open'": "is enabled, but its circuit is open",
    _TRIPPED: "is disabled by its circuit, which is closed",
    "is_enabled = false, disabled_by = 'operator', circuit_state = 'open'": (
        "is disabled by operator, but its circuit is open"
    ),
    f"{_TRIPPED}, circuit_state = 'half_open', probe_run_id = 99": (
        "is half open, but its probe, run 99, is no live run of it"
    ),
    f"{_TRIPPED}, circuit_state = 'half_open'": "is half open, but its probe, run None, is no live run of it",
    f"{_TRIPPED}, circuit_state = 'open', probe_run_id = 99": "has a probe, run 99, but its circuit is open",
    "probe_run_id = 99": "has a probe, but its circuit is closed",
    "paused_reason = 'moving house'": "has a reason of a pause, but is not paused",
}


@pytest.mark.parametrize("values", CIRCUITS)
async def test_switches_and_a_circuit_that_do_not_go_together(bare_workers: Stage, values: str):
    await change(bare_workers, f"UPDATE {{p}}worker_state SET {values} WHERE worker = 'a'")
    await only(bare_workers, 6, f"a {CIRCUITS[values]}")


async def test_a_circuit_that_opens_probes_and_closes_is_no_contradiction(stage: Stage):
    await stage.register(triggered("a", max_retries=0, max_consecutive_failures=1, cooldown_seconds=60))
    await stage.join("n1")
    await stage.trigger("a")
    for kind in (OutcomeKind.FAILED, OutcomeKind.FAILED, OutcomeKind.INTERRUPTED, OutcomeKind.SUCCEEDED):
        if not await stage.value("SELECT count(*) FROM {p}runs"):
            await stage.trigger("a")
        stage.after(300)
        run = await stage.start_one()
        assert await broken(stage) == []
        await stage.end(run, kind)
        assert await broken(stage) == []
    assert (await stage.state("a")).is_enabled
