"""Batches: when they fail and finish, and what is called with which payload."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from jobrunner.policy.batches import BatchFacts, callback_payload, move, state_of

T0 = datetime(2026, 3, 2, tzinfo=UTC)


@pytest.mark.parametrize(
    ("sealed", "failed", "live", "bad", "moved"),
    [
        (False, False, False, False, (False, False, ())),
        (True, False, True, False, (False, False, ())),
        (True, False, False, False, (False, True, ("on_success", "on_finish"))),
        (False, False, True, True, (True, False, ("on_failure",))),
        (False, True, True, True, (False, False, ())),
        (True, False, False, True, (True, True, ("on_failure", "on_finish"))),
        (True, True, False, False, (False, True, ("on_finish",))),
    ],
)
def test_a_batch_fails_once_and_finishes_once(sealed: bool, failed: bool, live: bool, bad: bool, moved: Any):
    found = move(BatchFacts(T0 if sealed else None, T0 if failed else None, live, bad))
    assert (found.fails, found.finishes, found.calls) == moved


CLOSED = {"type": "object", "properties": {"to": {"type": "string"}}, "additionalProperties": False}


@pytest.mark.parametrize(
    ("given", "own", "schema", "wanted"),
    [
        ({"to": "ann"}, {"to": "bob"}, {}, {"to": "ann", "batch_id": 7}),
        ({}, {"to": "bob"}, {}, {"to": "bob", "batch_id": 7}),
        ({}, {"to": "bob"}, CLOSED, {"to": "bob"}),
        ({}, {"to": "bob"}, {**CLOSED, "properties": {"batch_id": {}}}, {"to": "bob", "batch_id": 7}),
    ],
)
def test_a_callback_is_told_its_batch_where_its_handler_may_take_that(given: Any, own: Any, schema: Any, wanted: Any):
    assert callback_payload(7, given, own, schema) == wanted


@pytest.mark.parametrize(
    ("sealed", "failed", "finished", "state"),
    [
        (None, None, None, "open"),
        (None, T0, None, "open"),
        (T0, None, None, "sealed"),
        (T0, None, T0, "finished"),
        (T0, T0, T0, "failed"),
    ],
)
def test_the_state_of_a_batch_is_one_word(sealed: Any, failed: Any, finished: Any, state: str):
    assert state_of({"sealed_at": sealed, "failed_at": failed, "finished_at": finished}) == state
