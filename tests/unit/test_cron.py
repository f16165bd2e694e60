from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim

from jobrunner.errors import InvalidSchedule
from jobrunner.policy.cron import (
    check_expression,
    check_timezone,
    next_after,
    previous_at_or_before,
    transition_note,
)

BERLIN, NEW_YORK, LORD_HOWE = "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def on_the_wall(timezone: str, text: str, fold: int = 0) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(timezone), fold=fold).astimezone(UTC)


def firings(expression: str, timezone: str, after: datetime, until: datetime) -> list[datetime]:
    found: list[datetime] = []
    while (after := next_after(expression, timezone, after)) <= until:
        found.append(after)
    return found


def shown(expression: str, timezone: str, day: str) -> list[str]:
    """Return the wall times, with their offset, at which the expression fires on a local day."""
    start, end = on_the_wall(timezone, day), on_the_wall(timezone, f"{date.fromisoformat(day) + timedelta(days=1)}")
    found = firings(expression, timezone, start - timedelta(microseconds=1), end - timedelta(seconds=1))
    return [f"{firing.astimezone(ZoneInfo(timezone)):%H:%M%z}" for firing in found]


# --- when it fires


def test_the_next_firing_is_strictly_after_the_instant() -> None:
    assert next_after("0 3 * * *", "UTC", utc("2026-05-01T03:00")) == utc("2026-05-02T03:00")
    assert next_after("0 3 * * *", "UTC", utc("2026-05-01T02:59:59.999999")) == utc("2026-05-01T03:00")


def test_the_previous_firing_may_be_the_instant_itself() -> None:
    assert previous_at_or_before("0 3 * * *", "UTC", utc("2026-05-01T03:00")) == utc("2026-05-01T03:00")
    assert previous_at_or_before("0 3 * * *", "UTC", utc("2026-05-01T03:00:00.000001")) == utc("2026-05-01T03:00")
    assert previous_at_or_before("0 3 * * *", "UTC", utc("2026-05-01T02:59:59.999999")) == utc("2026-04-30T03:00")


def test_answers_are_in_utc_whatever_the_zone_of_the_instant() -> None:
    instant = datetime(2026, 7, 1, 12, tzinfo=ZoneInfo(NEW_YORK))
    for found in (next_after("0 3 * * *", BERLIN, instant), previous_at_or_before("0 3 * * *", BERLIN, instant)):
        assert found is not None
        assert found.tzinfo is UTC
    assert next_after("0 3 * * *", BERLIN, instant) == utc("2026-07-02T01:00")


def test_a_skipped_hour_runs_once_right_after_the_gap() -> None:
    assert shown("30 2 * * *", BERLIN, "2026-03-29") == ["03:00+0200"]
    assert shown("0,15,30 2 * * *", BERLIN, "2026-03-29") == ["03:00+0200"]
    assert shown("30 2,3 * * *", BERLIN, "2026-03-29") == ["03:00+0200", "03:30+0200"]
    assert shown("0 2,3 * * *", BERLIN, "2026-03-29") == ["03:00+0200"]


def test_a_repeated_hour_runs_once_the_first_time() -> None:
    assert shown("30 2 * * *", BERLIN, "2026-10-25") == ["02:30+0200"]
    assert shown("0 1-4 * * *", BERLIN, "2026-10-25") == ["01:00+0200", "02:00+0200", "03:00+0100", "04:00+0100"]


def test_wildcards_follow_the_wall_clock() -> None:
    assert shown("30 * * * *", NEW_YORK, "2026-03-08")[:3] == ["00:30-0500", "01:30-0500", "03:30-0400"]
    assert shown("30 * * * *", NEW_YORK, "2026-11-01")[:4] == ["00:30-0400", "01:30-0400", "01:30-0500", "02:30-0500"]
    assert shown("*/30 2 * * *", BERLIN, "2026-03-29") == []
    assert shown("*/30 2 * * *", BERLIN, "2026-10-25") == ["02:00+0200", "02:30+0200", "02:00+0100", "02:30+0100"]


def test_a_half_hour_change_is_followed_too() -> None:
    assert shown("15 2 * * *", LORD_HOWE, "2026-10-04") == ["02:30+1100"]
    assert shown("45 1 * * *", LORD_HOWE, "2026-04-05") == ["01:45+1100"]
    assert shown("45 * * * *", LORD_HOWE, "2026-04-05")[:4] == ["00:45+1100", "01:45+1100", "01:45+1030", "02:45+1030"]


def test_a_change_at_midnight_moves_the_daily_run_to_one() -> None:
    # in Havana the clock goes from 0:00 to 1:00
    assert shown("0 0 * * *", "America/Havana", "2026-03-08") == ["01:00-0400"]


def test_a_skipped_day_runs_right_after_the_gap() -> None:
    # Samoa had no 30 December 2011
    found = firings("0 12 * * *", "Pacific/Apia", utc("2011-12-29T00:00"), utc("2011-12-31T12:00"))
    assert found == [utc("2011-12-29T22:00"), utc("2011-12-30T10:00"), utc("2011-12-30T22:00")]


def test_in_a_repeated_hour_the_previous_firing_is_the_latest_there_was() -> None:
    second_time = on_the_wall(BERLIN, "2026-10-25T02:10", fold=1)
    assert previous_at_or_before("50 2 * * *", BERLIN, second_time) == on_the_wall(BERLIN, "2026-10-25T02:50", fold=0)
    assert previous_at_or_before("*/5 * * * *", BERLIN, second_time) == second_time


@pytest.mark.parametrize(
    "timezone", [BERLIN, NEW_YORK, LORD_HOWE, "Africa/Casablanca", "America/Havana", "Asia/Kolkata"]
)
@pytest.mark.parametrize(
    "expression", ["* * * * *", "30 * * * *", "30 2 * * *", "15,45 0-4 * * *", "* 0 * * SUN", "0 */2 * * *"]
)
def test_backwards_visits_the_same_times_as_forwards(timezone: str, expression: str) -> None:
    start, end = utc("2026-01-01T00:00"), utc("2027-01-01T00:00")
    zone = ZoneInfo(timezone)
    days = [start + timedelta(days=number) for number in range(365)]
    changing = [
        day for day, after in pairwise(days) if day.astimezone(zone).utcoffset() != after.astimezone(zone).utcoffset()
    ]
    for day in changing or [end]:
        forwards = firings(expression, timezone, day - timedelta(days=1), day + timedelta(days=2))
        backwards = []
        instant = day + timedelta(days=2)
        while (found := previous_at_or_before(expression, timezone, instant)) and found > day - timedelta(days=1):
            backwards.append(found)
            instant = found - timedelta(microseconds=1)
        assert backwards[::-1] == forwards


def test_the_rarest_date_is_found_both_ways() -> None:
    assert next_after("0 0 * 2 MON#5", "UTC", utc("2072-03-01T00:00")) == utc("2112-02-29T00:00")
    assert previous_at_or_before("0 0 * 2 MON#5", "UTC", utc("2112-02-28T00:00")) == utc("2072-02-29T00:00")


def test_day_of_month_and_day_of_week_are_alternatives_unless_one_is_a_star() -> None:
    assert next_after("0 0 13 * FRI", "UTC", utc("2026-01-01T00:00")) == utc("2026-01-02T00:00")
    assert next_after("0 0 L * *", "UTC", utc("2026-02-01T00:00")) == utc("2026-02-28T00:00")


def test_the_end_of_time_is_an_invalid_schedule_and_no_other_error() -> None:
    with pytest.raises(InvalidSchedule, match="does not fire"):
        next_after("0 3 * * *", BERLIN, datetime.max.replace(tzinfo=UTC))
    with pytest.raises(InvalidSchedule, match="does not fire"):
        next_after("* * * * *", "UTC", datetime.max.replace(tzinfo=UTC))
    assert previous_at_or_before("0 3 * * *", "UTC", datetime.min.replace(tzinfo=UTC)) is None
    assert previous_at_or_before("1 * * * *", "UTC", datetime.min.replace(tzinfo=UTC)) is None


# --- why cronsim is given no zone: should these fail, the detour may have become needless


def test_cronsim_with_a_zone_loses_times_around_a_half_hour_change() -> None:
    zone = ZoneInfo(LORD_HOWE)
    start = on_the_wall(LORD_HOWE, "2026-04-05T01:45", fold=1)
    assert next(CronSim("* 2 * * *", start.astimezone(zone))) == on_the_wall(LORD_HOWE, "2026-04-05T02:30")
    assert next_after("* 2 * * *", LORD_HOWE, start) == on_the_wall(LORD_HOWE, "2026-04-05T02:00")


def test_cronsim_with_a_zone_goes_back_another_way_than_forth() -> None:
    start, end = on_the_wall(LORD_HOWE, "2026-10-04T01:58"), on_the_wall(LORD_HOWE, "2026-10-04T05:00")
    forth = next(CronSim("* 1 * * *", start.astimezone(ZoneInfo(LORD_HOWE))))
    back = next(CronSim("* 1 * * *", end.astimezone(ZoneInfo(LORD_HOWE)), reverse=True))
    assert (forth, back) == (on_the_wall(LORD_HOWE, "2026-10-04T01:59"), on_the_wall(LORD_HOWE, "2026-10-04T01:29"))
    assert previous_at_or_before("* 1 * * *", LORD_HOWE, end) == forth


# --- what is refused


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("", "is empty"),
        (" \n\t", "is empty"),
        ("hello", "has 1 field"),
        ("* * * *", "has 4 fields"),
        ("0 * * * * *", "interval_seconds"),
        ("* * * * * * *", "has 7 fields"),
        ("@daily", "'0 0 \\* \\* \\*'"),
        ("@reboot", "macro"),
        ("61 * * * *", "'61' is no minute"),
        ("* 24 * * *", "'24' is no hour"),
        ("* * 0 * *", "'0' is no day-of-month"),
        ("* * * FOO *", "'FOO' is no month"),
        ("* * * * 8", "'8' is no day-of-week"),
        ("*/0 * * * *", "is no minute"),
        ("5-1 * * * *", "is no minute"),
        ("-1 * * * *", "is no minute"),
        ("* * * * ٣", "ASCII"),
        ("9" * 5000 + " * * * *", "500 characters"),
        ("0 0 31 2 *", "never fires"),
        ("0 0 30,31 2 *", "never fires"),
        ("0 0 31 4,6 *", "never fires"),
        ("0 0 */15 * MON#2", "never fires"),
        ("*/5 2 * 3 0L", "never fires"),  # in Berlin that hour is skipped each year
    ],
)
def test_an_expression_that_cannot_be_used_is_refused_in_one_line(expression: str, says: str) -> None:
    with pytest.raises(InvalidSchedule, match=says) as refusal:
        check_expression(expression, BERLIN)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 250


@pytest.mark.parametrize(
    "timezone",
    [
        "",
        " ",
        ".",
        "..",
        "../x",
        "/etc/passwd",
        "Europe",
        "Europe/",
        "Mars/Olympus",
        "right/UTC",
        "a\0b",
        "Ä",
        "A" * 5000,
    ],
)
def test_a_zone_that_is_none_is_refused_in_one_line(timezone: str) -> None:
    with pytest.raises(InvalidSchedule, match="IANA name") as refusal:
        check_timezone(timezone)
    assert "\n" not in str(refusal.value)
    with pytest.raises(InvalidSchedule, match="IANA name"):
        next_after("* * * * *", timezone, utc("2026-01-01T00:00"))


def test_names_are_read_in_any_case_and_any_blanks() -> None:
    assert next_after(" 0  0 * jan\tMon ", "UTC", utc("2026-02-01T00:00")) == utc("2027-01-04T00:00")


# --- what the clock does on a day


def test_the_day_of_a_change_is_marked_and_its_neighbours_are_not() -> None:
    notes = [transition_note(BERLIN, on_the_wall(BERLIN, f"2026-03-{day}T12:00")) for day in (28, 29, 30)]
    assert notes == [None, "DST starts", None]
    notes = [transition_note(BERLIN, on_the_wall(BERLIN, f"2026-10-{day}T23:59")) for day in (24, 25, 26)]
    assert notes == [None, "DST ends", None]


def test_a_change_at_midnight_marks_the_day_it_begins() -> None:
    notes = [
        transition_note("America/Havana", on_the_wall("America/Havana", f"2026-03-0{day}T12:00")) for day in (7, 8, 9)
    ]
    assert notes == [None, "DST starts", None]


def test_a_change_of_standard_time_is_not_called_dst() -> None:
    assert transition_note("Asia/Almaty", on_the_wall("Asia/Almaty", "2024-02-29T23:30")) == "UTC offset changes"


def test_utc_is_never_marked() -> None:
    assert transition_note("UTC", utc("2026-03-29T01:00")) is None
