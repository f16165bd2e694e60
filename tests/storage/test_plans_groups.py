"""How the databases carry out what batches and flows add to a node's work, beside 50,000 waiting runs and a history."""

from __future__ import annotations

from jobrunner.storage.reading.groups import list_batches, live_parents
from jobrunner.storage.runs import batches, cancelling, dead_letters
from jobrunner.storage.runs.batches import NewBatch
from jobrunner.storage.runs.dead_letters import Chosen
from jobrunner.storage.runs.enqueue import Request
from jobrunner.storage.runs.flows import Planned, add_flow, read_before
from tests.storage.test_plans import SMALL, WHOLE, crowd
from tests.support.plans import Sent, plan, recorded
from tests.support.stage import ACTOR, Stage


async def everyday(stage: Stage) -> list[Sent]:
    """Batches and flows begin, go on, fail, and are looked at; the worker `wide` has 20 places and no retries."""
    async with stage.db.write() as conn:
        good, bad = [
            await batches.begin(conn, stage.db.dialect, NewBatch(on_failure="busy", on_finish="busy")) for _ in range(2)
        ]
        steps = [
            Planned("x", Request("wide", priority=3)),
            Planned("y", Request("wide", priority=3), ("x",)),
            Planned("z", Request("wide", priority=3), ("y",)),
        ]
        flows = [await add_flow(conn, stage.db.dialect, steps, stage.now) for _ in range(2)]
    for batch_id in (good, bad):
        await stage.trigger("wide", batch_id=batch_id, priority=3)
        await batches.seal(stage.db, batch_id, stage.now)
    runs = {run.id: run for run in await stage.tick(slots=6, handlers=["wide"])}
    by_batch = {run.batch_id: run for run in runs.values()}
    with recorded(stage.db) as sent:
        await stage.end(runs[flows[0]["x"]])
        await stage.fail(runs[flows[1]["x"]])
        await cancelling.cancel(stage.db, flows[0]["y"], stage.now, ACTOR)
        await stage.end(by_batch[good])
        await stage.fail(by_batch[bad])
        await batches.sweep(stage.db, 0, stage.now)
        async with stage.db.peek() as conn:
            await list_batches(conn, 50)
            await live_parents(conn, list(flows[0].values()))
            await read_before(conn, flows[0]["z"])
            letters = await dead_letters.list_letters(conn, worker="wide", limit=1)
        await dead_letters.replay(stage.db, Chosen(ids=(letters[0]["id"],)), stage.now, ACTOR)
    return sent


async def test_batches_and_flows_look_through_neither_all_runs_nor_all_of_history(stage: Stage):
    await crowd(stage)
    await stage.sql("UPDATE {p}runs SET due_at = '2990-01-01 00:00:00.000000' WHERE worker = 'wide'")
    async with stage.db.write() as conn:
        for _ in range(100):  # others that are open
            await batches.begin(conn, stage.db.dialect, NewBatch(on_failure="busy"))
    for _ in range(2):
        shown = set()
        for sent in await everyday(stage):
            how = await plan(stage.db, sent)
            shown.add(how)
            for step in how.splitlines():
                assert SMALL.search(step) or not WHOLE.search(step), f"{sent.sql}\n\n{how}"
        assert "ix_runs_batch_id" in "\n".join(shown)
        await stage.sql("ANALYZE")
