"""The pages of dead letters, and a replay that shows what was edited, on both databases."""

from __future__ import annotations

import html
import json
import re
from typing import Any

import pytest

from tests.web.conftest import Pages, Web
from tests.web.test_page_runs import HOSTILE, SHOWN, attempt, dead

PAYLOAD = {"card": {"number": "4711-0815"}, "to": "ann", "order": 17}


async def letters(web: Web, *errors: str, payload: dict[str, Any] | None = None) -> None:
    """Leave a letter of `mail` for each error."""
    for error in errors:
        await dead(web, payload=payload, error=error)


def edited(**changes: Any) -> str:
    return json.dumps({**PAYLOAD, **changes}).replace(", ", ",\r\n")


async def payload_of(web: Web, run_id: int) -> Any:
    found = await web.stage.value(f"SELECT payload FROM {{p}}runs WHERE id = {run_id}")
    return json.loads(found) if isinstance(found, str) else found


async def test_of_an_empty_database_all_is_well(web: Web, pages: Pages):
    assert "No letter is open" in await pages.get("/dead-letters")
    assert "No letter fits." in await pages.get("/dead-letters?q=status:open")
    await pages.get("/dead-letters/1", status=404)


async def test_letters_of_one_error_are_one_row_that_leads_to_all_of_them(web: Web, pages: Pages):
    await letters(web, "order 17 was not there", "order 18 was not there", "no route")
    page = await pages.get("/dead-letters")
    assert "order … was not there" in page
    rows = re.findall(r'<tr id="group-(\d+)".*?</tr>', page, re.DOTALL)
    assert rows == ["2", "3"]
    link = re.search(r'href="\./(dead-letters\?q=[^"]+order[^"]*)"', page)
    assert link is not None
    listed = await pages.get("/" + link[1])
    assert [f'id="letter-{number}"' in listed for number in (1, 2, 3)] == [True, True, False]
    assert "bulk/new?action=replay&amp;filter=worker%3Amail+status%3Aopen+error" in page


async def test_who_only_reads_is_led_to_no_change(web: Web, pages: Pages):
    await letters(web, "no route")
    for path in ("/dead-letters", "/dead-letters?q=status:open", "/dead-letters/1"):
        page = await pages.get(path, "read")
        assert "no route" in page
        assert "bulk/new" not in page
        assert "hx-get" not in page


async def test_the_list_has_pages(web: Web, pages: Pages, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("jobrunner.web.pages.letters.ROWS", 2)
    await letters(web, "a", "b", "c")
    first = await pages.get("/dead-letters?q=worker:mail")
    following = re.search(r'href="dead-letters(\?[^"]+)" rel="next"', first)
    assert following is not None
    second = await pages.get("/dead-letters" + following[1].replace("&amp;", "&"))
    found = [re.findall(r'<tr id="letter-(\d+)"', page) for page in (first, second)]
    assert found == [["3", "2"], ["1"]]


async def test_a_filter_that_cannot_be_read_is_refused_beside_the_box(web: Web, pages: Pages):
    page = await pages.get("/dead-letters?q=colour:red")
    assert 'role="alert"' in page
    assert "bulk/new" not in page


async def test_a_letter_shows_the_error_of_every_attempt(web: Web, pages: Pages):
    run_id = await dead(web)
    page = await pages.get("/dead-letters/1")
    for number in range(4):
        assert f"order {number} not found" in page
    assert "Traceback: no luck" in page
    assert f'href="../runs/{run_id}"' in page
    assert 'href="../dead-letters/1/replay"' in page


async def test_hidden_fields_are_seen_by_administrators_only(web: Web, pages: Pages):
    await letters(web, "no route", payload=PAYLOAD)
    paths = ("/dead-letters/1", "/dead-letters/1/replay")
    for path in paths:
        assert "4711-0815" in await pages.get(path)
        assert "4711-0815" not in await pages.get(path, "operate")
    assert "4711-0815" not in await pages.get("/dead-letters?q=status:open", "operate")
    refused = await pages.get("/dead-letters?q=payload.card.number:4711-0815", "operate")
    assert "only an administrator may search in it" in refused


async def test_hostile_texts_are_shown_as_text(web: Web, pages: Pages):
    await dead(web, payload={"x": HOSTILE}, error=HOSTILE, error_type="E<b>", traceback=HOSTILE)
    for path in ("/dead-letters", "/dead-letters?q=status:open", "/dead-letters/1", "/dead-letters/1/replay"):
        page = await pages.get(path)
        assert "&lt;script&gt;" in page
        for raw in ("<script>alert", "E<b>", "\x1b", "\u202e"):
            assert raw not in page, (path, raw)
    assert SHOWN in await pages.get("/dead-letters/1")


async def test_a_megabyte_in_a_line_makes_no_page_of_a_megabyte(web: Web, pages: Pages):
    await dead(web, error="z" * 1_000_000, traceback="z" * 1_000_000)
    for path in ("/dead-letters", "/dead-letters?q=status:open", "/dead-letters/1"):
        assert len(await pages.get(path)) < 100_000, path


async def test_the_difference_is_shown_and_nothing_is_done(web: Web, pages: Pages):
    await letters(web, "no route", payload=PAYLOAD)
    answer = await pages.send("/dead-letters/1/replay", "admin", payload=edited(to="ben"), show="difference")
    assert answer.status_code == 200
    assert '<span class="diff-removed">-  &#34;to&#34;: &#34;ann&#34;' in answer.text
    assert '<span class="diff-added">+  &#34;to&#34;: &#34;ben&#34;' in answer.text
    (typed,) = re.findall(r"<textarea[^>]*>(.*?)</textarea>", answer.text, re.DOTALL)
    assert json.loads(html.unescape(typed)) == {**PAYLOAD, "to": "ben"}, "it can be sent again as it stands"
    assert await web.stage.value("SELECT status FROM {p}dead_letters") == "open"
    assert await web.stage.value("SELECT count(*) FROM {p}runs WHERE worker = 'mail'") == 0


async def test_of_a_payload_that_is_no_json_it_is_said_why(web: Web, pages: Pages):
    await letters(web, "no route", payload=PAYLOAD)
    answer = await pages.send("/dead-letters/1/replay", payload="{no", show="difference")
    assert answer.status_code == 422
    assert "the payload is no JSON" in answer.text
    assert "{no</textarea>" in answer.text
    assert await web.stage.value("SELECT status FROM {p}dead_letters") == "open"


async def test_what_was_edited_is_replayed_and_what_was_hidden_stays(web: Web, pages: Pages):
    await letters(web, "no route", payload=PAYLOAD)
    shown = edited(to="ben", card={"number": "•••"})
    same = await pages.send("/dead-letters/1/replay", payload=shown, show="difference")
    assert "4711-0815" not in same.text
    answer = await pages.send("/dead-letters/1/replay", payload=shown)
    assert answer.status_code == 303
    (run_id,) = await web.stage.column("SELECT replay_run_id FROM {p}dead_letters")
    assert await payload_of(web, run_id) == {**PAYLOAD, "to": "ben"}
    detail = await web.stage.value("SELECT detail FROM {p}audit_log WHERE action = 'replay'")
    assert (json.loads(detail) if isinstance(detail, str) else detail)["is_edited"] is True


async def test_what_nobody_edited_is_replayed_as_it_is(web: Web, pages: Pages):
    await letters(web, "no route", payload=PAYLOAD)
    same = await pages.send("/dead-letters/1/replay", "admin", payload=edited(), show="difference")
    assert "Nothing: it would be replayed with the payload that it has." in same.text
    assert (await pages.send("/dead-letters/1/replay", "admin", payload=edited())).status_code == 303
    detail = await web.stage.value("SELECT detail FROM {p}audit_log WHERE action = 'replay'")
    assert (json.loads(detail) if isinstance(detail, str) else detail)["is_edited"] is False


async def test_true_in_place_of_1_is_an_edit(web: Web, pages: Pages):
    await letters(web, "no route", payload={"to": 1})
    assert (await pages.send("/dead-letters/1/replay", "admin", payload='{"to": true}')).status_code == 303
    assert (await payload_of(web, (await attempt(web)).id))["to"] is True
