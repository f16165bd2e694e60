"""Claiming, on both databases: what starts, in which slot, under which fence, and what never starts together."""

from __future__ import annotations

from jobrunner.model.run import OutcomeKind, RunState, Trigger
from tests.support.stage import T0, Stage, continuous, scheduled, triggered


async def test_smoke(stage: Stage):
    await stage.register(scheduled("a"), triggered("b", max_running=2), continuous("c"), scheduled("d", depends_on=["a"], blocks=["c"]))
    for _ in range(3):
        await stage.trigger("b")
    runs = await stage.tick()
    print(runs)
    for r in runs:
        await stage.end(r)
    stage.after(1)
    runs = await stage.tick()
    print(runs)
    for r in runs:
        await stage.fail(r)
    stage.after(5)
    runs = await stage.tick()
    print(runs)
    print(await stage.outcomes())
