"""The pages of batches, on both databases."""

from __future__ import annotations

from jobrunner.storage.runs.batches import NewBatch, begin, seal
from jobrunner.storage.runs.finishes import Ended, finish
from tests.support.stage import triggered
from tests.web.conftest import Pages, Web


async def test_pages_show_batches_how_far_they_are_and_what_they_called(web: Web, pages: Pages):
    stage = web.stage
    assert "There are none." in await pages.get("/batches")
    await stage.register(triggered("resize", max_running=9), triggered("publish"))
    async with stage.db.write() as conn:
        batches = [await begin(conn, stage.db.dialect, NewBatch(on_finish="publish")) for _ in range(2)]
    for batch_id in batches:
        await stage.trigger("resize", batch_id=batch_id)
    await seal(stage.db, batches[0], stage.now)
    run = next(run for run in await stage.tick(9) if run.batch_id == batches[0])
    await finish(stage.db, [Ended(run, stage.outcome())])
    page = await pages.get("/batches", "read")
    assert page.index('id="batch-2"') < page.index('id="batch-1"')
    assert "batch 2 is not sealed" in page
    one = await pages.get("/batches/1", "read")
    assert "0 live, 1 ended" in one
    assert 'href="../workers/publish"' in one
    called = await stage.value("SELECT finish_run_id FROM {p}batches WHERE id = 1")
    assert f'href="../runs/{called}"' in one
    assert "jobrunner batches 1" in one
    await pages.get("/batches/99", status=404)
