"""Alerts as nodes tell them: to a real receiver, by each channel, whatever the receiver does."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from jobrunner import RunContext
from jobrunner.config import Settings
from jobrunner.errors import DatabaseUnavailable, GaveWay, NotSent, ReadTooLong
from jobrunner.model.alerts import AlertKind, AlertRule
from jobrunner.policy import channels
from jobrunner.runtime.alerting import Alerting
from jobrunner.runtime.channels import posting, sending
from jobrunner.runtime.channels.sending import in_own_thread, send, text_of, title_of
from jobrunner.runtime.clock import SystemClock
from jobrunner.runtime.outage import Outage
from jobrunner.storage.alerts import rules
from jobrunner.telemetry import events as e
from tests.runtime.conftest import House
from tests.support.receiver import Receiver

NOW = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
BODY = {"message": "open", "kind": "failing", "worker": "mail", "summary": "mail fails", "rule": "ops", "output": []}


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


async def add(house: House, receiver: Receiver, name: str = "ops", **more: Any) -> None:
    kinds = more.pop("kinds", AlertKind)
    channel = more.pop("channel", {"type": "webhook", "url": receiver.url})
    await rules.add(house.db, AlertRule(name, frozenset(kinds), channel=channel, **more), datetime.now(UTC), "ann")


def quick(house: House, **more: Any) -> Any:
    return house.orchestrator(alert_interval=0.1, alert_calm=0.2, **more)


def broken(house: House, **more: Any) -> Any:
    """An orchestrator with a worker that fails until its payload says otherwise."""
    o = quick(house, **more)

    @o.worker("mail", execution_mode="triggered", max_retries=0, max_consecutive_failures=2)
    async def mail(run: RunContext, ok: bool = False) -> None:
        run.log("about to begin")
        if not ok:
            raise ValueError("no luck")

    return o


async def test_a_failure_is_told_and_its_end(house: House, receiver: Receiver):
    await add(house, receiver, kinds=[AlertKind.FAILING, AlertKind.DEAD_LETTER])
    o = broken(house, http_url="https://jobs.example.org")
    await o.start()
    await o.trigger_worker("mail")
    await house.until(lambda: len(receiver.received) >= 2)
    letter, failing = receiver.bodies
    assert (letter["kind"], failing["kind"]) == ("dead_letter", "failing")
    assert letter["output"] == ["about to begin"]
    assert letter["last_error"] == "ValueError: no luck"
    assert letter["link"] == "https://jobs.example.org/workers/mail"
    await o.trigger_worker("mail", {"ok": True})
    await house.until(lambda: len(receiver.received) >= 3)
    over = receiver.bodies[2]
    assert (over["message"], over["kind"]) == ("close", "failing")
    assert over["summary"].startswith("mail: recovered after ")
    assert over["closed_at"] is not None


async def test_a_receiver_that_is_away_delays_no_run_and_gets_all_in_order_when_it_is_back(
    house: House, receiver: Receiver
):
    await add(house, receiver, kinds=[AlertKind.CLOSED])
    receiver.stop()
    o = broken(house)
    await o.start()
    for _ in range(3):
        for _ in range(2):
            run = await o.wait_for_run(await o.trigger_worker("mail"), timeout=20)
            assert run.state == "exhausted"
        await o.enable_worker("mail")
    await house.until_row("SELECT 1 FROM {p}alert_deliveries WHERE attempts > 0 AND last_error LIKE '%reached%'")
    receiver.start()
    await house.until(lambda: len(receiver.once) == 3)
    assert [body["alert_id"] for body in receiver.bodies] == sorted(body["alert_id"] for body in receiver.bodies)
    await house.until_row("SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM {p}alert_deliveries WHERE sent_at IS NULL)")


async def test_a_node_that_leaves_sends_what_waits(house: House, receiver: Receiver):
    await add(house, receiver, kinds=[AlertKind.DEAD_LETTER])
    o = house.orchestrator(alert_interval=3600)

    @o.worker("mail", execution_mode="triggered", max_retries=0)
    async def mail() -> None:
        raise ValueError("no luck")

    await o.start()
    await o.wait_for_run(await o.trigger_worker("mail"), timeout=20)
    await o.stop()
    assert [body["kind"] for body in receiver.bodies] == ["dead_letter"]


async def test_a_receiver_that_hangs_holds_up_no_other(house: House, receiver: Receiver):
    other = Receiver()
    try:
        await add(house, receiver, "hangs", kinds=[AlertKind.TRIPPED])
        await add(house, other, "works", kinds=[AlertKind.TRIPPED])
        receiver.held.clear()
        o = broken(house)
        await o.start()
        for _ in range(2):
            await o.wait_for_run(await o.trigger_worker("mail"), timeout=20)
        await house.until(lambda: len(other.received) == 1)
        assert receiver.received == []
        receiver.held.set()
        await house.until(lambda: len(receiver.received) == 1)
    finally:
        other.close()


async def test_a_command_is_run_only_by_nodes_that_may(house: House, receiver: Receiver, tmp_path: Path):
    told = tmp_path / "told"
    code = f"import os, sys; open({str(told)!r}, 'w').write(os.environ['JOBRUNNER_ALERT_KIND'] + sys.stdin.read())"
    await add(house, receiver, kinds=[AlertKind.DEAD_LETTER], channel=channels.command([sys.executable, "-c", code]))
    o = broken(house)
    await o.start()
    await o.wait_for_run(await o.trigger_worker("mail"), timeout=20)
    await house.until_row("SELECT 1 FROM {p}alert_deliveries")
    await o.stop()
    assert not told.exists()
    o = broken(house, allow_commands=True)
    await o.start()
    await house.until_row("SELECT 1 FROM {p}alert_deliveries WHERE sent_at IS NOT NULL")
    text = told.read_text()
    assert text.startswith("dead_letter{")
    assert json.loads(text.removeprefix("dead_letter"))["worker"] == "mail"


async def test_the_signature_is_over_time_and_body(receiver: Receiver, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOOK", receiver.url)
    monkeypatch.setenv("HOOK_SECRET", "hush")
    channel = channels.webhook("env:HOOK", "env:HOOK_SECRET")
    assert await send(channel, BODY, "key-1", NOW, allow_commands=False) == "200 OK"
    (got,) = receiver.received
    assert got.headers["idempotency-key"] == "key-1"
    timestamp = got.headers["jobrunner-timestamp"]
    assert int(timestamp) == NOW.timestamp()
    expected = hmac.new(b"hush", f"{timestamp}.".encode() + got.raw, hashlib.sha256).hexdigest()
    assert got.headers["jobrunner-signature"] == f"v1={expected}"
    assert got.body == BODY


async def test_what_is_not_set_is_said_by_its_name_alone(receiver: Receiver, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("HOOK_SECRET", raising=False)
    with pytest.raises(NotSent, match="the environment variable HOOK_SECRET is not set here"):
        await send(channels.webhook(receiver.url, "env:HOOK_SECRET"), BODY, "k", NOW, allow_commands=False)
    assert receiver.received == []


async def test_an_answer_that_is_no_success_is_an_error_without_the_url(receiver: Receiver):
    receiver.status = 503
    with pytest.raises(NotSent) as refused:
        await send(channels.webhook(receiver.url + "/s3cret"), BODY, "k", NOW, allow_commands=False)
    assert str(refused.value) == "127.0.0.1 answered 503 Service Unavailable"


async def test_a_redirect_is_not_followed(receiver: Receiver):
    receiver.status, receiver.location = 302, "file:///etc/passwd"
    with pytest.raises(NotSent, match=r"127\.0\.0\.1 answered 302 Found"):
        await send(channels.webhook(receiver.url), BODY, "k", NOW, allow_commands=False)


async def test_a_receiver_that_says_nothing_is_given_up(receiver: Receiver):
    receiver.held.clear()
    with pytest.raises(NotSent, match=r"127.0.0.1 did not answer within 0.2 s"):
        await in_own_thread(lambda: posting.post(receiver.url, b"{}", {}, 0.2), 5.0)


@contextmanager
def dripping(begin: bytes, drip: bytes) -> Iterator[str]:
    """The URL of a receiver that sends `begin`, and then a byte or two every 50 ms for ever."""
    over = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with suppress(OSError):
            connection, _ = listener.accept()
            with connection:
                connection.sendall(begin)
                while not over.wait(0.05):
                    connection.sendall(drip)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/hook"
    finally:
        over.set()
        listener.close()
        thread.join(5.0)


@pytest.mark.parametrize("begin", [b"", b"HTTP/1.1 200 OK\r\nX-Slow: "])
async def test_a_receiver_that_answers_byte_by_byte_is_given_up(begin: bytes):
    with dripping(begin, b"H") as url, pytest.raises(NotSent, match=r"127.0.0.1 did not answer within 0.3 s"):
        await in_own_thread(lambda: posting.post(url, b"{}", {}, 0.3), 5.0)


async def test_a_message_was_taken_whose_receiver_never_ends_what_it_says():
    with dripping(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b"x") as url:
        assert await in_own_thread(lambda: posting.post(url, b"{}", {}, 0.3), 5.0) == "200 OK"


async def test_a_channel_that_never_comes_back_is_given_up(receiver: Receiver):
    def wait() -> str:
        receiver.held.wait()
        return ""

    receiver.held.clear()
    with pytest.raises(NotSent, match=r"not done within 0.1 s"):
        await in_own_thread(wait, 0.1)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import sys; print('disk full'); sys.exit(3)", r"ended with exit code 3: disk full"),
        ("import time; time.sleep(60)", r"was not done within 0.3 s, and was killed"),
    ],
)
async def test_a_command_that_fails_is_said(code: str, said: str, monkeypatch: pytest.MonkeyPatch):
    if "sleep" in code:
        monkeypatch.setattr(sending, "LONGEST_SECONDS", 0.3)
    with pytest.raises(NotSent, match=said):
        await send(channels.command([sys.executable, "-c", code]), BODY, "k", NOW, allow_commands=True)


async def test_a_command_that_is_not_there_is_said():
    with pytest.raises(NotSent, match=r"/no/such/program cannot be started: No such file"):
        await send(channels.command(["/no/such/program"]), BODY, "k", NOW, allow_commands=True)


@pytest.mark.filterwarnings("ignore:.*imghdr.*:DeprecationWarning")  # what Apprise imports
async def test_apprise_takes_its_url_from_the_environment(receiver: Receiver, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TELL", receiver.url.replace("http://", "json://"))
    body = {**BODY, "last_error": "ValueError: no luck", "count": 3}
    assert await send(channels.apprise("env:TELL"), body, "k", NOW, allow_commands=False) == "delivered by Apprise"
    (got,) = receiver.received
    assert got.body["title"] == title_of(body) == "jobrunner open failing: mail"
    assert got.body["message"] == text_of(body)
    assert "happened 3 times\nlast error: ValueError: no luck" in text_of(body)
    logging.getLogger("apprise").setLevel(logging.CRITICAL)
    receiver.stop()
    with pytest.raises(NotSent, match="Apprise could not deliver it"):
        await send(channels.apprise("env:TELL"), body, "k", NOW, allow_commands=False)
    monkeypatch.setenv("TELL", "nonsense")
    with pytest.raises(NotSent, match="Apprise does not know such a URL"):
        await send(channels.apprise("env:TELL"), body, "k", NOW, allow_commands=False)


async def test_a_node_looks_for_nothing_before_it_has_beaten_since_the_last_outage(
    house: House, monkeypatch: pytest.MonkeyPatch
):
    outage = Outage(SystemClock(), e.Events())
    settings = Settings(alert_interval=0.01)
    alerting = Alerting(house.db, SystemClock(), outage, settings, lambda: "n1")
    done: list[str] = []

    async def look(*_: Any) -> bool:
        done.append("looked")
        return True

    monkeypatch.setattr(alerting._look, "look", look)
    monkeypatch.setattr(alerting._look, "forget", lambda: done.append("forgot"))
    looking = asyncio.ensure_future(alerting.look())
    await house.until(lambda: len(done) >= 3)
    assert set(done) == {"forgot"}
    outage.beat()
    await house.until(lambda: done[-1] == "looked")
    outage.failed(DatabaseUnavailable("gone"))
    outage.worked()  # for something else
    await house.until(lambda: done[-3:] == ["forgot"] * 3)
    looking.cancel()


async def test_a_statement_that_was_ended_is_no_outage(house: House):
    outage = Outage(SystemClock(), e.Events())
    for error in (ReadTooLong(2.0), GaveWay("a deadlock")):
        outage.dropped("incidents could not be looked for", error)
        assert not outage.is_on
    outage.dropped("incidents could not be looked for", DatabaseUnavailable("the server is gone"))
    assert outage.is_on
    if not house.db.is_sqlite:
        with pytest.raises(GaveWay, match="statement timeout"):
            async with house.db.write() as conn:
                await conn.execute(sa.text("SET LOCAL statement_timeout = 20"))
                await conn.execute(sa.text("SELECT pg_sleep(5)"))
