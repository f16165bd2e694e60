"""The pages of workers: the list, and one with its gates, its runs, its layers and who decided what."""

from __future__ import annotations

import pytest

from jobrunner.model.run import OutcomeKind
from tests.support.stage import scheduled, triggered
from tests.web.conftest import Pages, Web

HOSTILE = "<script>alert(1)</script>\x1b[31m"
SHOWN = "&lt;script&gt;alert(1)&lt;/script&gt;\\x1b[31m"


async def test_the_list_is_found_by_a_part_of_a_name_and_by_a_filter(web: Web, pages: Pages):
    page = await pages.get("/workers")
    assert "./workers/fetch" in page
    assert "./workers/mail" in page
    page = await pages.get("/workers?q=mai")
    assert "./workers/mail" in page
    assert "./workers/fetch" not in page
    page = await pages.get("/workers?q=mode:scheduled")
    assert "./workers/fetch" in page
    assert "./workers/mail" not in page


async def test_a_number_leads_to_its_run_and_what_is_no_filter_of_workers_to_the_history(web: Web, pages: Pages):
    assert 'href="./runs/812"' in await pages.get("/workers?q=812")
    page = await pages.get("/workers?q=outcome:failed")
    assert 'role="alert"' in page
    assert 'href="./history?q=outcome%3Afailed"' in page


async def test_the_list_has_pages(web: Web, pages: Pages, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("jobrunner.web.pages.workers._PAGE_ROWS", 1)
    page = await pages.get("/workers")
    assert "./workers/fetch" in page
    assert "./workers/mail" not in page
    assert "./workers/mail" in await pages.get("/workers?after=fetch")


async def test_a_worker_shows_why_it_does_not_start_who_said_so_and_what_it_is(web: Web, pages: Pages):
    await web.orchestrator.disable_worker("fetch", HOSTILE, actor="ada")
    page = await pages.get("/workers/fetch")
    assert SHOWN in page
    assert HOSTILE not in page
    assert "ada" in page
    assert "every 3600 s" in page
    for gate in ("enabled", "paused", "handler", "dependencies", "blocks", "slot"):
        assert gate in page
    assert page.count("shut") >= 1
    assert 'href="../workers/fetch/enable"' in page


async def test_a_worker_shows_its_runs_its_letters_and_its_output_as_text(web: Web, pages: Pages):
    stage = web.stage
    await stage.register(triggered("bill", max_retries=0, max_consecutive_failures=9))
    await stage.join("n2")
    for _ in range(3):
        await stage.trigger("bill")
        for run in await stage.tick(node="n2"):
            if run.worker == "bill":
                await stage.end(run, OutcomeKind.FAILED, error_type="Error", error=HOSTILE)
    page = await pages.get("/workers/bill")
    assert SHOWN in page
    assert HOSTILE not in page
    assert "Open dead letters, by error" in page
    assert "./dead-letters?q=" in page.replace("../", "./")
    assert 'class="chart"' in page


async def test_a_past_moment_is_told_as_it_was_and_what_is_no_time_is_refused(web: Web, pages: Pages):
    page = await pages.get("/workers/fetch?at=1m")
    assert "Back to now" in page or "now" in page
    page = await pages.get("/workers/fetch?at=yesterdayish")
    assert 'role="alert"' in page


async def test_what_was_set_stands_beside_what_the_code_says(web: Web, pages: Pages):
    await web.orchestrator.set_override("fetch", actor="ada", interval_seconds=42)
    page = await pages.get("/workers/fetch")
    row = page.split("interval_seconds", 1)[1].split("</tr>", 1)[0]
    assert "42" in row
    assert "3600" in row


async def test_neighbours_are_told_both_ways(web: Web, pages: Pages):
    await web.stage.register(
        scheduled("fetch", interval_seconds=3600, blocks=("mail",)), triggered("mail", depends_on=("fetch",))
    )
    assert 'href="../workers/mail"' in await pages.get("/workers/fetch")
    assert 'href="../workers/fetch"' in await pages.get("/workers/mail")


async def test_hidden_fields_of_a_payload_are_for_administrators(web: Web, pages: Pages):
    for level, is_shown in (("read", False), ("operate", False), ("admin", True)):
        assert ("4711" in await pages.get("/workers/mail", level)) == is_shown
    assert "4711" not in await pages.get("/workers/mail/trigger", "operate")


async def test_an_unknown_worker_is_a_page_that_names_a_near_one(web: Web, pages: Pages):
    page = await pages.get("/workers/fetsh", status=404)
    assert "fetch" in page
