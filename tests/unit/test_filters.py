"""A filter is read as it was meant, or refused with what there is instead."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from jobrunner.errors import UsageError
from jobrunner.policy.filters import Filter, matches, parse_filter, without_payload_values

NOW = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)


def test_every_term_of_the_example_is_read():
    text = 'worker:send-* outcome:failed,lost since:2h error:"timed out" payload.customer.id:42'
    assert parse_filter(text, "history", NOW) == Filter(
        worker=("send-*",),
        outcome=("failed", "lost"),
        since=NOW - timedelta(hours=2),
        error="timed out",
        payload=((("customer", "id"), "42"),),
    )


def test_no_terms_ask_nothing():
    assert parse_filter("  ", "runs", NOW).is_empty


def test_a_key_twice_means_either():
    assert parse_filter("worker:a worker:b,c", "runs", NOW).worker == ("a", "b", "c")


def test_a_quote_inside_quotes_is_escaped():
    assert parse_filter(r'error:"say \"no\" \\ now"', "history", NOW).error == 'say "no" \\ now'


def test_a_time_of_day_is_the_last_one_on_the_readers_clock():
    local = datetime(2026, 3, 2, 13, 30)  # noqa: DTZ001 - what a clock shows
    assert parse_filter("since:13:00", "history", NOW, local).since == NOW - timedelta(minutes=30)
    assert parse_filter("since:14:00", "history", NOW, local).since == NOW - timedelta(hours=23, minutes=30)


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        ("failed", "history", "cannot be read at 'failed'; write key:value"),
        ("outcome:", "history", "cannot be read at 'outcome:'"),
        ('outcome:""', "history", "outcome: has no value"),
        ("outcome:,", "history", "outcome: has no value"),
        ('error:"open', "history", "cannot be read"),
        ('error:"a"b', "history", "cannot be read"),
        ("outcom:failed", "history", "history cannot be filtered by 'outcom'; did you mean outcome?"),
        ("health:failing", "runs", "live runs cannot be filtered by 'health'; there are worker, state"),
        ("payload.x:1", "workers", "workers cannot be filtered by 'payload.x'"),
        ("payload..x:1", "history", "payload..x: names no field"),
        ("outcome:faild", "history", "outcome:faild: did you mean failed?"),
        ("since:soon", "history", "since: 'soon' is neither a time nor a duration"),
        ("since:1h until:2h", "history", "since: is later than until:"),
        ("since:1h since:2h", "history", "since: stands there 2 times"),
        ("worker:a/b", "history", "worker:a/b: a name or a pattern is of letters"),
        ("run:-1", "history", "run:-1: is no whole number"),
        ("run:9223372036854775808", "history", "is no whole number"),
        ("error:a\x07b", "history", "error: its value is not printable"),
    ],
)
def test_what_cannot_be_read_is_refused_and_said(text: str, kind: str, said: str):
    with pytest.raises(UsageError) as refused:
        parse_filter(text, kind, NOW)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("name", "patterns", "does"),
    [
        ("send-mail", ("send-*",), True),
        ("send-mail", ("mail",), False),
        ("a.b", ("a*b", "x"), True),
        ("ab", ("a.b",), False),
    ],
)
def test_a_star_stands_for_any_text_and_nothing_else_does(name: str, patterns: tuple[str, ...], does: bool):
    assert matches(name, patterns) is does


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("worker:a payload.pin:4711 error:x", "worker:a payload.pin:• error:x"),
        ('payload.pin:"47 11"  error:"a b"', 'payload.pin:• error:"a b"'),
        ('error:"x payload.a:" payload.b:"47 11"', 'error:"x payload.a:" payload.b:•'),
        ("payload.pin:4711 what", "•"),
        ("worker:a", "worker:a"),
    ],
)
def test_what_is_looked_for_in_payloads_can_be_left_out_of_a_filters_text(text, shown):
    assert without_payload_values(text, "•") == shown
