"""Any text at all is an error's message."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from jobrunner.policy.error_groups import GAP, LONGEST_SHOWN, filter_of, normalise
from jobrunner.policy.filters import parse_filter
from tests.support.stage import T0

odd = st.text(alphabet=st.sampled_from("0a1f9 '\"`«»“”\\…,;:.-_/xé\t\n\x1b\u2028"), max_size=300)
messages = st.text(max_size=300) | odd


@given(messages | st.none())
def test_normalising_never_fails_and_changes_nothing_twice(message: str | None):
    line = normalise(message)
    assert normalise(line) == line
    assert line.isprintable()
    assert len(line) <= LONGEST_SHOWN


@given(messages, messages | st.none())
def test_the_filter_of_a_group_can_be_read_and_holds_what_it_looks_for(message: str, error_type: str | None):
    line = normalise(message)
    asked = parse_filter(filter_of(["mail"], error_type, line), "letters", T0)
    said = message if error_type is None else f"{error_type}: {message}"
    if asked.error is not None:
        assert GAP not in asked.error
        assert asked.error in said


@given(messages, st.integers(0, 10**9), st.integers(0, 10**9))
def test_two_numbers_make_one_group(message: str, one: int, other: int):
    assert normalise(f"order {one} x {message}") == normalise(f"order {other} x {message}")
