"""What the schema does for limits, batches and flows, whoever inserts: keys are read, members and edges are checked."""

from __future__ import annotations

import json

import pytest
import sqlalchemy as sa

from jobrunner.storage.runs.enqueue import enqueue_many
from tests.support.stage import Stage, triggered

PAYLOADS = (
    ('{"user": {"id": "ann"}}', "ann"),
    ('{"user": {"id": 42}}', "42"),
    ('{"user": {"id": true}}', "true"),
    ('{"user": {"id": ""}}', None),
    ('{"user": {"id": null}}', None),
    ('{"user": {"id": {"a": 1}}}', None),
    ('{"user": {"id": [1]}}', None),
    ('{"user": "ann"}', None),
    ("{}", None),
    ('{"user": {"id": "' + "k" * 300 + '"}}', "k" * 200),
)


async def _run(stage: Stage, sql: str) -> list[tuple[object, ...]]:
    async with stage.db.write() as conn:
        result = await conn.exec_driver_sql(sql)
        return [tuple(row) for row in result] if result.returns_rows else []


async def _keys(stage: Stage) -> list[object]:
    rows = await _run(stage, f"SELECT limit_key FROM {stage.db.schema_prefix}runs ORDER BY id")
    return [key for (key,) in rows]


async def test_a_key_is_read_of_the_payload_once_however_a_run_is_added(stage: Stage):
    await stage.register(triggered("mail", limit_key="user.id", max_running_per_key=1), triggered("none"))
    for text, _ in PAYLOADS:
        await stage.trigger("mail", payload=json.loads(text))
    async with stage.db.write() as conn:
        await enqueue_many(conn, stage.db.dialect, "mail", [text for text, _ in PAYLOADS], stage.now)
    for text, _ in PAYLOADS:
        await _run(stage, f"INSERT INTO {stage.db.schema_prefix}runs (worker, payload) VALUES ('mail', '{text}')")
    wanted = [key for _, key in PAYLOADS] * 3
    assert await _keys(stage) == wanted
    await _run(
        stage, f"INSERT INTO {stage.db.schema_prefix}runs (worker, payload, limit_key) VALUES ('mail', '{{}}', 'mine')"
    )
    await _run(
        stage,
        f"INSERT INTO {stage.db.schema_prefix}runs (worker, payload, priority) VALUES ('mail', '{PAYLOADS[0][0]}', 2)",
    )
    await _run(stage, f"INSERT INTO {stage.db.schema_prefix}runs (worker, payload) VALUES ('none', '{PAYLOADS[0][0]}')")
    assert await _keys(stage) == [*wanted, "mine", "ann", None]


async def test_a_run_joins_no_batch_that_is_not_there_or_has_finished(stage: Stage):
    await stage.register(triggered("mail"))
    await _run(stage, f"INSERT INTO {stage.db.schema_prefix}batches (on_finish) VALUES ('mail')")
    add = f"INSERT INTO {stage.db.schema_prefix}runs (worker, batch_id) VALUES ('mail', {{}})"
    await _run(stage, add.format(1))
    with pytest.raises(sa.exc.DBAPIError, match="no such batch, or it has finished"):
        await _run(stage, add.format(2))
    await _run(stage, f"UPDATE {stage.db.schema_prefix}batches SET sealed_at = created_at, finished_at = created_at")
    with pytest.raises(sa.exc.DBAPIError, match="no such batch, or it has finished"):
        await _run(stage, add.format(1))


async def test_an_edge_holds_the_run_that_waits_and_is_refused_once_either_has_started(stage: Stage):
    await stage.register(triggered("mail", max_running=9))
    await stage.join("n1")
    first, second, third = [await stage.trigger("mail") for _ in range(3)]
    edge = f"INSERT INTO {stage.db.schema_prefix}run_after (run_id, after_run_id) VALUES ({{}}, {{}})"
    await _run(stage, edge.format(second, first))
    await _run(stage, edge.format(third, second))
    assert [run.id for run in await stage.tick()] == [first]
    held = await _run(
        stage, f"SELECT id, flow_id FROM {stage.db.schema_prefix}runs WHERE due_at > '9000-01-01' ORDER BY id"
    )
    assert held == [(second, first), (third, first)]
    with pytest.raises(sa.exc.DBAPIError, match="both runs must wait"):
        await _run(stage, edge.format(third, first))
    with pytest.raises(sa.exc.DBAPIError, match="both runs must wait"):
        await _run(stage, edge.format(third, 99))
