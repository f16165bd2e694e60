"""The judgement of a life at its end, by the independent checker."""

from __future__ import annotations

from pathlib import Path

from tests.simulation.table_judge import Violation
from tests.simulation.world import World, play
from tests.support.checker import check

BY_THE_CLOCK = ("promise 3", "promise 4", "promise 7")  # they read wall clocks: nothing to be said when those jumped


async def live_and_judge(seed: int, path: Path) -> World:
    """Live a seed on a fresh, migrated SQLite file; raises `Violation`."""
    world = await play(seed, path)
    problems = check(f"sqlite:///{path}", accepted=world.accepted)
    if world.has_jumps:
        problems = [line for line in problems if not line.startswith(BY_THE_CLOCK)]
    if problems:
        raise Violation("\n".join(problems[:10]))
    return world
