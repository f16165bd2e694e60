"""Limits at the claim, on both databases: per key, rates, limits that workers share, fairness and order."""

from __future__ import annotations

from datetime import timedelta

import pytest
import sqlalchemy as sa

from jobrunner.storage.reading.explain import explain, why_waits
from jobrunner.storage.tables import define as t
from tests.support.stage import Stage, scheduled, triggered


async def _trigger(stage: Stage, worker: str, *keys: str | None, **more: object) -> list[int]:
    payloads = [{} if key is None else {"customer": key} for key in keys]
    return [await stage.trigger(worker, payload=payload, **more) for payload in payloads]


async def _ids(stage: Stage, slots: int = 5) -> list[int]:
    return [run.id for run in await stage.tick(slots)]


async def _limit(stage: Stage, name: str, **values: object) -> None:
    async with stage.db.write() as conn:
        await conn.execute(sa.insert(t.limits).values(name=name, **values))


async def _shut(stage: Stage, worker: str) -> dict[str, str]:
    _, verdicts = await stage.explain(worker)
    return {str(verdict.gate): verdict.reason for verdict in verdicts if not verdict.is_open}


async def test_no_more_runs_of_a_key_are_active_than_the_worker_says(stage: Stage):
    await stage.register(triggered("mail", max_running=9, limit_key="customer", max_running_per_key=1))
    await stage.join("n1")
    first, second, third, free = await _trigger(stage, "mail", "a", "a", "b", None)
    started = await stage.tick()
    assert [run.id for run in started] == [first, third, free]
    assert await _ids(stage) == []
    assert await _shut(stage, "mail") == {"key": f"key customer=a: run {first} is active"}
    await stage.end(started[0])
    assert await _ids(stage) == [second]


async def test_runs_of_a_full_key_hold_up_no_others_however_many_wait(stage: Stage):
    await stage.register(triggered("mail", max_running=9, limit_key="customer", max_running_per_key=2))
    await stage.join("n1")
    flood = await _trigger(stage, "mail", *["a"] * 60)
    others = await _trigger(stage, "mail", "b", "c", "b", "b")
    assert await _ids(stage, 3) == [*flood[:2], others[0]]
    assert await _ids(stage, 3) == others[1:3]
    assert await _ids(stage, 3) == []
    said = f"key customer=a: 2 of 2 running, held by runs {flood[0]} and {flood[1]}"
    assert await _shut(stage, "mail") == {"key": said}


async def test_a_key_is_kept_by_a_retry_and_held_by_its_row(stage: Stage):
    await stage.register(triggered("mail", max_running=9, limit_key="customer", max_running_per_key=1))
    await stage.join("n1")
    first, second = await _trigger(stage, "mail", "a", "a")
    (run,) = await stage.tick()
    assert (run.id, run.limit_key) == (first, "a")
    await stage.fail(run)
    (run,) = await stage.tick()
    assert run.id == second
    stage.after(10)
    assert await _ids(stage) == []
    await stage.end(run)
    assert await _ids(stage) == [first]


async def test_the_database_has_the_last_word_on_a_key(stage: Stage):
    await stage.register(triggered("mail", max_running=9, limit_key="customer", max_running_per_key=1))
    await stage.join("n1")
    await _trigger(stage, "mail", "a", "a")
    await stage.tick()
    r = t.runs
    again = (
        sa.update(r)
        .where(r.c.key_slot.is_(None))
        .values(state="running", slot=7, key_slot=0, fence=99, node_id="n1", started_at=stage.now)
    )
    with pytest.raises(sa.exc.IntegrityError):
        async with stage.db.write() as conn:
            await conn.execute(again)


@pytest.mark.parametrize("count", [1, 3])
async def test_in_no_window_start_more_than_the_rate_says_and_it_opens_when_the_oldest_is_out(stage: Stage, count: int):
    await stage.register(triggered("mail", max_running=9, rate=f"{count}/1m"))
    await stage.join("n1")
    await _trigger(stage, "mail", *[None] * 9)
    begun = stage.now
    for _ in range(count):
        assert len(await stage.run_once(slots=1)) == 1
        stage.after(2)
    assert await _ids(stage) == []
    assert await stage.next_due_at() == begun + timedelta(seconds=60)
    assert await _shut(stage, "mail") == {"rate": f"rate {count}/1m: opens 12:01:00 UTC"}
    stage.now = begun + timedelta(seconds=59.999)
    assert await _ids(stage) == []
    stage.now = begun + timedelta(seconds=60)
    assert len(await _ids(stage)) == 1
    assert await _ids(stage) == []


async def test_a_retry_counts_in_a_rate_and_a_forced_run_passes_and_counts(stage: Stage):
    await stage.register(triggered("mail", max_running=9, rate="2/1m", retry_delay_seconds=1))
    await stage.join("n1")
    await _trigger(stage, "mail", None)
    await stage.fail(await stage.start_one())
    stage.after(2)
    await stage.end(await stage.start_one())
    await _trigger(stage, "mail", None)
    assert await _ids(stage) == []
    (forced,) = await _trigger(stage, "mail", None, is_forced=True)
    assert await _ids(stage) == [forced]
    stage.after(58)  # the first start is out, two are left
    assert await _ids(stage) == []
    stage.after(2)
    assert len(await _ids(stage)) == 1


async def test_a_rate_is_not_shut_for_long_by_a_start_whose_clock_was_far_ahead(stage: Stage):
    await stage.register(triggered("mail", max_running=9, rate="1/1m"))
    await stage.join("n1")
    await _trigger(stage, "mail", None, None)
    began = stage.now
    stage.after(3600)
    assert len(await stage.run_once(slots=1)) == 1
    stage.now = began  # the clock was an hour ahead, and is right again
    assert len(await _ids(stage)) == 1


async def test_a_smooth_rate_spaces_its_starts_evenly(stage: Stage):
    await stage.register(triggered("mail", max_running=9, rate="6/1m", smooth=True))
    await stage.join("n1")
    await _trigger(stage, "mail", *[None] * 9)
    for _ in range(3):
        assert len(await _ids(stage)) == 1
        assert await _ids(stage) == []
        assert (await _shut(stage, "mail"))["rate"].startswith("rate 6/1m, evenly: opens ")
        stage.after(10)


async def test_a_rate_per_key_is_the_keys_own(stage: Stage):
    await stage.register(triggered("mail", max_running=9, limit_key="customer", rate_per_key="1/1m"))
    await stage.join("n1")
    first, second, other = await _trigger(stage, "mail", "a", "a", "b")
    assert [run.id for run in await stage.run_once()] == [first, other]
    assert await _ids(stage) == []
    assert await _shut(stage, "mail") == {"rate": "rate 1/1m of key customer=a: opens 12:01:00 UTC"}
    stage.after(60)
    assert await _ids(stage) == [second]


async def test_a_limit_is_shared_by_workers_and_names_who_holds_it(stage: Stage):
    await _limit(stage, "stripe", max_running=3)
    await stage.register(*(triggered(name, max_running=9, limits=["stripe"]) for name in ("charge", "refund")))
    await stage.register(triggered("free", max_running=9))
    await stage.join("n1")
    charges = await _trigger(stage, "charge", None, None)
    refunds = await _trigger(stage, "refund", None, None)
    (free,) = await _trigger(stage, "free", None)
    started = await stage.tick()
    assert [run.id for run in started] == [*charges, refunds[0], free]
    assert await _ids(stage) == []
    said = f"limit stripe: 3 of 3, held by runs {charges[0]}, {charges[1]} and 1 more"
    assert await _shut(stage, "refund") == {"limits": said}
    async with stage.db.write() as conn:
        await conn.execute(sa.update(t.limits).values(max_running=1))
    await stage.end(started[0])
    assert await _ids(stage) == []
    await stage.end(started[1])
    await stage.end(started[2])
    assert await _ids(stage) == [refunds[1]]


async def test_the_rate_of_a_shared_limit_counts_the_starts_of_all_who_share_it(stage: Stage):
    await _limit(stage, "stripe", rate="2/1m")
    await stage.register(*(triggered(name, max_running=9, limits=["stripe"]) for name in ("charge", "refund")))
    await stage.join("n1")
    charges = await _trigger(stage, "charge", None, None)
    refunds = await _trigger(stage, "refund", None)
    assert [run.id for run in await stage.run_once()] == charges
    assert await _ids(stage) == []
    assert await _shut(stage, "refund") == {"rate": "limit stripe, rate 2/1m: opens 12:01:00 UTC"}
    stage.after(60)
    assert await _ids(stage) == refunds


async def test_of_a_fair_worker_the_key_that_started_longest_ago_goes_first(stage: Stage):
    await stage.register(triggered("mail", max_running=9, limit_key="customer", fair=True))
    await stage.join("n1")
    flood = await _trigger(stage, "mail", *["a"] * 40)
    others = await _trigger(stage, "mail", "b", "c", "c")
    begun = []
    for _ in range(6):
        begun += [run.id for run in await stage.run_once(slots=1)]
        stage.after(1)
    assert begun == [flood[0], others[0], others[1], flood[1], others[2], flood[2]]


async def test_a_flood_of_one_key_delays_the_others_of_a_fair_worker_by_one_run_a_slot(stage: Stage):
    await stage.register(triggered("mail", max_running=9, limit_key="customer", fair=True))
    await stage.join("n1")
    flood = await _trigger(stage, "mail", *["flood"] * 300)
    others = await _trigger(stage, "mail", *(f"other-{n}" for n in range(30)))
    begun: list[int] = []
    while not set(others) <= set(begun):
        begun += [run.id for run in await stage.run_once(slots=5)]
        stage.after(0.1)
    assert len(set(begun) & set(flood)) <= 5


async def test_of_an_ordered_worker_a_key_goes_strictly_one_after_the_other(stage: Stage):
    await stage.register(triggered("mail", max_running=9, limit_key="customer", ordered=True, max_retries=1))
    await stage.join("n1")
    first, second, third = await _trigger(stage, "mail", "a", "a", "a", priority=1)
    (hurry,) = await _trigger(stage, "mail", "a", priority=3)
    (other,) = await _trigger(stage, "mail", "b")
    started = await stage.tick()
    assert [run.id for run in started] == [first, other]
    await stage.fail(started[0])  # it is tried again in 5 s, and holds its key until then
    assert await _ids(stage) == []
    assert await _shut(stage, "mail") == {"key": f"key customer=a: run {first} goes first, since it is older"}
    stage.after(10)
    again = await stage.start_one()
    assert (again.id, again.attempt) == (first, 2)
    await stage.fail(again)  # exhausted
    for wanted in (second, third, hurry):
        run = await stage.start_one()
        assert run.id == wanted
        await stage.end(run)


async def test_a_run_for_later_holds_no_key_of_an_ordered_worker(stage: Stage):
    await stage.register(triggered("mail", max_running=9, limit_key="customer", ordered=True))
    await stage.join("n1")
    (later,) = await _trigger(stage, "mail", "a", due_at=stage.now + timedelta(seconds=60))
    (now,) = await _trigger(stage, "mail", "a")
    assert await _ids(stage) == [now]
    stage.after(61)
    assert await _ids(stage) == []
    assert later


async def test_a_schedule_has_the_key_of_the_workers_own_payload(stage: Stage):
    by_key = {"limit_key": "customer", "max_running_per_key": 1, "payload": {"customer": 7}}
    await stage.register(scheduled("tick", interval_seconds=60, max_running=9, **by_key))
    await stage.join("n1")
    run = await stage.start_one()
    assert (run.worker, run.limit_key) == ("tick", "7")
    await stage.trigger("tick")
    assert await _ids(stage) == []
    await stage.end(run)
    assert len(await _ids(stage)) == 1


async def test_the_rate_of_a_key_counts_for_the_firings_of_a_schedule_too(stage: Stage):
    by_key = {"limit_key": "customer", "rate_per_key": "1/3m", "payload": {"customer": 7}}
    await stage.register(scheduled("tick", interval_seconds=60, max_running=9, **by_key))
    await stage.join("n1")
    assert len(await stage.run_once()) == 1
    stage.after(60)
    assert await _ids(stage) == []
    assert await _shut(stage, "tick") == {"rate": "rate 1/3m of key customer=7: opens 12:03:00 UTC"}
    stage.after(120)
    assert len(await _ids(stage)) == 1


async def test_a_rate_that_cannot_be_read_starts_nothing_and_says_so(stage: Stage):
    await _limit(stage, "stripe", rate="soon")
    await stage.register(triggered("charge", limits=["stripe"]), triggered("mail", rate="1/1m"))
    await stage.join("n1")
    async with stage.db.write() as conn:
        await conn.execute(sa.update(t.workers).where(t.workers.c.name == "mail").values(rate="soon"))
    await _trigger(stage, "charge", None)
    await _trigger(stage, "mail", None)
    assert await _ids(stage) == []
    assert await _shut(stage, "charge") == {"rate": "limit stripe: its rate 'soon' cannot be read"}
    assert await _shut(stage, "mail") == {"handler": "set aside: its rate 'soon' is no rate such as 100/1m"}


async def test_explain_names_the_limit_and_the_key_as_the_tick_judges_them(stage: Stage):
    await _limit(stage, "stripe", max_running=1)
    await stage.register(
        triggered("charge", limits=["stripe"]),
        triggered("refund", limits=["stripe"]),
        triggered("mail", max_running=9, limit_key="customer", rate_per_key="1/1m"),
    )
    await stage.join("n1", max_concurrent=9)
    (charge,) = await _trigger(stage, "charge", None)
    mails = await _trigger(stage, "mail", "a")
    assert sorted(await _ids(stage)) == sorted([charge, *mails])
    (refund,) = await _trigger(stage, "refund", None)
    flood = await _trigger(stage, "mail", *"abcdefghijklmnopqrstuvwxyz" * 2)
    found = await explain(stage.db, "refund", stage.now)
    held = f"limit stripe: 1 of 1, held by run {charge}"
    assert (found["starts"], found["why"]) == (False, held)
    assert await why_waits(stage.db, refund, stage.now) == held
    assert await why_waits(stage.db, flood[0], stage.now) == "rate 1/1m of key customer=a: opens 12:01:00 UTC"
    for _ in range(5):
        await stage.run_once(slots=9)
    assert await why_waits(stage.db, flood[-1], stage.now) == "rate 1/1m of key customer=z: opens 12:01:00 UTC"


async def test_explain_and_why_waits_say_the_limit_that_is_shared_and_the_key(stage: Stage):
    await _limit(stage, "stripe", max_running=1)
    await stage.register(
        triggered("charge", max_running=9, limits=["stripe"]),
        triggered("mail", max_running=9, limit_key="customer", max_running_per_key=1),
    )
    await stage.join("n1")
    (held, charge), (active, mail) = (
        await _trigger(stage, "charge", None, None),
        await _trigger(stage, "mail", "a", "a"),
    )
    assert await _ids(stage) == [held, active]
    for name, run_id, said in (
        ("charge", charge, f"limit stripe: 1 of 1, held by run {held}"),
        ("mail", mail, f"key customer=a: run {active} is active"),
    ):
        assert (await explain(stage.db, name, stage.now))["why"] == said
        assert await why_waits(stage.db, run_id, stage.now) == said


async def test_no_run_starts_before_the_last_end_under_a_limit_that_it_shares_whatever_the_clocks_say(stage: Stage):
    await _limit(stage, "stripe", max_running=1)
    await stage.register(*(triggered(name, limits=["stripe"]) for name in ("charge", "refund")))
    await stage.join("n1")
    await _trigger(stage, "charge", None)
    run = await stage.start_one()
    ended_at = stage.after(10)
    await stage.end(run)
    stage.after(-7)  # another node, whose clock is behind
    await _trigger(stage, "refund", None)
    assert (await stage.start_one()).started_at == ended_at
