"""Every verb, pressed in a real browser, with JavaScript and without: what it changes, and the row it leaves."""

from __future__ import annotations

import json

import pytest
import pytest_asyncio
from playwright.async_api import expect

from jobrunner.model.run import OutcomeKind
from tests.support.stage import scheduled, triggered

with_and_without_javascript = pytest.mark.parametrize("has_javascript", [True, False])


@pytest_asyncio.fixture(loop_scope="session")
async def filled(console):
    """On each database: a worker that fires, one that is triggered, a waiting run and an open letter."""
    stage = console.stage
    await stage.register(
        scheduled("fetch", interval_seconds=3600), triggered("mail", max_retries=0, max_consecutive_failures=9)
    )
    await stage.join("n1")
    await stage.trigger("mail", payload={"to": "ann", "order": 17})
    for run in await stage.tick():
        await stage.end(run, OutcomeKind.FAILED, error_type="ValueError", error="order 17 not found")
    await stage.trigger("mail", payload={"to": "bob"})
    return console


async def press(page, verb, **fields):
    """Press a verb on the page, fill its form, and send it."""
    await page.get_by_role("link", name=verb, exact=True).first.click()
    form = page.locator("#form")
    for label, value in fields.items():
        await form.get_by_label(label, exact=True).fill(value)
    await form.locator("button.go, button.danger").click()
    return page.locator("#said")


async def audited(console):
    (row,) = await console.stage.rows("SELECT actor, action, worker FROM {p}audit_log ORDER BY id DESC LIMIT 1")
    return row


@with_and_without_javascript
async def test_disable_enable_pause_and_resume(filled, open_page):
    page = await open_page(filled, "/workers/fetch")
    said = await press(page, "Disable…", reason="too loud")
    await expect(said).to_contain_text("fetch is disabled.")
    assert await filled.stage.rows(
        "SELECT is_enabled, disabled_reason FROM {p}worker_state WHERE worker = 'fetch'"
    ) == [{"is_enabled": False, "disabled_reason": "too loud"}]
    assert await audited(filled) == {"actor": "admin@http", "action": "disable", "worker": "fetch"}
    said = await press(page, "Enable")
    await expect(said).to_contain_text("fetch is enabled.")
    assert (await audited(filled))["action"] == "enable"
    said = await press(page, "Pause…", **{"for": "2h", "reason": "the API is down"})
    await expect(said).to_contain_text("fetch is paused.")
    assert (await audited(filled))["action"] == "pause"
    await expect(page.locator("main")).to_contain_text("the API is down")
    said = await press(page, "Resume")
    await expect(said).to_contain_text("fetch is resumed.")
    assert (await audited(filled))["action"] == "resume"


@with_and_without_javascript
async def test_set_and_unset(filled, open_page):
    page = await open_page(filled, "/workers/fetch")
    said = await press(page, "Set…", interval_seconds="30")
    await expect(said).to_contain_text("fetch has new settings.")
    assert await filled.stage.value("SELECT interval_seconds FROM {p}workers WHERE name = 'fetch'") == 30
    assert await audited(filled) == {"actor": "admin@http", "action": "set", "worker": "fetch"}
    await page.get_by_role("link", name="Unset…", exact=True).click()
    await page.locator("#form").get_by_label("interval_seconds").check()
    await page.locator("#form").locator("button.go, button.danger").click()
    await expect(page.locator("#said")).to_contain_text("again as its code says")
    assert await filled.stage.value("SELECT interval_seconds FROM {p}workers WHERE name = 'fetch'") == 3600
    assert (await audited(filled))["action"] == "unset"


@with_and_without_javascript
async def test_trigger_and_cancel(filled, open_page):
    page = await open_page(filled, "/workers/mail")
    said = await press(page, "Trigger…", payload='{"to": "eve"}', key="once")
    await expect(said).to_contain_text("of mail was made.")
    run_id = await filled.stage.value("SELECT max(id) FROM {p}runs")
    (row,) = await filled.stage.rows(f"SELECT payload, key FROM {{p}}runs WHERE id = {run_id}")
    payload = row["payload"]
    assert (payload if isinstance(payload, dict) else json.loads(payload), row["key"]) == ({"to": "eve"}, "once")
    await said.get_by_role("link", name="See it").click()
    await expect(page).to_have_url(f"{filled.url}runs/{run_id}")
    said = await press(page, "Cancel…", reason="not now")
    await expect(said).to_contain_text(f"Run {run_id} of mail is cancelled.")
    assert await audited(filled) == {"actor": "admin@http", "action": "cancel", "worker": "mail"}
    assert await filled.stage.value(f"SELECT outcome FROM {{p}}run_history WHERE run_id = {run_id}") == "cancelled"


@with_and_without_javascript
async def test_what_cannot_be_used_is_said_and_what_was_typed_stays(filled, open_page):
    page = await open_page(filled, "/workers/mail")
    await page.get_by_role("link", name="Trigger…", exact=True).click()
    form = page.locator("#form")
    await form.get_by_label("payload", exact=True).fill('{"to": ')
    await form.locator("button.go, button.danger").click()
    await expect(form.get_by_role("alert")).to_contain_text("payload is no JSON")
    await expect(form.get_by_label("payload", exact=True)).to_have_value('{"to": ')
    await form.get_by_label("payload", exact=True).fill('{"to": "ann"}')
    await form.locator("button.go, button.danger").click()
    await expect(page.locator("#said")).to_contain_text("was made")


@with_and_without_javascript
async def test_replay_with_another_payload_and_discard(filled, open_page):
    letter_id = await filled.stage.value("SELECT id FROM {p}dead_letters")
    page = await open_page(filled, f"/dead-letters/{letter_id}")
    said = await press(page, "Replay…", payload='{"to": "ann", "order": 18}')
    await expect(said).to_contain_text(f"Letter {letter_id} of mail is replayed as run")
    assert await audited(filled) == {"actor": "admin@http", "action": "replay", "worker": "mail"}
    assert await filled.stage.value("SELECT status FROM {p}dead_letters") == "replayed"
    for run in await filled.stage.tick():
        await filled.stage.end(run, OutcomeKind.FAILED, error_type="ValueError", error="again")
    other = await filled.stage.value("SELECT max(id) FROM {p}dead_letters")
    await page.goto(f"{filled.url}dead-letters/{other}")
    said = await press(page, "Discard…")
    await expect(said).to_contain_text(f"Letter {other} of mail is discarded.")
    assert (await audited(filled))["action"] == "discard"
