"""The watch over every page: it hears what a page complains of, and axe-core finds what is wrong on one."""

from __future__ import annotations

import re

import pytest

from jobrunner.web.guard import HEADERS
from tests.support.browser import Complaints, axe

BARE = "<!doctype html><html lang=en><title>A page</title><main><h1>A page</h1>{}</main></html>"
POLICY = {"Content-Security-Policy": HEADERS["Content-Security-Policy"]}


async def show(page, content: str, script: str = "", headers=POLICY) -> None:
    """Show content of a page, under our policy, as if the console had sent it."""

    async def page_itself(route) -> None:
        await route.fulfill(body=BARE.format(content), content_type="text/html", headers=headers)

    async def its_script(route) -> None:
        await route.fulfill(body=script, content_type="text/javascript")

    await page.route("**/shown", page_itself)
    await page.route("**/shown.js", its_script)
    await page.goto("/shown")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("<script>1</script>", "console error: .*Content Security Policy"),
        ("<p style='color: red'>red</p>", "console error: .*Content Security Policy"),
        ("<img src='/nowhere.png' alt=''>", "answered 404: GET .*/nowhere.png"),
        ("<script src='shown.js'></script>", "error in a script: .*of the script"),
    ],
)
async def test_what_a_page_complains_of_is_heard(open_page, sqlite_console, complaints: Complaints, content, said):
    page = await open_page(sqlite_console)
    await show(page, content, "throw new Error('of the script')")
    await page.wait_for_load_state("networkidle")
    assert [line for line in complaints.unexpected if re.match(said, line)] != []
    complaints.expect(said)
    assert complaints.unexpected == []


async def test_a_request_to_another_server_is_heard_also_where_the_policy_would_let_it_pass(
    open_page, sqlite_console, complaints: Complaints
):
    page = await open_page(sqlite_console)
    await show(page, "<img src='http://elsewhere.example/a.png' alt=''>", headers={})
    await page.wait_for_load_state("networkidle")
    assert complaints.unexpected == [
        "left the server: GET http://elsewhere.example/a.png",
        "request failed: GET http://elsewhere.example/a.png: net::ERR_NAME_NOT_RESOLVED",
    ]
    complaints.expect("http://elsewhere.example")


async def test_an_answer_that_says_no_is_no_complaint(open_page, sqlite_console, complaints: Complaints):
    page = await open_page(sqlite_console, "/runs/4711/nowhere")
    assert await page.evaluate("fetch('/api/workers/none').then(answer => answer.status)") == 404
    assert complaints.found == []


async def test_axe_says_what_is_wrong_and_where(open_page, sqlite_console):
    page = await open_page(sqlite_console)
    await show(page, "<img src='data:image/gif;base64,R0lGODlhAQABAAAAACw='><h3>deep</h3>")
    heading, picture = sorted(await axe(page))
    assert heading.startswith("heading-order (moderate): ")
    assert picture.startswith("image-alt (critical): Images must have alternative text: img: ")
