"""The stage: a fresh database with a manual clock, on each of the two databases."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.support.stage import Stage


@pytest.fixture
async def stage(database_url: str) -> AsyncIterator[Stage]:
    stage = Stage(database_url)
    yield stage
    await stage.db.close()


@pytest.fixture
async def other_stage(database_url: str) -> AsyncIterator[Stage]:
    """Another process's view of the same database: connections of its own."""
    stage = Stage(database_url)
    yield stage
    await stage.db.close()
