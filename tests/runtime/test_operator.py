"""What operators do at the command line, from Python: in a node's process, and in one that runs none."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from jobrunner import Discard, HistoryRow, RunContext, RunInfo, WorkerOrchestrator
from jobrunner.errors import (
    DeadLetterNotFound,
    InvalidPayload,
    InvalidSetting,
    InvalidWorker,
    Refused,
    RunNotFound,
    WorkerNotFound,
)
from jobrunner.model.run import OutcomeKind
from jobrunner.model.worker import JobPriority, Misfire
from jobrunner.storage.reading.search import search_audits
from jobrunner.storage.tables import define as t
from tests.runtime.conftest import House

TRIGGERED: dict[str, Any] = {"execution_mode": "triggered", "max_retries": 0}


class Work:
    """Handlers, and what holds one up."""

    def __init__(self) -> None:
        self.let_go = asyncio.Event()
        self.fails = True

    async def add(self, run: RunContext, a: int, b: int = 1) -> int:
        run.log(f"adds {a}")
        return a + b

    async def fail(self, n: int = 0) -> dict[str, int]:
        if self.fails:
            raise OSError("no luck")
        return {"n": n}

    async def wait(self, run: RunContext) -> None:
        run.progress(0.5, "half")
        await self.let_go.wait()

    async def drop(self) -> None:
        raise Discard("of no use")


@pytest.fixture
def work() -> Work:
    return Work()


@pytest.fixture
async def node(house: House, work: Work) -> WorkerOrchestrator:
    made = house.orchestrator()
    made.register_worker("add", work.add, **TRIGGERED)
    made.register_worker("fail", work.fail, **TRIGGERED)
    made.register_worker("retry", work.fail, execution_mode="triggered", max_retries=1, retry_delay_seconds=3600)
    made.register_worker("wait", work.wait, **TRIGGERED)
    made.register_worker("drop", work.drop, **TRIGGERED)
    made.register_worker("every", work.fail, interval_seconds=3600, payload={"n": 1})
    await made.register_definitions()
    await made.disable_worker("every", "not today")
    await made.start()
    return made


@pytest.fixture(params=["node", "elsewhere"])
def api(request: pytest.FixtureRequest, house: House, node: WorkerOrchestrator) -> WorkerOrchestrator:
    """The node's own orchestrator, or one of a process without a node and without the code."""
    return node if request.param == "node" else house.orchestrator()


async def reached(api: WorkerOrchestrator, run_id: int, is_so: Callable[[RunInfo], Any]) -> RunInfo:
    async with asyncio.timeout(20):
        while not is_so(run := await api.get_run(run_id)):
            await asyncio.sleep(0.01)
        return run


async def audit(house: House, action: str) -> list[tuple[str, str]]:
    rows = await house.rows("SELECT actor, worker FROM {p}audit_log WHERE action = :action ORDER BY id", action=action)
    return [(row["actor"], row["worker"]) for row in rows]


# --- runs ---------------------------------------------------------------------------------------------------------


async def test_a_run_is_waited_for_with_its_result(api: WorkerOrchestrator):
    run_id = await api.trigger_worker("add", {"a": 2})
    run = await api.wait_for_run(run_id, timeout=20)
    assert (run.id, run.worker, run.state, run.result, run.attempt) == (run_id, "add", "succeeded", 3, 1)
    assert (run.has_ended, run.has_succeeded, run.payload, run.trigger) == (True, True, {"a": 2}, "manual")
    assert run.output == "adds 2"
    assert run.started_at is not None
    assert run.finished_at is not None
    assert run.finished_at >= run.started_at
    assert run == await api.get_run(run_id)
    with pytest.raises(dataclasses.FrozenInstanceError):
        run.state = "lost"  # type: ignore[misc]


async def test_or_with_its_error_and_the_letter_that_was_kept(api: WorkerOrchestrator, house: House):
    run = await api.wait_for_run(await api.trigger_worker("fail"), timeout=timedelta(seconds=20))
    assert (run.state, run.error_type, run.error, run.result) == ("exhausted", "OSError", "no luck", None)
    assert (run.has_ended, run.has_succeeded) == (True, False)
    (letter,) = await house.rows("SELECT id FROM {p}dead_letters")
    assert run.letter_id == letter["id"]
    dropped = await api.wait_for_run(await api.trigger_worker("drop"), timeout="20s")
    assert (dropped.state, dropped.reason) == ("discarded", "of no use")


async def test_a_live_run_shows_how_far_it_is(api: WorkerOrchestrator, work: Work):
    run_id = await api.trigger_worker("wait")
    run = await reached(api, run_id, lambda run: run.progress)
    assert (run.state, run.progress, run.has_ended) == ("running", {"fraction": 0.5, "message": "half"}, False)
    with pytest.raises(TimeoutError, match=rf"run {run_id} of wait is still running after 0.2 s"):
        await api.wait_for_run(run_id, timeout=0.2)
    with pytest.raises(TimeoutError):
        await api.wait_for_run(run_id, timeout=0)
    work.let_go.set()
    assert (await api.wait_for_run(run_id)).state == "succeeded"


async def test_a_run_that_waits_for_its_next_attempt_has_the_error_of_the_last(api: WorkerOrchestrator):
    run_id = await api.trigger_worker("retry")
    run = await reached(api, run_id, lambda run: run.attempt == 2)
    assert (run.state, run.error, run.finished_at, run.has_ended) == ("pending", "no luck", None, False)
    assert run.due_at is not None
    assert run.due_at > datetime.now(UTC) + timedelta(minutes=30)


async def test_a_run_that_there_is_not_is_not_found(api: WorkerOrchestrator):
    for asked in (api.get_run(4711), api.wait_for_run(4711, timeout=5)):
        with pytest.raises(RunNotFound, match="no run 4711, neither live nor in the history") as missing:
            await asked
        assert missing.value.run_id == 4711
    with pytest.raises(RunNotFound, match="no live run 4711"):
        await api.cancel_run(4711)


@pytest.mark.parametrize("wrong", [-1, "soon", float("nan"), True, timedelta(days=-1)], ids=str)
async def test_what_is_no_length_of_time_is_no_timeout(house: House, wrong: Any):
    with pytest.raises(InvalidSetting, match="timeout: "):
        await house.orchestrator().wait_for_run(1, timeout=wrong)


async def test_what_cannot_be_an_id_a_name_or_an_actor_never_reaches_the_database(tmp_path: Path):
    api: Any = WorkerOrchestrator(f"sqlite:///{tmp_path / 'none' / 'no.db'}")  # that cannot be opened
    bad_texts = (5, None, "a\0b", "\ud800")
    for wrong in ("x", True, 1.0, None, 2**63):
        for ask in (api.get_run, api.wait_for_run, api.cancel_run):
            with pytest.raises(InvalidSetting, match="run_id must be"):
                await ask(wrong)
        with pytest.raises(InvalidSetting, match="letter_id must be"):
            await api.replay(wrong)
    for change in (api.enable_worker, api.disable_worker, api.pause_worker, api.resume_worker, api.set_override):
        for wrong in bad_texts:
            with pytest.raises(InvalidSetting, match="name must be text"):
                await change(wrong)
        for wrong in (*bad_texts, " ", "a" * 201):
            with pytest.raises(InvalidSetting, match="actor must be 1 to 200 printable characters"):
                await change("add", actor=wrong)
    for change in (api.disable_worker, api.pause_worker):
        with pytest.raises(InvalidSetting, match="reason must be text"):
            await change("add", reason=5)
    with pytest.raises(InvalidSetting, match="a field must be text"):
        await api.unset_override("add", 5)
    with pytest.raises(InvalidSetting, match="until must be an aware time"):
        await api.pause_worker("add", until="2090-01-01")


async def test_a_reason_may_hold_what_no_database_does(api: WorkerOrchestrator):
    assert (await api.disable_worker("add", "a\0b\ud800")).disabled_reason == "a\\0b?"
    assert (await api.pause_worker("add", reason="a\0b\ud800")).paused_reason == "a\\0b?"
    assert (await api.cancel_run(await api.trigger_worker("add", {"a": 1}), "a\0b\ud800")).reason == "a\\0b?"


async def test_a_run_that_waits_is_cancelled_at_once_and_one_that_runs_is_told_to_stop(
    api: WorkerOrchestrator, house: House
):
    await api.pause_worker("add")
    waits = await api.cancel_run(await api.trigger_worker("add", {"a": 1}), "a mistake", actor="ann")
    assert (waits.state, waits.reason, waits.has_ended) == ("cancelled", "a mistake", True)
    with pytest.raises(RunNotFound):
        await api.cancel_run(waits.id)
    run_id = await api.trigger_worker("wait")
    await reached(api, run_id, lambda run: run.state == "running")
    told = await api.cancel_run(run_id)
    assert told.has_ended or told.cancel_requested_at is not None
    ended = await api.wait_for_run(run_id, timeout=20)
    assert (ended.state, ended.reason) == ("cancelled", "cancelled by api")
    assert await audit(house, "cancel") == [("ann", "add"), ("api", "wait")]


# --- history ------------------------------------------------------------------------------------------------------


def test_a_row_of_history_has_the_columns_of_its_table():
    assert {field.name for field in dataclasses.fields(HistoryRow)} == set(t.run_history.c.keys())


async def test_history_is_narrowed_and_read_page_by_page(api: WorkerOrchestrator):
    for a in range(3):
        await api.wait_for_run(await api.trigger_worker("add", {"a": a}), timeout=20)
    failed = await api.wait_for_run(await api.trigger_worker("fail"), timeout=20)
    (row,) = await api.history("fail")
    assert (row.run_id, row.outcome, row.ends_run, row.error) == (failed.id, "failed", "exhausted", "no luck")
    assert await api.history(outcome="failed", since=timedelta(hours=1)) == [row]
    assert await api.history(run_id=failed.id, since=datetime.now(UTC) - timedelta(hours=1)) == [row]
    assert await api.history("add", since=datetime.now(UTC) + timedelta(hours=1)) == []
    first = await api.history("add", limit=2)
    rest = await api.history("add", limit=2, before=first[-1])
    assert [each.result for each in (*first, *rest)] == [3, 2, 1]


async def test_history_is_narrowed_as_at_the_command_line(api: WorkerOrchestrator):
    failed = await api.wait_for_run(await api.trigger_worker("fail"), timeout=20)
    dropped = await api.wait_for_run(await api.trigger_worker("drop"), timeout=20)
    await api.wait_for_run(await api.trigger_worker("add", {"a": 1}), timeout=20)

    async def ids(**narrowed: Any) -> list[int | None]:
        return [row.run_id for row in await api.history(**narrowed)]

    assert await ids(outcome="exhausted") == [failed.id]
    assert await ids(outcome=["discarded", "exhausted"]) == [dropped.id, failed.id]
    assert await ids(outcome=(OutcomeKind.FAILED,), until=timedelta(0)) == [dropped.id, failed.id]
    assert await ids(worker="fail", since="2h") == await ids(worker="fail", since="2020-01-01") == [failed.id]
    assert await ids(worker="fail", until="2h") == []
    assert await ids(worker="fail", since="2h", until=datetime.now(UTC)) == [failed.id]
    a_minute_ago = (datetime.now(UTC) - timedelta(minutes=1)).astimezone()
    assert await ids(worker="fail", since=f"{a_minute_ago:%H:%M:%S}") == [failed.id]


async def test_history_refuses_what_it_cannot_read(api: WorkerOrchestrator):
    with pytest.raises(WorkerNotFound):
        await api.history("nobody")
    refused: list[dict[str, Any]] = [
        {"outcome": "broken"},
        {"outcome": ["failed", "broken"]},
        {"outcome": []},
        {"outcome": 5},
        {"since": datetime(2026, 1, 1)},  # noqa: DTZ001
        {"since": "soon"},
        {"since": 5},
        {"since": timedelta.max},
        {"since": datetime.max.replace(tzinfo=timezone(timedelta(hours=-1)))},
        {"since": "1h", "until": "2h"},
        {"until": datetime(2026, 1, 1)},  # noqa: DTZ001
        {"limit": 0},
        {"limit": True},
        {"limit": 2**63},
        {"run_id": "x"},
        {"run_id": True},
        {"run_id": 2**63},
        {"worker": 5},
        {"worker": "a\0b"},
        {"before": 5},
    ]
    for wrong in refused:
        with pytest.raises(InvalidSetting, match=next(iter(wrong))):
            await api.history(**wrong)


# --- workers ------------------------------------------------------------------------------------------------------


async def test_a_worker_is_paused_and_resumed(api: WorkerOrchestrator, house: House):
    before = datetime.now(UTC)
    state = await api.pause_worker("add", timedelta(hours=2), reason="maintenance", actor="ann")
    assert state.paused_until is not None
    assert timedelta(minutes=119) < state.paused_until - before < timedelta(minutes=121)
    assert state.paused_reason == "maintenance"
    assert (await api.pause_worker("add", "1h")).paused_until < state.paused_until  # type: ignore[operator]
    end = datetime(2090, 1, 1, tzinfo=UTC)
    assert (await api.pause_worker("add", until=end)).paused_until == end
    run_id = await api.trigger_worker("add", {"a": 1})
    assert (await api.get_run(run_id)).state == "pending"
    assert (await api.resume_worker("add")).paused_until is None
    assert (await api.wait_for_run(run_id, timeout=20)).state == "succeeded"
    assert await audit(house, "pause") == [("ann", "add"), ("api", "add"), ("api", "add")]
    assert await audit(house, "resume") == [("api", "add")]


async def test_a_pause_that_cannot_be_is_refused(api: WorkerOrchestrator):
    past = datetime(2020, 1, 1, tzinfo=UTC)
    wrong: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((0,), {}),
        (("soon",), {}),
        ((), {"until": past}),
        ((), {"until": datetime(2090, 1, 1)}),  # noqa: DTZ001 - that is what is refused
        ((60,), {"until": datetime(2090, 1, 1, tzinfo=UTC)}),
    ]
    for given, more in wrong:
        with pytest.raises(InvalidSetting):
            await api.pause_worker("add", *given, **more)
    for change in (api.pause_worker("nobody"), api.resume_worker("nobody"), api.set_override("nobody", max_retries=1)):
        with pytest.raises(WorkerNotFound):
            await change


async def test_enabling_and_disabling_return_the_state(api: WorkerOrchestrator):
    state = await api.disable_worker("add", "broken", actor="ann")
    assert (state.is_enabled, state.disabled_reason) == (False, "broken")
    assert (await api.enable_worker("add")).is_enabled


async def test_why_a_worker_was_enabled_or_resumed_is_in_the_audit_log_alone(api: WorkerOrchestrator, house: House):
    await api.enable_worker("add", "it is mended", actor="ann")
    await api.resume_worker("add", "they are back", actor="ann")
    async with house.db.read() as conn:
        found = (await search_audits(conn, 10, worker="add")).rows
    assert [(row["action"], row["detail"]["reason"]) for row in found] == [
        ("resume", "they are back"),
        ("enable", "it is mended"),
    ]
    for change in (api.enable_worker, api.resume_worker):
        with pytest.raises(InvalidSetting):
            await change("add", 5)  # type: ignore[arg-type]  # what is refused


async def test_overrides_are_set_and_unset(api: WorkerOrchestrator, house: House):
    config = await api.set_override(
        "every",
        interval_seconds=timedelta(minutes=5),
        timeout_seconds="2m",
        priority="high",
        misfire=Misfire.SKIP,
        max_retries=7,
        actor="ann",
    )
    assert (config.interval_seconds, config.timeout_seconds, config.max_retries) == (300.0, 120.0, 7)
    assert (config.priority, config.misfire) == (JobPriority.HIGH, Misfire.SKIP)
    config = await api.unset_override("every", "interval_seconds", "max_retries", "max_retries")
    assert (config.interval_seconds, config.max_retries, config.timeout_seconds) == (3600.0, 3, 120.0)
    assert await audit(house, "set") == [("ann", "every")]
    assert await audit(house, "unset") == [("api", "every")]
    with pytest.raises(Refused, match="no override of max_retries"):
        await api.unset_override("every", "max_retries")
    for wrong in ({"handler": "a:b"}, {"max_retries": "many"}, {"priority": "URGENT"}, {"cron": "* *"}):
        with pytest.raises(InvalidWorker):
            await api.set_override("every", **wrong)


# --- dead letters -------------------------------------------------------------------------------------------------


async def test_a_letter_is_replayed_with_another_payload_and_once(api: WorkerOrchestrator, house: House, work: Work):
    dead = await api.wait_for_run(await api.trigger_worker("fail"), timeout=20)
    assert dead.letter_id is not None
    work.fails = False
    run_id = await api.replay(dead.letter_id, {"n": 5}, actor="ann")
    run = await api.wait_for_run(run_id, timeout=20)
    assert (run.state, run.trigger, run.result) == ("succeeded", "replay", {"n": 5})
    with pytest.raises(Refused, match="already replayed"):
        await api.replay(dead.letter_id)
    with pytest.raises(DeadLetterNotFound):
        await api.replay(4711)
    with pytest.raises(DeadLetterNotFound):
        await api.replay(4711, {"n": 1})
    assert await audit(house, "replay") == [("ann", "fail")]


async def test_a_payload_that_does_not_fit_is_refused_where_the_code_is_known(node: WorkerOrchestrator, house: House):
    dead = await node.wait_for_run(await node.trigger_worker("fail"), timeout=20)
    assert dead.letter_id is not None
    with pytest.raises(InvalidPayload, match="n: "):
        await node.replay(dead.letter_id, {"n": "five"})
    with pytest.raises(InvalidPayload):
        await house.orchestrator().replay(dead.letter_id, {"n": object()})
    (letter,) = await house.rows("SELECT status FROM {p}dead_letters")
    assert letter["status"] == "open"
