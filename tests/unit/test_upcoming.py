from __future__ import annotations

from datetime import UTC, datetime, timedelta

from jobrunner.model.worker import WorkerConfig, WorkerExecutionMode, WorkerState
from jobrunner.policy.missed import UNTIL_RESUMED
from jobrunner.policy.upcoming import MOST_COUNTED, Upcoming, few_of_each, firings, first_of

NOW = datetime(2026, 3, 28, 12, tzinfo=UTC)


def listed(config, state, hours=1, now=NOW):
    rows = firings([(config, state)], now, now + timedelta(hours=hours))
    return [(row.due_at, row.note) for row in first_of(rows, 20)[0]]


def test_a_firing_on_the_day_of_a_clock_change_is_marked():
    config = WorkerConfig("x", cron="30 2 * * *", timezone="Europe/Berlin")
    state = WorkerState("x", next_run_at=datetime(2026, 3, 29, 1, tzinfo=UTC))
    assert listed(config, state, hours=48) == [
        (datetime(2026, 3, 29, 1, tzinfo=UTC), "DST starts"),  # 02:30 does not exist; it runs at the end of the gap
        (datetime(2026, 3, 30, 0, 30, tzinfo=UTC), None),
    ]


def test_what_is_overdue_is_one_row_and_the_grid_goes_on():
    config = WorkerConfig("x", interval_seconds=1200)
    state = WorkerState("x", next_run_at=NOW - timedelta(minutes=50))
    assert listed(config, state) == [
        (NOW - timedelta(minutes=50), "due now"),
        (NOW + timedelta(minutes=10), None),
        (NOW + timedelta(minutes=30), None),
        (NOW + timedelta(minutes=50), None),
    ]


def test_what_will_not_fire_says_why():
    config = WorkerConfig("x", interval_seconds=60)
    disabled = WorkerState("x", is_enabled=False, disabled_by="circuit", disabled_reason="5 in a row")
    assert listed(config, disabled) == [
        (None, "disabled by its circuit: 5 in a row; `jobrunner admin enable x` closes it")
    ]
    assert listed(config, WorkerState("x", paused_until=UNTIL_RESUMED)) == [(None, "paused until resumed")]
    until = NOW + timedelta(minutes=59)
    paused = WorkerState("x", paused_until=until, next_run_at=until)
    assert listed(config, paused)[0] == (until, "paused until 2026-03-28 12:59:00 UTC")


def test_workers_without_a_schedule_are_not_listed():
    for mode in (WorkerExecutionMode.TRIGGERED, WorkerExecutionMode.CONTINUOUS):
        config = WorkerConfig("x", execution_mode=mode, interval_seconds=None)
        assert listed(config, WorkerState("x", next_run_at=NOW)) == []


def test_a_long_listing_is_cut_without_being_made():
    workers = [
        (WorkerConfig(name, interval_seconds=1), WorkerState(name, next_run_at=NOW + timedelta(seconds=1)))
        for name in ("a", "b")
    ]
    rows, has_more = first_of(firings(workers, NOW, NOW + timedelta(days=36_000)), 4)
    assert has_more
    assert [row.worker for row in rows] == ["a", "b", "a", "b"]


def test_a_few_times_of_each_worker_hide_none_behind_one_that_fires_all_the_time():
    def due(name, minutes, **options):
        return WorkerConfig(name, **options), WorkerState(name, next_run_at=NOW + timedelta(minutes=minutes))

    workers = [
        due("tick", 1, interval_seconds=0.001),
        due("hourly", 30, interval_seconds=3600),
        due("nightly", 840, cron="0 2 * * *"),
        (WorkerConfig("off", interval_seconds=60), WorkerState("off", is_enabled=False, disabled_by="operator")),
    ]
    planned = [Upcoming("mail", NOW + timedelta(hours=n), "UTC", f"run {n}", n) for n in range(1, 6)]
    planned.append(Upcoming("nightly", NOW + timedelta(hours=20), "UTC", "run 9", 9))
    until = NOW + timedelta(days=1)
    few = few_of_each(workers, planned, NOW, until, 100)
    assert [row.worker for row in few.rows] == [
        *["tick"] * 3, "hourly", "mail", "hourly", "mail", "hourly", "mail", "nightly", "nightly", "off",
    ]  # fmt: skip
    assert few.more == {"tick": MOST_COUNTED + 1, "hourly": 21, "mail": 2}
    assert not few.is_cut
    few = few_of_each(workers, planned, NOW, until, 4)
    assert [row.worker for row in few.rows] == ["tick", "tick", "tick", "hourly"]
    assert (few.more["hourly"], few.is_cut) == (23, True)
    assert "mail" not in few.more
    assert few_of_each([], [], NOW, until, 4).rows == []
