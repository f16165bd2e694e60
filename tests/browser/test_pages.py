"""Every page in a real browser: in both themes, at both widths, empty and full of what nobody would expect."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest_asyncio
import sqlalchemy as sa
from playwright.async_api import expect

from jobrunner.model.run import OutcomeKind
from jobrunner.storage.tables import define as t
from jobrunner.web.pages.table import PAGES
from tests.support.browser import axe, every_look
from tests.support.stage import scheduled, triggered

MARKUP = "<script>document.title = 'taken'</script><img src=x onerror=alert(1)>"
RIGHT_TO_LEFT = "\u202etxt.exe\u202c \u2066\u05e9\u05dc\u05d5\u05dd\u2069"
LONG = "x" * 1_000_000
HOSTILE = f"{MARKUP} {RIGHT_TO_LEFT} \x1b[31m\x07 {'y' * 400}"
ADDRESSES = [page.path for page in PAGES if "{" not in page.path]
THINGS = [
    "/workers/mail",
    "/workers/mail?at=1m",
    "/workers/fetch",
    "/workers/mail/trigger",
    "/workers/fetch/set",
    "/runs/LAST",
    "/runs/DEAD",
    "/runs/DEAD?compare=1,2",
    "/dead-letters/1",
    "/dead-letters/1/replay",
    "/dead-letters?q=status:open",
    "/bulk/1",
    "/bulk/new?action=replay&filter=worker:mail",
    "/history?q=outcome:failed",
    "/workers?q=health:failing",
    "/no-such-page",
]


@pytest_asyncio.fixture(loop_scope="session")
async def hostile(sqlite_console):
    """A console on a database whose texts are meant to hurt it."""
    console = sqlite_console
    stage = console.stage
    await stage.register(
        scheduled("fetch", cron="*/5 * * * *", timezone="Europe/Berlin", description=HOSTILE, blocks=("mail",)),
        triggered(
            "mail",
            max_retries=1,
            retry_delay_seconds=0,
            max_consecutive_failures=99,
            payload={"to": HOSTILE, MARKUP: 1},
        ),
        triggered("w" * 200, depends_on=("mail",)),
    )
    await stage.join("n1")
    await stage.trigger("mail", payload={"big": LONG, "to": HOSTILE}, key=MARKUP)
    for text in (HOSTILE, LONG):
        stage.after(1)
        for run in await stage.tick():
            await stage.end(
                run,
                OutcomeKind.FAILED,
                error_type="Error<b>",
                error=text,
                traceback=f"{text}\n{HOSTILE}",
                output=f"{text}\n{HOSTILE}\n",
            )
    await stage.trigger("mail", payload={"to": RIGHT_TO_LEFT})
    await stage.tick()
    await stage.trigger("mail", payload={"to": "later"})
    async with stage.db.write() as conn:
        await conn.execute(
            sa.update(t.runs)
            .where(sa.literal_column("runs.state = 'running'"))
            .values(progress={"fraction": 0.4, "message": HOSTILE[:200]}, output=f"{HOSTILE}\n", output_lines=1)
        )
    await console.orchestrator.pause_worker("fetch", timedelta(hours=2), reason=HOSTILE[:200], actor="ada <b>")
    async with console.orchestrator._database() as db:
        from jobrunner.storage import bulk

        seen = await bulk.preview(db, "replay", "worker:mail", console.stage.now)
        await bulk.begin(db, seen, console.stage.now, "ada", reason=MARKUP, rate=1)
    return console


async def addressed(console, path):
    """Put the ids of a run that lives and of one that has died into an address."""
    last = await console.stage.value("SELECT max(id) FROM {p}runs")
    dead = await console.stage.value("SELECT run_id FROM {p}dead_letters")
    return path.replace("LAST", str(last)).replace("DEAD", str(dead))


async def check(page):
    assert await axe(page) == []
    wide = await page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert wide[0] <= wide[1]
    assert await page.title() != "taken"
    assert "\u202e" not in await page.inner_text("body")
    assert await page.locator("main img").count() == 0


@every_look
async def test_every_page_is_well_on_a_hostile_database(hostile, open_page, complaints):
    page = await open_page(hostile)
    for path in [*ADDRESSES, *THINGS]:
        await page.goto(hostile.url + (await addressed(hostile, path)).lstrip("/"))
        await expect(page.locator("main")).to_be_visible()
        try:
            await check(page)
        except AssertionError as wrong:
            raise AssertionError(f"{path}: {wrong}") from None


@every_look
async def test_every_page_is_well_on_an_empty_database(console, open_page):
    page = await open_page(console)
    for path in ADDRESSES:
        await page.goto(console.url + path.lstrip("/"))
        await expect(page.locator("main")).to_be_visible()
        await check(page)


async def test_the_same_is_shown_without_javascript(hostile, open_page):
    page = await open_page(hostile, "/workers?q=health:paused", has_javascript=False)
    await expect(page.locator("main")).to_contain_text("fetch")
    await expect(page.locator("main")).not_to_contain_text("mail")
    await page.locator("main input[name=q]").fill("worker:mai*")
    await page.locator("main").get_by_role("button", name="Show").click()
    await expect(page.locator("main")).to_contain_text("mail")


async def test_the_keys_lead_through_the_console(hostile, open_page):
    page = await open_page(hostile, "/")
    await page.keyboard.press("g")
    await page.keyboard.press("w")
    await expect(page).to_have_url(f"{hostile.url}workers")
    await page.keyboard.press("j")
    name = await page.locator("main .at a").first.inner_text()
    await page.keyboard.press("Enter")
    await expect(page).to_have_url(f"{hostile.url}workers/{name}")
    await page.keyboard.press("?")
    await expect(page.locator("#help")).to_be_visible()
    await page.keyboard.press("Escape")
    await page.keyboard.press("/")
    assert await page.evaluate("document.activeElement.matches('input[type=search], input[type=text]')")


async def test_times_are_of_the_browser_of_utc_or_of_the_worker(hostile, open_page):
    page = await open_page(hostile, "/workers/fetch")
    local = await page.locator("main time").first.inner_text()
    assert await page.locator("main time").first.get_attribute("title") is not None
    await page.get_by_role("link", name=re.compile("the worker.s zone")).click()
    await expect(page.locator("main time").first).to_contain_text("CET")
    await expect(page).to_have_url(f"{hostile.url}workers/fetch?tz=worker")
    await page.get_by_role("link", name="Now", exact=True).click()
    await expect(page).to_have_url(f"{hostile.url}?tz=worker")
    assert local


async def test_every_page_says_how_to_get_the_same_elsewhere(hostile, open_page):
    page = await open_page(hostile)
    for path in [*ADDRESSES, "/workers/mail", "/dead-letters/1"]:
        if path == "/tv":
            continue
        await page.goto(f"{hostile.url}{path.lstrip('/')}?as=sql")
        means = page.locator(".means")
        await expect(means).to_contain_text("jobrunner ")
        await expect(means).to_contain_text("SELECT")
