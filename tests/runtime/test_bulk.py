"""A node works at bulk operations that nobody works at."""

from __future__ import annotations

from jobrunner.storage import bulk
from tests.runtime.conftest import House
from tests.runtime.test_operator import TRIGGERED


async def test_a_node_does_what_the_command_line_left_to_it(house: House):
    orchestrator = house.orchestrator()
    is_broken = True

    async def fail() -> None:
        if is_broken:
            raise OSError("no luck")

    orchestrator.register_worker("w", fail, **TRIGGERED, max_consecutive_failures=100)
    await orchestrator.start()
    for _ in range(3):
        await orchestrator.trigger_worker("w")
    await house.attempts(3)
    is_broken = False
    now = house.ended()[-1].outcome.finished_at
    seen = await bulk.preview(house.db, "replay", "worker:w", now)
    await bulk.begin(house.db, seen, now, "ann@desk")
    row = await house.until_row("SELECT * FROM {p}bulk_operations WHERE state = 'done'")
    assert row["done"] == 3
    await house.attempts(6)
    assert {end.ends_run for end in house.ended()[3:]} == {"succeeded"}
