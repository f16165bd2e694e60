"""Alerting: what a node does so that people are told. It looks for incidents, and sends the messages that wait.

Both go at their own pace. Each rule's messages are sent by a task of their own, each in a thread of its own, so that a
receiver which is slow or gone holds up neither runs nor other receivers. Where there is no rule, a node reads one empty
table every few seconds.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from jobrunner.errors import DatabaseError
from jobrunner.policy import channels
from jobrunner.policy.leases import BEATS_A_LEASE
from jobrunner.runtime.channels.sending import send
from jobrunner.runtime.clock import SystemClock
from jobrunner.storage.alerts import deliveries, message
from jobrunner.storage.alerts.look import Look

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from jobrunner.config import Settings
    from jobrunner.runtime.clock import Clock
    from jobrunner.runtime.outage import Outage
    from jobrunner.storage.database.database import Database

SEND_SECONDS = 1.0
MOST_AT_ONCE = 20  # messages of a rule, before others may take it


class Alerting:
    """Looks and sends, for the node that `node_id` names at that moment."""

    def __init__(
        self, db: Database, clock: Clock, outage: Outage, settings: Settings, node_id: Callable[[], str]
    ) -> None:
        self._db = db
        self._clock = clock
        self._pace = SystemClock()  # people wait in real time, whatever clock the node lives by
        self._outage = outage
        self._settings = settings
        self._node_id = node_id
        # After two beats every node that lives has shown that it does.
        sure = 2.0 * settings.lease / BEATS_A_LEASE
        self._look = Look(db, settings.alert_interval, settings.alert_calm, sure, self._not_looked)
        self._has_rules = asyncio.Event()
        self._sending: dict[str, asyncio.Task[None]] = {}

    def services(self) -> list[Coroutine[Any, Any, None]]:
        """Return all of it, each to be run until it is cancelled."""
        return [self.look(), self.send()]

    async def look(self) -> None:
        """Look for incidents, until cancelled."""
        while True:
            if self._outage.has_beaten:
                await self._look_once()
            else:
                self._look.forget()
            spread = random.uniform(0.9, 1.1)  # noqa: S311 - nodes that began together part
            await self._pace.sleep(self._settings.alert_interval * spread)

    async def _look_once(self) -> None:
        try:
            has_rules = await self._look.look(self._clock.now())
        except Exception as error:  # noqa: BLE001 - the node's work goes on, and it looks again
            self._not_looked(error)
        else:
            self._has_rules.set() if has_rules else self._has_rules.clear()

    def _not_looked(self, error: Exception) -> None:
        self._outage.dropped("incidents could not be looked for", error)

    async def send(self) -> None:
        """Send what waits, until cancelled."""
        try:
            while True:
                await self._has_rules.wait()
                await self._send_due()
                await self._pace.sleep(SEND_SECONDS)
        finally:
            tasks = list(self._sending.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def flush(self, seconds: float) -> None:
        """Send what is due for at most so long: the node leaves, and may be the only one for a while."""
        if self._outage.is_on:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._send_due()
                await asyncio.gather(*self._sending.values(), return_exceptions=True)

    async def _send_due(self) -> None:
        try:
            async with self._db.peek() as conn:
                due = await deliveries.due_rules(conn, self._node_id(), self._clock.now())
        except Exception as error:  # noqa: BLE001 - as above
            self._outage.dropped("alerts could not be sent", error)
            return
        for rule, channel in due:
            can_send = channel.get("type") != channels.COMMAND or self._settings.allow_commands
            if rule not in self._sending and can_send:
                self._sending[rule] = asyncio.ensure_future(self._send_rule(rule, channel))

    async def _send_rule(self, rule: str, channel: dict[str, Any]) -> None:
        """Take a rule, send its messages in order as long as they are taken, and leave it."""
        node_id = self._node_id()
        try:
            if not await deliveries.take(self._db, rule, node_id):
                return
            for _ in range(MOST_AT_ONCE):
                found = await deliveries.next_of(self._db, rule, self._clock.now())
                if found is None or not await self._send_one(found, channel):
                    break
            await deliveries.release(self._db, rule, node_id)
        except Exception as error:  # noqa: BLE001 - as above; this node may take the rule again
            self._outage.dropped(f"the messages of the alert rule {rule} could not be sent", error)
        finally:
            del self._sending[rule]

    async def _send_one(self, found: deliveries.Delivery, channel: dict[str, Any]) -> bool:
        body = found.body
        try:
            if body is None:
                body = await message.make(self._db, found, self._settings.http_url, self._clock.now())
                await deliveries.keep_body(self._db, found.id, body)
            allows = self._settings.allow_commands
            await send(channel, body, found.idempotency_key, self._clock.now(), allow_commands=allows)
        except DatabaseError:
            raise
        except Exception as error:  # noqa: BLE001 - it was not taken; or it could not be made, which tells of it
            jitter = random.uniform(-0.2, 0.2)  # noqa: S311 - spreads load, guards nothing
            await deliveries.note_failed(self._db, found, error, self._clock.now(), jitter)
            return False
        await deliveries.note_sent(self._db, found, self._clock.now())
        return True
