"""Pages that show what changes while they are open, and disturb nobody who reads or types."""

from __future__ import annotations

import asyncio

import pytest_asyncio
from playwright.async_api import expect

from jobrunner.web.pages import stream
from tests.support.stage import scheduled, triggered


@pytest_asyncio.fixture(loop_scope="session")
async def failing(sqlite_console):
    """A console with a worker that is paused, and one that fails."""
    stage = sqlite_console.stage
    await stage.register(scheduled("fetch", interval_seconds=3600), triggered("mail", max_retries=0))
    await stage.join("n1")
    await sqlite_console.orchestrator.pause_worker("fetch", 3600, reason="the API is down", actor="ada")
    return sqlite_console


def row(page, name):
    return page.locator(f"#trouble-{name}")


async def test_two_browsers_see_each_others_change_within_two_seconds(failing, open_page):
    one, other = await open_page(failing, "/"), await open_page(failing, "/")
    for page in (one, other):
        await expect(page.locator("#live")).to_have_attribute("data-state", "live")
        await expect(row(page, "fetch")).to_contain_text("paused by ada: the API is down")
    await row(one, "fetch").get_by_role("link", name="Resume").click()
    await one.locator("#dialog").get_by_role("button", name="Resume fetch").click()
    await expect(row(other, "fetch")).to_have_count(0, timeout=2000)
    await expect(row(one, "fetch")).to_have_count(0, timeout=2000)
    await expect(one.locator("#said")).to_have_text("fetch is resumed.")
    assert await one.locator("#dialog").is_hidden()
    assert await failing.stage.rows("SELECT actor, action FROM {p}audit_log ORDER BY id DESC LIMIT 1") == [
        {"actor": "admin@http", "action": "resume"}
    ]


async def test_what_another_program_changes_is_seen_too(failing, open_page):
    page = await open_page(failing, "/")
    await expect(page.locator("#live")).to_have_attribute("data-state", "live")
    await failing.orchestrator.disable_worker("mail", "too loud", actor="bob")
    await expect(row(page, "mail")).to_contain_text("disabled by bob: too loud", timeout=5000)


async def test_a_refresh_waits_while_somebody_types_or_has_selected_text(failing, open_page):
    page = await open_page(failing, "/")
    await expect(page.locator("#live")).to_have_attribute("data-state", "live")
    await page.locator("#hour").evaluate("each => getSelection().selectAllChildren(each)")
    await failing.orchestrator.disable_worker("mail", "too loud", actor="bob")
    await expect(page.locator("#live")).to_have_attribute("data-state", "paused", timeout=5000)
    assert await row(page, "mail").count() == 0
    assert await page.evaluate("getSelection().toString()") == "The last hour"
    await page.evaluate("getSelection().removeAllRanges()")
    await expect(row(page, "mail")).to_contain_text("too loud")
    await expect(page.locator("#live")).to_have_attribute("data-state", "live")


async def test_a_half_typed_form_outlives_a_refresh(failing, open_page):
    page = await open_page(failing, "/")
    await row(page, "fetch").get_by_role("link", name="Disable").click()
    await page.get_by_label("reason").fill("half a rea")
    await failing.orchestrator.disable_worker("mail", "too loud", actor="bob")
    await expect(page.locator("#live")).to_have_attribute("data-state", "paused", timeout=5000)
    await expect(page.get_by_label("reason")).to_have_value("half a rea")
    await expect(page.get_by_label("reason")).to_be_focused()
    await page.keyboard.press("Escape")
    await expect(row(page, "mail")).to_contain_text("too loud")


async def test_a_refresh_keeps_the_focus_and_what_was_opened(failing, open_page):
    page = await open_page(failing, "/")
    await expect(page.locator("#live")).to_have_attribute("data-state", "live")
    link = row(page, "fetch").get_by_role("link", name="fetch")
    await link.focus()
    await failing.orchestrator.disable_worker("mail", "too loud", actor="bob")
    await expect(row(page, "mail")).to_contain_text("too loud", timeout=5000)
    await expect(link).to_be_focused()


async def test_of_ten_tabs_of_a_browser_three_have_a_stream_and_all_are_shown(failing, open_page):
    first = await open_page(failing, "/")
    tabs = [first]
    for _ in range(9):
        tab = await first.context.new_page()
        await tab.goto(failing.url)
        tabs.append(tab)
    for tab in tabs:
        await expect(tab.locator("#live")).not_to_have_attribute("data-state", "off")
    states = [await tab.locator("#live").get_attribute("data-state") for tab in tabs]
    assert (states.count("live"), states.count("polls")) == (stream.MOST_STREAMS, 7)
    await failing.orchestrator.disable_worker("mail", "too loud", actor="bob")
    for tab in tabs:
        await expect(row(tab, "mail")).to_contain_text("too loud", timeout=12_000)


async def test_nobody_looks_at_the_database_while_nobody_watches(failing, open_page):
    page = await open_page(failing, "/")
    await expect(page.locator("#live")).to_have_attribute("data-state", "live")
    desk = failing.site.desk
    await page.context.close()
    await asyncio.sleep(2.5)  # so that the server has noticed
    before = desk.statements
    await asyncio.sleep(2.5)
    assert desk.statements == before


async def test_a_page_says_when_its_server_is_gone(failing, open_page, complaints):
    complaints.expect("ERR_|Failed to fetch|htmx")
    page = await open_page(failing, "/")
    await expect(page.locator("#live")).to_have_attribute("data-state", "live")
    await page.context.set_offline(True)
    await expect(page.locator("#live")).to_have_attribute("data-state", "lost")
    await page.context.set_offline(False)
    await expect(page.locator("#live")).to_have_attribute("data-state", "live", timeout=20_000)
