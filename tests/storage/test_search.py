"""What a filter finds is what looking at every row finds, page by page, on both databases."""

from __future__ import annotations

import json
import random
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from jobrunner.errors import UsageError
from jobrunner.model.schedule import Missed
from jobrunner.policy import filters
from jobrunner.policy.filters import ENDS_ASKED_FOR, Filter, parse_filter
from jobrunner.storage.alerts import message
from jobrunner.storage.reading import oldest, search
from jobrunner.storage.records.audit import audit_row, write_audits
from jobrunner.storage.records.history import missed_row, write_missed
from tests.support.stage import Stage, triggered

_NAMES = ["send-a", "send-b", "other", "send_c"]


async def _filled(stage: Stage, seed: int) -> random.Random:
    draw = random.Random(seed)
    await stage.register(*(triggered(name, max_running=50, max_retries=1) for name in _NAMES))
    await stage.join("n1")
    for number in range(60):
        payload = {"customer": {"id": draw.choice([1, "1", 2, True, None])}, "n": number}
        await stage.trigger(draw.choice(_NAMES), payload=payload)
    for _ in range(4):
        for run in await stage.tick(slots=20):
            if draw.random() < 0.4:
                await stage.fail(run, error=draw.choice(["it timed OUT", "100% of it", "no"]))
            else:
                await stage.end(run)
        stage.after(3600)
    return draw


def _fits(row: dict[str, Any], asked: Filter) -> bool:
    """Say by Python alone whether a row of history fits."""
    ends = set(map(str, ENDS_ASKED_FOR))
    said = f"{row['error_type'] or ''}: {row['error'] or ''} {row['reason'] or ''}".lower()
    outcome = not asked.outcome or row["outcome"] in asked.outcome or (row["ends_run"] in ends & set(asked.outcome))
    return (
        outcome
        and (not asked.worker or filters.matches(row["worker"], asked.worker))
        and (not asked.run or row["run_id"] in asked.run)
        and (not asked.attempt or row["attempt"] in asked.attempt)
        and (asked.since is None or row["finished_at"] >= asked.since)
        and (asked.until is None or row["finished_at"] <= asked.until)
        and (asked.error is None or asked.error.lower() in said)
        and all(_text(row["payload"], path) == value for path, value in asked.payload)
    )


def _text(document: Any, path: tuple[str, ...]) -> str | None:
    for step in path:
        document = document.get(step) if isinstance(document, dict) else None
    return document if document is None or isinstance(document, str) else json.dumps(document)


@pytest.mark.parametrize("seed", range(3))
async def test_history_is_found_as_by_looking_at_every_row(stage: Stage, seed: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(search, "FIRST_PIECE", 3)  # so that what lies in many pieces is found in all of them
    draw = await _filled(stage, seed)
    terms = [
        "worker:send-a", "worker:send-*", "worker:send_*", "outcome:failed", "outcome:exhausted,succeeded",
        "outcome:exhausted", "since:90m", "until:90m", "error:timed", "error:%", "attempt:2", "run:7",
        "payload.customer.id:1", "payload.customer.id:true", "payload.n:3", "trigger:manual",
    ]  # fmt: skip
    async with stage.db.read() as conn:
        everything = (await search.search_history(conn, Filter(), 1000)).rows
        assert len(everything) > 60
        for _ in range(60):
            text = " ".join(draw.sample(terms, draw.choice([1, 1, 2, 3])))
            try:
                asked = parse_filter(text, "history", stage.now)
            except UsageError:  # since and until may contradict each other
                continue
            wanted = [row["id"] for row in everything if _fits(row, asked)]
            limit = draw.choice([2, 5, 100])
            assert await _all_ids(conn, search.search_history, asked, limit) == wanted, text
            assert await _all_ids(conn, oldest.search_oldest, asked, limit) == wanted[::-1], text


async def _all_ids(conn: Any, find: Any, asked: Filter, limit: int) -> list[int]:
    found, after = [], None
    while True:
        page = await find(conn, asked, limit, after)
        found += [row["id"] for row in page.rows]
        after = page.after
        if after is None:
            return found


async def test_a_search_ends_after_its_window_says_so_and_goes_on_from_there(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(search, "WINDOW_ROWS", 20)
    monkeypatch.setattr(search, "FIRST_PIECE", 4)
    await _filled(stage, 1)
    async with stage.db.read() as conn:
        first = await search.search_history(conn, parse_filter("payload.n:0", "history", stage.now), 5)
        assert (first.searched, first.rows) == (20, [])
        found: list[Any] = []
        after = first.after
        while after is not None:
            page = await search.search_history(conn, parse_filter("payload.n:0", "history", stage.now), 5, after)
            found, after = found + page.rows, page.after
        assert {row["payload"]["n"] for row in found} == {0}


async def test_a_search_from_the_old_end_ends_after_its_window_too(stage: Stage, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(search, "WINDOW_ROWS", 20)
    monkeypatch.setattr(search, "FIRST_PIECE", 4)
    await _filled(stage, 1)
    for since in (None, stage.now - timedelta(days=1)):
        async with stage.db.read() as conn:
            everything = [row["id"] for row in (await oldest.search_oldest(conn, Filter(), 1000)).rows]
            assert everything == sorted(everything)
            first = await oldest.search_oldest(conn, Filter(since=since, payload=((("n",), "no such"),)), 5)
            assert (first.searched, first.rows, first.after) == (20, [], everything[19])
            assert await _all_ids(conn, oldest.search_oldest, Filter(since=since, attempt=(1, 2)), 5) == everything
            rest = await oldest.search_oldest(conn, Filter(since=since), 1000, everything[30])
            assert [row["id"] for row in rest.rows] == everything[31:]


async def test_pages_from_the_old_end_go_on_where_their_last_row_was_pruned(stage: Stage):
    await _filled(stage, 1)
    asked = Filter(since=stage.now - timedelta(days=1), attempt=(1, 2))
    async with stage.db.read() as conn:
        everything = await _all_ids(conn, oldest.search_oldest, asked, 1000)
        first = await oldest.search_oldest(conn, asked, 10)
    await stage.sql(f"DELETE FROM {{p}}run_history WHERE id <= {first.after}")
    async with stage.db.read() as conn:
        rest = await oldest.search_oldest(conn, asked, 1000, first.after)
    assert [row["id"] for row in rest.rows] == everything[10:]


async def test_letters_and_live_runs_are_found_too(stage: Stage):
    await _filled(stage, 2)
    async with stage.db.read() as conn:
        letters = (await search.search_letters(conn, Filter(), 1000)).rows
        some = (
            await search.search_letters(conn, parse_filter("worker:send-* error:timed", "letters", stage.now), 99)
        ).rows
        assert some == [d for d in letters if d["worker"].startswith("send-") and "timed" in d["error"]] != []
        gone = await search.search_letters(conn, parse_filter("status:replayed", "letters", stage.now), 99)
        assert gone.rows == []
    for name in _NAMES:
        await stage.trigger(name, payload={"x": name})
    await stage.tick(slots=2)
    async with stage.db.read() as conn:
        live = (await search.search_runs(conn, Filter(), 1000)).rows
        for text, fits in {
            "state:running": lambda run: run["state"] == "running",
            "state:pending worker:send_c": lambda run: run["state"] == "pending" and run["worker"] == "send_c",
            "payload.x:other": lambda run: run["payload"].get("x") == "other",
            "node:n1": lambda run: run["node_id"] == "n1",
        }.items():
            rows = (await search.search_runs(conn, parse_filter(text, "runs", stage.now), 99)).rows
            assert [row["id"] for row in rows] == [row["id"] for row in live if fits(row)] != [], text


async def test_what_was_written_long_after_its_time_is_found_by_it(stage: Stage):
    await stage.register(triggered("mail"))
    minutes = [12, 5, 20, 180]  # in the order of the writes: what ended in an outage was kept, and written after it
    times = {minute: stage.now + timedelta(minutes=minute) for minute in minutes}
    once = Missed(stage.now, stage.now, 1, "for the test")
    async with stage.db.write() as conn:
        await write_missed(conn, [missed_row("mail", once, times[minute]) for minute in minutes])
    between = stage.now + timedelta(minutes=10)
    async with stage.db.read() as conn:
        for asked, wanted in (
            (Filter(until=between), [5]),
            (Filter(since=between), [180, 20, 12]),
            (Filter(since=between, until=times[20]), [20, 12]),
            (Filter(until=between, worker=("mail",)), [5]),
        ):
            found = (await search.search_history(conn, asked, 10)).rows
            assert [row["finished_at"] for row in found] == [times[minute] for minute in wanted], asked


async def test_a_part_of_an_error_is_found_whatever_its_letters(stage: Stage):
    await stage.register(triggered("mail", max_running=5, max_retries=0, max_consecutive_failures=100))
    await stage.join("n1")
    for error in ("Über den Wolken", "über den Wolken", "No Such File", "100\\% OF IT"):
        await stage.trigger("mail")
        await stage.fail(await stage.start_one(), error=error)
    async with stage.db.read() as conn:
        for asked, wanted in (
            ("Über", "Über den Wolken"),
            ("über DEN", "über den Wolken"),
            ("no such", "No Such File"),
        ):
            found = (await search.search_history(conn, Filter(error=asked), 10)).rows
            assert wanted in [row["error"] for row in found], asked
        assert len((await search.search_history(conn, Filter(error="100\\% of"), 10)).rows) == 1


async def test_decisions_are_looked_for_in_a_window_and_no_further_than_their_time(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(search, "WINDOW_ROWS", 20)
    monkeypatch.setattr(search, "FIRST_PIECE", 4)
    hours = [50, *(40 - n / 2 for n in range(60))]
    async with stage.db.write() as conn:
        rows = [audit_row("set", "mail", {}, stage.now - timedelta(hours=each), "ann@here") for each in hours]
        rows[0] |= {"actor": "bob@here", "action": "pause"}
        await write_audits(conn, rows)
    async with stage.db.read() as conn:
        first = await search.search_audits(conn, 5, actor="bob")
        assert (first.rows, first.searched) == ([], 20)
        found: list[Any] = []
        after, pages = first.after, 1
        while after is not None:
            page = await search.search_audits(conn, 5, after, actor="bob", actions=["pause"])
            found, after, pages = found + page.rows, page.after, pages + 1
        assert [row["actor"] for row in found] == ["bob@here"]
        assert pages == 4
        recent = await search.search_audits(conn, 5, since=stage.now - timedelta(hours=1), worker="mail")
        assert recent == search.Found([], None)
        some = await search.search_audits(conn, 100, since=stage.now - timedelta(hours=12))
        assert len(some.rows) == 4


async def test_the_newest_of_a_worker_that_has_nearly_all_rows_are_not_looked_for_among_all(stage: Stage):
    await stage.register(triggered("mail"), triggered("post"))
    at = "'2026-03-02 12:00:00.000000'" if stage.db.is_sqlite else "now()"
    await stage.sql(
        "INSERT INTO {p}run_history (worker, trigger, outcome, is_forced, scheduled_for, due_at, finished_at,"
        " occurrences) WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 5000)"
        f" SELECT CASE n % 100 WHEN 0 THEN 'post' ELSE 'mail' END, 'schedule', 'missed', false, {at}, {at}, {at}, 1"
        " FROM c"
    )
    await stage.sql("ANALYZE {p}run_history")
    explain = "EXPLAIN QUERY PLAN" if stage.db.is_sqlite else "EXPLAIN"
    async with stage.db.read() as conn:
        asked: list[Any] = []

        def note(_: Any, __: Any, statement: str, values: Any, *___: Any) -> None:
            asked.append((statement, values))

        sa.event.listen(conn.sync_connection, "before_cursor_execute", note)
        await search.search_history(conn, Filter(worker=("mail",), error="no luck"), 5)
        await search.search_history(conn, Filter(worker=("mail",)), 5)
        await message._last_words(conn, "mail", {})
        for statement, values in asked[:]:
            if "ORDER BY" in statement:
                plan = [str(row[-1]) for row in (await conn.exec_driver_sql(f"{explain} {statement}", values)).all()]
                assert not any("pk_run_history" in line and "Backward" in line for line in plan), plan
