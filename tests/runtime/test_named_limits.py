"""Named limits of an orchestrator: declared before the start, stored at it, and changed as an operator does."""

from __future__ import annotations

from typing import Any

import pytest

from jobrunner import LimitConfig, WorkerOrchestrator
from jobrunner.errors import InvalidSetting, InvalidWorker, LimitNotFound, Refused
from tests.runtime.conftest import House


async def _nothing() -> None: ...


def _limited(house: House, *limits: str) -> WorkerOrchestrator:
    orchestrator = house.orchestrator()
    orchestrator.register_worker("pay", _nothing, execution_mode="triggered", limits=limits)
    return orchestrator


async def test_a_node_stores_its_limits_when_it_starts(house: House):
    orchestrator = _limited(house, "api")
    declared = orchestrator.limit("api", max_running=4, rate="100 / 1m")
    assert declared == LimitConfig("api", 4, "100/1m")
    assert orchestrator.limit("api", max_running=4, rate="100/1m") == declared  # the same again is no other
    assert orchestrator.limits == {"api": declared}
    await orchestrator.start()
    assert await house.rows("SELECT name, max_running, rate FROM {p}limits") == [
        {"name": "api", "max_running": 4, "rate": "100/1m"}
    ]
    with pytest.raises(Refused, match="has started; declare limits before"):
        orchestrator.limit("other", max_running=1)


async def test_a_first_trigger_stores_the_limits_that_its_worker_names(house: House):
    orchestrator = _limited(house, "api")
    orchestrator.limit("api", max_running=4)
    await orchestrator.trigger_worker("pay")
    assert await house.rows("SELECT name FROM {p}limits") == [{"name": "api"}]
    assert await house.rows("SELECT limit_name FROM {p}worker_limits") == [{"limit_name": "api"}]


async def test_a_node_whose_worker_names_an_unknown_limit_does_not_start(house: House):
    orchestrator = _limited(house, "apy")
    orchestrator.limit("api", max_running=4)
    with pytest.raises(InvalidWorker, match=r"names the limit 'apy'.*did you mean 'api'"):
        await orchestrator.start()
    assert not orchestrator.is_started


@pytest.mark.parametrize(
    ("name", "values", "why"),
    [
        ("a b", {"max_running": 1}, "a name is 1 to 200 letters"),
        (None, {"max_running": 1}, "a name is 1 to 200 letters"),
        ("api", {}, "limits nothing: give max_running, rate or both"),
        ("api", {"max_running": -1}, "max_running must be 0 to"),
        ("api", {"max_running": 1.5}, "max_running must be a whole number"),
        ("api", {"rate": 5}, "rate: 5 is no rate"),
        ("api", {"rate": "5/8d"}, "rate: .* a rate's time is a millisecond to 7 days"),
    ],
)
async def test_a_limit_that_cannot_be_is_refused_where_it_is_declared(
    house: House, name: Any, values: dict[str, Any], why: str
):
    with pytest.raises(InvalidSetting, match=why):
        house.orchestrator().limit(name, **values)


async def test_a_name_is_declared_once(house: House):
    orchestrator = house.orchestrator()
    orchestrator.limit("api", max_running=4)
    with pytest.raises(InvalidSetting, match="'api' is declared already, with other values"):
        orchestrator.limit("api", max_running=5)


async def test_a_program_changes_limits_as_an_operator_does(house: House):
    orchestrator = _limited(house, "api")
    orchestrator.limit("api", max_running=4)
    await orchestrator.start()
    assert await orchestrator.set_limit("api", max_running=1, actor="ann") == LimitConfig("api", 1)
    assert await orchestrator.set_limit("api", rate="5/s") == LimitConfig("api", 1, "5/s")
    assert await orchestrator.unset_limit("api", "max_running", "rate") == LimitConfig("api", 4)
    assert await orchestrator.set_limit("new", rate="1/s", is_new=True) == LimitConfig("new", rate="1/s")
    with pytest.raises(LimitNotFound, match="did you mean 'api'"):
        await orchestrator.set_limit("apy", max_running=1)
    with pytest.raises(Refused, match="no override of rate"):
        await orchestrator.unset_limit("api", "rate")
    with pytest.raises(InvalidSetting, match="'max_runing' cannot be set; did you mean max_running"):
        await orchestrator.set_limit("api", max_runing=1)
    rows = await house.rows("SELECT actor, action FROM {p}audit_log WHERE action LIKE 'limit%' ORDER BY id")
    assert [tuple(row.values()) for row in rows] == [
        ("ann", "limit_set"),
        ("api", "limit_set"),
        ("api", "limit_unset"),
        ("api", "limit_set"),
    ]
