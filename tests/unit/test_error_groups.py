"""Which errors are one: those that differ in a number, an id or a quoted text only."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobrunner.policy.error_groups import GAP, begins_so, filter_of, normalised
from jobrunner.policy.filters import parse_filter

NOW = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
SAME = [
    ("order 17 not found", "order … not found"),
    ("order -18.5 not found", "order … not found"),
    ("no 'ann' in \"the list\"", "no … in …"),
    ("it didn't reach host-1's port 80", "it didn't reach host…'s port …"),
    ("<Job at 0x7f0a12bc>", "<Job at …>"),
    ("id 0b5a6c1e-9d2f-4c1b-8e77-aa00bb11cc22 is gone", "id … is gone"),
    ("commit deadbee1234 is gone", "commit … is gone"),
    ("the facade added effaced", "the facade added effaced"),
    ("\n\n  first  \nsecond", "first"),
    ("at 12:30:05 on 10.1.2.3:80", "at … on …"),
    ("12 34 56", "… … …"),
    ("12'34'56", "…"),
    ("'no route to host 5'", "no route to host …"),
    ("'ann'", "…"),
    ("'a b' 'c d'", "… …"),
    ("", ""),
    (None, ""),
]


@pytest.mark.parametrize(("error", "expected"), SAME)
def test_what_differs_is_a_gap(error, expected):
    assert normalised(error) == expected


def test_a_long_line_is_cut():
    assert normalised("word " * 100_000) == ("word " * 40)[:199].rstrip() + GAP


@given(st.text() | st.text("'\"` …0aF9x-\n", max_size=600))
def test_it_never_raises_and_is_the_same_when_done_again(error):
    once = normalised(error)
    assert normalised(once) == once
    assert len(once) <= 200
    assert "\n" not in once


def test_the_filter_says_worker_and_the_longest_text_they_share():
    assert filter_of("mail", None, "order … was not found") == 'worker:mail status:open error:" was not found"'
    assert filter_of("mail", "ValueError", "order … not found") == 'worker:mail status:open error:"ValueError: order "'
    assert filter_of("mail", "ValueError", "order …", starts_so=False).endswith('error:"ValueError: "')
    assert filter_of("mail", None, "…") == "worker:mail status:open"
    assert filter_of("mail", None, 'a\\b "quoted') == 'worker:mail status:open error:"a\\\\b \\"quoted"'


@given(
    st.text("ab '\"\\…0:\x1b\u202e\n", max_size=60), st.none() | st.sampled_from(["E", "ValueError", "\x1b", "a.b.C"])
)
def test_the_filter_can_be_read_and_fits_the_error_that_it_was_made_of(error, error_type):
    shared = normalised(error)
    asked = parse_filter(filter_of("mail", error_type, shared, starts_so=begins_so(error, shared)), "letters", NOW)
    assert (asked.worker, asked.status) == (("mail",), ("open",))
    if asked.error is not None:
        assert asked.error in f"{error_type or ''}: {error}"
