"""Pictures of the console, for somebody to look at. `scripts/screenshots` takes them.

The demo runs with its console for half a minute, on a fresh SQLite file, so that there are runs, failures and dead
letters. Then every page is opened, light and dark, 1280 and 390 pixels wide, and taken from top to bottom, while the
demo goes on. Each picture is told in a line; the files are named `PAGE-THEME-WIDTH.png`. A page that answers with an
error is taken, too. What a page complains of (see `tests.support.browser.Complaints`) is a line of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from playwright.async_api import Browser, async_playwright

from tests.support.browser import HEIGHTS, THEMES, WIDTHS, Complaints, launch_options

SECONDS = 30.0
PAGES = {
    "login": "/login",
    "now": "/",
    "worker": "/workers/flaky-report",
    "worker-disabled": "/workers/broken-import",
    "run": "/runs/{run}",
    "upcoming": "/upcoming",
    "dead-letters": "/dead-letters",
    "dead-letter": "/dead-letters/{letter}",
    "history": "/history",
    "runs": "/runs",
    "nodes": "/nodes",
    "audit": "/audit",
    "alerts": "/alerts",
    "tv": "/tv",
}
"""By name; `{run}` is one that failed twice, `{letter}` the dead letter it has left."""
_SETTLE_MS = 700  # for what a page fetches after it has loaded


@contextmanager
def demo(folder: Path) -> Iterator[str]:
    """Run the demo with its console; give the link that opens it."""
    command = [sys.executable, "-m", "jobrunner", "demo", "--file", str(folder / "demo.db"), "--http", "127.0.0.1:0"]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=_environment(),
        text=True,
    )
    assert process.stderr is not None
    try:
        line = process.stderr.readline()
        link = re.match(r"open (\S+)", line)
        if link is None:
            sys.exit(f"the demo did not open its console: {line or 'it ended'}")
        threading.Thread(target=process.stderr.read, daemon=True).start()  # or it might wait for a reader
        yield link[1]
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _environment() -> dict[str, str]:
    """Return the environment without the developer's own settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("JOBRUNNER_")}
    return {**kept, "PYTHONPATH": str(Path(__file__).parents[1])}


def places(url: str, names: list[str]) -> dict[str, str]:
    """Return the paths of the pages, with ids of what the demo has left."""
    with httpx.Client(base_url=url, trust_env=False, timeout=20) as client:
        letters = client.get("/api/dead-letters", params={"worker": "broken-import"}).json()
    ids = {"run": letters[0]["run_id"], "letter": letters[0]["id"]} if letters else {"run": 1, "letter": 1}
    return {name: PAGES[name].format(**ids) for name in names}


async def take(browser: Browser, link: str, paths: dict[str, str], folder: Path) -> None:
    """Take all pictures, a browser context for each theme and width."""
    url = link.partition("login")[0]
    for theme in THEMES:
        for width in WIDTHS:
            context = await browser.new_context(
                color_scheme="dark" if theme == "dark" else "light",
                viewport={"width": width, "height": HEIGHTS[width]},
                base_url=url,
            )
            complaints = Complaints()
            complaints.watch(context, url)
            page = await context.new_page()
            await page.goto(link)
            for name, path in paths.items():
                answer = await page.goto(path, wait_until="load")
                await page.wait_for_timeout(_SETTLE_MS)
                file = folder / f"{name}-{theme}-{width}.png"
                await page.screenshot(path=file, full_page=True)
                print(f"{file}  {path}  {answer.status if answer is not None else '-'}")
                for said in complaints.found:
                    print(f"  {said}")
                complaints.found.clear()
            await context.close()


async def main() -> None:
    """Read the arguments, let the demo run, take the pictures."""
    parser = argparse.ArgumentParser(
        prog="scripts/screenshots", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, help="where; without it a new one in the temporary folder")
    parser.add_argument("--only", action="append", choices=list(PAGES), metavar="PAGE", help=", ".join(PAGES))
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"how long the demo runs before; {SECONDS:g}")
    asked = parser.parse_args()
    folder = asked.folder or Path(tempfile.mkdtemp(prefix="jobrunner-screenshots-"))
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary, demo(Path(temporary)) as link:
        print(f"the demo runs for {asked.seconds:g} s", flush=True)
        time.sleep(asked.seconds)
        async with async_playwright() as playwright:
            browser = await playwright.chromium.launch(**launch_options())
            await take(browser, link, places(link.partition("login")[0], asked.only or list(PAGES)), folder)
            await browser.close()
    print(f"all in {folder}")


if __name__ == "__main__":
    asyncio.run(main())
