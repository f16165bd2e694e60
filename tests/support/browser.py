"""A real browser for tests: whether there is one, what its pages complain of, and what axe-core finds on them."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from playwright.async_api import BrowserContext, ConsoleMessage, Page, Request, Response, WebError

IS_REQUIRED: Final = os.environ.get("JOBRUNNER_TEST_BROWSER") == "required"
THEMES: Final = ("light", "dark")
WIDTHS: Final = (1280, 390)
"""In CSS pixels: a desk, and a telephone held upright."""
HEIGHTS: Final = {1280: 800, 390: 844}

_AXE: Final = Path(__file__).parents[2] / ".browser" / "axe.min.js"
_TAGS: Final = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22a", "wcag22aa", "best-practice"]
_NEEDED_FILES: Final = frozenset({"stylesheet", "script", "image", "font", "manifest"})


def every_look(test: Any) -> Any:
    """Decorate a test to run in both themes at both widths."""
    return pytest.mark.parametrize("theme", THEMES)(pytest.mark.parametrize("width", WIDTHS)(test))


def chromium() -> str | None:
    """Return the program of the browser; None where there is none."""
    return shutil.which("chromium")


def what_is_missing() -> str | None:
    """Say in a sentence what the browser tests lack here, and what to do; None if they can run."""
    lacks = [name for name, is_here in (("Chromium", chromium()), ("axe-core", _AXE.is_file())) if not is_here]
    return f"no {' and no '.join(lacks)} here: scripts/browser installs what browser tests need" if lacks else None


def launch_options() -> dict[str, Any]:
    """Return how to launch the browser, for `chromium.launch(**…)`.

    Every name but this machine's leads nowhere, so that no page reaches another machine, whatever it tries.
    """
    nowhere = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost"
    return {
        "executable_path": chromium(),
        "args": ["--no-sandbox", nowhere],  # as root, as in most containers, it starts only without its sandbox
        "timeout": 60_000,  # ms; the first launch on a cold machine may take half a minute
    }


@dataclass
class Complaints:
    """What went wrong in the pages of a test though nobody looked: errors, what the policy refused, what left the host.

    Not among them: answers 4xx to a page or a script's request, which a test may provoke, and requests that a page
    itself ended by being left.
    """

    found: list[str] = field(default_factory=list)
    _expected: list[re.Pattern[str]] = field(default_factory=list)

    def expect(self, pattern: str) -> None:
        """Leave aside what the regular expression finds something in: the test provokes it."""
        self._expected.append(re.compile(pattern))

    @property
    def unexpected(self) -> list[str]:
        """What has been found and not expected."""
        return [said for said in self.found if not any(pattern.search(said) for pattern in self._expected)]

    def watch(self, context: BrowserContext, url: str) -> None:
        """Listen to all pages of a context that may speak to the server of that URL only."""
        home = urlsplit(url)[:2]

        def requested(request: Request) -> None:
            place = urlsplit(request.url)
            if place.scheme in {"http", "https", "ws", "wss"} and place[:2] != home:
                self.found.append(f"left the server: {request.method} {request.url}")

        context.on("request", requested)
        context.on("console", self._spoke)
        context.on("weberror", self._raised)
        context.on("requestfailed", self._failed)
        context.on("response", self._answered)

    def _spoke(self, message: ConsoleMessage) -> None:
        is_of_request = message.text.startswith("Failed to load resource")  # `_failed` and `_answered` judge it
        if message.type in {"error", "warning"} and not is_of_request:
            self.found.append(f"console {message.type}: {message.text}")

    def _raised(self, error: WebError) -> None:
        self.found.append(f"error in a script: {error.error}")

    def _failed(self, request: Request) -> None:
        if request.failure != "net::ERR_ABORTED":
            self.found.append(f"request failed: {request.method} {request.url}: {request.failure}")

    def _answered(self, response: Response) -> None:
        if response.status >= 500 or (response.status >= 400 and response.request.resource_type in _NEEDED_FILES):
            self.found.append(f"answered {response.status}: {response.request.method} {response.url}")


async def axe(page: Page) -> list[str]:
    """Return what axe-core finds on a page, a line each: WCAG 2.0 to 2.2, A and AA, and its best practices."""
    await page.evaluate(_AXE.read_text())  # evaluated, it passes the page's policy; a <script> would not
    said = await page.evaluate(
        "tags => axe.run(document, {runOnly: {type: 'tag', values: tags}, resultTypes: ['violations']})", _TAGS
    )
    return [
        f"{violation['id']} ({violation['impact']}): {violation['help']}: {' '.join(map(str, node['target']))}"
        f": {' '.join(node['failureSummary'].split())}"
        for violation in said["violations"]
        for node in violation["nodes"]
    ]
