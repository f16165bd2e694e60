from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from jobrunner.config import Settings
from jobrunner.errors import InvalidSetting
from jobrunner.policy.durations import parse_duration, parse_moment, parse_time

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def test_the_defaults_are_those_of_the_contract():
    settings = Settings.load({})
    assert settings == Settings()
    assert settings.database_url == "sqlite+aiosqlite:///jobrunner.db"
    assert (settings.tick_interval, settings.max_concurrent, settings.drain_timeout, settings.lease) == (5, 5, 25, 30)
    assert (settings.history_days, settings.failure_days, settings.sqlite_synchronous) == (30, 90, "FULL")
    assert (settings.pooler, settings.http_token, settings.allow_commands) == (None, None, False)


def test_what_is_given_explicitly_beats_the_environment_and_that_the_defaults():
    environ = {"JOBRUNNER_LEASE": "1m30s", "JOBRUNNER_MAX_CONCURRENT": "8", "JOBRUNNER_ALLOW_COMMANDS": "yes"}
    settings = Settings.load(environ, max_concurrent=2, lease=None)
    assert (settings.lease, settings.max_concurrent, settings.allow_commands) == (90, 2, True)


def test_an_empty_variable_is_not_set():
    assert Settings.load({"JOBRUNNER_POOLER": "", "JOBRUNNER_LEASE": " "}) == Settings()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("JOBRUNNER_LEASE", "long"),
        ("JOBRUNNER_LEASE", "0"),
        ("JOBRUNNER_TICK_INTERVAL", "-1"),
        ("JOBRUNNER_DRAIN_TIMEOUT", "inf"),
        ("JOBRUNNER_MAX_CONCURRENT", "0"),
        ("JOBRUNNER_MAX_CONCURRENT", "2.5"),
        ("JOBRUNNER_POOL_SIZE", "x"),
        ("JOBRUNNER_SQLITE_SYNCHRONOUS", "OFF"),
        ("JOBRUNNER_POOLER", "session"),
        ("JOBRUNNER_ALLOW_COMMANDS", "maybe"),
        ("JOBRUNNER_HISTORY_DAYS", "nan"),
        ("JOBRUNNER_FAILURE_DAYS", "-1"),
        ("JOBRUNNER_LOG_LEVEL", "LOUD"),
    ],
)
def test_a_variable_that_cannot_be_used_is_named_in_one_line(variable, value):
    with pytest.raises(InvalidSetting) as caught:
        Settings.load({variable: value})
    assert str(caught.value).startswith(f"{variable}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [0, -1, True, "x", float("nan"), float("inf"), 10**400])
def test_an_argument_that_cannot_be_used_is_named(value):
    with pytest.raises(InvalidSetting, match=r"^lease: "):
        Settings.load({}, lease=value)


def test_an_unknown_setting_is_the_programmers_error():
    with pytest.raises(TypeError, match="no such setting: leese"):
        Settings.load({}, leese=5)


def test_no_secret_is_in_the_repr():
    settings = Settings.load({}, database_url="postgresql://ann:hush@host/x", http_token="whisper")
    assert "hush" not in repr(settings)
    assert "whisper" not in repr(settings)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("90s", 90),
        ("15m", 900),
        ("2h", 7200),
        ("1h30m", 5400),
        ("1.5h", 5400),
        ("7d", 604800),
        ("1w", 604800),
        (" 1H 30M ", 5400),
        ("0", 0),
        (".5", 0.5),
    ],
)
def test_a_duration_is_seconds_or_numbers_with_units(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "x", "-5", "5x", "h", "1h1h", "1e3", "nan", "99999999999d", "٣s", "1 2"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(InvalidSetting):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-03-01T12:00:00Z", NOW),
        ("2026-03-01T12:00", NOW),
        ("2026-03-01 14:00+02:00", NOW),
        ("2026-03-01", NOW - timedelta(hours=12)),
    ],
)
def test_a_time_without_a_zone_is_utc(text, moment):
    assert parse_time(text) == moment


@pytest.mark.parametrize("text", ["", "noon", "2026-13-01", "0001-01-01T00:00+10:00", "2026"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(InvalidSetting):
        parse_time(text)


def test_a_moment_is_a_time_or_a_duration_from_now():
    assert parse_moment("2h", NOW, is_past=True) == NOW - timedelta(hours=2)
    assert parse_moment("2h", NOW, is_past=False) == NOW + timedelta(hours=2)
    assert parse_moment("2026-03-01", NOW, is_past=True) == datetime(2026, 3, 1, tzinfo=UTC)
    with pytest.raises(InvalidSetting, match="neither a time nor a duration"):
        parse_moment("soon", NOW, is_past=True)
