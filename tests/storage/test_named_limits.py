"""Named limits as they are stored: what code declares, what operators set over it, and who must hear of a change."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from jobrunner.errors import InvalidSetting, InvalidWorker, LimitNotFound, Refused
from jobrunner.model.named_limit import LimitConfig
from jobrunner.policy.named_limits import check_limit
from jobrunner.storage.workers import definitions as workers
from jobrunner.storage.workers import operations
from jobrunner.storage.workers.named_limits import set_limit, unset_limit
from jobrunner.storage.workers.registering import register_all, register_missing
from tests.support.stage import ACTOR, Stage, triggered

STRIPE = check_limit("stripe-api", 4, "100/1m")


async def _limits(stage: Stage) -> list[tuple[Any, ...]]:
    rows = await stage.rows("SELECT name, max_running, rate FROM {p}limits ORDER BY name")
    return [tuple(row.values()) for row in rows]


async def _revisions(stage: Stage) -> dict[str, int]:
    rows = await stage.rows("SELECT name, revision FROM {p}workers")
    return {row["name"]: row["revision"] for row in rows}


async def _register(stage: Stage, *limits: LimitConfig, of: tuple[str, ...] = (), version: int | None = None) -> None:
    """Register one worker that names limits, and one that names none, with these limits."""
    configs = [triggered("pay", limits=list(of)), triggered("mail")]
    await register_all(stage.db, configs, version, stage.now, limits)


async def test_a_limit_is_stored_before_the_workers_that_name_it_and_an_unchanged_one_is_not_written(stage: Stage):
    await _register(stage, STRIPE, of=("stripe-api",))
    assert await _limits(stage) == [("stripe-api", 4, "100/1m")]
    assert await stage.rows("SELECT * FROM {p}worker_limits") == [{"worker": "pay", "limit_name": "stripe-api"}]
    before = await stage.rows("SELECT name, updated_at FROM {p}limits"), await _revisions(stage)
    stage.after(60)
    await _register(stage, STRIPE, of=("stripe-api",))
    assert (await stage.rows("SELECT name, updated_at FROM {p}limits"), await _revisions(stage)) == before


async def test_a_change_of_a_limit_alone_is_written_and_raises_the_revision_of_its_workers_only(stage: Stage):
    await _register(stage, STRIPE, of=("stripe-api",))
    before = await _revisions(stage)
    await _register(stage, check_limit("stripe-api", 2), of=("stripe-api",))
    assert await _limits(stage) == [("stripe-api", 2, None)]
    after = await _revisions(stage)
    assert after["pay"] > before["pay"]
    assert after["mail"] == before["mail"]


async def test_a_limit_whose_code_is_gone_stays(stage: Stage):
    await _register(stage, STRIPE, of=("stripe-api",))
    await _register(stage, of=())
    assert await _limits(stage) == [("stripe-api", 4, "100/1m")]
    await _register(stage, of=("stripe-api",))  # known in the database is known
    assert await stage.value("SELECT count(*) FROM {p}worker_limits") == 1


async def test_a_worker_that_names_an_unknown_limit_is_refused_and_nothing_is_written(stage: Stage):
    with pytest.raises(InvalidWorker, match=r"worker 'pay': names the limit 'stripe', .*; did you mean 'stripe-api'"):
        await _register(stage, STRIPE, of=("stripe",))
    assert await _limits(stage) == []
    assert await stage.column("SELECT name FROM {p}workers") == []
    with pytest.raises(InvalidWorker, match=r"neither in code nor in the database; declare it with orchestrator.limit"):
        await _register(stage, of=("quite-another",))


async def test_what_an_operator_has_set_outlasts_a_deploy_and_gives_way_when_it_is_taken_back(stage: Stage):
    await _register(stage, STRIPE, of=("stripe-api",))
    before = await _revisions(stage)
    changed = await set_limit(stage.db, "stripe-api", {"max_running": 1}, stage.after(1), ACTOR, "they complain")
    assert (changed.before.max_running, changed.after.max_running, changed.is_new) == (4, 1, False)
    assert (await _revisions(stage))["pay"] > before["pay"]
    await _register(stage, check_limit("stripe-api", 8, "5/1s"), of=("stripe-api",))
    assert await _limits(stage) == [("stripe-api", 1, "5/1s")]
    taken = await unset_limit(stage.db, "stripe-api", ["max_running"], stage.after(1), ACTOR)
    assert (taken.before.max_running, taken.after.max_running) == (1, 8)
    assert await _limits(stage) == [("stripe-api", 8, "5/1s")]
    with pytest.raises(Refused, match="limit 'stripe-api' has no override of max_running"):
        await unset_limit(stage.db, "stripe-api", ["max_running"], stage.now, ACTOR)
    rows = await stage.rows(
        "SELECT actor, action, worker FROM {p}audit_log WHERE actor = :actor ORDER BY id", actor=ACTOR
    )
    assert [tuple(row.values()) for row in rows] == [(ACTOR, "limit_set", None), (ACTOR, "limit_unset", None)]


async def test_none_lifts_a_limit_and_a_limit_that_code_does_not_declare_is_made_on_request(stage: Stage):
    with pytest.raises(LimitNotFound, match="no limit named 'disk'"):
        await set_limit(stage.db, "disk", {"max_running": 1}, stage.now, ACTOR)
    made = await set_limit(stage.db, "disk", {"max_running": 0, "rate": "1 / 1s"}, stage.now, ACTOR, is_new=True)
    assert made.is_new
    assert await _limits(stage) == [("disk", 0, "1/1s")]
    await set_limit(stage.db, "disk", {"max_running": None}, stage.now, ACTOR)
    assert await _limits(stage) == [("disk", None, "1/1s")]
    with pytest.raises(LimitNotFound, match="no limit named 'dsik'; did you mean 'disk'"):
        await unset_limit(stage.db, "dsik", ["rate"], stage.now, ACTOR)


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"max_running": -1}, "max_running must be 0 to"),
        ({"max_running": True}, "max_running must be a whole number"),
        ({"max_running": "4"}, "max_running must be a whole number"),
        ({"rate": "often"}, "rate: 'often' is no rate"),
        ({"rates": "1/1s"}, "'rates' cannot be set; did you mean rate"),
        ({}, "nothing is set"),
    ],
)
async def test_a_value_that_cannot_be_used_is_refused_and_changes_nothing(
    stage: Stage, values: dict[str, Any], why: str
):
    await _register(stage, STRIPE)
    with pytest.raises(InvalidSetting, match=why):
        await set_limit(stage.db, "stripe-api", values, stage.now, ACTOR)
    assert await _limits(stage) == [("stripe-api", 4, "100/1m")]
    assert await stage.value("SELECT count(*) FROM {p}audit_log WHERE action = 'limit_set'") == 0


async def test_an_older_version_of_the_code_changes_no_limit_and_adds_those_that_are_missing(stage: Stage):
    await _register(stage, STRIPE, of=("stripe-api",), version=2)
    await _register(stage, check_limit("stripe-api", 9), check_limit("disk", 1), of=("stripe-api",), version=1)
    assert await _limits(stage) == [("disk", 1, None), ("stripe-api", 4, "100/1m")]


async def test_registering_what_is_missing_changes_no_limit_that_is_known(stage: Stage):
    await _register(stage, STRIPE, of=("stripe-api",))
    async with stage.db.write() as conn:
        limits = [check_limit("stripe-api", 9), check_limit("disk", 1)]
        new = [triggered("scan", limits=["disk"])]
        await register_missing(stage.db, conn, new, None, stage.now, limits)
    assert await _limits(stage) == [("disk", 1, None), ("stripe-api", 4, "100/1m")]
    assert await stage.column("SELECT worker FROM {p}worker_limits ORDER BY worker") == ["pay", "scan"]


async def test_a_change_counts_as_made_after_all_that_was_started_before_it(stage: Stage):
    await _register(stage, check_limit("stripe-api", 4), of=("stripe-api",))
    await stage.join("n1", ["pay"])
    await stage.trigger("pay")
    ahead = stage.after(10)
    at = f"'{ahead:%Y-%m-%d %H:%M:%S}.000000{'' if stage.db.is_sqlite else '+00'}'"
    await stage.sql(
        "UPDATE {p}runs SET state = 'running', slot = 0, fence = 1, node_id = 'n1',"
        f" started_at = {at}, first_started_at = {at}"
    )
    await set_limit(stage.db, "stripe-api", {"max_running": 1}, ahead - timedelta(seconds=5), ACTOR)
    assert stage.time(await stage.value("SELECT updated_at FROM {p}limits")) > ahead


async def test_two_nodes_that_start_and_an_operator_get_along(stage: Stage):
    await _register(stage, STRIPE, check_limit("disk", 1), of=("stripe-api", "disk"))

    async def deploy(number: int) -> None:
        for each in range(5):
            limits = [check_limit("stripe-api", 1 + each + number), check_limit("disk", 1 + each)]
            await register_all(stage.db, [triggered("pay", limits=["stripe-api", "disk"])], None, stage.now, limits)

    async def operate() -> None:
        for each in range(5):
            await set_limit(stage.db, "disk", {"max_running": 10 + each}, stage.now, ACTOR)

    async with asyncio.timeout(60):
        await asyncio.gather(deploy(1), deploy(2), operate())
    assert (await _limits(stage))[0] == ("disk", 14, None)


async def test_what_is_written_by_hand_and_cannot_be_used_is_passed_over(stage: Stage):
    await _register(stage, STRIPE, of=("stripe-api",))
    await stage.sql("""UPDATE {p}limits SET overrides = '{"max_running": "x", "rate": "1/1s", "more": 1}'""")
    await _register(stage, check_limit("stripe-api", 2), of=("stripe-api",))
    assert await _limits(stage) == [("stripe-api", 2, "1/1s")]


async def test_a_worker_that_is_removed_lets_go_of_its_limits(stage: Stage):
    await _register(stage, STRIPE, of=("stripe-api",))
    await operations.remove(stage.db, "pay", stage.now, ACTOR)
    assert await stage.rows("SELECT * FROM {p}worker_limits") == []
    assert len(await _limits(stage)) == 1
    with pytest.raises(InvalidWorker, match="names the limit 'nothing'"):
        async with stage.db.write() as conn:
            await workers.register(conn, stage.db.dialect, [triggered("x", limits=["nothing"])], None, stage.now)


async def test_what_is_set_holds_from_then_on_and_what_runs_beyond_it_may_end(stage: Stage):
    limits = [check_limit("api", 3)]
    configs = [triggered(name, limits=["api"], max_running=9) for name in ("pay", "refund")]
    await register_all(stage.db, configs, None, stage.now, limits)
    await stage.join("n1", ["pay", "refund"])
    for name in ("pay", "refund"):
        for _ in range(4):
            await stage.trigger(name)
    handlers = ["pay", "refund"]
    running = await stage.tick(slots=9, handlers=handlers)
    assert len(running) == 3
    await set_limit(stage.db, "api", {"max_running": 1}, stage.after(1), ACTOR)
    assert await stage.tick(slots=9, handlers=handlers) == []
    for run in running:
        assert await stage.tick(slots=9, handlers=handlers) == []
        await stage.end(run)
    assert len(await stage.tick(slots=9, handlers=handlers)) == 1
    await set_limit(stage.db, "api", {"max_running": None}, stage.after(1), ACTOR)
    assert len(await stage.tick(slots=9, handlers=handlers)) == 4
