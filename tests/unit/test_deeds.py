"""The audit log in words."""

from __future__ import annotations

import pytest

from jobrunner.policy.deeds import Deed, tell_deed
from jobrunner.storage.tables.kept_tables import AUDIT_ACTIONS


@pytest.mark.parametrize(
    ("action", "detail", "deed"),
    [
        (
            "pause",
            {"until": "2026-03-02T14:00:00Z", "reason": "the API is down"},
            Deed("paused", " until 2026-03-02 14:00:00 UTC: the API is down"),
        ),
        ("pause", {"until": "9999-12-31T23:59:59Z", "reason": None}, Deed("paused", " until it is resumed")),
        ("disable", {"reason": "broken"}, Deed("disabled", ": broken")),
        ("set", {"old": {"a": 1, "b": 2}, "new": {"a": 3, "b": 2}}, Deed("changed", ": a from 1 to 3")),
        (
            "replay",
            {"letter_id": 3, "run_id": 9, "is_edited": True},
            Deed("replayed letter 3 of", " as run 9, with another payload"),
        ),
        (
            "cancel",
            {"run_id": 4, "state": "running", "reason": "stuck"},
            Deed("cancelled run 4 of", " while it ran: stuck"),
        ),
        (
            "limit_set",
            {"limit": "api", "old": {"max_running": 4}, "new": {"max_running": None}, "reason": "calm"},
            Deed("changed the limit api: max_running from 4 to nothing: calm"),
        ),
        (
            "limit_set",
            {"limit": "api", "old": {"rate": None}, "new": {"rate": "5/s"}, "is_new": True},
            Deed("made the limit api: rate from nothing to 5/s"),
        ),
        (
            "limit_unset",
            {"limit": "api", "old": {"max_running": 1}, "new": {"max_running": 4}},
            Deed("took back what was set of the limit api: max_running from 1 to 4"),
        ),
        (
            "bulk",
            {"bulk_id": 2, "action": "discard", "filter": "worker:x", "expected": 1, "reason": None},
            Deed("began bulk operation 2: discard of all that fit worker:x, 1 row"),
        ),
        (
            "clock",
            {"node_id": "n" * 20, "was": "2026-03-02T12:00:00Z", "said": "2026-03-02T11:59:00Z", "seconds": -60},
            Deed(
                "noted that the clock of node nnnnnnnn was set back by 60 s: "
                "2026-03-02 12:00:00 UTC to 2026-03-02 11:59:00 UTC"
            ),
        ),
        (
            "alert_remove",
            {"name": "ops", "dropped": 2},
            Deed("removed the alert rule ops; 2 messages that waited went with it"),
        ),
    ],
)
def test_an_entry_is_a_sentence(action, detail, deed):
    assert tell_deed(action, detail) == deed


def test_a_deed_is_told_of_a_worker_or_of_none():
    assert tell_deed("disable", {"reason": "broken"}).told("mail") == "disabled mail: broken"
    assert tell_deed("replay", {"letter_id": 3, "run_id": 9}).told("mail") == "replayed letter 3 of mail as run 9"
    assert tell_deed("discard", {"letter_id": 3}).told(None) == "discarded letter 3"


BROKEN = {"old": 1, "new": [], "until": 5, "kinds": {}, "seconds": "x", "reason": {"a": 1}}


@pytest.mark.parametrize("action", [*AUDIT_ACTIONS, "of_a_later_version"])
@pytest.mark.parametrize("detail", [None, [], "text", {}, BROKEN])
def test_a_detail_that_is_not_as_it_should_be_breaks_nothing(action, detail):
    assert tell_deed(action, detail).before


@pytest.mark.parametrize("action", AUDIT_ACTIONS)
def test_every_action_has_words_of_its_own(action):
    assert tell_deed(action, {}).before != action


def test_a_reason_of_a_megabyte_is_cut():
    assert len(tell_deed("disable", {"reason": "x" * 1_000_000}).after) < 400
