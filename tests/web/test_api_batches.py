"""Batches over HTTP: pages, one of them, and a trigger that joins one."""

from __future__ import annotations

from tests.web.conftest import Web


async def test_batches_come_in_pages_and_one_by_one(web: Web):
    for _ in range(3):
        await web.stage.sql("INSERT INTO {p}batches (on_finish, payload) VALUES ('mail', '{\"to\": \"ann\"}')")
    async with web.client() as client:
        first = await client.get("/api/batches?limit=2")
        assert [row["id"] for row in first.json()] == [3, 2]
        second = await client.get(f"/api/batches{first.headers['link'].split('>')[0].removeprefix('<')}")
        assert [row["id"] for row in second.json()] == [1]
        assert "link" not in second.headers
        one = (await client.get("/api/batches/3")).json()
        assert (one, one["payload"]) == (first.json()[0], {"to": "ann"})
        assert (await client.get("/api/batches/4711")).status_code == 404
    async with web.client(level="read") as reader:
        assert "payload" not in (await reader.get("/api/batches/3")).json()
        assert all("payload" not in row for row in (await reader.get("/api/batches")).json())


async def test_a_trigger_joins_an_open_batch_and_no_other(web: Web):
    await web.stage.sql("INSERT INTO {p}batches (on_finish) VALUES ('mail')")
    async with web.client(level="operate") as client:
        made = await client.post("/api/workers/mail/trigger", json={"batch": 1})
        assert await web.stage.column("SELECT batch_id FROM {p}runs") == [1], made.text
        refused = await client.post("/api/workers/mail/trigger", json={"batch": 7})
        said = "batch 7 does not exist, or has finished; begin another"
        assert (refused.status_code, refused.json()) == (409, {"error": said})
