"""Alerts over HTTP, and that what ships for Grafana asks for the metrics that there are."""

from __future__ import annotations

import asyncio
import json
import re
from datetime import timedelta

from prometheus_client.parser import text_string_to_metric_families

from jobrunner.cli.main import main
from jobrunner.model.alerts import AlertKind, AlertRule
from jobrunner.storage.alerts import rules
from tests.cli.test_init import expressions
from tests.web.conftest import Web


async def with_incidents(web: Web) -> None:
    """Add a rule, and give two workers an incident each."""
    channel = {"type": "webhook", "url": "http://127.0.0.1:9/"}
    rule = AlertRule("ops", frozenset({AlertKind.DEAD_LETTER}), channel=channel)
    await rules.add(web.stage.db, rule, web.stage.now, "ann")
    await web.stage.tick(handlers=["fetch"])
    await web.stage.trigger("mail", payload={"card": {"number": "0815"}})
    for _ in range(4):
        (run,) = await web.stage.tick(handlers=["mail"])
        await web.stage.fail(run)
        web.stage.after(60)


async def test_incidents_are_those_of_the_command_line(web: Web, capsys):
    await with_incidents(web)
    async with web.client(level="read") as client:
        answered = (await client.get("/api/alerts?worker=mail")).json()
        assert (await client.get("/api/alerts?worker=fetch")).json() == []
        assert (await client.get("/api/alerts?all=true&after=1")).json() == []
    capsys.readouterr()
    assert await asyncio.to_thread(main, ["alerts", "list", "--json", "--database-url", web.stage.url]) == 0
    assert answered == json.loads(capsys.readouterr().out)
    assert [(row["kind"], row["worker"], row["count"]) for row in answered] == [("dead_letter", "mail", 1)]
    assert "0815" not in json.dumps(answered)


async def test_messages_that_wait_are_counted(web: Web):
    await with_incidents(web)
    async with web.client() as client:
        text = (await client.get("/metrics")).text
    assert "\njobrunner_alerts_waiting 1.0\n" in text


async def test_what_ships_for_grafana_asks_for_metrics_and_labels_that_there_are(web: Web):
    await web.orchestrator.start()
    await web.stage.trigger("mail", due_at=web.stage.now - timedelta(seconds=5))
    async with web.client() as client:
        families = {
            family.name: family for family in text_string_to_metric_families((await client.get("/metrics")).text)
        }
    labels = {name: {label for sample in of.samples for label in sample.labels} for name, of in families.items()}
    for expression in expressions():
        for name in re.findall(r"jobrunner_[a-z_]+", expression):
            plain = name.removesuffix("_bucket").removesuffix("_total")
            assert plain in families, name
            asked = re.findall(rf"{name}{{([^}}]*)}}", expression)
            for label in re.findall(r"(\w+)[=!]", ",".join(asked)):
                is_counted = families[plain].samples  # of a counter that counted nothing nobody knows the labels
                assert label in labels[plain] or not is_counted or label in {"worker", "outcome"}, (name, label)
