from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest

from jobrunner.model.run import HELD_UNTIL, Outcome, OutcomeKind, Run, RunState, Trigger
from jobrunner.policy.words import HELD, counted, short_time, show_age, show_moment, show_time
from jobrunner.telemetry import events as e
from jobrunner.telemetry.logs import log_event
from jobrunner.web.pages.render import when

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
    log_event(e.RunEnded(run, outcome, None, NOW + timedelta(seconds=after)))
    assert caplog.messages[-1].endswith(said)


@pytest.mark.parametrize(
    ("moment", "said"),
    [
        (NOW, "12:00:00"),
        (NOW.astimezone(timezone(timedelta(hours=13))), "12:00:00"),
        (NOW - timedelta(hours=13), "02-28 23:00"),
        (NOW + timedelta(days=200), "2026-09-17 12:00"),
        (NOW.astimezone(ZoneInfo("Europe/Berlin")), "13:00:00 CET"),
        (NOW.astimezone(ZoneInfo("Asia/Tokyo")) + timedelta(hours=3), "03-02 00:00 JST"),
    ],
)
def test_a_short_time_leaves_out_what_everybody_knows(moment, said):
    assert short_time(moment, NOW) == said


def test_a_time_of_a_zone_of_its_own_is_shown_there():
    assert show_moment(NOW) == "2026-03-01 12:00:00 UTC"
    assert show_moment(NOW.astimezone(ZoneInfo("Europe/Berlin"))) == "2026-03-01 13:00:00 CET"


def test_the_log_names_the_workers_own_time_beside_utc(caplog):
    run = Run(1, "mail", Trigger.MANUAL, RunState.RUNNING, 1, NOW, NOW, {}, None, 1, False)
    outcome = Outcome(OutcomeKind.FAILED, NOW, error="smtp down", error_type="OSError")
    log_event(e.RunEnded(run, outcome, None, NOW + timedelta(seconds=5), "Europe/Berlin"))
    assert caplog.messages[-1].endswith("again at 2026-03-01 12:00:05 UTC (13:00:05 CET)")


@pytest.mark.parametrize(
    ("timezone", "said"),
    [
        ("UTC", "2026-03-01 12:00:00 UTC"),
        ("Etc/UTC", "2026-03-01 12:00:00 UTC"),
        ("Europe/Berlin", "2026-03-01 12:00:00 UTC (13:00:00 CET)"),
        ("Pacific/Auckland", "2026-03-01 12:00:00 UTC (2026-03-02 01:00:00 NZDT)"),
        ("No/Where", "2026-03-01 12:00:00 UTC"),
    ],
)
def test_a_time_is_shown_with_its_zone_and_in_the_workers_own(timezone, said):
    assert show_time(NOW, timezone) == said


def test_the_date_of_today_may_be_left_out():
    assert show_time(NOW, "Europe/Berlin", today=NOW + timedelta(hours=1)) == "12:00:00 UTC (13:00:00 CET)"
    assert show_time(NOW, today=NOW + timedelta(days=1)) == "2026-03-01 12:00:00 UTC"


def test_the_last_time_there_is_can_be_shown_in_any_zone():
    last = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
    assert show_time(last, "Pacific/Auckland") == "9999-12-31 23:59:59 UTC"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "now"),
        (-0.9, "now"),
        (1, "in 1 s"),
        (119.9, "in 119 s"),
        (299, "in 4 min"),
        (-7199, "119 min ago"),
        (-7200, "2 h ago"),
        (86400 * 1.5, "in 36 h"),
        (-86400 * 40, "40 d ago"),
    ],
)
def test_an_age_is_told_in_one_unit_and_never_rounded_up(seconds, said):
    assert show_age(NOW + timedelta(seconds=seconds), NOW) == said


def test_a_step_that_waits_for_others_has_no_time_in_any_form():
    assert show_time(HELD_UNTIL) == show_time(HELD_UNTIL, "Asia/Tokyo", today=NOW) == HELD
    assert show_moment(HELD_UNTIL) == short_time(HELD_UNTIL, NOW, "Asia/Tokyo") == HELD
    assert show_age(HELD_UNTIL, NOW) == "held"
    assert when(HELD_UNTIL, "worker", "Asia/Tokyo", NOW) == HELD
