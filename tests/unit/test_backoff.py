from __future__ import annotations

import pytest

from jobrunner.policy.backoff import retry_delay


def test_the_wait_grows_by_the_factor_from_one_attempt_to_the_next() -> None:
    assert [retry_delay(attempt, 5.0, 2.0, 3600.0, 0.0) for attempt in (1, 2, 3, 4)] == [5.0, 10.0, 20.0, 40.0]


def test_the_wait_never_exceeds_the_maximum_before_jitter() -> None:
    assert retry_delay(12, 5.0, 2.0, 3600.0, 0.0) == 3600.0
    assert retry_delay(1, 50.0, 2.0, 10.0, 0.0) == 10.0


def test_jitter_comes_after_the_cap() -> None:
    assert retry_delay(40, 5.0, 2.0, 3600.0, 0.1) == pytest.approx(3960.0)
    assert retry_delay(40, 5.0, 2.0, 3600.0, -0.1) == pytest.approx(3240.0)


@pytest.mark.parametrize("attempt", [1_000, 10**9, 10**400])
def test_no_attempt_number_is_too_large(attempt: int) -> None:
    assert retry_delay(attempt, 5.0, 2.0, 3600.0, 0.0) == 3600.0


def test_a_delay_of_nothing_stays_nothing() -> None:
    assert retry_delay(10**9, 0.0, 2.0, 3600.0, 0.1) == 0.0


def test_a_factor_of_one_keeps_the_wait_constant() -> None:
    assert retry_delay(10**9, 5.0, 1.0, 3600.0, 0.0) == 5.0


def test_a_factor_below_one_shortens_the_wait() -> None:
    assert retry_delay(3, 8.0, 0.5, 3600.0, 0.0) == 2.0
    assert retry_delay(10**9, 8.0, 0.5, 3600.0, 0.0) == 0.0


def test_a_wait_is_never_negative() -> None:
    assert retry_delay(1, 5.0, 2.0, 3600.0, -2.0) == 0.0


def test_an_attempt_below_one_counts_as_the_first() -> None:
    assert retry_delay(0, 5.0, 2.0, 3600.0, 0.0) == 5.0
