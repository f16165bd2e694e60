"""Metrics, read by the official parser and compared with what the tables say."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from jobrunner import Discard, RunContext, Snooze, WorkerOrchestrator
from jobrunner.model.run import Run, RunState, Trigger
from jobrunner.model.schedule import Missed
from jobrunner.storage.reading import gauges
from jobrunner.storage.records.history import missed_row, write_missed
from jobrunner.telemetry import events as e
from jobrunner.web import metrics
from jobrunner.web.desk import Desk
from tests.support.stage import T0, triggered
from tests.web.conftest import SETTINGS, Web

Samples = Mapping[tuple[str, frozenset[tuple[str, str]]], float]


def samples_of(text: str, parse=text_string_to_metric_families) -> Samples:
    """Return each sample by its name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parse(text)
        for sample in family.samples
    }


def labelled(samples: Samples, name: str) -> dict[tuple[str, ...], float]:
    """Return the samples of a name by the values of their labels, in the order of the labels' names."""
    return {
        tuple(value for _, value in sorted(labels)): number
        for (found, labels), number in samples.items()
        if found == name
    }


async def scrape(client: httpx.AsyncClient) -> Samples:
    response = await client.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain; version=")
    return samples_of(response.text)


async def test_counters_equal_the_history_after_a_thousand_mixed_runs(database_url):
    orchestrator = WorkerOrchestrator(database_url, tick_interval=1, max_concurrent=50, drain_timeout=0, **SETTINGS)
    web = Web(None, orchestrator)  # type: ignore[arg-type]  # nothing is staged
    snoozed: set[int] = set()
    often: dict[str, Any] = {"execution_mode": "triggered", "max_running": 50, "max_consecutive_failures": 10_000}

    @orchestrator.worker("good", **often)
    async def good(n: int) -> None: ...

    @orchestrator.worker("moody", max_retries=1, retry_delay_seconds=0.01, **often)
    async def moody(run: RunContext, n: int) -> None:
        match n % 5:
            case 0:
                raise ValueError("no luck")
            case 1 if run.attempt == 1:
                raise ValueError("better luck next time")
            case 2:
                raise Discard("not worth it")
            case 3 if run.id not in snoozed:
                snoozed.add(run.id)
                raise Snooze(0.2)

    app = web.console()
    async with web.client(app) as client:
        await orchestrator.start()
        try:
            await orchestrator.trigger_many("good", [{"n": n} for n in range(500)])
            await orchestrator.trigger_many("moody", [{"n": n} for n in range(500)])
            async with asyncio.timeout(90):
                while (await client.get("/api/runs?limit=1")).json():
                    await orchestrator.wait_idle()
            samples = await scrape(client)
            async with orchestrator._database() as db, db.peek() as conn:
                sql = f"SELECT worker, outcome, duration_ms FROM {db.schema_prefix}run_history"
                rows = (await conn.exec_driver_sql(sql)).all()
        finally:
            await orchestrator.stop()
    counted = Counter((row.outcome, row.worker) for row in rows)
    assert labelled(samples, "jobrunner_runs_total") == counted
    assert sum(counted.values()) > 1000
    assert len({outcome for outcome, _ in counted}) >= 3
    took = Counter(row.worker for row in rows if row.duration_ms is not None)
    assert labelled(samples, "jobrunner_run_duration_seconds_count") == {(name,): n for name, n in took.items()}
    seconds = labelled(samples, "jobrunner_run_duration_seconds_sum")
    for name in took:
        spent = sum(row.duration_ms for row in rows if row.worker == name and row.duration_ms is not None) / 1000
        assert seconds[(name,)] == pytest.approx(spent)
    started = labelled(samples, "jobrunner_start_lateness_seconds_count")
    assert started == {(name,): sum(n for (_, worker), n in counted.items() if worker == name) for name in took}
    for part in ("tick", "claim", "finish"):
        assert samples[f"jobrunner_{part}_duration_seconds_count", frozenset()] > 0
    assert labelled(samples, "jobrunner_slots") == {("free",): 50, ("used",): 0}
    assert samples["jobrunner_tick_age_seconds", frozenset()] < 15
    assert not any(name.endswith("_created") for name, _ in samples)


async def test_gauges_tell_what_the_tables_say(web: Web):
    await web.stage.trigger("mail", due_at=web.stage.now - timedelta(seconds=90))
    await web.stage.trigger("mail", due_at=web.stage.now + timedelta(hours=1))
    await web.stage.sql("UPDATE {p}worker_state SET consecutive_failures = 3 WHERE worker = 'mail'")
    await web.stage.tick(slots=1, handlers=["fetch"])
    async with web.client() as client:
        await client.post("/api/workers/mail/disable")
        samples = await scrape(client)
    assert labelled(samples, "jobrunner_runs_waiting") == {("fetch",): 0, ("mail",): 2}
    assert labelled(samples, "jobrunner_runs_active") == {("running", "fetch"): 1}
    assert labelled(samples, "jobrunner_consecutive_failures") == {("fetch",): 0, ("mail",): 3}
    assert labelled(samples, "jobrunner_worker_enabled") == {("fetch",): 1, ("mail",): 0}
    assert 90 <= labelled(samples, "jobrunner_oldest_due_age_seconds")[("mail",)] < 150
    assert labelled(samples, "jobrunner_circuit")[("closed", "mail")] == 1
    assert labelled(samples, "jobrunner_worker_health")[("disabled", "mail")] == 1
    assert sum(n for (_, name), n in labelled(samples, "jobrunner_worker_health").items() if name == "mail") == 1
    assert ("scheduled", "NORMAL", "fetch") in labelled(samples, "jobrunner_worker_info")
    assert labelled(samples, "jobrunner_nodes")[("active",)] == 1
    assert samples["jobrunner_database_up", frozenset()] == 1
    assert samples["jobrunner_alerts_waiting", frozenset()] == 0
    assert len(labelled(samples, "jobrunner_build_info")) == 1


async def test_open_dead_letters_are_counted(web: Web):
    web.stage.after(10)
    await web.stage.trigger("mail")
    for _ in range(4):
        (run,) = [run for run in await web.stage.tick() if run.worker == "mail"]
        await web.stage.fail(run)
        web.stage.after(60)
    async with web.client() as client:
        samples = await scrape(client)
    assert labelled(samples, "jobrunner_dead_letters_open") == {("mail",): 1}


async def test_what_was_missed_is_counted_by_a_kind_and_not_by_its_text(web: Web):
    reasons = ("disabled by ann@desk: a secret", "paused until resumed", "no live node could run it", "was busy")
    app = web.console()
    async with web.client(app) as client:
        await scrape(client)  # from here on
        rows = [missed_row("fetch", Missed(T0, T0, n, reason), T0) for n, reason in enumerate(reasons, start=1)]
        async with web.stage.db.write() as conn:
            await write_missed(conn, rows)
        app.metrics.forget()
        samples = await scrape(client)
    kinds = ("disabled", "paused", "no_node", "not_started")
    assert labelled(samples, "jobrunner_missed_total") == {(kind, "fetch"): n for n, kind in enumerate(kinds, start=1)}


async def test_the_database_is_asked_once_however_many_scrape(web: Web, monkeypatch):
    asked = []

    async def read(*arguments):
        asked.append(arguments)
        return await gauges.read_gauges(*arguments)

    monkeypatch.setattr(metrics, "read_gauges", read)
    app = web.console()
    async with web.client(app) as client:
        answers = await asyncio.gather(*(client.get("/metrics") for _ in range(20)))
    assert {answer.status_code for answer in answers} == {200}
    assert len(asked) == 1


async def test_of_more_workers_than_are_named_the_others_are_one(web: Web, monkeypatch):
    monkeypatch.setattr(gauges, "MOST_NAMED", 2)
    monkeypatch.setattr(metrics, "MOST_NAMED", 2)
    await web.stage.register(triggered("a"), triggered("b"), triggered("z"))
    for name in ("a", "z", "mail"):
        await web.stage.trigger(name)
    app = web.console()
    for name in ("a", "b", "mail", "z", "z"):
        web.orchestrator.events.emit(started(name))
    async with web.client(app) as client:
        samples = await scrape(client)
    assert labelled(samples, "jobrunner_runs_waiting") == {("a",): 1, ("b",): 0, ("_other",): 2}
    assert labelled(samples, "jobrunner_start_lateness_seconds_count") == {("a",): 1, ("b",): 1, ("_other",): 3}


def started(name: str) -> e.RunStarted:
    return e.RunStarted(Run(1, name, Trigger.MANUAL, RunState.RUNNING, 1, T0, T0, {}, None, 1, False, started_at=T0))


async def test_without_the_database_the_nodes_own_numbers_are_told(web: Web):
    app = web.console()
    await web.stage.sql("UPDATE {p}jobrunner_schema_version SET version_num = '9999'")
    async with web.client(app) as client:
        samples = await scrape(client)
    assert samples["jobrunner_database_up", frozenset()] == 0
    assert not labelled(samples, "jobrunner_worker_enabled")


async def test_the_databases_gauges_can_be_left_out(web: Web):
    async with web.client(web.console(metrics_db=False)) as client:
        samples = await scrape(client)
    assert not labelled(samples, "jobrunner_worker_enabled")
    assert labelled(samples, "jobrunner_build_info")


async def test_the_statements_of_those_who_look_are_counted(web: Web):
    def counted(samples: Samples) -> float:
        return samples["jobrunner_http_statements_total", frozenset()]

    async with web.client(web.console(metrics_db=False)) as client:
        assert counted(await scrape(client)) == 0  # a scrape that looks at no database asks it nothing
        assert (await client.get("/")).status_code == 200
        first = counted(await scrape(client))
        assert first > 0
        assert (await client.get("/api/workers")).status_code == 200
        second = counted(await scrape(client))
        assert second > first
        assert counted(await scrape(client)) == second


async def test_a_statement_is_counted_once(web: Web):
    desk = Desk(web.orchestrator)
    async with desk.reading() as conn:
        before = desk.statements
        await conn.execute(sa.text("SELECT 2"))
        assert desk.statements == before + 1


async def test_openmetrics_is_told_to_who_asks_for_it(web: Web):
    async with web.client() as client:
        response = await client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert response.headers["content-type"].startswith("application/openmetrics-text")
    assert labelled(samples_of(response.text, parse_openmetrics), "jobrunner_worker_enabled")
