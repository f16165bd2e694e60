"""Which name was probably meant."""

from __future__ import annotations

import pytest

from jobrunner.policy.near import did_you_mean, near_name


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("pay-bil", "pay-bill"),
        ("paybill", "pay-bill"),
        ("timeout", "timeout_seconds"),
        ("timeout_second", "timeout_seconds"),
        ("weather", None),
        ("", None),
    ],
)
def test_a_name_is_near_or_it_is_not(given, meant):
    known = ("pay-bill", "fetch", "timeout_seconds")
    assert near_name(given, known) == meant
    assert did_you_mean(given, known) == (f"did you mean {meant}?" if meant else f"there are {', '.join(known)}")
