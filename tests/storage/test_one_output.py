"""What an attempt has said, and why runs wait, on both databases."""

from __future__ import annotations

import pytest

from jobrunner.errors import RunNotFound
from jobrunner.storage.reading.one_output import read_output
from jobrunner.storage.reading.status import read_runs
from jobrunner.storage.reading.why_waits import with_why
from jobrunner.storage.workers import operations
from tests.support.stage import ACTOR, Stage, triggered


async def test_each_attempt_has_its_own_output(stage: Stage):
    await stage.register(triggered("mail", max_retries=2))
    await stage.join("n1")
    run_id = await stage.trigger("mail")
    for number in (1, 2):
        await stage.fail(await stage.start_one(), output=f"line of {number}")
        stage.after(3600)
    await stage.start_one()
    await stage.sql(f"UPDATE {{p}}runs SET output = 'so far' WHERE id = {run_id}")
    async with stage.db.read() as conn:
        said = [await read_output(conn, run_id, attempt) for attempt in (1, 2, 3, None)]
        assert said == ["line of 1", "line of 2", "so far", "so far"]
        for unknown in ((run_id, 4), (run_id + 1, None)):
            with pytest.raises(RunNotFound):
                await read_output(conn, *unknown)


async def test_beside_a_run_that_is_held_up_stands_why(stage: Stage):
    await stage.register(triggered("mail"), triggered("other"))
    await stage.join("n1")
    await operations.disable(stage.db, "mail", stage.now, ACTOR, "the API is down")
    await stage.trigger("mail")
    await stage.trigger("other", due_at=stage.now.replace(year=2027))
    async with stage.db.read() as conn:
        rows = await with_why(conn, stage.db.dialect, stage.now, await read_runs(conn))
    why = {row["worker"]: row["why"] for row in rows}
    assert why["other"] is None
    assert "disabled" in why["mail"]
    assert "the API is down" in why["mail"]
