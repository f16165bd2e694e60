"""The page of what ended, and what is taken away from it."""

from __future__ import annotations

import csv
import io
import json
from datetime import timedelta

import pytest
import sqlalchemy as sa

from jobrunner.storage.tables import define as t
from jobrunner.web.pages import exports
from jobrunner.web.pages.exports import COLUMNS, harmless
from tests.web.conftest import Web

HOSTILE = "<script>alert(1)</script>\x1b[31m\u202eoops"


async def with_failures(web: Web, error: str = HOSTILE, number: int = 1) -> None:
    """Let `fetch` succeed, and a run of `mail` fail so often."""
    await web.stage.tick(handlers=["fetch"])
    for _ in range(number):
        await web.stage.trigger("mail", payload={"card": {"number": "0815", "name": "bob"}})
        (run,) = await web.stage.tick(handlers=["mail"])
        await web.stage.fail(run, error=error)
        await web.stage.sql("DELETE FROM {p}runs WHERE worker = 'mail'")
        web.stage.after(1)


async def many(web: Web, number: int, **more: object) -> None:
    rows = [
        {
            "run_id": 1_000_000 + each,
            "fence": each,
            "worker": "mail",
            "trigger": "manual",
            "attempt": 1,
            "outcome": "succeeded",
            "finished_at": web.stage.now - timedelta(seconds=number - each),
            **more,
        }
        for each in range(number)
    ]
    async with web.stage.db.write() as conn:
        await conn.execute(sa.insert(t.run_history), rows)


def table(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text.removeprefix("\ufeff"))))


@pytest.mark.parametrize("level", ["read", "operate", "admin"])
async def test_it_is_empty_at_first(web: Web, level):
    async with web.client(level=level) as client:
        page = await client.get("/history")
        exported = await client.get("/history.csv")
        as_json = await client.get("/history.json")
    assert page.status_code == 200
    assert "Nothing has ended yet." in page.text
    assert table(exported.text) == [list(COLUMNS)]
    assert as_json.json() == {"rows": [], "note": None}


async def test_what_is_hostile_is_text(web: Web):
    await with_failures(web)
    async with web.client() as client:
        page = (await client.get("/history")).text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;\\x1b[31m\\u202eoops" in page
    assert "<script>alert" not in page
    assert "\x1b" not in page
    assert "\u202e" not in page


async def test_an_error_of_a_megabyte_in_one_line_is_cut(web: Web):
    await many(web, 1, outcome="failed", error="x" * 1_000_000)
    async with web.client() as client:
        assert len((await client.get("/history")).text) < 20_000


async def test_a_filter_is_kept_in_the_box_and_in_the_links(web: Web):
    await with_failures(web)
    async with web.client() as client:
        failed = (await client.get("/history", params={"q": "outcome:failed"})).text
        other = (await client.get("/history", params={"q": "outcome:lost"})).text
    assert 'value="outcome:failed"' in failed
    assert "history.csv?q=outcome%3Afailed" in failed
    assert "no luck" not in other
    assert "Nothing that fits has ended" in other
    assert failed.count("data-row") == 1


async def test_a_filter_that_cannot_be_read_is_told_beside_it(web: Web):
    async with web.client() as client:
        page = (await client.get("/history", params={"q": "outcom:failed"})).text
        exported = await client.get("/history.csv", params={"q": "outcom:failed"})
    assert 'role="alert"' in page
    assert 'value="outcom:failed"' in page
    assert exported.status_code == 400


async def test_pages_follow_each_other_without_a_gap(web: Web):
    await many(web, 120)
    seen: list[str] = []
    address = "/history"
    async with web.client() as client:
        for _ in range(3):
            page = (await client.get(address)).text
            seen += [part.partition('"')[0] for part in page.split('id="ended-')[1:]]
            if 'rel="next"' in page:
                address = "/" + page.partition('rel="next"')[0].rpartition('href="')[2].partition('"')[0].lstrip("./")
    assert len(seen) == len(set(seen)) == 120
    assert seen == sorted(seen, key=int, reverse=True)


async def test_the_csv_is_masked_like_the_page(web: Web):
    await with_failures(web)
    async with web.client(level="read") as client:
        read = await client.get("/history.csv")
        read_json = await client.get("/history.json")
    async with web.client(level="admin") as client:
        admin = await client.get("/history.csv")
    assert read.headers["content-type"] == "text/csv; charset=utf-8"
    assert read.headers["content-disposition"].startswith('attachment; filename="history-')
    assert "0815" not in read.text
    assert "bob" in read.text
    assert "0815" not in read_json.text
    assert "0815" in admin.text


async def test_who_may_not_read_takes_nothing_away(web: Web):
    await with_failures(web)
    async with web.client(level=None, at=("10.1.2.3", 1)) as client:
        answers = [await client.get(f"/history.{kind}") for kind in ("csv", "json")]
    assert all("no luck" not in found.text and found.status_code != 200 for found in answers)


@pytest.mark.parametrize("said", ["=1+1", "+1", "-1", "@x", "\tx", "\rx"])
def test_a_cell_that_begins_as_a_formula_gets_an_apostrophe(said):
    assert harmless(said) == f"'{said}"


def test_another_cell_is_left_as_it_is():
    assert [harmless(said) for said in ("", "x=1", "1", "'x")] == ["", "x=1", "1", "'x"]


async def test_an_error_that_is_a_formula_is_harmless_in_csv(web: Web):
    await with_failures(web, error='=HYPERLINK("http://x","y")\n,"z')
    async with web.client() as client:
        rows = table((await client.get("/history.csv")).text)
    error = rows[1][COLUMNS.index("error")]
    assert error == '\'=HYPERLINK("http://x","y")\n,"z'
    assert {len(row) for row in rows} == {len(COLUMNS)}


async def test_what_is_taken_away_is_more_than_a_page_and_has_an_end_that_is_said(web: Web, monkeypatch):
    await many(web, 1200)
    async with web.client() as client:
        whole = table((await client.get("/history.csv")).text)
        monkeypatch.setattr(exports, "MOST_ROWS", 700)
        cut = table((await client.get("/history.csv")).text)
        as_json = json.loads((await client.get("/history.json")).text)
    assert len(whole) == 1 + 1200
    assert len(cut) == 1 + 700 + 1
    assert cut[-1] == ["only the newest 700 rows; narrow the filter for the others"]
    assert (len(as_json["rows"]), as_json["note"]) == (700, cut[-1][0])
    assert len({row["id"] for row in as_json["rows"]}) == 700


async def test_how_far_was_searched_is_said(web: Web, monkeypatch):
    await many(web, 60)
    monkeypatch.setattr("jobrunner.storage.reading.search.WINDOW_ROWS", 20)
    asked = {"q": "error:nowhere"}
    async with web.client() as client:
        page = (await client.get("/history", params=asked)).text
        exported = table((await client.get("/history.csv", params=asked)).text)
    assert "The newest 20 rows were searched" in page
    assert exported[-1] == ["the newest 20 rows were searched; older ones may fit, too"]
