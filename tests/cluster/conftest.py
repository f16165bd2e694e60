"""Clusters: several node processes on one database, on each of the two."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.cluster import Cluster, cluster

Start = Callable[..., Cluster]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "/cluster/" in item.path.as_posix():
            item.add_marker(pytest.mark.cluster)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Start]:
    """Make a cluster on a database; its nodes note what they execute in `notes` of the test's `tmp_path`."""
    with ExitStack() as stack:

        def made(url: str, **options: Any) -> Cluster:
            options = {"notes": tmp_path / "notes", **options}
            return stack.enter_context(cluster(url, tmp_path, **options))

        yield made


@pytest.fixture
def seconds() -> float:
    """How long the long tests look: 15 s, or JOBRUNNER_TEST_CLUSTER_SECONDS."""
    return float(os.environ.get("JOBRUNNER_TEST_CLUSTER_SECONDS", "15"))
