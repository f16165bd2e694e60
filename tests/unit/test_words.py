from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from jobrunner.model.run import Outcome, OutcomeKind, Run, RunState, Trigger
from jobrunner.policy.gates import show_time
from jobrunner.policy.words import counted
from jobrunner.telemetry import events as e
from jobrunner.telemetry.logs import log_event

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def test_one_is_no_plural():
    assert [counted(n, "run") for n in (0, 1, 2)] == ["0 runs", "1 run", "2 runs"]
    assert [counted(n, "letter stays", "letters stay") for n in (1, 2)] == ["1 letter stays", "2 letters stay"]


@pytest.mark.parametrize(
    ("after", "said"),
    [(-3600, "again as soon as may be"), (0, "again as soon as may be"), (5, "again at 2026-03-01 12:00:05 UTC")],
)
def test_no_time_that_has_passed_is_named_for_the_next_attempt(caplog, after, said):
    caplog.set_level("INFO", "jobrunner")
    run = Run(1, "mail", Trigger.MANUAL, RunState.RUNNING, 1, NOW, NOW, {}, None, 1, False)
    outcome = Outcome(OutcomeKind.INTERRUPTED, NOW, reason="the node stops")
    log_event(e.RunEnded(run, outcome, None, show_time(NOW + timedelta(seconds=after))))
    assert caplog.messages[-1].endswith(said)
