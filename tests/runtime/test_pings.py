"""Pings: what a worker's URL is told of its runs, and that no run waits for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

import pytest

from jobrunner import Discard, RunContext
from jobrunner.runtime import pings
from jobrunner.telemetry import events as e
from tests.runtime.conftest import House
from tests.support.receiver import Received, Receiver


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


def orchestrator(house: House, receiver: Receiver) -> Any:
    o = house.orchestrator()

    @o.worker("mail", execution_mode="triggered", max_retries=1, retry_delay_seconds=0.01, ping=f"{receiver.url}/mail")
    async def mail(run: RunContext, luck: int = 0, gives_up: bool = False) -> None:
        run.log("about to begin")
        if gives_up:
            raise Discard("not worth it")
        if run.attempt > luck:
            raise ValueError("no luck")

    return o


def paths(messages: list[Received]) -> list[str]:
    return [urlsplit(message.path).path for message in messages]


def rids(messages: list[Received]) -> set[UUID]:
    return {UUID(parse_qs(urlsplit(message.path).query)["rid"][0]) for message in messages}


async def test_start_and_success_are_told_with_one_rid(house: House, receiver: Receiver):
    o = orchestrator(house, receiver)
    await o.start()
    await o.trigger_worker("mail", {"luck": 1})
    await house.until(lambda: len(receiver.received) == 2)
    assert paths(receiver.received) == ["/hook/mail/start", "/hook/mail"]
    assert len(rids(receiver.received)) == 1
    assert receiver.received[1].raw == b"about to begin"
    await o.trigger_worker("mail", {"luck": 1})
    await house.until(lambda: len(receiver.received) == 4)
    assert len(rids(receiver.received)) == 2


async def test_failure_is_told_when_the_run_has_failed_for_good(house: House, receiver: Receiver):
    o = orchestrator(house, receiver)
    await o.start()
    await o.trigger_worker("mail")
    await house.until(lambda: len(receiver.received) == 3)
    assert paths(receiver.received) == ["/hook/mail/start", "/hook/mail/start", "/hook/mail/fail"]
    assert len(rids(receiver.received)) == 1
    assert receiver.received[2].raw == b"ValueError: no luck\nabout to begin"


async def test_a_run_that_is_given_up_has_failed(house: House, receiver: Receiver):
    o = orchestrator(house, receiver)
    await o.start()
    await o.trigger_worker("mail", {"gives_up": True})
    await house.until(lambda: len(receiver.received) == 2)
    assert paths(receiver.received) == ["/hook/mail/start", "/hook/mail/fail"]


async def test_what_waits_is_sent_when_the_node_stops(house: House, receiver: Receiver):
    o = orchestrator(house, receiver)
    await o.start()
    await o.wait_for_run(await o.trigger_worker("mail", {"luck": 1}), timeout=20)
    await o.stop()
    assert paths(receiver.received) == ["/hook/mail/start", "/hook/mail"]


async def test_a_receiver_that_is_away_or_hangs_delays_nothing_and_is_told_of_once(
    house: House, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pings, "_AGAIN_SECONDS", 0.01)
    receiver.stop()
    o = orchestrator(house, receiver)
    await o.start()
    for _ in range(5):
        await o.wait_for_run(await o.trigger_worker("mail", {"luck": 1}), timeout=20)
    await house.until(lambda: any(isinstance(event, e.Warned) for event in house.seen))
    receiver.start()
    receiver.held.clear()
    for _ in range(5):
        await o.wait_for_run(await o.trigger_worker("mail", {"luck": 1}), timeout=20)
    warned = [event.message for event in house.seen if isinstance(event, e.Warned)]
    assert len(warned) == 1
    assert warned[0].startswith("pings are dropped; this is said once: 127.0.0.1 cannot be reached")


def test_a_url_keeps_its_query():
    class Run:
        worker, id = "mail", 812

    url = pings.ping_url("https://hc.example.org/ping/key/?create=1", Run(), "/start")  # type: ignore[arg-type]
    assert url.startswith("https://hc.example.org/ping/key/start?create=1&rid=")
