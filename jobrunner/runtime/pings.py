"""Pings: telling a worker's URL of each start and end, by the protocol of Healthchecks.

A POST to `URL/start` when an attempt's code starts, to `URL` when the run has succeeded, and to `URL/fail` when it is
exhausted or discarded. An attempt that failed and is tried again tells nothing but its next start: what a check is for
is whether the work was done. `rid` is the same for all of a run's pings. The body of the last two is the error and the
last lines of the output. (healthchecks.io/docs/http_api.)

They wait in a queue of their own for a thread of their own. A ping that finds the queue full, or the receiver away, is
dropped, and that is said once. No run waits for any.
"""

from __future__ import annotations

import queue
import threading
import time
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

from jobrunner.errors import NotSent
from jobrunner.policy.alerts import tail
from jobrunner.runtime.channels.posting import post
from jobrunner.telemetry import events as e

if TYPE_CHECKING:
    from jobrunner.model.run import ClaimKey, Run

MOST_WAITING = 1000
PING_SECONDS = 5.0
AWAY_SECONDS = 10.0  # so long nothing is sent to a host that did not take two in a row
_AGAIN_SECONDS = 0.5
_NAMESPACE = uuid.UUID("6a1f6f0c-9c2f-5c8f-a5fd-5d0f6d9a7b21")
_FAILED = frozenset({"exhausted", "discarded"})


def ping_url(url: str, run: Run, suffix: str = "") -> str:
    """Return where to send a ping of a run: `suffix` is `/start`, `/fail`, or nothing."""
    parts = urlsplit(url)
    query = "&".join(filter(None, [parts.query, f"rid={uuid.uuid5(_NAMESPACE, f'{url} {run.worker} {run.id}')}"]))
    return urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/") + suffix, query, ""))


class Pinger:
    """A subscriber of a node's events; see the module."""

    def __init__(self, events: e.Events) -> None:
        self._events = events
        self._urls: dict[ClaimKey, str] = {}
        self._queue: queue.Queue[tuple[str, bytes] | None] = queue.Queue(MOST_WAITING)
        self._thread: threading.Thread | None = None
        self._is_told = self._is_closed = False
        self._away: dict[str, float] = {}

    def __call__(self, event: e.Event) -> None:
        """Note what is to be sent; never blocks."""
        if isinstance(event, e.RunStarted):
            if event.ping is not None:
                self._urls[event.run.claim_key] = event.ping
                self._put(ping_url(event.ping, event.run, "/start"), b"")
        elif self._urls and isinstance(event, e.RunEnded | e.RunTakenAway):
            url = self._urls.pop(event.run.claim_key, None)
            if url is not None and isinstance(event, e.RunEnded) and event.ends_run is not None:
                self._tell_end(url, event)

    def close(self, seconds: float) -> None:
        """Send what waits for at most so long, and nothing more."""
        self._is_closed = True
        if self._thread is not None:
            with suppress(queue.Full):
                self._queue.put_nowait(None)
            self._thread.join(seconds)

    def _tell_end(self, url: str, event: e.RunEnded) -> None:
        outcome = event.outcome
        if event.ends_run == "succeeded":
            suffix = ""
        elif event.ends_run in _FAILED:
            suffix = "/fail"
        else:
            return  # cancelled: neither was it done, nor did it fail
        error = f"{outcome.error_type or ''}: {outcome.error}" if outcome.error else ""
        text = "\n".join(filter(None, [error.removeprefix(": "), *tail(outcome.output)]))
        self._put(ping_url(url, event.run, suffix), text.encode(errors="replace"))

    def _put(self, url: str, body: bytes) -> None:
        if self._is_closed:
            return
        try:
            self._queue.put_nowait((url, body))
        except queue.Full:
            self._warn("too many wait to be sent")
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="jobrunner-pings", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while True:
            item = self._queue.get()
            if item is None:
                return
            self._send(*item)

    def _send(self, url: str, body: bytes) -> None:
        host = urlsplit(url).netloc.rpartition("@")[2]
        if time.monotonic() < self._away.get(host, 0.0):
            return
        for is_last in (False, True):
            try:
                post(url, body, {"Content-Type": "text/plain; charset=utf-8", "User-Agent": "jobrunner"}, PING_SECONDS)
            except NotSent as error:
                if is_last:
                    self._away[host] = time.monotonic() + AWAY_SECONDS
                    self._warn(str(error))
                else:
                    time.sleep(_AGAIN_SECONDS)
            else:
                return

    def _warn(self, why: str) -> None:
        if not self._is_told:
            self._is_told = True
            self._events.emit(e.Warned(f"pings are dropped; this is said once: {why}"))
