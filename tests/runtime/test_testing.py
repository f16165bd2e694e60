"""What `jobrunner.testing` gives to users: their schedule in a moment, a database for each test, a clock by hand."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from jobrunner import RunContext, WorkerOrchestrator
from jobrunner.errors import DependencyCycle, InvalidWorker, Refused
from jobrunner.testing import ManualClock, run_until_idle, simulate
from jobrunner.testing.plugin import temporary_database

__all__ = ["temporary_database"]  # the fixture
TRIGGERED: dict[str, Any] = {"execution_mode": "triggered"}


async def nothing() -> None: ...


async def test_a_day_of_a_schedule_is_simulated_with_its_dependencies_and_retries(tmp_path: Path):
    fails: list[datetime] = []
    clock = ManualClock(datetime(2026, 1, 5, tzinfo=UTC))

    async def flaky(run: RunContext) -> None:
        if run.scheduled_for.hour == 3 and run.attempt < 3:
            fails.append(clock.now())
            raise OSError("no luck")

    def report() -> str:
        return "done"

    orchestrator = WorkerOrchestrator(f"sqlite:///{tmp_path / 'never.db'}")
    orchestrator.register_worker("hourly", flaky, interval_seconds=3600)
    orchestrator.register_worker("after", nothing, interval_seconds=3600, depends_on=["hourly"])
    orchestrator.register_worker("nightly", report, cron="30 2 * * *", timezone="Europe/Berlin")
    day = await simulate(orchestrator, days=1, clock=clock)
    assert [row["outcome"] for row in day.of("hourly")].count("succeeded") == 24
    assert [row["outcome"] for row in day.of("hourly")].count("failed") == 2
    assert fails[1] - fails[0] == timedelta(seconds=5)
    (night,) = day.of("nightly")
    assert (night["started_at"], night["result"]) == (datetime(2026, 1, 5, 1, 30, tzinfo=UTC), "done")
    succeeded = {row["scheduled_for"]: row["finished_at"] for row in day.of("hourly") if row["outcome"] == "succeeded"}
    assert all(row["started_at"] >= succeeded[row["scheduled_for"]] for row in day.of("after"))
    assert (day.start, day.end) == (datetime(2026, 1, 5, tzinfo=UTC), datetime(2026, 1, 6, tzinfo=UTC))
    assert not (tmp_path / "never.db").exists()
    assert orchestrator.workers.keys() == {"hourly", "after", "nightly"}


async def test_a_handler_may_take_time_in_a_simulation(tmp_path: Path):
    clock = ManualClock()

    async def slow() -> None:
        clock.advance(90)

    orchestrator = WorkerOrchestrator(f"sqlite:///{tmp_path / 'never.db'}")
    orchestrator.register_worker("slow", slow, interval_seconds=60)
    hour = await simulate(orchestrator, days=1 / 24, clock=clock)
    assert {row["duration_ms"] for row in hour.of("slow") if row["outcome"] != "missed"} == {90_000}
    assert sum(row["occurrences"] for row in hour.of("slow") if row["outcome"] == "missed") >= 15


async def test_running_until_idle_returns_what_ended(temporary_database: Any):
    sent: list[str] = []

    async def mail(to: str) -> int:
        sent.append(to)
        return len(sent)

    orchestrator = WorkerOrchestrator()
    before = orchestrator.settings.database_url
    orchestrator.register_worker("mail", mail, **TRIGGERED)
    url = temporary_database(orchestrator)
    assert orchestrator.settings.database_url == url != before
    (first,) = await _send(orchestrator, "ada")
    (second,) = await _send(orchestrator, "bob")
    assert sent == ["ada", "bob"]
    assert (first["outcome"], first["result"], second["result"]) == ("succeeded", 1, 2)


async def _send(orchestrator: WorkerOrchestrator, to: str) -> list[dict[str, Any]]:
    await orchestrator.trigger_worker("mail", {"to": to})
    return await run_until_idle(orchestrator)


async def test_with_a_clock_by_hand_retries_take_no_time(temporary_database: Any):
    tries = []

    async def flaky(run: RunContext) -> None:
        tries.append(run.attempt)
        if run.attempt < 3:
            raise OSError("no luck")

    orchestrator = WorkerOrchestrator(clock=ManualClock())
    orchestrator.register_worker("flaky", flaky, interval_seconds=1e6, retry_delay_seconds=600)
    temporary_database(orchestrator)
    ended = await run_until_idle(orchestrator)
    assert tries == [1, 2, 3]
    assert [row["outcome"] for row in ended] == ["failed", "failed", "succeeded"]
    assert ended[-1]["started_at"] - ended[0]["started_at"] >= timedelta(seconds=1600)


async def test_what_runs_is_not_simulated(temporary_database: Any):
    orchestrator = WorkerOrchestrator()
    temporary_database(orchestrator)
    await orchestrator.start()
    with pytest.raises(Refused, match="before its start"):
        await simulate(orchestrator)
    await orchestrator.stop()


async def test_what_a_handler_triggers_is_simulated_too_and_nothing_else_is(tmp_path: Path):
    sent: list[str] = []
    clock = ManualClock(datetime(2026, 1, 5, tzinfo=UTC))
    orchestrator = WorkerOrchestrator(f"sqlite:///{tmp_path / 'never.db'}")

    def plan() -> int:
        return orchestrator.trigger_sync("mail", {"to": "ada"}, delay=60, connection=object())

    async def mail(to: str) -> None:
        sent.append(f"{to} at {clock.now():%H:%M}")
        await orchestrator.get_status()

    orchestrator.register_worker("plan", plan, cron="30 8 * * *")
    orchestrator.register_worker("mail", mail, **TRIGGERED, max_retries=0)
    day = await simulate(orchestrator, days=1, clock=clock)
    (planned,), (mailed,) = day.of("plan"), day.of("mail")
    assert (planned["result"], mailed["run_id"], sent) == (2, 2, ["ada at 08:31"])
    assert mailed["started_at"] - planned["started_at"] == timedelta(seconds=60)
    assert "only triggers are simulated" in mailed["error"]
    assert not (tmp_path / "never.db").exists()


async def test_a_simulation_in_which_time_stands_still_is_refused(tmp_path: Path):
    orchestrator = WorkerOrchestrator(f"sqlite:///{tmp_path / 'never.db'}")
    orchestrator.register_worker("poll", nothing, execution_mode="continuous", interval_seconds=0)
    with pytest.raises(Refused, match="poll has started 10,000 times at 2026-01-05 00:00:00"):
        await simulate(orchestrator, days=1)


async def test_a_simulation_refuses_definitions_that_a_node_refuses(tmp_path: Path):
    orchestrator = WorkerOrchestrator(f"sqlite:///{tmp_path / 'never.db'}")
    orchestrator.register_worker("a", nothing, depends_on=["b"])
    with pytest.raises(InvalidWorker, match="depends on 'b', which is known neither"):
        await simulate(orchestrator)
    orchestrator.register_worker("b", nothing, depends_on=["a"])
    with pytest.raises(DependencyCycle, match="a -> b -> a"):
        await simulate(orchestrator)
