"""A real browser, and consoles on real servers that it opens.

All these tests and their fixtures share one event loop, since the browser is launched once for all of them: write them
as `async def`, and their asynchronous fixtures with `@pytest_asyncio.fixture(loop_scope="session")`.

A test asks for `open_page` and a console: `page = await open_page(sqlite_console, "/runs")`. It is light, 1280 wide and
runs JavaScript unless the test has parameters of the names `theme`, `width` and `has_javascript` (`every_look` gives it
the first two), or says so in the call. What a page complains of, see `Complaints`, fails the test at its end.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

import pytest
import pytest_asyncio

from tests.support.browser import HEIGHTS, IS_REQUIRED, Complaints, launch_options, what_is_missing
from tests.support.served import Served, serve_console

if TYPE_CHECKING:
    from playwright.async_api import Browser, BrowserContext, Page

    from jobrunner import WorkerOrchestrator

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    shared = pytest.mark.asyncio(loop_scope="session")
    for item in items:
        if HERE in item.path.parents and pytest_asyncio.is_async_test(item):
            item.add_marker(shared, append=False)
            # What is made first ends last: pages, then servers, then databases, in whatever order a test names them.
            item.fixturenames.sort(key=lambda name: not name.endswith("_url"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Skip before any fixture is made. From here, pytest says it in one line for all of them."""
    missing = what_is_missing()
    if missing is not None:
        (pytest.fail if IS_REQUIRED else pytest.skip)(missing)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    """The browser, launched once; a test takes `open_page`."""
    from playwright.async_api import async_playwright, expect

    expect.set_options(timeout=10_000)
    async with async_playwright() as playwright:
        launched = await playwright.chromium.launch(**launch_options())
        yield launched
        await launched.close()


@pytest.fixture
def theme() -> str:
    """What the reader prefers: `light` or `dark`."""
    return "light"


@pytest.fixture
def width() -> int:
    """The width of the window in CSS pixels: 1280 or 390."""
    return 1280


@pytest.fixture
def has_javascript() -> bool:
    """Whether pages may run scripts."""
    return True


@pytest_asyncio.fixture(loop_scope="session")
async def complaints() -> AsyncIterator[Complaints]:
    """What the pages of the test complain of; any that it does not `expect` fails it."""
    made = Complaints()
    yield made
    assert made.unexpected == []


class Opener:
    """Opens pages, each in a browser context of its own: cookies of one are not those of another."""

    def __init__(self, browser: Browser, complaints: Complaints, look: dict[str, Any]) -> None:
        self._browser = browser
        self._complaints = complaints
        self._look = look
        self.contexts: list[BrowserContext] = []

    async def __call__(self, console: Served, path: str = "", *, is_logged_in: bool = True, **look: Any) -> Page:
        """Open a path of the console, as `/runs`, in a new context; log in before through the link of the start.

        Args:
            console: what serves it.
            path: begins with a slash; empty: opens nothing, or what the login leads to.
            is_logged_in: through the link, as admin.
            look: `theme`, `width` and `has_javascript`, where they are not those of the test.
        """
        said = {**self._look, **look}
        context = await self._browser.new_context(
            color_scheme=said["theme"],
            viewport={"width": said["width"], "height": HEIGHTS[said["width"]]},
            java_script_enabled=said["has_javascript"],
            base_url=console.url,
        )
        self.contexts.append(context)
        context.set_default_timeout(15_000)
        self._complaints.watch(context, console.url)
        page = await context.new_page()
        if is_logged_in:
            await page.goto(console.link)
        if path:
            await page.goto(urljoin(console.url, path.lstrip("/")))
        return page


@pytest_asyncio.fixture(loop_scope="session")
async def open_page(
    browser: Browser, complaints: Complaints, serve: Servers, theme: str, width: int, has_javascript: bool
) -> AsyncIterator[Opener]:
    """`await open_page(console, "/runs")`: a page of that console, in a new context, logged in; see `Opener`."""
    opener = Opener(browser, complaints, {"theme": theme, "width": width, "has_javascript": has_javascript})
    yield opener
    for context in opener.contexts:
        await context.close()


class Servers:
    """Serves consoles until the test ends."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack

    async def __call__(self, database: str | WorkerOrchestrator, **settings: Any) -> Served:
        """Serve a console for a database's URL, or for an orchestrator, with settings as `http_read_token`."""
        return await self._stack.enter_async_context(serve_console(database, **settings))


@pytest_asyncio.fixture(loop_scope="session")
async def serve() -> AsyncIterator[Servers]:
    """`await serve(url_or_orchestrator, **settings)`: a console of the test's own making."""
    async with AsyncExitStack() as stack:
        yield Servers(stack)


@pytest_asyncio.fixture(loop_scope="session")
async def console(serve: Servers, database_url: str) -> Served:
    """A console on an empty database with our schema, on each of the two."""
    return await serve(database_url)


@pytest_asyncio.fixture(loop_scope="session")
async def sqlite_console(serve: Servers, sqlite_url: str) -> Served:
    """A console on an empty SQLite file."""
    return await serve(sqlite_url)


@pytest_asyncio.fixture(loop_scope="session")
async def postgres_console(serve: Servers, postgres_url: str) -> Served:
    """A console on an empty PostgreSQL database."""
    return await serve(postgres_url)
