"""A worker's revision: raised by each change of what the fast path rests on, whoever makes it, and by nothing else."""

from __future__ import annotations

import pytest

from jobrunner.storage.turns.rules import REVISION
from tests.support.stage import Stage, triggered

A_TIME = "'2026-03-02 13:00:00.000000'"


async def revisions(stage: Stage) -> dict[str, int]:
    rows = await stage.rows(
        f"SELECT w.name, {REVISION} AS revision FROM {{p}}workers w JOIN {{p}}worker_state s ON s.worker = w.name"
    )
    return {row["name"]: row["revision"] for row in rows}


@pytest.fixture
async def staged(stage: Stage) -> Stage:
    await stage.register(triggered("a"), triggered("b"), triggered("c"))
    return stage


@pytest.mark.parametrize(
    "change",
    [
        "is_enabled = false, disabled_by = 'operator'",
        f"paused_until = {A_TIME}",
        f"missed_from = {A_TIME}",
        "circuit_state = 'open'",
    ],
)
async def test_a_change_of_a_switch_raises_it(staged: Stage, change: str):
    before = await revisions(staged)
    await staged.sql(f"UPDATE {{p}}worker_state SET {change} WHERE worker = 'a'")
    changed = await revisions(staged)
    assert changed == {**before, "a": before["a"] + 1}
    await staged.sql(f"UPDATE {{p}}worker_state SET {change} WHERE worker = 'a'")  # the same again
    assert await revisions(staged) == changed


async def test_counters_and_times_do_not_raise_it(staged: Stage):
    before = await revisions(staged)
    await staged.sql(
        "UPDATE {p}worker_state SET total_runs = 5, last_fence = 9, consecutive_failures = 1, last_error = 'x',"
        f" last_run_at = {A_TIME}, last_ended_at = {A_TIME}, next_run_at = {A_TIME}, is_enabled = is_enabled"
    )
    assert await revisions(staged) == before


async def test_a_change_of_the_definition_raises_it(staged: Stage):
    before = await revisions(staged)
    await staged.sql("UPDATE {p}workers SET max_running = 7 WHERE name = 'a'")
    assert await revisions(staged) == {**before, "a": before["a"] + 1}


@pytest.mark.parametrize(("table", "other"), [("worker_dependencies", "depends_on"), ("worker_blocks", "blocks")])
async def test_a_change_of_a_relation_raises_it_at_both_ends(staged: Stage, table: str, other: str):
    known = await revisions(staged)
    for statement, touched in (
        (f"INSERT INTO {{p}}{table} (worker, {other}) VALUES ('a', 'b')", "ab"),
        (f"UPDATE {{p}}{table} SET {other} = 'c'", "abc"),
        (f"DELETE FROM {{p}}{table}", "ac"),
    ):
        await staged.sql(statement)
        now = await revisions(staged)
        assert {name for name in now if now[name] > known[name]} == set(touched)
        known = now


async def test_no_two_rows_begin_with_the_same(staged: Stage):
    (before,) = await staged.rows("SELECT * FROM {p}worker_state WHERE worker = 'a'")
    await staged.sql("DELETE FROM {p}worker_state WHERE worker = 'a'")
    await staged.sql("INSERT INTO {p}worker_state (worker) VALUES ('a')")
    (after,) = await staged.rows("SELECT * FROM {p}worker_state WHERE worker = 'a'")
    assert after["revision"] > before["revision"] > 1_700_000_000_000_000
