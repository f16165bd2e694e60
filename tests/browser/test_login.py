"""The login form, in a real browser."""

from __future__ import annotations

import re

import pytest
from playwright.async_api import expect

from tests.support.browser import axe, every_look

with_and_without_javascript = pytest.mark.parametrize("has_javascript", [True, False])


async def logins(page) -> list[dict]:
    """The cookies of the page that stand for a token."""
    return [cookie for cookie in await page.context.cookies() if re.fullmatch("jobrunner_[0-9a-f]{8}", cookie["name"])]


@with_and_without_javascript
async def test_the_form_lets_in_whoever_has_the_token(open_page, console):
    page = await open_page(console, "/login", is_logged_in=False)
    await page.get_by_label("Token").fill(console.token)
    await page.get_by_label("Your name").fill("ann")
    await page.get_by_role("button", name="Log in").click()
    await expect(page).to_have_url(console.url)
    (cookie,) = await logins(page)
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")


@with_and_without_javascript
async def test_the_form_says_so_of_a_token_that_is_not_known(open_page, console):
    page = await open_page(console, "/login", is_logged_in=False)
    await page.get_by_label("Token").fill("a-guess")
    await page.get_by_role("button", name="Log in").click()
    await expect(page.get_by_role("alert")).to_have_text("That token is not known.")
    assert await logins(page) == []
    await page.get_by_label("Token").fill(console.token)
    await page.get_by_role("button", name="Log in").click()
    await expect(page).to_have_url(console.url)


async def test_the_link_of_the_start_lets_in(open_page, sqlite_console):
    page = await open_page(sqlite_console)
    assert page.url == sqlite_console.url
    assert len(await logins(page)) == 1


async def test_a_link_of_an_earlier_start_says_so(open_page, sqlite_console):
    page = await open_page(sqlite_console, "/login?token=of-yesterday", is_logged_in=False)
    await expect(page.get_by_role("alert")).to_contain_text("earlier start")


@every_look
async def test_axe_finds_nothing_on_the_login_page(open_page, sqlite_console):
    page = await open_page(sqlite_console, "/login", is_logged_in=False)
    assert await axe(page) == []
    await page.get_by_label("Token").fill("a-guess")
    await page.get_by_role("button", name="Log in").click()
    await expect(page.get_by_role("alert")).to_be_visible()
    assert await axe(page) == []
