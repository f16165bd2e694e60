"""When a run that is active is expected to end."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

from jobrunner.policy.expected import expected_end
from jobrunner.policy.missed import UNTIL_RESUMED

NOW = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("ran", "usual", "timeout", "ends"),
    [
        (10, 30, None, 20),
        (40, 30, None, 0),
        (80, 30, None, 0),
        (100, 30, None, None),
        (100, 30, 200, 100),
        (300, 30, 200, 0),
        (30, None, None, 0),
        (61, None, None, None),
    ],
)
def test_after_its_usual_time_and_what_is_far_beyond_that_hangs(ran, usual, timeout, ends):
    worker = SimpleNamespace(config=SimpleNamespace(timeout_seconds=timeout))
    length = None if usual is None else timedelta(seconds=usual)
    found = expected_end(worker, NOW - timedelta(seconds=ran), length, NOW)  # type: ignore[arg-type]
    assert found == (UNTIL_RESUMED if ends is None else NOW + timedelta(seconds=ends))
