"""The API on both databases: the rows of the command line, page by page, and its verbs with their audit rows."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from typing import Any

import httpx
import pytest

from jobrunner.cli.main import main
from jobrunner.errors import ReadTooLong
from jobrunner.policy.hidden import MASK
from jobrunner.web import app
from jobrunner.web.api import ask, reads
from tests.support.stage import triggered
from tests.web.conftest import Web


async def pages(client: httpx.AsyncClient, url: str) -> list[list[dict]]:
    """Ask for all pages of a list, as the Link headers lead."""
    found, at = [], httpx.URL(url)
    while True:
        response = await client.get(at)
        assert response.status_code == 200, response.text
        found.append(response.json())
        link = response.links.get("next")
        if link is None:
            return found
        at = at.join(link["url"])


async def run_some(web: Web, *payloads: dict, is_failing: bool = False) -> None:
    """Run `mail` once for each payload; failing, until it is a dead letter."""
    for payload in payloads:
        await web.stage.trigger("mail", payload=payload)
        for _ in range(4 if is_failing else 1):
            (run,) = [run for run in await web.stage.tick() if run.worker == "mail"]
            await (web.stage.fail(run) if is_failing else web.stage.end(run))
            web.stage.after(30)


ADD_RULE = ["alerts", "add", "ops", "--webhook", "https://hooks.example.org/x"]


SAME = [
    ("/api/workers", ["status"]),
    ("/api/history", ["history"]),
    ("/api/dead-letters", ["dead-letters", "list"]),
    ("/api/dead-letters/1", ["dead-letters", "show", "1"]),
    ("/api/runs", ["runs"]),
    ("/api/runs/1", ["show", "1"]),
    ("/api/audit", ["admin", "audit"]),
    ("/api/nodes", ["admin", "nodes"]),
    ("/api/alerts?all=true", ["alerts", "list", "--all"]),
    ("/api/alerts/rules", ["alerts", "rules"]),
    ("/api/bulk", ["bulk", "list"]),
    ("/api/batches", ["batches"]),
    ("/api/batches/1", ["batches", "1"]),
    ("/api/history?q=outcome:failed payload.to:ann", ["history", "outcome:failed", "payload.to:ann"]),
]


async def test_the_rows_are_those_of_the_command_line(web: Web, capsys):
    async def run(*command: str) -> str:
        capsys.readouterr()
        assert await asyncio.to_thread(main, [*command, "--database-url", web.stage.url]) == 0
        return capsys.readouterr().out

    await run(*ADD_RULE)
    web.stage.now -= timedelta(hours=1)
    await run_some(web, {"to": "ann"}, is_failing=True)
    await run_some(web, {"to": "ben"})
    await web.stage.trigger("mail", due_at=web.stage.after(7200))
    async with web.client() as client:
        await client.post("/api/workers/fetch/pause", json={"reason": "the source is away"})
        await client.post("/api/bulk", json={"action": "discard", "filter": "worker:none"})
        await web.stage.sql("INSERT INTO {p}batches (on_finish, payload) VALUES ('mail', '{\"to\": \"ann\"}')")
        for url, command in SAME:
            answered = (await client.get(url)).json()
            assert answered, url
            assert answered == json.loads(await run(*command, "--json")), url


PAGED = [
    ("/api/history", "id"),
    ("/api/history?worker=mail", "id"),
    ("/api/history?since=2h", "id"),
    ("/api/history?q=trigger:manual", "id"),
    ("/api/dead-letters?status=all", "id"),
    ("/api/runs", "id"),
    ("/api/runs?worker=mail", "id"),
    ("/api/audit", "id"),
    ("/api/workers", "name"),
    ("/api/upcoming?for=4h", "due_at"),
    ("/api/nodes?all=true", "id"),
    ("/api/alerts/rules", "name"),
]


async def test_pages_hold_every_row_once_and_in_order(web: Web):
    await web.stage.register(triggered("other"), triggered("third"))
    web.stage.now -= timedelta(minutes=30)
    await run_some(web, {}, {}, is_failing=True)
    for name in ("mail", "mail", "other"):
        await web.stage.trigger(name)
    await web.stage.tick(node="n1", handlers=["mail", "other"])
    for late in (60, 60, 30):
        await web.stage.trigger("mail", due_at=web.stage.now + timedelta(hours=2, seconds=late))
    await web.stage.join("n2")
    for rule in ("ops", "more", "third"):
        added = [*ADD_RULE[:2], rule, *ADD_RULE[3:], "--database-url", web.stage.url]
        assert await asyncio.to_thread(main, added) == 0
    async with web.client() as client:
        for name in ("enable", "disable"):
            await client.post(f"/api/workers/other/{name}")
        for url, key in PAGED:
            (whole,) = await pages(client, f"{url}{'&' if '?' in url else '?'}limit=500")
            few = await pages(client, f"{url}{'&' if '?' in url else '?'}limit=2")
            assert len(whole) > 1, url
            assert [row[key] for page in few for row in page] == [row[key] for row in whole], url
            assert [len(page) for page in few[:-1]] == [2] * (len(few) - 1), url


@pytest.mark.parametrize("level", ["read", "admin"])
async def test_a_page_ends_early_where_its_rows_are_large_and_none_is_left_out(web: Web, monkeypatch, level):
    for module in (ask, app):
        monkeypatch.setattr(module, "MOST_PAGE_BYTES", 4000)
    monkeypatch.setattr(ask, "_FIRST_ROWS", 3)
    await run_some(web, *({"text": "x" * 1500 * n} for n in (1, 0, 4)), is_failing=True)
    for n in (0, 1, 0, 4, 0):
        await web.stage.trigger("mail", payload={"text": "x" * 1500 * n})
    async with web.client(level=level) as client:
        for url in ("/api/history", "/api/history?q=worker:mail", "/api/history?q=outcome:failed", "/api/runs"):
            mark = "&" if "?" in url else "?"
            few = await pages(client, f"{url}{mark}limit=1")
            found = await pages(client, f"{url}{mark}limit=500")
            assert [row["id"] for page in found for row in page] == [row["id"] for page in few for row in page], url
            assert 1 < len(found) < len(few), url
            assert all(len(json.dumps(page)) < 4500 for page in found if len(page) > 1), url
        assert len(await pages(client, "/api/dead-letters?status=all")) > 1


SECRET = "hush-hush"


async def test_of_addresses_that_let_in_elsewhere_only_the_host_is_shown_below_admin(web: Web):
    ping = f"https://hc.example.org:8443/ping/{SECRET}"
    await web.stage.register(triggered("told", ping=ping))
    for channel in (["--webhook", f"https://hooks.example.org/{SECRET}"], ["--command", f"notify --as {SECRET}"]):
        added = ["alerts", "add", channel[0].strip("-"), *channel, "--database-url", web.stage.url]
        assert await asyncio.to_thread(main, added) == 0
    async with web.client() as admin, web.client(level="operate") as other:
        await admin.post("/api/workers/told/set", json={"values": {"ping": f"{ping}-too"}})
        for path in ("/api/workers/told", "/api/alerts/rules", "/api/audit"):
            assert SECRET in (await admin.get(path)).text, path
            assert SECRET not in (await other.get(path)).text, path
        assert (await other.get("/api/workers/told")).json()["ping"] == "https://hc.example.org:8443/…"
        channels = {row["name"]: row["channel"] for row in (await other.get("/api/alerts/rules")).json()}
        assert channels["webhook"]["url"] == "https://hooks.example.org/…"
        assert channels["command"]["command"] == ["notify", "…"]


async def test_a_run_is_shown_with_its_attempts_while_it_waits_and_when_it_has_ended(web: Web):
    run_id = await web.stage.trigger("mail", payload={"to": "ann"})
    async with web.client() as client:
        waiting = (await client.get(f"/api/runs/{run_id}")).json()
        (run,) = [run for run in await web.stage.tick() if run.worker == "mail"]
        await web.stage.fail(run)
        retrying = (await client.get(f"/api/runs/{run_id}")).json()
        (await client.post(f"/api/runs/{run_id}/cancel", json={"reason": "no more"})).raise_for_status()
        ended = (await client.get(f"/api/runs/{run_id}")).json()
    assert (waiting["state"], waiting["id"], waiting["attempts"]) == ("pending", run_id, [])
    assert (retrying["state"], [each["outcome"] for each in retrying["attempts"]]) == ("pending", ["failed"])
    assert (ended["state"], ended["attempts"][-1]["reason"]) == ("cancelled", "no more")


async def test_verbs_do_what_the_command_line_does_and_write_who_did_it(web: Web):
    async with web.client(level="admin") as client:

        async def post(path: str, **body: object) -> dict:
            response = await client.post(f"/api{path}", json=body)
            assert response.status_code == 200, response.text
            return response.json()

        assert (await post("/workers/mail/disable", reason="too loud"))["is_enabled"] is False
        assert (await post("/workers/mail/enable", reason="it is mended"))["is_enabled"] is True
        assert (await post("/workers/mail/pause", reason="lunch", **{"for": "1h"}))["paused_reason"] == "lunch"
        assert (await post("/workers/mail/resume"))["paused_until"] is None
        assert (await post("/workers/mail/set", values={"max_retries": 0}))["max_retries"] == 0
        first = await post("/workers/mail/trigger", payload={"to": "ann"}, key="k", priority="HIGH")
        again = await post("/workers/mail/trigger", key="k")
        assert (first["is_new"], again) == (True, {"run_id": first["run_id"], "worker": "mail", "is_new": False})
        web.stage.after(60)
        (run,) = [run for run in await web.stage.tick() if run.worker == "mail"]
        assert (run.payload, run.priority) == ({"to": "ann"}, 2)
        await web.stage.fail(run)
        replayed = await post("/dead-letters/1/replay", payload={"to": "ben"})
        assert (await post(f"/runs/{replayed['run_id']}/cancel"))["state"] == "cancelled"
        assert (await post("/workers/mail/unset", fields=["max_retries"]))["max_retries"] == 3
    rows = await web.stage.rows("SELECT actor, action, worker FROM {p}audit_log WHERE action <> 'upgrade' ORDER BY id")
    assert [row["action"] for row in rows] == [
        *("disable", "enable", "pause", "resume", "set", "replay", "cancel", "unset")
    ]
    assert {row["actor"] for row in rows} == {"admin@http"}


async def test_a_letter_is_discarded_once(web: Web):
    await run_some(web, {}, is_failing=True)
    async with web.client(level="operate") as client:
        assert (await client.post("/api/dead-letters/1/discard")).json() == {"letter_id": 1, "run_id": None}
        again = await client.post("/api/dead-letters/1/discard")
    assert (again.status_code, again.json()["error"].split(";")[0]) == (409, "letter 1 is already discarded")


async def test_a_form_does_what_json_does(web: Web):
    async with web.client() as client:
        form = {"payload": '{"to": "ann"}', "in": "15m", "force": "on", "key": ""}
        made = (await client.post("/api/workers/mail/trigger", data=form)).json()
        run = (await client.get(f"/api/runs/{made['run_id']}")).json()
        unset = await client.post("/api/workers/mail/unset", content="fields=a&fields=b", headers=FORM)
    assert (run["payload"], run["is_forced"], run["key"]) == ({"to": "ann"}, True, None)
    assert unset.status_code == 422  # both were read, and neither is a field


FORM = {"Content-Type": "application/x-www-form-urlencoded"}


REFUSED: list[tuple[str, str, Any, int, str]] = [
    ("GET", "/api/workers/no-such", None, 404, "no worker named 'no-such'"),
    ("GET", "/api/workers/mali", None, 404, "did you mean 'mail'?"),
    ("GET", "/api/runs/4711", None, 404, "no run 4711"),
    ("GET", "/api/runs/word", None, 400, "id must be a whole number"),
    ("GET", f"/api/runs/{2**63}", None, 400, "must be at most"),
    ("GET", "/api/dead-letters/4711", None, 404, "no dead letter 4711"),
    ("GET", "/api/history?worker=no-such", None, 404, "no worker named"),
    ("GET", "/api/history?limit=501", None, 400, "limit must be from 1 to 500"),
    ("GET", "/api/history?limit=1&limit=2", None, 400, "limit is given twice"),
    ("GET", "/api/history?outcome=fialed", None, 400, "none of succeeded"),
    ("GET", "/api/history?since=later", None, 400, "since"),
    ("GET", "/api/history?after=x", None, 400, "no place in the history"),
    ("GET", "/api/history?q=wroker:x", None, 400, "did you mean worker?"),
    ("GET", "/api/history?q=worker:x&worker=y", None, 400, "q and worker are both given"),
    ("GET", "/api/history?wroker=x", None, 400, "no such field: wroker; did you mean worker?"),
    ("GET", "/api/runs?after=x", None, 400, "no place in this list"),
    ("GET", "/api/upcoming?for=word", None, 400, "for"),
    ("GET", "/api/nodes?all=perhaps", None, 400, "all must be true or false"),
    ("GET", "/api/audit?after=1.5", None, 400, "after must be a whole number"),
    ("DELETE", "/api/workers/mail", None, 405, "does not take that method"),
    ("GET", "/api/workers/mail/enable", None, 405, "does not take that method"),
    ("GET", "/api/workers/", None, 404, "there is nothing at this address"),
    ("POST", "/api/workers/no-such/enable", {}, 404, "no worker named"),
    ("POST", "/api/workers/no-such/trigger", {}, 404, "no worker named"),
    ("POST", "/api/dead-letters/3/discard", {"reason": "x"}, 400, "this route takes nothing"),
    ("POST", "/api/workers/mail/trigger", {"payload": [1]}, 422, "payload must be a JSON object"),
    ("POST", "/api/workers/mail/trigger", {"payload": {"x": "y" * 1_100_000}}, 422, "1 MiB"),
    ("POST", "/api/workers/mail/trigger", {"at": "tomorrow"}, 400, "at: 'tomorrow' is no time"),
    ("POST", "/api/workers/mail/trigger", {"key_scope": "all"}, 400, "none of waiting, live"),
    ("POST", "/api/workers/mail/pause", {"for": "1h", "until": "2999-01-01"}, 400, "both a length and an end"),
    ("POST", "/api/workers/mail/set", {"values": {"actor": "x"}}, 422, "'actor' cannot be set"),
    ("POST", "/api/workers/mail/set", {"values": {"max_retries": "many"}}, 422, "max_retries"),
    ("POST", "/api/workers/mail/set", {"values": {"cron": "* * *"}}, 422, "cron"),
    ("POST", "/api/workers/mail/set", {}, 400, "values is missing"),
    ("POST", "/api/workers/mail/unset", {"fields": ["max_retries"]}, 409, "has no override of max_retries"),
    ("POST", "/api/runs/4711/cancel", {}, 404, "no live run 4711"),
    ("POST", "/api/dead-letters/4711/replay", {}, 404, "no dead letter 4711"),
]


async def test_what_cannot_be_done_is_said_in_a_sentence(web: Web):
    async with web.client() as client:
        for method, path, body, status, said in REFUSED:
            response = await client.request(method, path, json=body)
            assert response.status_code == status, (path, response.text)
            assert set(response.json()) == {"error"}
            assert said in response.json()["error"]
            assert "\n" not in response.json()["error"]


BODIES = [
    (b"{", "application/json", 400),
    (b"[1]", "application/json", 400),
    (b'{"payload": NaN}', "application/json", 400),
    (b"\xff", "application/json", 400),
    (b"[" * 100_000, "application/json", 400),
    (b"<a/>", "text/xml", 400),
    (b'{"payload": {"to": "ann"}}', "application/x-www-form-urlencoded", 200),
    (b" " * (8 * 1024 * 1024 + 1), "application/json", 413),
]


async def test_a_body_that_cannot_be_read_is_refused(web: Web):
    async with web.client() as client:
        for content, kind, status in BODIES:
            response = await client.post("/api/workers/mail/trigger", content=content, headers={"Content-Type": kind})
            assert response.status_code == status, (content[:20], kind)
            assert len(response.text) < 500


async def test_a_read_that_takes_too_long_is_given_up_with_what_to_ask_for(web: Web, monkeypatch):
    async def slow(*_, **__):
        raise ReadTooLong(2.0)

    monkeypatch.setattr(reads, "read_history", slow)
    async with web.client() as client:
        response = await client.get("/api/history")
    assert (response.status_code, response.headers["retry-after"]) == (503, "5")
    assert "ask for less: one worker, a shorter time" in response.json()["error"]


async def test_a_fault_of_ours_is_no_traceback_for_the_one_who_asks(web: Web, monkeypatch, caplog):
    async def broken(*_, **__):
        raise KeyError("a secret")

    monkeypatch.setattr(reads, "read_history", broken)
    async with web.client() as client:
        response = await client.get("/api/history")
    assert (response.status_code, response.json()) == (500, {"error": "the server failed; its log says more"})
    assert "a secret" in caplog.text


async def test_hidden_fields_are_masked_below_admin_everywhere(web: Web):
    secret = {"card": {"number": "0815", "name": "ben"}}
    await run_some(web, secret, is_failing=True)
    run_id = await web.stage.trigger("mail", payload=secret)
    async with web.client() as admin, web.client(level="read") as reader, web.client(level="operate") as operator:
        values = {"payload": {"card": {"number": "2342"}}}
        assert (await admin.post("/api/workers/mail/set", json={"values": values})).status_code == 200
        for path in (
            "/api/workers/mail",
            "/api/history",
            "/api/history?q=worker:mail",
            "/api/dead-letters",
            "/api/dead-letters/1",
            "/api/runs",
            "/api/runs/1",
            f"/api/runs/{run_id}",
            "/api/audit",
        ):
            whole = (await admin.get(path)).text
            assert any(number in whole for number in ("0815", "2342", "4711")), path
            for other in (reader, operator):
                masked = (await other.get(path)).text
                assert not any(f'"{number}"' in masked for number in ("0815", "2342", "4711")), path
                assert MASK in masked, path


async def test_payloads_of_a_worker_that_is_gone_are_hidden_whole(web: Web):
    await run_some(web, {"card": {"number": "0815"}})
    await web.stage.sql("DELETE FROM {p}worker_state WHERE worker = 'mail'")
    await web.stage.sql("DELETE FROM {p}workers WHERE name = 'mail'")
    async with web.client(level="read") as client:
        (row,) = (await client.get("/api/history")).json()
    assert row["payload"] == MASK


async def test_payloads_of_a_worker_that_is_gone_cannot_be_searched_below_admin(web: Web):
    await run_some(web, {"card": {"number": "0815"}})
    await web.stage.sql("DELETE FROM {p}worker_state WHERE worker = 'mail'")
    await web.stage.sql("DELETE FROM {p}workers WHERE name = 'mail'")
    asked = {"q": "payload.card.number:0815"}
    async with web.client(level="operate") as other, web.client() as admin:
        assert (await other.get("/api/history", params=asked)).json() == []
        assert len((await admin.get("/api/history", params=asked)).json()) == 1


async def test_letters_of_a_worker_that_is_gone_cannot_be_counted_by_their_payloads(web: Web):
    await run_some(web, {"card": {"number": "0815"}, "to": "ann"}, is_failing=True)
    body = {"action": "discard", "dry_run": True}
    wanted = "payload.to:ann"
    async with web.client(level="operate") as other, web.client() as admin:
        named = await other.post("/api/bulk", json={**body, "filter": f"worker:mail {wanted}"})
        assert named.json()["expected"] == 1
        await web.stage.sql("DELETE FROM {p}worker_state WHERE worker = 'mail'")
        await web.stage.sql("DELETE FROM {p}workers WHERE name = 'mail'")
        for narrowed, status in (("", 403), ("worker:mai* ", 403), ("worker:mail ", 404)):
            refused = await other.post("/api/bulk", json={**body, "filter": f"{narrowed}{wanted}"})
            assert refused.status_code == status, narrowed
        assert (await admin.post("/api/bulk", json={**body, "filter": wanted})).json()["expected"] == 1


async def test_what_an_administrator_filtered_by_is_not_shown_to_others(web: Web):
    body = {"action": "discard", "filter": "worker:mail payload.card.number:0815"}
    async with web.client() as admin, web.client(level="operate") as other:
        made = (await admin.post("/api/bulk", json=body)).json()
        assert made["filter"] == body["filter"]
        for path in ("/api/bulk", f"/api/bulk/{made['id']}", "/api/audit"):
            assert "0815" in (await admin.get(path)).text
            masked = (await other.get(path)).text
            assert "0815" not in masked
            assert f"worker:mail payload.card.number:{MASK}" in masked


async def test_a_mask_in_a_list_is_put_back_by_its_place_and_never_stored(web: Web):
    cards = [{"number": "1", "name": "ann"}, {"number": "2", "name": "ben"}]
    await web.stage.register(triggered("pay", hidden_fields=("cards.number",), payload={"cards": cards}))
    async with web.client(level="operate") as client:
        shown = (await client.get("/api/workers/pay")).json()["payload"]
        shown["cards"][0]["name"] = "eve"
        assert (await client.post("/api/workers/pay/trigger", json={"payload": shown})).status_code == 200
        refused = await client.post("/api/workers/pay/trigger", json={"payload": {"cards": shown["cards"][:1]}})
        assert refused.status_code == 422
        assert refused.json()["error"].startswith(f"cards.number is {MASK}")
        assert (await client.get("/api/history?q=payload.cards.0.number:1")).status_code == 403
    (stored,) = await web.stage.column("SELECT payload FROM {p}runs")
    found = json.loads(stored) if isinstance(stored, str) else stored
    assert found["cards"] == [{"number": "1", "name": "eve"}, {"number": "2", "name": "ben"}]


async def test_whoever_may_not_see_a_field_can_edit_the_others(web: Web):
    await run_some(web, {"card": {"number": "0815", "name": "ben"}}, is_failing=True)
    async with web.client(level="operate") as client:
        shown = (await client.get("/api/dead-letters/1")).json()["payload"]
        assert shown == {"card": {"number": MASK, "name": "ben"}}
        shown["card"]["name"] = "eve"
        await client.post("/api/dead-letters/1/replay", json={"payload": shown})
        await client.post("/api/workers/mail/trigger", json={"payload": shown})
        elsewhere = await client.post("/api/workers/fetch/trigger", json={"payload": {"card": {"number": MASK}}})
    payloads = await web.stage.column("SELECT payload FROM {p}runs WHERE worker = 'mail' ORDER BY id")
    found = [json.loads(each) if isinstance(each, str) else each for each in payloads]
    assert [each["card"] for each in found] == [
        {"number": "0815", "name": "eve"},
        {"number": "4711", "name": "eve"},  # the worker's own
    ]
    assert elsewhere.status_code == 200  # `fetch` hides nothing: there it is a text as any


async def test_nobody_can_search_for_the_value_of_a_field_that_is_hidden_from_them(web: Web):
    await run_some(web, {"card": {"number": "0815", "name": "ben"}})
    async with web.client() as admin, web.client(level="operate") as other:
        for term, status in (
            ("card.number:0815", 403),
            ("card:x", 403),
            ("card.number.x:1", 403),
            ("card.name:ben", 200),
        ):
            response = await other.get("/api/history", params={"q": f"payload.{term}"})
            assert response.status_code == status, term
        assert len((await admin.get("/api/history", params={"q": "payload.card.number:0815"})).json()) == 1


async def test_a_search_that_ended_early_says_how_far_it_looked(web: Web, monkeypatch):
    await run_some(web, *({"n": number} for number in range(5)))
    monkeypatch.setattr("jobrunner.storage.reading.search.WINDOW_ROWS", 2)
    async with web.client() as client:
        response = await client.get("/api/history", params={"q": "payload.n:0"})
        assert (response.json(), response.headers["jobrunner-searched"]) == ([], "2")
        found = await pages(client, "/api/history?q=payload.n:0")
    assert [row["payload"]["n"] for page in found for row in page] == [0]


async def test_a_bulk_operation_is_seen_first_and_is_not_done_to_other_than_was_seen(web: Web):
    for number in range(3):
        await web.stage.trigger("mail", payload={"n": number, "card": {"number": "0815"}})
    order = {"action": "cancel", "filter": "worker:mail", "reason": "no more"}
    async with web.client(level="operate") as client:
        seen = (await client.post("/api/bulk", json={**order, "dry_run": True})).json()
        assert (seen["expected"], len(seen["examples"])) == (3, 3)
        assert {tuple(sorted(row)) for row in seen["examples"]} == {("id", "state", "worker")}
        await web.stage.trigger("mail")
        refused = await client.post("/api/bulk", json={**order, "expected": 3})
        assert (refused.status_code, refused.json()["error"].split(";")[0]) == (409, "4 fit now, not 3")
        hidden = await client.post("/api/bulk", json={**order, "filter": "payload.card.number:0815"})
        assert hidden.status_code == 403
        begun = (await client.post("/api/bulk", json={**order, "expected": 4, "rate": 5})).json()
        assert (begun["state"], begun["expected"], begun["actor"]) == ("running", 4, "operate@http")
        stopped = (await client.post(f"/api/bulk/{begun['id']}/stop")).json()
        assert stopped["state"] == "stopped"
        assert (await client.post(f"/api/bulk/{begun['id']}/stop")).status_code == 409
        assert [row["id"] for row in (await client.get("/api/bulk")).json()] == [begun["id"]]
        assert (await client.get(f"/api/bulk/{begun['id']}")).json() == stopped
        for body in ({}, {"action": "enable", "filter": "x"}, {**order, "filter": ""}, {**order, "rate": -1}):
            assert (await client.post("/api/bulk", json=body)).status_code == 400, body
        assert (await client.get("/api/bulk/4711")).status_code == 404


async def test_what_a_node_elsewhere_has_said_of_a_payload_is_refused_at_once_and_a_trace_goes_on(web: Web):
    schema = {"type": "object", "properties": {"to": {"type": "string"}}, "required": ["to"]}
    await web.stage.register(triggered("send", payload_schema=schema))
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with web.client() as client:
        refused = await client.post("/api/workers/send/trigger", json={"payload": {}})
        assert (refused.status_code, "to" in refused.json()["error"]) == (422, True)
        for said in (trace, "nonsense"):
            made = await client.post(
                "/api/workers/send/trigger", json={"payload": {"to": "ann"}}, headers={"traceparent": said}
            )
            assert made.status_code == 200
    assert await web.stage.column("SELECT trace_context FROM {p}runs ORDER BY id") == [trace, None]
