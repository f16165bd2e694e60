"""Open dead letters by their error, on both databases."""

from __future__ import annotations

import pytest

from jobrunner.policy.filters import parse_filter
from jobrunner.storage.reading import error_groups
from jobrunner.storage.reading.error_groups import group_letters
from jobrunner.storage.reading.search import search_letters
from jobrunner.storage.runs import dead_letters
from tests.support.stage import ACTOR, Stage, triggered

ERRORS = ["order 17 not found", "order 18 not found", "no route to 'db-1'", "order 19 not found\nmore"]


async def died(stage: Stage, *errors: str, worker: str = "mail") -> None:
    for error in errors:
        await stage.trigger(worker, payload={"secret": "x" * 1000})
        await stage.fail(await stage.start_one(), error=error)
        stage.after(60)


@pytest.fixture
async def letters(stage: Stage) -> Stage:
    await stage.register(*(triggered(name, max_retries=0, max_consecutive_failures=50) for name in ("mail", "other")))
    await stage.join("n1")
    await died(stage, *ERRORS)
    await died(stage, "order 20 not found", worker="other")
    return stage


async def test_letters_that_differ_in_a_number_are_one_group(letters: Stage):
    async with letters.db.read() as conn:
        found = await group_letters(conn)
    said = [(group.worker, group.error, group.count) for group in found.groups]
    assert said == [("mail", "order … not found", 3), ("other", "order … not found", 1), ("mail", "no route to …", 1)]
    first = found.groups[0]
    assert (first.error_type, first.newest_id, first.is_capped, found.searched) == ("ValueError", 4, False, None)
    assert (first.newest_at - first.oldest_at).total_seconds() == 180


async def test_the_filter_of_a_group_finds_its_letters(letters: Stage):
    async with letters.db.read() as conn:
        for group in (await group_letters(conn)).groups:
            found = await search_letters(conn, parse_filter(group.filter, "letters", letters.now), 100)
            assert (len(found.rows), found.rows[0]["id"]) == (group.count, group.newest_id)


async def test_of_one_worker_and_no_more_than_asked_for(letters: Stage):
    async with letters.db.read() as conn:
        assert [group.worker for group in (await group_letters(conn, worker="other")).groups] == ["other"]
        assert (await group_letters(conn, worker="none")).groups == []
        cut = await group_letters(conn, most=1)
    assert (len(cut.groups), cut.is_cut) == (1, True)


async def test_what_was_resolved_is_in_no_group(letters: Stage):
    await dead_letters.discard(letters.db, dead_letters.Chosen(worker="mail"), letters.now, ACTOR)
    async with letters.db.read() as conn:
        assert [group.worker for group in (await group_letters(conn)).groups] == ["other"]
        assert (await group_letters(conn, worker="mail")).groups == []


async def test_only_the_newest_are_looked_at_and_it_is_said(letters: Stage, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(error_groups, "MOST_LETTERS", 2)
    async with letters.db.read() as conn:
        found = await group_letters(conn)
    assert (found.searched, sum(group.count for group in found.groups)) == (2, 2)
    assert all(group.is_capped for group in found.groups)


async def test_of_none_there_are_no_groups(stage: Stage):
    async with stage.db.read() as conn:
        assert await group_letters(conn) == error_groups.Groups([])


async def test_open_letters_are_counted_up_to_a_bound(letters: Stage, monkeypatch: pytest.MonkeyPatch):
    async with letters.db.read() as conn:
        assert await dead_letters.count_open(conn) == dead_letters.OpenLetters(0, 5)
        assert await dead_letters.count_open(conn, "other") == dead_letters.OpenLetters(0, 1)
        monkeypatch.setattr(dead_letters, "MOST_COUNTED", 4)
        assert await dead_letters.count_open(conn) == dead_letters.OpenLetters(0, 4, is_capped=True)
        assert await dead_letters.count_open(conn, "mail") == dead_letters.OpenLetters(0, 4)
