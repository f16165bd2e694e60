"""Fields of payloads that only an administrator may see."""

from __future__ import annotations

import copy

import pytest

from jobrunner.model.unreadable import Unreadable
from jobrunner.policy.hidden import MASK, is_told_by, masked, masked_row, restored, still_masked

PAYLOAD = {"card": {"number": "4711", "name": "ann"}, "pin": 1, "items": [{"code": "a", "n": 1}, {"code": "b"}, 3]}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ([], PAYLOAD),
        (["pin"], {**PAYLOAD, "pin": MASK}),
        (["card.number"], {**PAYLOAD, "card": {"number": MASK, "name": "ann"}}),
        (["card"], {**PAYLOAD, "card": MASK}),
        (["items.code"], {**PAYLOAD, "items": [{"code": MASK, "n": 1}, {"code": MASK}, 3]}),
        (["no.such", "pin.deeper", "card.number.x"], PAYLOAD),
        (["card", "card.number"], {**PAYLOAD, "card": MASK}),
    ],
)
def test_hidden_fields_are_masked_where_they_are(fields, expected):
    before = copy.deepcopy(PAYLOAD)
    assert masked(PAYLOAD, fields) == expected
    assert before == PAYLOAD


def test_a_name_with_a_dot_in_it_is_a_field_as_well():
    assert masked({"a.b": 1, "a": {"b": 2}}, ["a.b"]) == {"a.b": MASK, "a": {"b": MASK}}


def test_a_payload_that_cannot_be_read_is_hidden_whole():
    unreadable = Unreadable('{"pin": 1', "it is no JSON")
    assert masked(unreadable, ["pin"]) == {"unreadable": MASK}
    assert masked(unreadable, []) is unreadable


def test_every_payload_of_a_row_is_masked_and_nothing_else():
    row = {
        "payload": {"pin": 1},
        "definition": {"payload": {"pin": 2}, "pin": "a field of the definition"},
        "overrides": {"payload": {"pin": 3}},
        "errors": [{"error": "no", "payload": {"pin": 4}}],
        "detail": {"old": {"payload": {"pin": 5}}, "new": {"payload": {"pin": 6}}},
        "result": {"pin": 7},
        "name": "pin",
    }
    assert masked_row(row, ["pin"]) == {
        "payload": {"pin": MASK},
        "definition": {"payload": {"pin": MASK}, "pin": "a field of the definition"},
        "overrides": {"payload": {"pin": MASK}},
        "errors": [{"error": "no", "payload": {"pin": MASK}}],
        "detail": {"old": {"payload": {"pin": MASK}}, "new": {"payload": {"pin": MASK}}},
        "result": {"pin": 7},
        "name": "pin",
    }
    assert masked_row(row, []) == row
    assert masked_row({**row, "payload": {}}, None) == {
        **row,
        "payload": {},
        "definition": {"payload": MASK, "pin": "a field of the definition"},
        "overrides": {"payload": MASK},
        "errors": [{"error": "no", "payload": MASK}],
        "detail": {"old": {"payload": MASK}, "new": {"payload": MASK}},
    }


def test_an_edited_payload_gets_back_what_its_editor_could_not_see():
    stored = {"card": {"number": "4711", "name": "ann"}, "to": "ann"}
    edited = {"card": {"number": MASK, "name": "ben"}, "to": "ben"}
    assert restored(edited, stored, ["card.number"]) == {"card": {"number": "4711", "name": "ben"}, "to": "ben"}
    assert restored({"card": {"number": "1"}}, stored, ["card.number"]) == {"card": {"number": "1"}}
    assert restored({"pin": MASK}, stored, ["pin"]) == {"pin": MASK}


def test_a_mask_that_is_left_is_found():
    assert still_masked({"a": {"b": MASK}}, ["x", "a.b"]) == "a.b"
    assert still_masked({"a": {"b": 1}}, ["x", "a.b"]) is None


def test_elements_of_a_list_get_back_what_was_hidden_by_their_place():
    stored = {"cards": [{"number": "1", "name": "ann"}, {"number": "2"}, 3]}
    edited = {"cards": [{"number": MASK, "name": "eve"}, {"number": "9"}, 3]}
    found = {"cards": [{"number": "1", "name": "eve"}, {"number": "9"}, 3]}
    assert restored(edited, stored, ["cards.number"]) == found
    assert still_masked(found, ["cards.number"]) is None


def test_a_list_whose_length_has_changed_keeps_its_masks_and_they_are_found():
    stored, edited = {"cards": [{"number": "1"}, {"number": "2"}]}, {"cards": [{"number": MASK}]}
    assert restored(edited, stored, ["cards.number"]) == edited
    assert still_masked(edited, ["cards.number"]) == "cards.number"


@pytest.mark.parametrize(
    ("path", "field", "expected"),
    [
        ("cards.0.number", "cards.number", True),
        ("cards.-1.number", "cards.number", True),
        ("cards.0.0.number.x", "cards.number", True),
        ("cards", "cards.number", True),
        ("cards.0", "cards.number", True),
        ("cards.0.name", "cards.number", False),
        ("cardsx.number", "cards.number", False),
        ("codes.7", "codes.7", True),
        ("codes.7", "codes.8", True),
        ("0.name", "cards.number", False),
    ],
)
def test_a_search_that_would_tell_of_a_hidden_field_is_known_as_one(path, field, expected):
    assert is_told_by(path.split("."), field) is expected
