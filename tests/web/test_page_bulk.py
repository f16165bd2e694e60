"""Bulk operations in pages: what is meant, how many that are, and that no others are done; on both databases."""

from __future__ import annotations

import re

import pytest

from jobrunner.storage import bulk
from jobrunner.web.pages.bulk import how_many, seen_of
from tests.web.conftest import Pages, Web
from tests.web.test_page_runs import HOSTILE, SHOWN, dead

FORM = "/bulk/new?action=discard&filter=worker:mail"


async def test_of_an_empty_database_there_are_none(web: Web, pages: Pages):
    assert "There are none." in await pages.get("/bulk")
    assert "Nothing fits" in await pages.get(FORM)
    await pages.get("/bulk/1", status=404)


async def test_the_form_shows_how_many_and_the_newest_before_anything_is_done(web: Web, pages: Pages):
    for _ in range(2):
        await dead(web)
    page = await pages.get(f"{FORM}&reason=they+are+old")
    assert "2 letters fit" in page
    assert "Discard 2 letters</button>" in page
    assert '<input type="hidden" name="expected" value="2">' in page
    assert '<input type="hidden" name="reason" value="they are old">' in page
    assert re.findall(r'href="\.\./dead-letters/(\d+)"', page) == ["2", "1"]
    assert await web.stage.value("SELECT count(*) FROM {p}bulk_operations") == 0


async def test_pressing_the_button_begins_it_by_whom_and_why(web: Web, pages: Pages):
    await dead(web)
    sent = {"action": "discard", "filter": "worker:mail", "rate": "7", "reason": "they are old", "expected": "1"}
    answer = await pages.send("/bulk/new", **sent)
    assert (answer.status_code, answer.headers["location"]) == (303, "../bulk/1")
    (row,) = await web.stage.rows("SELECT action, filter, rate, reason, actor, expected FROM {p}bulk_operations")
    assert row == {**sent, "rate": 7.0, "expected": 1, "actor": row["actor"]}
    assert row["actor"].endswith("@http")
    (actor,) = await web.stage.column("SELECT actor FROM {p}audit_log WHERE action = 'bulk'")
    assert actor == row["actor"]
    page = await pages.get("/bulk/1")
    assert "0 of 1 discarded" in page
    assert "they are old" in page
    assert 'href="../bulk/1/stop"' in page
    listed = await pages.get("/bulk")
    assert 'id="bulk-1"' in listed
    assert 'href="./bulk/1/stop"' in listed


@pytest.mark.parametrize("expected", ["2", "", "x"])
async def test_what_was_not_shown_is_not_done(web: Web, pages: Pages, expected):
    await dead(web)
    answer = await pages.send("/bulk/new", action="discard", filter="worker:mail", expected=expected)
    assert answer.status_code == {"2": 409, "": 400, "x": 400}[expected]
    assert 'role="alert"' in answer.text
    assert "Discard 1 letter</button>" in answer.text
    assert await web.stage.value("SELECT count(*) FROM {p}bulk_operations") == 0


@pytest.mark.parametrize("form", ["?action=discard&filter=colour:red", "?action=replay&filter=status:replayed"])
async def test_what_cannot_be_meant_is_refused_with_what_was_typed(web: Web, pages: Pages, form):
    page = await pages.get(f"/bulk/new{form}", status=400)
    assert 'role="alert"' in page
    assert form.rpartition("=")[2] in page
    assert 'name="expected"' not in page


async def test_who_may_not_operate_gets_no_form(web: Web, pages: Pages):
    await pages.get(FORM, "read", status=403)
    assert (await pages.send("/bulk/new", "read", action="discard", filter="worker:*", expected="0")).status_code == 403
    assert "bulk/new" not in await pages.get("/bulk", "read")


async def test_what_is_looked_for_in_payloads_is_seen_by_administrators_only(web: Web, pages: Pages):
    db, now = web.stage.db, web.stage.now
    seen = await bulk.preview(db, "discard", "worker:mail payload.card.number:4711-0815", now)
    await bulk.begin(db, seen, now, "ann@desk", reason=HOSTILE)
    for path in ("/bulk", "/bulk/1"):
        assert "4711-0815" in await pages.get(path)
        page = await pages.get(path, "operate")
        assert "4711-0815" not in page
        assert SHOWN in page
        assert "<script>alert" not in page
    await pages.get("/bulk/new?action=discard&filter=worker:mail+payload.card.number:1", "operate", status=403)


async def test_it_can_be_stopped(web: Web, pages: Pages):
    db, now = web.stage.db, web.stage.now
    await bulk.begin(db, await bulk.preview(db, "cancel", "worker:mail", now), now, "ann@desk")
    assert (await pages.send("/bulk/1/stop")).status_code == 303
    page = await pages.get("/bulk/1")
    assert "stopped" in page
    assert "/stop" not in page


async def test_the_list_has_pages(web: Web, pages: Pages, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("jobrunner.web.pages.bulk.ROWS", 2)
    db, now = web.stage.db, web.stage.now
    for _ in range(3):
        await bulk.begin(db, await bulk.preview(db, "cancel", "worker:mail", now), now, "ann@desk")
    assert re.findall(r'<tr id="bulk-(\d+)"', await pages.get("/bulk")) == ["3", "2"]
    assert re.findall(r'<tr id="bulk-(\d+)"', await pages.get("/bulk?after=2")) == ["1"]


def test_numbers_are_said_as_far_as_they_were_counted():
    assert [how_many("replay", number) for number in (0, 1, 10_000, 10_001)] == [
        "0 letters",
        "1 letter",
        "10,000 letters",
        "over 10,000 letters",
    ]
    row = {"action": "cancel", "done": 300, "left_out": 44, "expected": 688}
    assert seen_of(row) == {"said": "300 of 688 cancelled, 44 left out", "fraction": 0.5, "list": "runs"}
    assert seen_of({**row, "expected": 10_001})["fraction"] is None
    assert seen_of({**row, "expected": 0})["fraction"] is None
