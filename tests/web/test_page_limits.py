"""Named limits over HTTP and in pages: which there are, how full each is, and setting them; on both databases."""

from __future__ import annotations

from typing import Any

import pytest

from jobrunner.policy.named_limits import check_limit
from jobrunner.storage.workers import definitions as workers
from jobrunner.web.pages.named_limits import headline
from tests.support.stage import triggered
from tests.web.conftest import Pages, Web
from tests.web.test_metrics import labelled, scrape


async def declare(web: Web, names: int = 1) -> None:
    """Declare `api`, named by `names` workers, of which the first has a run that is active; and `disk`, by none."""
    stage = web.stage
    configs = [triggered(f"pay-{number:02}", limits=["api"]) for number in range(names)]
    limits = [check_limit("api", 2, "100/1m"), check_limit("disk", rate="1/s")]
    async with stage.db.write() as conn:
        await workers.register(conn, stage.db.dialect, configs, None, stage.now, limits)
    await stage.trigger("pay-00")
    at = f"'{stage.now:%Y-%m-%d %H:%M:%S}.000000{'' if stage.db.is_sqlite else '+00'}'"
    await stage.sql(
        "UPDATE {p}runs SET state = 'running', slot = 0, fence = 1, node_id = 'n1',"
        f" started_at = {at}, first_started_at = {at}"
    )


async def audits(web: Web) -> list[tuple[Any, ...]]:
    rows = await web.stage.rows("SELECT action, worker FROM {p}audit_log WHERE action LIKE 'limit%' ORDER BY id")
    return [tuple(row.values()) for row in rows]


async def test_the_api_lists_and_shows_limits(web: Web):
    await declare(web, names=22)
    async with web.client(level="read") as client:
        first = await client.get("/api/limits?limit=1")
        assert [(row["name"], row["running"], row["workers"]) for row in first.json()] == [("api", 1, 22)]
        second = await client.get("/api/limits" + first.headers["link"].partition("<")[2].partition(">")[0])
        assert [row["name"] for row in second.json()] == ["disk"]
        assert "link" not in second.headers
        found = (await client.get("/api/limits/api")).json()
        assert (found["max_running"], found["rate"]) == (2, "100/1m")
        assert [each["worker"] for each in found["holders"]] == ["pay-00"]
        assert (found["workers"], len(found["worker_names"])) == (22, 20)
        missing = await client.get("/api/limits/apy")
        assert (missing.status_code, missing.json()) == (
            404,
            {"error": "no limit named 'apy'; did you mean 'api'?"},
        )


async def test_the_api_sets_and_unsets_as_the_command_does(web: Web):
    await declare(web)
    async with web.client(level="operate") as client:
        sent = {"values": {"max_running": 0, "rate": None}, "reason": "calm"}
        row = (await client.post("/api/limits/api/set", json=sent)).json()
        assert (row["max_running"], row["rate"], row["running"]) == (0, None, 1)
        row = (await client.post("/api/limits/api/unset", json={"fields": ["rate"]})).json()
        assert (row["max_running"], row["rate"]) == (0, "100/1m")
        for values, status in (({}, 400), ({"actor": "x"}, 400), ({"max_running": "x"}, 400)):
            assert (await client.post("/api/limits/api/set", json={"values": values})).status_code == status
        assert (await client.post("/api/limits/api/unset", json={"fields": ["rate"]})).status_code == 409
        assert (await client.post("/api/limits/new/set", json={"values": {"rate": "1/s"}})).status_code == 404
        made = await client.post("/api/limits/new/set", json={"values": {"rate": "1/s"}, "create": True})
        assert (made.status_code, made.json()["rate"]) == (200, "1/s")
    async with web.client(level="read") as client:
        assert (await client.post("/api/limits/api/set", json=sent)).status_code == 403
    assert await audits(web) == [("limit_set", None), ("limit_unset", None), ("limit_set", None)]


async def test_the_api_triggers_duplicates(web: Web):
    async with web.client(level="operate") as client:
        path = "/api/workers/mail/trigger"
        first = (await client.post(path, json={"key": "k", "payload": {"n": 1}})).json()
        same = await client.post(path, json={"key": "k", "payload": {"n": 2}, "on_duplicate": "replace"})
        assert same.json() == {**first, "is_new": False}
        late = {"key": "k", "on_duplicate": "postpone", "in": "1h", "at_most": "2h"}
        assert (await client.post(path, json=late)).status_code == 200
        assert (await client.post(path, json={"on_duplicate": "replace"})).status_code == 400
        assert (await client.post(path, json={"key": "k", "on_duplicate": "drop"})).status_code == 400
        run = (await client.get(f"/api/runs/{first['run_id']}")).json()
    assert run["payload"]["n"] == 2
    assert run["due_at"] > run["created_at"]


async def test_without_limits_the_page_says_how_there_would_be_one(pages: Pages):
    assert "There are none." in await pages.get("/limits")


async def test_pages_show_limits_and_who_runs_in_them(web: Web, pages: Pages):
    await declare(web, names=22)
    listed = await pages.get("/limits")
    assert 'href="./limits/api"' in listed
    assert 'href="./limits/disk"' in listed
    page = await pages.get("/limits/api", "read")
    assert "1 of 2 run now, at most 100/1m start." in page
    assert 'href="../workers/pay-00"' in page
    assert 'href="../runs/1"' in page
    assert "and 2 more" in page
    assert "jobrunner admin limit api" in page
    await pages.get("/limits/none", status=404)


async def test_a_form_sets_a_limit_and_takes_it_back(web: Web, pages: Pages):
    await declare(web)
    form = await pages.get("/limits/api/set", "operate")
    assert 'name="values.max_running"' in form
    assert 'name="create"' not in form
    sent = {"values.max_running": "0", "values.rate": "null", "reason": "calm"}
    answer = await pages.send("/limits/api/set", **sent)
    assert (answer.status_code, answer.headers["location"]) == (303, "../../limits/api")
    (row,) = await web.stage.rows("SELECT max_running, rate FROM {p}limits WHERE name = 'api'")
    assert row == {"max_running": 0, "rate": None}
    page = await pages.get("/limits/api")
    assert "1 of 0 run now; 1 more than it allows may end." in page
    assert 'value="rate"' in await pages.get("/limits/api/unset", "operate")
    assert (await pages.send("/limits/api/unset", fields="rate")).status_code == 303
    assert await web.stage.value("SELECT rate FROM {p}limits WHERE name = 'api'") == "100/1m"
    refused = await pages.send("/limits/api/set", **{"values.rate": "often"})
    assert refused.status_code == 400
    assert "is no rate" in refused.text
    assert await audits(web) == [("limit_set", None), ("limit_unset", None)]
    said = " ".join((await pages.get("/audit")).split())
    assert "changed the limit api: max_running from 2 to 0, rate from 100/1m to nothing: calm" in said
    await pages.get("/limits/api/set", "read", status=403)


async def test_the_definition_of_a_worker_shows_what_limits_it(web: Web, pages: Pages):
    await declare(web)
    async with web.client() as client:
        values = {"limit_key": "to", "max_running_per_key": 1, "fair": True, "rate": "5/s"}
        assert (await client.post("/api/workers/pay-00/set", json={"values": values})).status_code == 200
    page = await pages.get("/workers/pay-00")
    for name in ("limit_key", "max_running_per_key", "rate", "limits", "fair"):
        assert f'id="field-{name}"' in page
    form = await pages.send("/workers/pay-00/set", "admin", **{"values.fair": "false", "values.rate": "null"})
    assert form.status_code == 303
    (row,) = await web.stage.rows("SELECT fair, rate FROM {p}workers WHERE name = 'pay-00'")
    assert (bool(row["fair"]), row["rate"]) == (False, None)


async def test_metrics_tell_how_full_limits_are(web: Web):
    await declare(web)
    async with web.client() as client:
        samples = await scrape(client)
    assert labelled(samples, "jobrunner_limit_running") == {("api",): 1, ("disk",): 0}
    assert labelled(samples, "jobrunner_limit_max_running") == {("api",): 2}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"running": 0, "max_running": None, "rate": "1/s"}, "0 runs now, without a bound, at most 1/s start."),
        ({"running": 4, "max_running": 4, "rate": None}, "4 of 4 run now."),
    ],
)
def test_how_full_a_limit_is_is_said_in_words(row: dict[str, Any], said: str):
    assert headline(row) == said
