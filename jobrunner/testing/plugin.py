"""A pytest plugin: `pytest_plugins = ["jobrunner.testing.plugin"]` in your `conftest.py`. Needs pytest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from jobrunner.runtime.orchestrator import WorkerOrchestrator


@pytest.fixture
def temporary_database(tmp_path: Path) -> Iterator[Callable[[WorkerOrchestrator], str]]:
    """Call it with an orchestrator: until the test ends that works on a fresh SQLite file, whose URL is returned."""
    used: list[tuple[WorkerOrchestrator, str]] = []

    def use(orchestrator: WorkerOrchestrator) -> str:
        used.append((orchestrator, orchestrator.settings.database_url))
        url = f"sqlite:///{tmp_path / f'jobrunner-{len(used)}.db'}"
        orchestrator.configure(database_url=url, sqlite_synchronous="NORMAL")
        return url

    yield use
    for orchestrator, url in reversed(used):
        orchestrator.configure(database_url=url)
