"""Several nodes, operators and rescuers at once on one database, for a few seconds of real time: no promise is broken.

Each has connections of its own, as processes would. Afterwards the independent checker reads the tables.
"""

from __future__ import annotations

import asyncio
import random
from datetime import UTC, datetime, timedelta

from jobrunner.model.run import OutcomeKind
from jobrunner.storage import nodes
from jobrunner.storage.runs.claims import Claim
from jobrunner.storage.runs.finishes import Ended, finish
from jobrunner.storage.workers import operations
from tests.support.checker import check, read_tables
from tests.support.stage import ACTOR, Stage, continuous, scheduled, triggered

SECONDS = 4.0
WORKERS = [
    scheduled("a", interval_seconds=0.05, max_retries=1, retry_delay_seconds=0.01, max_consecutive_failures=50),
    scheduled("b", interval_seconds=0.05, depends_on=["a"], blocks=["c"]),
    continuous("c", interval_seconds=0, blocks=["d"], max_running=2),
    triggered("d", max_running=2, max_retries=0, max_consecutive_failures=3, cooldown_seconds=0.05),
    triggered("e", max_running=3, depends_on=["a"]),
    triggered("f", max_running=1, blocks=["e"]),
]
NAMES = [config.name for config in WORKERS]
KINDS = [OutcomeKind.SUCCEEDED] * 6 + [OutcomeKind.FAILED, OutcomeKind.INTERRUPTED, OutcomeKind.SNOOZED]


def real_now() -> datetime:
    return datetime.now(UTC)


class RealTime(Stage):
    """A stage whose clock goes by itself: a claim asks it again once it holds its locks."""

    @property
    def now(self) -> datetime:
        """The time now."""
        return datetime.now(UTC)

    @now.setter
    def now(self, moment: datetime) -> None:
        """Nobody sets real time."""


class Race:
    """Goes on for some seconds, and on a slow machine until attempts have ended in every way."""

    def __init__(self) -> None:
        self._began = real_now()
        self.kinds: set[OutcomeKind] = set()

    @property
    def is_on(self) -> bool:
        """Say whether it goes on."""
        seconds = SECONDS if self.kinds >= set(KINDS) else 10 * SECONDS
        return real_now() < self._began + timedelta(seconds=seconds)


async def node(stage: Stage, name: str, race: Race, rng: random.Random) -> None:
    """Tick, hold each run for a moment, end it; now and then die: leave all that is held, start anew."""
    held: list[Claim] = []
    starts = 0
    while race.is_on or held:
        if race.is_on and len(held) < 4:
            held += (await stage.claim(4 - len(held), f"{name}-{starts}", NAMES)).claims
        await asyncio.sleep(rng.uniform(0, 0.004))
        if rng.random() < 0.01:
            held, starts = [], starts + 1
        ending = [claim for claim in held if rng.random() < 0.6]
        held = [claim for claim in held if claim not in ending]
        if ending:
            ends = [Ended(claim.run, stage.outcome(rng.choice(KINDS)), claim.config) for claim in ending]
            finished = await finish(stage.db, ends)
            race.kinds.update(decided.outcome.kind for _, decided in finished.written)


async def rescuer(stage: Stage, race: Race) -> None:
    """Take the runs of every node: to the table none has ever joined. So nodes that live lose theirs, too."""
    while race.is_on:
        now = real_now()
        await nodes.rescue(stage.db, now, now)
        await asyncio.sleep(0.15)


async def operator(stage: Stage, race: Race, rng: random.Random, accepted: list[int]) -> None:
    """Trigger all the time; disable, pause and enable again now and then."""
    while race.is_on:
        for name in ("d", "e", "f"):
            accepted.append(await stage.trigger(name, key=rng.choice([None, "k"]), is_forced=rng.random() < 0.05))
        name = rng.choice(NAMES)
        if rng.random() < 0.3:
            await operations.disable(stage.db, name, real_now(), ACTOR, None)
            await operations.enable(stage.db, name, real_now(), ACTOR)
        elif rng.random() < 0.3:
            await operations.pause(stage.db, name, real_now(), ACTOR, real_now() + timedelta(seconds=0.05), None)
        elif rng.random() < 0.5:
            await operations.enable(stage.db, name, real_now(), ACTOR)
        await asyncio.sleep(rng.uniform(0, 0.01))


async def test_racing_nodes_rescuers_and_operators_break_no_promise(database_url: str):
    stages = [RealTime(database_url) for _ in range(5)]
    accepted: list[int] = []
    try:
        await stages[0].register(*WORKERS)
        race = Race()
        await asyncio.gather(
            *(node(stages[n], f"n{n}", race, random.Random(n)) for n in range(3)),
            rescuer(stages[3], race),
            operator(stages[4], race, random.Random(9), accepted),
        )
    finally:
        for stage in stages:
            await stage.db.close()
    tables = read_tables(database_url)
    # b and e wait for a, which on a slow machine is due again at any moment; the others cannot be starved.
    assert {row["worker"] for row in tables.attempts} >= {"a", "c", "d", "f"}
    assert {row["outcome"] for row in tables.history} >= {"succeeded", "failed", "interrupted", "snoozed", "lost"}
    assert check(database_url, accepted=accepted) == []
