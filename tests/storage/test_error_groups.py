"""The open dead letters by error."""

from __future__ import annotations

from typing import Any

import pytest

from jobrunner.policy.filters import parse_filter
from jobrunner.storage.reading import error_groups
from jobrunner.storage.reading.error_groups import Groups, group_letters
from jobrunner.storage.reading.search import search_letters
from jobrunner.storage.runs.dead_letters import Chosen, discard
from tests.support.plans import plan, recorded
from tests.support.stage import ACTOR, Stage, triggered


async def die(stage: Stage, worker: str, *errors: str, error_type: str = "ValueError") -> None:
    for error in errors:
        await stage.trigger(worker)
        (run,) = await stage.tick(handlers=[worker])
        await stage.fail(run, error=error, error_type=error_type)
        stage.after(1)


async def prepare(stage: Stage) -> None:
    await stage.register(
        triggered("mail", max_retries=0, max_consecutive_failures=100),
        triggered("bill", max_retries=0, max_consecutive_failures=100),
    )
    await stage.join("n1")


async def group(stage: Stage, **more: Any) -> Groups:
    async with stage.db.read() as conn:
        return await group_letters(conn, **more)


async def test_errors_that_differ_in_numbers_and_names_only_are_one_group(stage: Stage):
    await prepare(stage)
    began = stage.now
    await die(
        stage, "mail", "order 17 not found", "no user 'ada'", "order 18 not found\nsecond line", "order 9 not found"
    )
    await die(stage, "bill", "order 17 not found")
    await die(stage, "bill", "order 17 not found", error_type="KeyError")
    found = await group(stage)
    assert found.searched is None
    assert [(each.worker, each.error_type, each.error, each.count) for each in found.groups] == [
        ("mail", "ValueError", "order … not found", 3),
        ("bill", "KeyError", "order … not found", 1),
        ("bill", "ValueError", "order … not found", 1),
        ("mail", "ValueError", "no user …", 1),
    ]
    first = found.groups[0]
    assert not first.is_capped
    assert (first.oldest_at - began).total_seconds() == 0
    assert (first.newest_at - began).total_seconds() == 3
    assert {each.worker for each in (await group(stage, worker="bill")).groups} == {"bill"}
    cut = await group(stage, most=1)
    assert cut.groups == [first]
    assert cut.left_out == 3


async def test_the_filter_of_a_group_finds_its_letters_and_no_others(stage: Stage):
    await prepare(stage)
    await die(stage, "mail", "order 17 not found", "no user 'ada'", "order 18 not found", 'the 3 last " of \\all 100%_')
    await die(stage, "bill", "order 17 not found")
    for each in (await group(stage)).groups:
        async with stage.db.read() as conn:
            rows = (await search_letters(conn, parse_filter(each.filter, "letters", stage.now), 50)).rows
        assert len(rows) == each.count
        assert rows[0]["id"] == each.newest_id


async def test_a_letter_that_is_resolved_is_in_no_group(stage: Stage):
    await prepare(stage)
    await die(stage, "mail", "order 17 not found", "order 18 not found")
    newest = (await group(stage)).groups[0].newest_id
    await discard(stage.db, Chosen(ids=(newest,)), stage.now, ACTOR)
    (left,) = (await group(stage)).groups
    assert left.count == 1
    assert left.newest_id < newest


async def test_of_more_letters_than_are_looked_at_it_says_so(stage: Stage, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(error_groups, "MOST_SEARCHED", 2)
    await prepare(stage)
    await die(stage, "mail", "order 17 not found", "order 18 not found")
    assert (await group(stage)).searched is None
    await die(stage, "mail", "order 19 not found")
    found = await group(stage)
    assert found.searched == 2
    assert [(each.count, each.is_capped) for each in found.groups] == [(2, True)]


@pytest.mark.parametrize(("worker", "index"), [(None, "ix_dead_letters_status"), ("mail", "ix_dead_letters_open")])
async def test_open_letters_are_found_along_an_index_among_many_that_are_resolved(
    stage: Stage, worker: str | None, index: str
):
    await prepare(stage)
    await die(stage, "mail", "order 17 not found")
    series = "(WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000) SELECT i FROM n) AS n"
    await stage.sql(
        "INSERT INTO {p}dead_letters (run_id, worker, trigger, priority, scheduled_for, payload, attempts, errors,"
        " died_at, status, resolved_at, resolved_by) SELECT -i, worker, trigger, priority, scheduled_for, payload, 1,"
        f" errors, died_at, 'discarded', died_at, 'ada' FROM {{p}}dead_letters, {series}"
    )
    for _ in range(2):
        with recorded(stage.db) as sent:
            assert len((await group(stage, worker=worker)).groups) == 1
        assert index in await plan(stage.db, sent[-1])
        await stage.sql("ANALYZE")
