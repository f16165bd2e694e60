"""Reading a JSON document never raises; what cannot be read says why."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobrunner.model.unreadable import Unreadable
from jobrunner.policy.documents import MOST_NESTED, read_document

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
UNREADABLE = {
    '{"n":"\\ud800"}': "half of a surrogate pair",
    '{"n":1e400}': "a number that is too large, 1e400",
    '{"n":-1e999}': "a number that is too large",
    '{"n":' + "9" * 5000 + "}": "a number of 5,000 digits",
    '{"n":NaN}': "NaN, which is no JSON",
    '{"n":' + "[" * 5000 + "]" * 5000 + "}": "nested 5,001 deep",
    "{": "no JSON",
    "": "no JSON",
    '{"a":1} x': "no JSON",
}


@given(JSON)
def test_what_json_can_say_is_read_as_json_reads_it(value: object):
    try:
        text = json.dumps(value, ensure_ascii=False)
        text.encode()
    except UnicodeEncodeError:
        return
    assert read_document(text) == value


@pytest.mark.parametrize("text", UNREADABLE)
def test_what_cannot_be_read_shows_its_text_and_says_why(text: str):
    found = read_document(text)
    assert isinstance(found, Unreadable)
    assert UNREADABLE[text] in found.problem
    assert found["unreadable"] == text
    json.dumps(found, allow_nan=False).encode()


def test_a_pair_of_surrogates_is_a_character():
    assert read_document('{"n":"\\ud83d\\ude00"}') == {"n": "😀"}


def test_brackets_in_texts_are_no_nesting():
    text = json.dumps({"n": ["[" * 5000, '"' + "{" * 5000 + "\\"]})
    assert read_document(text) == json.loads(text)


def test_nesting_is_read_up_to_the_limit():
    inner = "[" * (MOST_NESTED - 1) + "]" * (MOST_NESTED - 1)
    assert not isinstance(read_document(f'{{"n":{inner}}}'), Unreadable)
    assert isinstance(read_document(f'{{"n":[{inner}]}}'), Unreadable)


@given(st.text())
def test_any_text_gives_a_value(text: str):
    read_document(text)
