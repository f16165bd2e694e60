"""`upcoming` played beforehand, and then lived: the same firings, and the same starts where lengths are constant."""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from jobrunner import WorkerOrchestrator
from jobrunner.model.run import OutcomeKind, Run, Trigger
from jobrunner.model.worker import Dependency, DependencyCondition, WorkerConfig
from jobrunner.policy.definitions import check_definition
from jobrunner.storage.reading.forecasts import Ahead, read_ahead, read_to_play, read_usual
from jobrunner.storage.reading.status import read_upcoming
from jobrunner.storage.runs.claims import Nothing, Passed
from jobrunner.storage.tables import define as t
from jobrunner.testing import ManualClock, simulate
from tests.support.stage import T0, Stage, continuous, scheduled, triggered

MISFIRES = ("run_once", "run_all", "skip")
CRONS = ("*/5 * * * *", "7 */2 * * *", "30 3 * * *", "0 0,12 * * *")
MOST = 100_000


def drawn(draw: random.Random) -> list[WorkerConfig]:
    """Workers at random that depend on and block each other."""
    found: list[WorkerConfig] = []
    for name in "abcdef":
        rules: dict[str, Any] = {"priority": draw.randrange(4), "misfire": draw.choice(MISFIRES)}
        if found and draw.random() < 0.4:
            condition = draw.choice(list(DependencyCondition))
            rules["depends_on"] = [Dependency(draw.choice(found).name, condition)]
        if found and draw.random() < 0.4:
            rules["blocks"] = [draw.choice(found).name]
        if draw.random() < 0.5:
            rules["interval_seconds"] = draw.choice([600, 1800, 4000])
        else:
            rules["cron"] = draw.choice(CRONS)
            rules["timezone"] = draw.choice(["UTC", "Europe/Berlin"])
        found.append(scheduled(name, **rules))
    return found


async def ahead_of(stage: Stage, hours: float, worker: str | None = None) -> tuple[Ahead, list[Any]]:
    until = stage.now + timedelta(hours=hours)
    async with stage.db.read() as conn:
        ahead = await read_ahead(conn, stage.db.dialect, stage.now, until, worker)
        rows, is_cut = await read_upcoming(conn, stage.now, until, MOST, worker, ahead.forecast.begins)
    assert not is_cut
    return ahead, rows


@pytest.mark.parametrize("seed", range(4))
async def test_a_day_that_is_listed_is_the_day_that_is_simulated(sqlite_url: str, seed: int):
    start = datetime(2026, 3, 28, 12, 0, tzinfo=UTC)  # the clocks change in Berlin in the night
    configs = drawn(random.Random(seed))
    stage = Stage(sqlite_url)
    stage.now = start
    await stage.register(*configs)
    ahead, rows = await ahead_of(stage, 24)
    await stage.db.close()
    clock = ManualClock(start)
    orchestrator = WorkerOrchestrator(sqlite_url, clock=clock)

    async def nothing() -> None: ...

    for config in configs:
        orchestrator.register_worker(
            config.name,
            nothing,
            interval_seconds=config.interval_seconds,
            cron=config.cron,
            timezone=config.timezone,
            priority=config.priority,
            misfire=config.misfire,
            depends_on=list(config.depends_on),
            blocks=list(config.blocks),
        )
    day = await simulate(orchestrator, days=1, clock=clock)
    lived = {(row["worker"], row["scheduled_for"]): row["started_at"] for row in day.history if row["run_id"]}
    until = start + timedelta(days=1)
    played = {
        key: expected.starts_at
        for key, expected in ahead.forecast.expected.items()
        if expected.starts_at is not None and expected.starts_at < until  # the simulation ends before that moment
    }
    assert played == lived
    assert {(row.worker, row.due_at) for row in rows if row.due_at < until} >= lived.keys()


async def live(stage: Stage, lengths: dict[str, float], until: datetime, slots: int) -> dict[Any, datetime]:
    """Let a node live, whose runs take their usual time to the millisecond; return when each firing started.

    A run that was triggered is named by its id.
    """
    running: list[tuple[datetime, int, Run]] = []
    starts: dict[Any, datetime] = {}
    while True:
        for ends_at, number, run in sorted(running, key=lambda each: each[:2]):
            if ends_at <= stage.now:
                running.remove((ends_at, number, run))
                await stage.end(run, duration_ms=round(lengths[run.worker] * 1000))
        claimed = await stage.claim(slots - len(running))
        started = [claim.run for claim in claimed.claims]
        for run in started:
            is_firing = run.trigger is Trigger.SCHEDULE
            starts[run.worker, run.scheduled_for if is_firing else run.id] = stage.now
            running.append((stage.now + timedelta(seconds=lengths[run.worker]), run.id, run))
        if started or (isinstance(claimed, Passed) and len(running) < slots):
            continue
        planned = [(await stage.state(name)).next_run_at for name in lengths]
        planned += [claimed.next_due_at] if isinstance(claimed, Nothing) else []
        moments = [at for at in (*planned, *(each[0] for each in running)) if at is not None and at > stage.now]
        if not moments or min(moments) > until:
            for _, _, run in running:
                await stage.end(run, duration_ms=round(lengths[run.worker] * 1000))
            return starts
        stage.now = min(moments)


@pytest.mark.parametrize("seed", range(3))
async def test_starts_are_at_the_times_that_were_said(stage: Stage, seed: int):
    draw = random.Random(seed)
    configs = drawn(draw)
    lengths = {config.name: draw.choice([20.0, 200.0, 700.0]) for config in configs}
    slots = draw.choice([2, 20])
    await stage.register(*configs)
    await stage.join("n1", max_concurrent=slots)
    await live(stage, lengths, stage.now + timedelta(hours=2), slots)  # so long it takes that all is usual
    ahead, _ = await ahead_of(stage, 5)
    known = await usual(stage, list(lengths))
    assert {name: length.total_seconds() for name, length in known.items()}.items() <= lengths.items()
    if known.keys() != lengths.keys():
        lengths |= dict.fromkeys(lengths.keys() - known.keys(), 0.0)
    began, until = stage.now, stage.now + timedelta(hours=5)
    lived = {key: at for key, at in (await live(stage, lengths, until, slots)).items() if at > began}
    played = {
        key: expected.starts_at
        for key, expected in ahead.forecast.expected.items()
        if expected.starts_at is not None and expected.starts_at > began
    }
    assert played == lived
    assert len(lived) >= 8


def with_limits(draw: random.Random, config: WorkerConfig) -> WorkerConfig:
    """The worker with limits at random."""
    rules: dict[str, Any] = {"rate": draw.choice([None, "1/20m", "3/2h"]), "max_running": draw.choice([1, 3])}
    rules["smooth"] = rules["rate"] is not None and draw.random() < 0.3
    rules["limits"] = draw.choice([(), ("one",), ("two",), ("one", "two")])
    if draw.random() < 0.6:
        rules |= {"limit_key": "customer", "payload": draw.choice([{}, {"customer": "a"}])}
        rules |= {"max_running_per_key": draw.choice([None, 1]), "rate_per_key": draw.choice([None, "2/1h"])}
        rules |= {"fair": draw.random() < 0.5, "ordered": draw.random() < 0.3}
    return check_definition(replace(config, **rules))


@pytest.mark.parametrize("seed", range(5))
async def test_what_is_limited_starts_at_the_times_that_were_said(stage: Stage, seed: int):
    draw = random.Random(seed)
    configs = [with_limits(draw, config) for config in [*drawn(draw), triggered("t")]]
    lengths = {config.name: draw.choice([20.0, 200.0, 700.0]) for config in configs}
    slots = draw.choice([2, 20])
    async with stage.db.write() as conn:
        await conn.execute(sa.insert(t.limits).values(name="one", max_running=1))
        await conn.execute(sa.insert(t.limits).values(name="two", rate="4/1h"))
    await stage.register(*configs)
    await stage.join("n1", max_concurrent=slots)
    for config in configs:
        for number in range(draw.choice([0, 3])):
            payload = draw.choice([{}, {"customer": "a"}, {"customer": "b"}])
            due_at = T0 + timedelta(minutes=draw.choice([1, 1 + 9 * number]))
            await stage.trigger(config.name, payload=payload, due_at=due_at)
    began, until = stage.now, stage.now + timedelta(hours=5)
    async with stage.db.read() as conn:
        to_play = await read_to_play(conn, stage.db.dialect, stage.now, until)
    known = {name: timedelta(seconds=length) for name, length in lengths.items()}
    expected = replace(to_play, usual=known).play().forecast.expected
    played = {key: each.starts_at for key, each in expected.items() if each.starts_at is not None}
    lived = await live(stage, lengths, until, slots)
    assert lived == {key: at for key, at in played.items() if at <= until}
    assert any(at > began for at in lived.values())


async def test_what_waits_for_a_limit_says_which(stage: Stage):
    async with stage.db.write() as conn:
        await conn.execute(sa.insert(t.limits).values(name="stripe", max_running=1))
    by_key = {"limit_key": "customer", "max_running": 9, "max_running_per_key": 1}
    await stage.register(
        triggered("mail", rate="2/10m", max_running=9),
        triggered("charge", limits=["stripe"]),
        triggered("refund", limits=["stripe"]),
        triggered("report", **by_key),
    )
    await stage.join("n1", max_concurrent=20)
    for name in ("charge", "report"):
        await stage.trigger(name)
        await stage.end(await stage.start_one(), duration_ms=90_000)
    then = T0 + timedelta(hours=1)
    mails = [await stage.trigger("mail", due_at=then) for _ in range(3)]
    charge, refund = [await stage.trigger(name, due_at=then) for name in ("charge", "refund")]
    reports = [await stage.trigger("report", payload={"customer": key}, due_at=then) for key in ("a", "a", "b")]
    ahead, _ = await ahead_of(stage, 2)
    found = {run_id: (each.starts_at, each.note) for (_, run_id), each in ahead.forecast.expected.items()}
    assert found == {
        **dict.fromkeys((*mails[:2], charge, reports[0], reports[2]), (then, None)),
        mails[2]: (then + timedelta(minutes=10), "waits for rate 2/10m"),
        refund: (then + timedelta(seconds=90), "waits for limit stripe"),
        reports[1]: (then + timedelta(seconds=90), "waits for key customer=a"),
    }


async def test_of_one_worker_is_played_who_shares_a_limit_with_it(stage: Stage):
    async with stage.db.write() as conn:
        await conn.execute(sa.insert(t.limits).values(name="stripe", rate="1/10m"))
    shared = {"interval_seconds": 3600, "limits": ["stripe"]}
    await stage.register(scheduled("first", priority=2, **shared), scheduled("second", **shared))
    await stage.join("n1")
    ahead, _ = await ahead_of(stage, 0.5, "second")
    ten = T0 + timedelta(minutes=10)
    found = ahead.forecast.of("second", ten, None)
    assert (found.starts_at, found.note) == (ten, "waits for limit stripe, rate 1/10m")


async def test_starts_before_the_play_count_in_its_rates(stage: Stage):
    await stage.register(triggered("mail", rate="2/10m", max_running=9))
    await stage.join("n1")
    for _ in range(2):
        await stage.trigger("mail")
        await stage.end(await stage.start_one(), duration_ms=1000)
        stage.after(120)
    mails = [await stage.trigger("mail", due_at=stage.now + timedelta(seconds=1)) for _ in range(4)]
    ahead, _ = await ahead_of(stage, 2)
    starts = [ahead.forecast.expected["mail", run_id].starts_at for run_id in mails]
    full, now = T0 + timedelta(minutes=10), stage.now
    assert starts == [full, now + timedelta(minutes=10), full + timedelta(minutes=10), now + timedelta(minutes=20)]


async def usual(stage: Stage, names: list[str]) -> dict[str, timedelta]:
    async with stage.db.read() as conn:
        return await read_usual(conn, stage.db.dialect, names)


async def test_what_is_usual_is_the_median_of_the_newest_twenty_successes(stage: Stage):
    await stage.register(triggered("a"), triggered("b"))
    await stage.join("n1")
    for length in (*[9000] * 5, *[100] * 9, *[300] * 11):
        await stage.trigger("a")
        await stage.end(await stage.start_one(), duration_ms=length)
    await stage.trigger("a")
    await stage.end(await stage.start_one(), OutcomeKind.CANCELLED, duration_ms=7)
    assert await usual(stage, ["a", "b", "c"]) == {"a": timedelta(milliseconds=300)}


async def test_a_start_later_than_due_says_what_it_waits_for(stage: Stage):
    await stage.register(
        scheduled("nightly", cron="0 3 * * *"), scheduled("report", cron="0 3 * * *", depends_on=["nightly"])
    )
    await stage.join("n1")
    await stage.trigger("nightly")
    run = await stage.start_one()
    stage.after(720)
    await stage.end(run, duration_ms=720_000)
    ahead, rows = await ahead_of(stage, 24)
    three = datetime(2026, 3, 3, 3, 0, tzinfo=UTC)
    assert [(row.worker, row.due_at) for row in rows] == [("nightly", three), ("report", three)]
    assert ahead.forecast.of("nightly", three, None).starts_at == three
    late = ahead.forecast.of("report", three, None)
    assert (late.starts_at, late.note) == (three + timedelta(minutes=12), "waits for nightly, usually 12 min")


async def test_what_is_passed_over_is_listed_and_said_to_be(stage: Stage):
    await stage.register(
        scheduled("fast", interval_seconds=60), scheduled("all", interval_seconds=60, misfire="run_all")
    )
    await stage.join("n1")
    for run in await stage.tick():
        stage.after(50)
        await stage.end(run, duration_ms=150_000)
    ahead, rows = await ahead_of(stage, 0.2)
    said: defaultdict[str, list[str]] = defaultdict(list)
    for row in rows:
        expected = ahead.forecast.of(row.worker, row.due_at, None)
        said[row.worker].append("starts" if expected.starts_at else expected.note or "")
    passed = "passed over for a later time (misfire run_once)"
    assert said["fast"][:7] == ["starts", passed, passed, "starts", passed, "starts", passed]
    assert passed not in said["all"]
    assert said["all"][-1] == "waits for its run before, usually 2.5 min"


async def test_a_run_for_later_that_will_wait_says_so_too(stage: Stage):
    await stage.register(triggered("a"), triggered("b", blocks=["a"]))
    await stage.join("n1")
    for name in ("a", "b"):
        await stage.trigger(name)
        await stage.end(await stage.start_one(), duration_ms=90_000)
    first = await stage.trigger("a", due_at=T0 + timedelta(hours=1))
    second = await stage.trigger("b", due_at=T0 + timedelta(hours=1, seconds=30))
    ahead, rows = await ahead_of(stage, 2)
    assert [row.run_id for row in rows] == [first, second]
    found = ahead.forecast.of("b", rows[1].due_at, second)
    assert (found.starts_at, found.note) == (T0 + timedelta(hours=1, seconds=90), "waits for a, usually 90 s")


async def test_without_a_node_it_is_played_as_if_one_were_there(stage: Stage):
    await stage.register(scheduled("a", interval_seconds=600), continuous("loop", interval_seconds=5))
    ahead, rows = await ahead_of(stage, 1)
    assert all(ahead.forecast.of(row.worker, row.due_at, None).starts_at for row in rows)
    assert ahead.loops == "not listed, since they loop: loop (5 s apart)"


async def test_a_play_that_would_not_end_is_cut_and_says_so(stage: Stage):
    await stage.register(scheduled("a", interval_seconds=0.5))
    ahead, _ = await ahead_of(stage, 1)
    assert ahead.cut is None
    until = stage.now + timedelta(hours=24)
    async with stage.db.read() as conn:
        ahead = await read_ahead(conn, stage.db.dialect, stage.now, until)
    assert ahead.cut is not None
    assert ahead.forecast.until < until
    assert ahead.forecast.of("a", until, None).starts_at is None
