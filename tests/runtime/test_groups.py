"""Batches and flows from Python: what is added, what is called, what a step is told."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from jobrunner import RunContext, WorkerOrchestrator, step
from jobrunner.errors import (
    BatchNotFound,
    InvalidFlow,
    InvalidPayload,
    InvalidSetting,
    JobrunnerError,
    Refused,
    WorkerNotFound,
)
from jobrunner.runtime.executors.command import MOST_SAID
from tests.runtime.conftest import House


def told_apart(run: RunContext) -> dict[str, Any]:
    """A handler of a process."""
    return {"results": run.results, "outcomes": run.outcomes, "step": run.step}


class Told:
    """An orchestrator whose workers note what they were called with."""

    def __init__(self, house: House, **settings: Any) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.orchestrator = house.orchestrator(**settings)
        for name in ("good", "bad", "over"):
            self.add(name)

    def add(self, name: str, **options: Any) -> None:
        async def note(run: RunContext) -> None:
            self.calls.append((run.worker, run.payload))

        self.orchestrator.register_worker(name, note, execution_mode="triggered", max_running=5, **options)


@pytest.fixture
def told(house: House) -> Told:
    told = Told(house)

    @told.orchestrator.worker("a", execution_mode="triggered", max_running=5, max_retries=0)
    async def member(run: RunContext, fails: bool = False) -> None:
        if fails:
            raise ValueError("no luck")

    return told


async def test_a_batch_calls_success_and_then_finish_when_its_members_have_ended(house: House, told: Told):
    await told.orchestrator.start()
    async with told.orchestrator.batch("good", "bad", "over", {"to": "ann"}) as batch:
        assert await batch.trigger("a", {}, priority="HIGH")
        assert len(await batch.trigger_many("a", [{}, {}])) == 2
    await house.attempts(1, "over")
    assert told.calls == [(name, {"to": "ann", "batch_id": batch.id}) for name in ("good", "over")]
    rows = await house.rows("SELECT DISTINCT batch_id FROM {p}run_history WHERE worker = 'a'")
    assert rows == [{"batch_id": batch.id}]


async def test_a_failure_calls_once_while_the_batch_is_open(house: House, told: Told):
    await told.orchestrator.start()
    async with told.orchestrator.batch("good", "bad", "over") as batch:
        await batch.trigger_many("a", [{"fails": True}] * 3)
        await house.attempts(1, "bad")
    await house.attempts(1, "over")
    assert [name for name, _ in told.calls] == ["bad", "over"]


async def test_an_empty_batch_is_over_at_once(house: House, told: Told):
    await told.orchestrator.start()
    async with told.orchestrator.batch(on_finish="over"):
        pass
    await house.attempts(1, "over")


async def test_a_batch_left_by_an_error_stays_open_and_goes_on_by_its_id(house: House, told: Told):
    await told.orchestrator.start()
    with pytest.raises(KeyError):
        async with told.orchestrator.batch(on_finish="over") as batch:
            await batch.trigger("a")
            raise KeyError("half way")
    await house.attempts(1, "a")
    rows = await house.rows("SELECT sealed_at, finished_at FROM {p}batches")
    assert [tuple(row.values()) for row in rows] == [(None, None)]
    async with told.orchestrator.batch(id=batch.id) as again:
        await again.trigger("a")
    await house.attempts(1, "over")
    assert told.calls == [("over", {"batch_id": batch.id})]
    with pytest.raises(Refused, match=f"^batch {batch.id} has finished; begin another$"):
        async with told.orchestrator.batch(id=batch.id):
            pass
    with pytest.raises(Refused, match="begin another"):
        await told.orchestrator.trigger_worker("a", batch=batch.id)
    with pytest.raises(Refused, match="begin another"):
        await asyncio.to_thread(told.orchestrator.trigger_sync, "a", batch=batch.id)


async def test_a_member_adds_members_by_its_own_batch(house: House, told: Told):
    @told.orchestrator.worker("tree", execution_mode="triggered", max_running=9)
    async def tree(run: RunContext, depth: int) -> None:
        assert run.batch_id is not None
        if depth:
            await told.orchestrator.trigger_many("tree", [{"depth": depth - 1}] * 2, batch=run.batch_id)

    await told.orchestrator.start()
    async with told.orchestrator.batch("good", "bad", "over") as batch:
        await batch.trigger("tree", {"depth": 3})
    await house.attempts(1, "over")
    assert [name for name, _ in told.calls] == ["good", "over"]
    assert len(house.ended("tree")) == 15


async def test_what_a_batch_cannot_be_is_refused(house: House, told: Told):
    batch = told.orchestrator.batch
    with pytest.raises(InvalidSetting):
        batch("good", id=7)
    with pytest.raises(InvalidSetting):
        batch(on_success=7)  # type: ignore[arg-type]
    with pytest.raises(InvalidPayload):
        batch(payload=[1])  # type: ignore[arg-type]
    with pytest.raises(InvalidSetting):
        batch(id="7")  # type: ignore[arg-type]
    with pytest.raises(WorkerNotFound, match="did you mean 'over'"):
        async with batch(on_finish="ovr"):
            pass
    with pytest.raises(BatchNotFound):
        async with batch(id=99):
            pass
    with pytest.raises(Refused, match="inside its block"):
        _ = batch().id
    assert await house.rows("SELECT id FROM {p}batches") == []


async def test_a_callback_that_takes_named_fields_is_told_its_batch_only_if_it_asks(house: House, told: Told):
    seen: list[Any] = []

    @told.orchestrator.worker("asks", execution_mode="triggered")
    async def asks(batch_id: int) -> None:
        seen.append(batch_id)

    @told.orchestrator.worker("does-not", execution_mode="triggered")
    async def does_not(to: str = "nobody") -> None:
        seen.append(to)

    await told.orchestrator.start()
    async with told.orchestrator.batch(on_success="asks", on_finish="does-not") as batch:
        pass
    await house.attempts(1, "asks")
    await house.attempts(1, "does-not")
    assert sorted(map(str, seen)) == sorted([str(batch.id), "nobody"])


# --- flows --------------------------------------------------------------------------------------------------------


def with_steps(orchestrator: WorkerOrchestrator, seen: dict[str, Any]) -> None:
    @orchestrator.worker("extract", execution_mode="triggered", max_running=9, max_retries=0)
    async def extract(run: RunContext, fails: bool = False) -> dict[str, Any]:
        if fails:
            raise ValueError("no luck")
        return {"rows": 3}

    @orchestrator.worker("load", execution_mode="triggered", max_running=9)
    async def load(run: RunContext) -> None:
        seen[run.step or ""] = (run.results, run.outcomes)

    @orchestrator.worker("load-in-thread", execution_mode="triggered")
    def load_in_thread(run: RunContext) -> None:
        seen[run.step or ""] = (run.results, run.outcomes)


async def test_a_step_is_told_what_those_before_it_returned(house: House):
    seen: dict[str, Any] = {}
    orchestrator = house.orchestrator()
    with_steps(orchestrator, seen)
    await orchestrator.start()
    ids = await orchestrator.flow(
        [
            step("load", after=["extract", "more"]),
            step("load-in-thread", after=["more"]),
            step("extract"),
            step("extract", name="more"),
        ]
    )
    assert list(ids) == ["load", "load-in-thread", "extract", "more"]
    await house.attempts(1, "load")
    await house.attempts(1, "load-in-thread")
    rows, good = {"rows": 3}, "succeeded"
    assert seen["load"] == ({"extract": rows, "more": rows}, {"extract": good, "more": good})
    assert seen["load-in-thread"] == ({"more": rows}, {"more": good})
    assert (await orchestrator.get_run(ids["load"])).state == "succeeded"


async def test_a_step_after_a_failure_is_cancelled_or_told_of_it(house: House):
    seen: dict[str, Any] = {}
    orchestrator = house.orchestrator()
    with_steps(orchestrator, seen)
    await orchestrator.start()
    ids = await orchestrator.flow(
        [
            step("extract", {"fails": True}),
            step("load", after="extract"),
            step("load", name="report", after=["extract"], if_failed="run"),
        ]
    )
    await house.attempts(1, "load")
    assert seen == {"report": ({}, {"extract": "exhausted"})}
    run = await orchestrator.get_run(ids["load"])
    why = f"step extract (run {ids['extract']}) of its flow exhausted its attempts"
    assert (run.state, run.reason) == ("cancelled", why)


async def test_a_process_and_a_command_are_told_too(house: House, tmp_path: Path):
    orchestrator = house.orchestrator(allow_commands=True)
    with_steps(orchestrator, {})
    orchestrator.register_worker("apart", told_apart, execution_mode="triggered", isolation="process")
    await orchestrator.start()
    out = tmp_path / "out"
    command = json.dumps({"command": f'echo "$JOBRUNNER_RESULTS $JOBRUNNER_OUTCOMES" > {out}', "shell": True})
    await house.sql(
        "INSERT INTO {p}workers (name, handler, execution_mode, isolation, definition_hash)"
        f" VALUES ('sh', '{command}', 'triggered', 'command', 'x')"
    )
    await house.sql("INSERT INTO {p}worker_state (worker) VALUES ('sh')")
    ids = await orchestrator.flow([step("extract"), step("apart", after=["extract"]), step("sh", after=["extract"])])
    await house.attempts(1, "apart")
    await house.attempts(1, "sh")
    result = (await orchestrator.get_run(ids["apart"])).result
    assert result == {"results": {"extract": {"rows": 3}}, "outcomes": {"extract": "succeeded"}, "step": "apart"}
    assert out.read_text() == '{"extract": {"rows": 3}} {"extract": "succeeded"}\n'


async def test_results_too_long_for_the_environment_are_left_out(house: House, tmp_path: Path):
    from jobrunner.model.flow import Before
    from jobrunner.runtime.executors.command import _of_its_flow

    assert _of_its_flow(Before()) == {}
    large = Before({"a": "x" * MOST_SAID}, {"a": "succeeded"})
    assert _of_its_flow(large) == {"JOBRUNNER_OUTCOMES": '{"a": "succeeded"}'}


async def test_a_flow_is_added_whole_or_not_at_all(house: House):
    orchestrator = house.orchestrator()
    with_steps(orchestrator, {})
    await orchestrator.register_definitions()
    wrong: list[tuple[list[Any], type[JobrunnerError]]] = [
        ([], InvalidFlow),
        ([step("extract"), step("load", after=["nothing"])], InvalidFlow),
        ([step("extract", after=["load"]), step("load", after=["extract"])], InvalidFlow),
        ([step("extract"), "load"], InvalidFlow),
        ([step("extract"), step("nobody", after=["extract"])], WorkerNotFound),
        ([step("extract"), step("extract", {"fails": 7, "x": 1}, name="b")], InvalidPayload),
    ]
    for steps, error in wrong:
        with pytest.raises(error):
            await orchestrator.flow(steps)
    with pytest.raises(InvalidFlow):
        step("extract", after=[7])  # type: ignore[list-item]
    assert await house.rows("SELECT id FROM {p}runs") == []
    assert await house.rows("SELECT run_id FROM {p}run_after") == []


async def test_a_flow_is_part_of_the_callers_transaction(house: House):
    orchestrator = house.orchestrator()
    with_steps(orchestrator, {})
    await orchestrator.register_definitions()
    steps = [step("extract"), step("load", after=["extract"])]
    async with house.db.write() as conn:
        await orchestrator.flow(steps, connection=conn)
        await conn.rollback()
    assert await house.rows("SELECT id FROM {p}runs") == []
    async with house.db.write() as conn:
        ids = await orchestrator.flow(steps, connection=conn)
        found = await conn.execute(sa.text(f"SELECT id FROM {house.db.schema_prefix}runs ORDER BY id"))
        assert list(found.scalars()) == list(ids.values())


async def test_an_end_in_its_own_transaction_goes_on_with_flow_and_batch(house: House, told: Told):
    @told.orchestrator.worker("write", execution_mode="triggered")
    async def write(run: RunContext) -> None:
        async with run.transaction():
            run.set_result("written")

    @told.orchestrator.worker("read", execution_mode="triggered")
    async def read(run: RunContext) -> None:
        told.calls.append(("read", dict(run.results)))

    await told.orchestrator.start()
    await told.orchestrator.flow([step("write"), step("read", after=["write"])])
    async with told.orchestrator.batch(on_success="good") as batch:
        await batch.trigger("write")
    await house.attempts(1, "read")
    await house.attempts(1, "good")
    assert sorted(name for name, _ in told.calls) == ["good", "read"]
    assert ("read", {"write": "written"}) in told.calls
