"""The console under a prefix: mounted in a program's own application, and behind proxies that take the prefix away."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
import pytest_asyncio
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from playwright.async_api import expect

from jobrunner.web import console
from tests.support.served import Served
from tests.support.stage import triggered

TOKEN = "the-token-of-the-mounted-console"


@asynccontextmanager
async def answering(app, path: str) -> AsyncIterator[str]:
    """Serve an application from a thread of its own; yield the address of a path of it."""
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    while not server.started:
        await asyncio.sleep(0.02)
    yield f"http://127.0.0.1:{bound.getsockname()[1]}{path}"
    server.should_exit = True
    await asyncio.to_thread(thread.join, 10)


def proxy(inner: str, prefix: str, *, strips: bool) -> FastAPI:
    """A proxy that passes on what is below a prefix, with the prefix or without."""
    app = FastAPI()

    @app.api_route(f"{prefix}/{{path:path}}", methods=["GET", "POST"])
    async def pass_on(path: str, request: Request) -> StreamingResponse:
        client = httpx.AsyncClient(base_url=inner, timeout=30)
        headers = {k: v for k, v in request.headers.items() if k != "content-length"}
        target = httpx.URL(path=f"/{path}" if strips else f"{prefix}/{path}", query=request.url.query.encode())
        asked = client.build_request(request.method, target, headers=headers, content=await request.body())
        answer = await client.send(asked, stream=True)

        async def body() -> AsyncIterator[bytes]:
            try:
                async for piece in answer.aiter_raw():
                    yield piece
            finally:
                await answer.aclose()
                await client.aclose()

        response = StreamingResponse(body(), answer.status_code)
        response.raw_headers = [(k, v) for k, v in answer.headers.raw if k.lower() != b"transfer-encoding"]
        return response

    return app


@pytest_asyncio.fixture(loop_scope="session", params=["mounted", "stripped", "mounted behind a proxy"])
async def under_prefix(request, sqlite_console):
    """A console at `/ops/jobs/` of some server, and what fills its database."""
    stage = sqlite_console.stage
    await stage.register(triggered("mail"))
    await stage.join("n1")
    orchestrator = sqlite_console.orchestrator
    orchestrator.configure(http_token=TOKEN)
    app = FastAPI()
    mounted = console(orchestrator)
    app.mount("" if request.param == "stripped" else "/ops/jobs", mounted)
    async with answering(app, "/") as inner:
        made = Served(inner, inner, orchestrator, stage, mounted.site)
        if request.param == "mounted":
            yield Served(f"{inner}ops/jobs/", made.link, orchestrator, stage, mounted.site)
            mounted.site.stream.end()
            return
        outer = proxy(inner, "/ops/jobs", strips=request.param == "stripped")
        async with answering(outer, "/ops/jobs/") as url:
            yield Served(url, made.link, orchestrator, stage, mounted.site)
            mounted.site.stream.end()


@pytest.mark.parametrize("has_javascript", [True, False])
async def test_all_of_it_works_under_a_prefix(under_prefix, open_page, has_javascript):
    url = under_prefix.url
    page = await open_page(under_prefix, is_logged_in=False)
    await page.goto(f"{url}workers/mail/pause")
    await expect(page).to_have_url(f"{url}login")
    await page.get_by_label("Token").fill(TOKEN)
    await page.get_by_role("button", name="Log in").click()
    await expect(page).to_have_url(url)
    if has_javascript:
        await expect(page.locator("#live")).to_have_attribute("data-state", "live")
    await page.get_by_role("link", name="Workers", exact=True).click()
    await page.locator("main").get_by_role("link", name="mail").first.click()
    await expect(page).to_have_url(f"{url}workers/mail")
    await page.get_by_role("link", name="Pause…", exact=True).click()
    await page.locator("#form").get_by_label("reason", exact=True).fill("behind a prefix")
    await page.locator("#form").locator("button.danger").click()
    await expect(page.locator("#said")).to_contain_text("mail is paused.")
    await expect(page.locator("main")).to_contain_text("behind a prefix")
    await expect(page).to_have_url(f"{url}workers/mail")
    for name in ("Runs", "Upcoming", "History", "Dead letters", "Nodes", "Alerts", "Limits", "Audit", "Now"):
        await page.get_by_role("navigation", name="Pages").get_by_role("link", name=name, exact=True).click()
        await expect(page.locator("nav a[aria-current=page]")).to_have_text(name)
        assert page.url.startswith(url)
    await page.get_by_role("button", name="Log out").click()
    await expect(page).to_have_url(f"{url}login")
