"""What people ask for is answered within two seconds, or given up: it may take nothing from the runs."""

from __future__ import annotations

import time

import pytest
import sqlalchemy as sa

from jobrunner.errors import ReadTooLong
from tests.support.stage import Stage

_ENDLESS = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"


async def test_a_statement_that_takes_too_long_is_ended_and_the_next_one_answers(stage: Stage):
    bounded = stage.db.bounded()
    try:
        for _ in range(2):
            began = time.monotonic()
            with pytest.raises(ReadTooLong, match=r"more than 2 s; ask for less"):
                async with bounded.peek() as conn:
                    await conn.execute(sa.text(_ENDLESS))
            assert 1.9 <= time.monotonic() - began <= 5.0
        async with bounded.read() as conn:
            assert (await conn.execute(sa.text("SELECT 1"))).scalar_one() == 1
    finally:
        await bounded.close()
