"""Which errors are one group for who reads a list of them."""

from __future__ import annotations

import pytest

from jobrunner.policy.error_groups import LONGEST_SHOWN, filter_of, normalise
from jobrunner.policy.filters import parse_filter
from tests.support.stage import T0


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("order 17 not found", "order … not found"),
        ("order 18 not found\nmore of it", "order … not found"),
        ("no user 'ada' in \"crm\"", "no user … in …"),
        ("'customer'", "…"),
        ("it's gone, and they can't say why", "it's gone, and they can't say why"),
        ("at 0x7f3b1c2d and deadbeef01", "at … and …"),
        ("3f2b1c9a-beef-cafe-feed-0123456789ab is unknown", "… is unknown"),
        ("after 3.25 s at 2026-03-02", "after … s at …"),
        ("ids 1, 2, 3 are taken", "ids … are taken"),
        ("a decade, defaced", "a decade, defaced"),
        ("tab\tand \x1b[31mred", "tab…and …[…mred"),
        ("  indented", "…indented"),
        ("\n\n", ""),
        ("", ""),
        (None, ""),
    ],
)
def test_what_differs_from_error_to_error_is_a_gap(message: str | None, expected: str):
    assert normalise(message) == expected


def test_a_long_line_is_cut_after_the_gaps_are_made():
    tail = "x" * 500
    assert normalise(f"order 7 {tail}") == normalise(f"order 1234567 {tail}")
    assert len(normalise(tail)) == LONGEST_SHOWN
    assert normalise(tail).endswith("…")


@pytest.mark.parametrize(
    ("error_type", "message", "looked_for"),
    [
        ("ValueError", "order 17 not found", "ValueError: order "),
        ("E", "17 is no number of an order", " is no number of an order"),
        (None, "no luck", "no luck"),
        ("KeyError", "'customer'", "KeyError: "),
        ("E", 'the last quote " of \\ all', 'E: the last quote " of \\ all'),
        ("odd\ttype", "17", "type: "),
        (None, "17", None),
    ],
)
def test_the_filter_of_a_group_looks_for_its_longest_piece(
    error_type: str | None, message: str, looked_for: str | None
):
    asked = parse_filter(filter_of(["mail"], error_type, normalise(message)), "letters", T0)
    assert asked.error == looked_for
    assert asked.only_worker == "mail"
    assert asked.status == ("open",)
