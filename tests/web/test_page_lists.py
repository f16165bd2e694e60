"""The pages of nodes, of the audit log and of alerts."""

from __future__ import annotations

from datetime import timedelta

import pytest

from jobrunner.model.alerts import AlertKind, AlertRule
from jobrunner.storage.alerts import rules
from jobrunner.storage.records.audit import audit_row, write_audits
from jobrunner.storage.tables.kept_tables import AUDIT_ACTIONS
from tests.web.conftest import Web

HOSTILE = "<img src=x onerror=alert(1)>\x1b[31m\u202e"
SHOWN = "&lt;img src=x onerror=alert(1)&gt;\\x1b[31m\\u202e"


async def text_of(web: Web, path: str, level: str = "admin") -> str:
    async with web.client(level=level) as client:
        answer = await client.get(path)
    assert answer.status_code == 200, answer.text[-2000:]
    return answer.text


async def decided(web: Web, action: str, worker: str | None, detail: dict, actor: str = "ada@desk") -> None:
    async with web.stage.db.write() as conn:
        await write_audits(conn, [audit_row(action, worker, detail, web.stage.now, actor)])


# --- nodes --------------------------------------------------------------------------------------------------------


async def test_a_node_is_shown_with_what_it_holds(web: Web):
    await web.stage.trigger("mail")
    (run,) = await web.stage.tick(handlers=["mail"])
    page = await text_of(web, "/nodes")
    assert "1 active." in page
    assert "1 of 5" in page
    assert f'href="runs/{run.id}"' in page.replace("./", "")
    assert 'id="node-n1"' in page


async def test_a_node_that_is_not_heard_of_is_silent(web: Web):
    await web.stage.sql("UPDATE {p}nodes SET lease_seconds = 30")
    moment = web.stage.now - timedelta(hours=2)
    await web.stage.sql(f"UPDATE {{p}}nodes SET heartbeat_at = '{moment:%Y-%m-%d %H:%M:%S.%f}'")
    page = await text_of(web, "/nodes")
    assert "silent" in page
    assert "its row says active" in page
    assert "No node takes runs." in page


async def test_nodes_that_are_gone_are_shown_when_asked_for(web: Web):
    await web.stage.sql("UPDATE {p}nodes SET state = 'lost'")
    assert "No node lives" in await text_of(web, "/nodes")
    page = await text_of(web, "/nodes?all=1")
    assert 'id="node-n1"' in page
    assert "lost" in page


# --- audit --------------------------------------------------------------------------------------------------------


async def test_a_decision_is_a_sentence(web: Web):
    await decided(web, "pause", "mail", {"until": "2026-03-02T14:00:00Z", "reason": "the API is down"})
    page = await text_of(web, "/audit")
    assert "ada@desk" in page
    assert "until 2026-03-02 14:00:00 UTC: the API is down" in page
    assert "<summary>pause</summary>" in page


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("worker=mail", {"mail"}),
        ("actor=bob", {"fetch"}),
        ("action=disable", {"fetch"}),
        ("since=1h", {"mail", "fetch"}),
        ("worker=mail&actor=bob", set()),
        ("worker=&actor=&action=&since=", {"mail", "fetch"}),
    ],
)
async def test_filters_narrow_the_audit(web: Web, asked, found):
    await decided(web, "enable", "mail", {})
    await decided(web, "disable", "fetch", {"reason": "x"}, "bob@desk")
    page = await text_of(web, f"/audit?{asked}")
    assert {name for name in ("mail", "fetch") if f"<bdi>{name}</bdi></a>" in page} == found


async def test_the_form_of_the_audit_keeps_what_was_asked(web: Web):
    page = await text_of(web, "/audit?worker=mail&action=trip")
    assert 'name="worker" value="mail"' in page
    assert '<option value="trip" selected>' in page
    assert all(f'<option value="{action}"' in page for action in AUDIT_ACTIONS)


async def test_an_action_that_there_is_not_is_refused(web: Web):
    async with web.client() as client:
        assert (await client.get("/audit?action=nothing")).status_code == 400


async def test_pages_of_the_audit_follow_each_other(web: Web):
    for number in range(60):
        await decided(web, "disable", "mail", {"reason": f"reason-{number:03}"})
    first = await text_of(web, "/audit?worker=mail")
    address = first.partition('rel="next"')[0].rpartition('href="')[2].partition('"')[0]
    second = await text_of(web, "/" + address.lstrip("./").replace("&amp;", "&"))
    shown = {number for number in range(60) if f"reason-{number:03}" in first}
    rest = {number for number in range(60) if f"reason-{number:03}" in second}
    assert (len(shown), shown & rest, shown | rest) == (50, set(), set(range(60)))


@pytest.mark.parametrize("level", ["read", "admin"])
async def test_hidden_fields_are_masked_in_the_audit_below_admin(web: Web, level):
    detail = {
        "old": {"ping": "https://hc.example/secret-uuid"},
        "new": {"ping": None, "payload": {"card": {"number": "0815"}}},
    }
    await decided(web, "set", "mail", detail)
    page = await text_of(web, "/audit", level)
    assert ("0815" in page) == ("secret-uuid" in page) == (level == "admin")


async def test_hostile_decisions_are_text(web: Web):
    await decided(web, "disable", "mail", {"reason": HOSTILE, HOSTILE: [HOSTILE]}, HOSTILE)
    page = await text_of(web, "/audit")
    assert "<img" not in page
    assert SHOWN in page
    assert "\x1b" not in page
    assert "\u202e" not in page


async def test_a_reason_of_a_megabyte_breaks_no_page(web: Web):
    await decided(web, "disable", "mail", {"reason": "x" * 1_000_000})
    assert len(await text_of(web, "/audit")) < 100_000


# --- alerts -------------------------------------------------------------------------------------------------------


async def with_incident(web: Web) -> None:
    channel = {"type": "webhook", "url": "http://127.0.0.1:9/hook?team=42"}
    rule = AlertRule("ops", frozenset({AlertKind.DEAD_LETTER}), channel=channel)
    await rules.add(web.stage.db, rule, web.stage.now, "ann")
    await web.stage.trigger("mail", payload={"card": {"number": "0815"}})
    for _ in range(4):
        (run,) = await web.stage.tick(handlers=["mail"])
        await web.stage.fail(run)
        web.stage.after(60)


async def test_without_rules_it_is_said_how_to_make_one(web: Web):
    page = await text_of(web, "/alerts")
    assert "No incident is open." in page
    assert "jobrunner alerts add" in page


@pytest.mark.parametrize("level", ["read", "admin"])
async def test_an_open_incident_is_shown_with_whom_it_told(web: Web, level):
    await with_incident(web)
    page = await text_of(web, "/alerts", level)
    assert "1 incident is open." in page
    assert "dead letter" in page
    assert "<bdi>ops</bdi>" in page
    assert "waits" in page
    assert "Messages that wait: 1" in page
    assert "0815" not in page
    assert ("team=42" in page) == (level == "admin")


async def test_incidents_that_are_over_are_shown_when_asked_for(web: Web):
    await with_incident(web)
    await web.stage.sql("UPDATE {p}alerts SET closed_at = last_at, recovered = 'it ran again'")
    assert "No incident is open." in await text_of(web, "/alerts")
    page = await text_of(web, "/alerts?all=1")
    assert "recovered after" in page
    assert "it ran again" in page
    assert "No incident is open." in page


async def test_incidents_of_another_worker_are_left_out(web: Web):
    await with_incident(web)
    assert "No incident is open of this worker." in await text_of(web, "/alerts?worker=fetch")


async def test_a_hostile_summary_is_text(web: Web):
    await with_incident(web)
    await web.stage.sql("UPDATE {p}alerts SET summary = '<img src=x onerror=alert(1)>'")
    page = await text_of(web, "/alerts")
    assert "<img" not in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page
