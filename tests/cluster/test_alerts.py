"""Alerts while nodes die and receivers are away: each incident is told once, in order, and signed."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from jobrunner.model.alerts import AlertKind, AlertRule
from jobrunner.policy import channels
from jobrunner.storage.alerts import rules
from jobrunner.storage.database.database import Database
from jobrunner.storage.workers import operations
from tests.cluster.conftest import Start
from tests.support.cluster import until
from tests.support.receiver import Received, Receiver

KINDS = frozenset({AlertKind.TRIPPED, AlertKind.CLOSED, AlertKind.NODE_LOST, AlertKind.DEAD_LETTER})
FAILING = [f"fails-{number}" for number in range(4)]


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    made = Receiver()
    monkeypatch.setenv("HOOK_SECRET", "hush")
    monkeypatch.setenv("JOBRUNNER_ALERT_INTERVAL", "0.2")
    monkeypatch.setenv("JOBRUNNER_ALERT_CALM", "0.5")
    yield made
    made.close()


def with_database(url: str, work: Any) -> Any:
    async def do() -> Any:
        db = Database.open(url)
        try:
            return await work(db)
        finally:
            await db.close()

    return asyncio.run(do())


def is_signed(message: Received) -> bool:
    text = message.headers["jobrunner-timestamp"].encode() + b"." + message.raw
    return message.headers["jobrunner-signature"] == f"v1={hmac.new(b'hush', text, hashlib.sha256).hexdigest()}"


def test_every_incident_is_told_once_in_order_though_the_receiver_is_away_and_the_sender_is_killed(
    make: Start, database_url: str, receiver: Receiver
):
    rule = AlertRule("ops", KINDS, channel=channels.webhook(receiver.url, "env:HOOK_SECRET"), repeat_seconds=3600)
    with_database(database_url, lambda db: rules.add(db, rule, datetime.now(UTC), "ann"))
    receiver.stop()
    c = make(database_url, scenario="failing", lease=2.0, tick_interval=0.5)
    c.start(2)
    for name in FAILING[:2]:
        c.trigger(name)
    until(lambda: c.value("SELECT count(*) FROM {p}alerts WHERE kind = 'tripped'") == 2, what="circuits have opened")
    until(lambda: c.value("SELECT count(*) FROM {p}alert_deliveries WHERE attempts > 0") > 0, what="it was tried")

    receiver.held.clear()  # it takes what comes, and answers nothing
    receiver.start()
    senders = "SELECT n.pid FROM {p}alert_rules r JOIN {p}nodes n ON n.id = r.sender"
    pid: list[int] = []

    def is_sending() -> bool:
        pid[:] = [row["pid"] for row in c.rows(senders)]  # asked once more, it might have let go
        return bool(pid)

    until(is_sending, what="a node sends")
    next(node for node in c.nodes if node.pid == pid[0]).kill()
    for name in FAILING[2:]:
        c.trigger(name)
    receiver.held.set()
    c.start(1)

    unsent = "SELECT count(*) FROM {p}alert_deliveries WHERE sent_at IS NULL"
    until(lambda: c.value("SELECT count(*) FROM {p}alerts WHERE kind = 'tripped'") == 4, what="all circuits opened")
    until(lambda: c.value(unsent) == 0, what="all is told")
    c.rows("UPDATE {p}dead_letters SET status = 'discarded', resolved_at = died_at")
    for name in FAILING:
        with_database(database_url, lambda db, name=name: operations.enable(db, name, datetime.now(UTC), "ann"))
    still_open = "SELECT count(*) FROM {p}alerts WHERE closed_at IS NULL"
    until(lambda: c.value(still_open) == 0 and c.value(unsent) == 0, what="all is over, and told")

    rows = c.rows("SELECT idempotency_key FROM {p}alert_deliveries ORDER BY id")
    assert [message.key for message in receiver.once] == [row["idempotency_key"] for row in rows]
    assert all(is_signed(message) for message in receiver.received)
    same: dict[str, bytes] = {}
    for message in receiver.received:
        assert same.setdefault(message.key, message.raw) == message.raw, "each try sends the same"
    told = [(body["kind"], body["message"], body["worker"]) for body in receiver.bodies]
    assert len(told) == len(set(told)), "once each"
    for name in FAILING:
        assert {("tripped", "open", name), ("tripped", "close", name), ("closed", "open", name)} <= set(told)
        assert {("dead_letter", "open", name), ("dead_letter", "close", name)} <= set(told)
    assert ("node_lost", "open", None) in told
    over = [body["summary"] for body in receiver.bodies if body["message"] == "close"]
    assert all("recovered after " in summary for summary in over)
