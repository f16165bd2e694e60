"""The pages of runs: the list of live ones, and one with its attempts, on both databases."""

from __future__ import annotations

import re
from typing import Any

import pytest

from jobrunner.model.run import OutcomeKind, Run
from jobrunner.storage.runs import cancelling, dead_letters
from jobrunner.storage.workers import operations
from tests.support.stage import ACTOR
from tests.web.conftest import Pages, Web

HOSTILE = "<script>alert(1)</script>\x1b[31m\u202eevil"
SHOWN = "&lt;script&gt;alert(1)&lt;/script&gt;\\x1b[31m\\u202eevil"


async def attempt(web: Web) -> Run:
    """Start what is due of `mail`."""
    (run,) = [run for run in await web.stage.tick() if run.worker == "mail"]
    return run


async def dead(web: Web, *, payload: dict[str, Any] | None = None, **more: Any) -> int:
    """Let a run of `mail` use its attempts up; return its id."""
    run_id = await web.stage.trigger("mail", payload=payload)
    for number in range(4):
        await web.stage.fail(await attempt(web), **{"error": f"order {number} not found", **more})
        web.stage.after(60)
    return run_id


def ids_of(page: str) -> list[str]:
    return re.findall(r'\sid="([^"]+)"', page)


async def test_of_an_empty_database_the_list_says_so(web: Web, pages: Pages):
    page = await pages.get("/runs")
    assert "Nothing runs, and nothing waits." in page
    assert "No live run fits." in await pages.get("/runs?q=worker:none")


async def test_what_runs_comes_first_and_what_waits_says_why(web: Web, pages: Pages):
    await operations.disable(web.stage.db, "fetch", web.stage.now, ACTOR, HOSTILE)
    await web.stage.trigger("fetch")
    running = await web.stage.trigger("mail")
    run = await attempt(web)
    assert run.id == running
    await web.stage.sql(
        f'UPDATE {{p}}runs SET progress = \'{{"fraction": 0.4, "message": "of <b>ten</b>"}}\' WHERE id = {running}'
    )
    page = await pages.get("/runs")
    rows = re.findall(r'<tr id="run-(\d+)"', page)
    assert rows[0] == str(running)
    assert '<progress value="0.4" max="1"' in page
    assert "of &lt;b&gt;ten&lt;/b&gt;" in page
    assert f"disabled by {ACTOR}: {SHOWN}" in page
    assert f'href="./runs/{running}/cancel"' in page


async def test_a_filter_narrows_and_leads_to_doing_something_to_all_that_fit(web: Web, pages: Pages):
    first, second = await web.stage.trigger("mail"), await web.stage.trigger("fetch")
    page = await pages.get("/runs?q=worker:mail")
    assert f'id="run-{first}"' in page
    assert f'id="run-{second}"' not in page
    assert 'href="./bulk/new?action=cancel&amp;filter=worker%3Amail"' in page
    assert "bulk/new" not in await pages.get("/runs?q=worker:mail", "read")


async def test_a_filter_that_cannot_be_read_is_refused_beside_the_box(web: Web, pages: Pages):
    page = await pages.get("/runs?q=colour:red")
    assert 'role="alert"' in page
    assert "cannot be filtered by" in page


async def test_the_list_has_pages(web: Web, pages: Pages, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("jobrunner.web.pages.runs.ROWS", 2)
    made = [await web.stage.trigger("mail") for _ in range(5)]
    seen, path = [], "/runs"
    for _ in range(3):
        page = await pages.get(path)
        seen += re.findall(r'<tr id="run-(\d+)"', page)
        following = re.search(r'href="runs(\?[^"]+)" rel="next"', page)
        path = f"/runs{following[1]}" if following else ""
    assert (sorted(map(int, seen)), path) == (made, "")


async def test_a_run_that_was_given_up_shows_each_attempt_and_its_letter(web: Web, pages: Pages):
    run_id = await dead(web, output="it said so")
    page = await pages.get(f"/runs/{run_id}")
    assert re.search(rf"<h1>Run {run_id} of <a[^>]+><bdi>mail</bdi>", page)
    assert page.count("<details id=") == 4
    assert page.count("fill-failed") == 4
    assert "order 3 not found" in page
    assert "Traceback: no luck" in page
    assert "it said so" in page
    assert "letter 1" in page
    assert 'href="../dead-letters/1/replay"' in page
    assert len(ids_of(page)) == len(set(ids_of(page)))


async def test_the_replay_and_what_it_replays_lead_to_each_other(web: Web, pages: Pages):
    run_id = await dead(web)
    done = await dead_letters.replay(web.stage.db, dead_letters.Chosen(ids=(1,)), web.stage.now, ACTOR)
    replay = done.resolved[0].run_id
    assert f'href="../runs/{replay}"' in await pages.get(f"/runs/{run_id}")
    page = await pages.get(f"/runs/{replay}")
    assert f'href="../runs/{run_id}"' in page
    assert 'href="../dead-letters/1"' in page


async def test_a_run_that_waits_shows_every_gate(web: Web, pages: Pages):
    await operations.disable(web.stage.db, "mail", web.stage.now, ACTOR, "the API is down")
    run_id = await web.stage.trigger("mail", key="a-key")
    page = await pages.get(f"/runs/{run_id}")
    assert "Every gate: 1 is shut" in page
    assert f"disabled by {ACTOR}: the API is down" in page
    assert "a-key" in page
    assert f'href="../runs/{run_id}/cancel"' in page


async def test_a_run_that_runs_shows_its_output_so_far(web: Web, pages: Pages):
    run_id = await web.stage.trigger("mail")
    await attempt(web)
    lines = "\n".join(f"line {n}" for n in range(500))
    await web.stage.sql(f"UPDATE {{p}}runs SET output = '{lines}' WHERE id = {run_id}")
    page = await pages.get(f"/runs/{run_id}")
    assert "line 499" in page
    assert "line 299\n" not in page
    assert f'href="../runs/{run_id}/output?attempt=1"' in page


async def test_a_result_is_shown(web: Web, pages: Pages):
    run_id = await web.stage.trigger("mail")
    await web.stage.end(await attempt(web), result={"sent": HOSTILE})
    page = await pages.get(f"/runs/{run_id}")
    assert '<h2 id="result">' in page
    assert "&lt;script&gt;" in page
    assert "<script>alert" not in page


async def test_two_attempts_stand_beside_each_other_with_what_differs(web: Web, pages: Pages):
    run_id = await dead(web, output="same\nline")
    page = await pages.get(f"/runs/{run_id}?compare=1,3")
    assert "Attempts 1 and 3 beside each other" in page
    (differs,) = re.findall(r'<tr class="differs">(.*)</tr>', page)
    assert "order 0 not found" in differs
    assert "order 2 not found" in differs
    for bad in ("1", "1,9", "1,2,3"):
        await pages.get(f"/runs/{run_id}?compare={bad}", status=400)


async def test_output_is_given_whole_as_text(web: Web, pages: Pages):
    run_id = await web.stage.trigger("mail")
    await web.stage.end(await attempt(web), output=f"{HOSTILE}\n" * 1000)
    async with web.client(pages.app, level="read") as client:
        response = await client.get(f"/runs/{run_id}/output?attempt=1")
    assert response.text == f"{HOSTILE}\n" * 1000
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert response.headers["content-disposition"].startswith("inline")
    await pages.get(f"/runs/{run_id}/output?attempt=9", status=404)
    await pages.get(f"/runs/{run_id}/output?attempt=x", status=400)
    await pages.get("/runs/999/output", status=404)


async def test_hidden_fields_are_seen_by_administrators_only(web: Web, pages: Pages):
    run_id = await dead(web, payload={"card": {"number": "4711-0815"}, "to": "ann"})
    assert "4711-0815" in await pages.get(f"/runs/{run_id}")
    for level in ("read", "operate"):
        page = await pages.get(f"/runs/{run_id}", level)
        assert "4711-0815" not in page
        assert "•••" in page
        assert "4711-0815" not in await pages.get("/runs", level)


async def test_who_only_reads_sees_no_button_that_could_be_pressed(web: Web, pages: Pages):
    run_id = await dead(web)
    waiting = await web.stage.trigger("mail")
    for path in (f"/runs/{run_id}", f"/runs/{waiting}", "/runs"):
        assert "hx-get" not in await pages.get(path, "read")


async def test_hostile_texts_are_shown_as_text(web: Web, pages: Pages):
    run_id = await dead(
        web, payload={"x": HOSTILE}, error=HOSTILE, error_type="E<b>", traceback=HOSTILE, output=f"{HOSTILE}\r\0."
    )
    for path in (f"/runs/{run_id}", f"/runs/{run_id}?compare=1,2"):
        page = await pages.get(path)
        assert SHOWN in page
        assert "E&lt;b&gt;" in page
        for raw in ("<script>alert", "E<b>", "\x1b", "\u202e", "\0"):
            assert raw not in page, raw


async def test_a_megabyte_in_a_line_makes_no_page_of_a_megabyte(web: Web, pages: Pages):
    run_id = await dead(web, error="z" * 1_000_000, traceback="z" * 1_000_000, output="z" * 64_000)
    assert len(await pages.get(f"/runs/{run_id}")) < 200_000
    assert len(await pages.get(f"/runs/{run_id}?compare=1,2")) < 300_000


async def test_what_ended_before_it_started_is_shown(web: Web, pages: Pages):
    run_id = await web.stage.trigger("mail")
    await cancelling.cancel(web.stage.db, run_id, web.stage.now, ACTOR, "nobody wants it")
    page = await pages.get(f"/runs/{run_id}")
    assert "before a start" in page
    assert "nobody wants it" in page


async def test_a_run_that_snoozed_is_shown(web: Web, pages: Pages):
    run_id = await web.stage.trigger("mail")
    await web.stage.end(await attempt(web), OutcomeKind.SNOOZED, delay_seconds=60.0)
    assert "snoozed" in await pages.get(f"/runs/{run_id}")


async def test_what_there_is_not_is_not_found(web: Web, pages: Pages):
    await pages.get("/runs/999", status=404)
    await pages.get("/runs/%D9%A1", status=400)


async def test_of_a_run_is_shown_its_key_of_a_limit_its_batch_and_its_step(web: Web, pages: Pages):
    plain = await web.stage.trigger("mail")
    run_id = await web.stage.trigger("mail")
    where = f"WHERE id = {run_id}"
    await web.stage.sql(f"UPDATE {{p}}runs SET limit_key = 'a<b', batch_id = 7, flow_id = 3, step = 'load' {where}")
    page = await pages.get(f"/runs/{run_id}")
    assert '<dt>Limit key</dt><dd class="mono"><bdi>a&lt;b</bdi></dd>' in page
    assert "<dt>Batch</dt><dd>7</dd>" in page
    assert '<dt>Flow</dt><dd>3, step <bdi class="mono">load</bdi></dd>' in page
    assert "Limit key" not in await pages.get(f"/runs/{plain}")
    listed = await pages.get("/runs")
    assert 'limit key <bdi class="mono">a&lt;b</bdi>, batch 7, flow 3, step <bdi class="mono">load</bdi>' in listed
    assert listed.count("limit key") == 1
