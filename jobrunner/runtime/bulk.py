"""A node's part in bulk operations (`storage.bulk`): it looks now and then for one that nobody works at."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobrunner.errors import UsageError
from jobrunner.storage import bulk

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobrunner.runtime.clock import Clock
    from jobrunner.runtime.outage import Outage
    from jobrunner.storage.database.database import Database

LOOK_SECONDS = 5.0


class Bulk:
    """Works at one operation at a time, in the name of the node that `node_id` names at that moment."""

    def __init__(self, db: Database, clock: Clock, outage: Outage, node_id: Callable[[], str]) -> None:
        self._db = db
        self._clock = clock
        self._outage = outage
        self._node_id = node_id

    async def run(self) -> None:
        """Look for operations and work at them, until cancelled."""
        while True:
            await self._clock.sleep(LOOK_SECONDS)
            try:
                while await self.work_at_one():
                    pass
            except Exception as error:  # noqa: BLE001 - what is left goes on in the next round, here or elsewhere
                self._outage.dropped("a bulk operation could not go on", error)

    async def work_at_one(self) -> bool:
        """Take an operation and work at it to its end; say whether there was one."""
        row = await bulk.take(self._db, self._node_id(), self._clock.now())
        if row is None:
            return False
        try:
            worker = bulk.BulkWorker(self._db, row, self._clock.now, self._clock.sleep)
        except UsageError as error:  # another version's filter
            await bulk.fail(self._db, row["id"], str(error), self._clock.now(), row["actor"])
            return True
        await worker.run()
        return True
