"""A few dozen lives of many nodes; thousands more with `python -m tests.simulation`."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.simulation.judge import live_and_judge


@pytest.mark.parametrize("seed", range(12))
async def test_no_promise_is_broken_whatever_happens(sqlite_template: Path, tmp_path: Path, seed: int):
    world = await live_and_judge(seed, Path(shutil.copyfile(sqlite_template, tmp_path / "simulation.db")))
    assert world.accepted
    assert world.turns  # the fast path is taken, too
