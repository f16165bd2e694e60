"""Sending one message through one channel.

The signature of a webhook: HMAC-SHA256, with the secret, over the time in `Jobrunner-Timestamp` (seconds since 1970),
a full stop, and the body; `Jobrunner-Signature` is `v1=` and that in hexadecimal digits. Whoever checks it, and that
the time is near, knows who sent the message and that nobody sends it again much later.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import os
import signal
import subprocess
import threading
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from jobrunner.errors import NotSent
from jobrunner.policy import channels
from jobrunner.policy.words import first_line
from jobrunner.runtime.channels.posting import LONGEST_SECONDS, post

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

_GRACE_SECONDS = 5.0
"""After its own time limit, how long a channel may take to notice that it is over."""
_MOST_OUTPUT = 4096


async def send(
    channel: Mapping[str, Any],
    body: Mapping[str, Any],
    idempotency_key: str,
    now: datetime,
    *,
    allow_commands: bool,
) -> str:
    """Send a message; return what came back. No channel takes longer than 15 s.

    Raises:
        NotSent: it was not taken, or cannot be sent here.
    """
    kind = channel.get("type")
    if kind == channels.WEBHOOK:
        work = partial(_send_webhook, channel, body, idempotency_key, now)
    elif kind == channels.COMMAND:
        if not allow_commands:
            raise NotSent("its channel is a command; only nodes started with --allow-commands run it")
        work = partial(_run_command, channel, body, idempotency_key)
    elif kind == channels.APPRISE:
        work = partial(_send_by_apprise, channel, body)
    else:
        raise NotSent(f"this version of jobrunner knows no channel {kind!r}")
    return await in_own_thread(work, LONGEST_SECONDS + _GRACE_SECONDS)


async def in_own_thread(work: Callable[[], str], seconds: float) -> str:
    """Do `work` in a thread that nothing else waits for; it may block, and raise `NotSent`.

    Raises:
        NotSent: as `work`; or it did not come back within `seconds`, and goes on by itself.
    """
    loop = asyncio.get_running_loop()
    came: asyncio.Future[str] = loop.create_future()

    def tell(result: str | None, error: NotSent | None) -> None:
        if not came.done():
            came.set_exception(error) if error is not None else came.set_result(result or "")

    def run() -> None:
        try:
            result, error = work(), None
        except NotSent as refused:
            result, error = None, refused
        except BaseException as broken:  # noqa: BLE001 - a library of somebody else
            result, error = None, NotSent(f"{type(broken).__name__}: {first_line(str(broken))}")
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(tell, result, error)

    threading.Thread(target=run, name="jobrunner-alert", daemon=True).start()
    try:
        async with asyncio.timeout(seconds):
            return await came
    except TimeoutError:
        raise NotSent(f"it was not done within {seconds:g} s") from None


def signature(secret: str, timestamp: str, body: bytes) -> str:
    """Return what `Jobrunner-Signature` holds."""
    digest = hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256)
    return f"v1={digest.hexdigest()}"


def _send_webhook(channel: Mapping[str, Any], body: Mapping[str, Any], key: str, now: datetime) -> str:
    url = channels.resolve(channel.get("url"), os.environ)
    text = json.dumps(body, ensure_ascii=False).encode()
    timestamp = str(int(now.timestamp()))
    headers = {
        "Content-Type": "application/json; charset=utf-8",
        "User-Agent": "jobrunner",
        "Idempotency-Key": key,
        "Jobrunner-Timestamp": timestamp,
    }
    if channel.get("secret"):
        headers["Jobrunner-Signature"] = signature(channels.resolve(channel["secret"], os.environ), timestamp, text)
    return post(url, text, headers)


def _run_command(channel: Mapping[str, Any], body: Mapping[str, Any], key: str) -> str:
    """Run the command with the message on its standard input; its whole group is killed when its time is over."""
    words = [str(word) for word in channel.get("command") or ()]
    said = {name: str(body.get(name) or "") for name in ("message", "kind", "worker", "summary", "rule")}
    told = {f"JOBRUNNER_ALERT_{name.upper()}": text.replace("\0", "") for name, text in said.items()}
    try:
        child = subprocess.Popen(  # noqa: S603 - what an operator has put into the rule, on a node that allows it
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **told, "JOBRUNNER_ALERT_KEY": key},
            start_new_session=True,
        )
    except (OSError, ValueError, IndexError) as error:
        name = words[0] if words else "?"
        raise NotSent(f"{name} cannot be started: {getattr(error, 'strerror', None) or error}") from None
    with child:
        try:
            output, _ = child.communicate(json.dumps(body).encode(), LONGEST_SECONDS)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            raise NotSent(f"{words[0]} was not done within {LONGEST_SECONDS:g} s, and was killed") from None
    if child.returncode != 0:
        last = output[-_MOST_OUTPUT:].decode(errors="replace").strip().splitlines()
        raise NotSent(f"{words[0]} ended with exit code {child.returncode}{f': {last[-1]}' if last else ''}")
    return "exit code 0"


def _send_by_apprise(channel: Mapping[str, Any], body: Mapping[str, Any]) -> str:
    url = channels.resolve(channel.get("url"), os.environ)
    try:
        import apprise  # noqa: PLC0415 - an extra, and large
    except ImportError:
        raise NotSent("its channel is an Apprise URL; install jobrunner[alerts] here") from None
    sender = apprise.Apprise()
    if not sender.add(url):
        raise NotSent("Apprise does not know such a URL; see the list of its services")
    if not sender.notify(title=title_of(body), body=text_of(body)):
        raise NotSent("Apprise could not deliver it; its logger `apprise` says why")
    return "delivered by Apprise"


def title_of(body: Mapping[str, Any]) -> str:
    """Return a message in a few words."""
    about = ": ".join(str(part) for part in (body.get("kind"), body.get("worker")) if part)
    return f"jobrunner {body.get('message')} {about}".strip()


def text_of(body: Mapping[str, Any]) -> str:
    """Return a message as people read it."""
    count = body.get("count") or 0
    lines = [
        str(body.get("summary") or ""),
        f"happened {count} times" if count > 1 else "",
        f"why it does not start: {body['explain']}" if body.get("explain") else "",
        f"last error: {body['last_error']}" if body.get("last_error") else "",
        *(["output:", *map(str, body["output"])] if body.get("output") else []),
        str(body.get("link") or ""),
    ]
    return "\n".join(line for line in lines if line)
