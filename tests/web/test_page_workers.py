"""The pages of workers: the list with its filter and strips, and all there is about one."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest
from markupsafe import escape

from jobrunner.model.run import OutcomeKind
from jobrunner.storage.workers import operations
from jobrunner.web.pages.workers import asked
from tests.storage.test_minutes import ended, write
from tests.support.stage import ACTOR, scheduled, triggered
from tests.web.conftest import Pages, Web

HOSTILE = "<script>alert(1)</script> \x1b[31m \u202egnp.exe & \"' " + "x" * 1_000_000

FAR = datetime(2099, 1, 1, tzinfo=UTC)


async def page(web: Web, path: str, level: str | None = "admin", status: int = 200, **query: str) -> str:
    """Ask the one console of a test: each has connections of its own. What it answered last it keeps for a second."""
    app = vars(web).get("app") or vars(web).setdefault("app", web.console())
    async with web.client(app, level=level) as client:
        answer = await client.get(path, params=query)
    assert answer.status_code == status
    return answer.text


def part(text: str, heading: str) -> str:
    """The section of a page under the heading of that id."""
    (found,) = re.findall(rf'<section aria-labelledby="{heading}">.*?</section>', text, re.DOTALL)
    return found


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("mail", "worker:*mail*"),
        ("mail,fetch", "worker:*mail*,*fetch*"),
        ("send-*", "worker:send-*"),
        ("mail health:failing", "worker:*mail* health:failing"),
        ("worker:mail", "worker:mail"),
        ("  mail ", "worker:*mail*"),
        ("what?", "what?"),
        (",", ","),
        ('error:"a b"', 'error:"a b"'),
    ],
)
def test_a_word_in_the_filter_is_a_part_of_a_name(typed: str, meant: str):
    assert asked(typed) == meant


async def test_the_list_shows_each_worker_and_how_its_last_runs_ended(web: Web):
    await operations.pause(web.stage.db, "mail", web.stage.now, ACTOR, FAR, "the API is down")
    rows = [{**ended(web.stage, 9 - each), "duration_ms": 40} for each in range(3)] + [ended(web.stage, 1, "failed")]
    await write(web.stage, *rows)
    text = await page(web, "/workers")
    assert re.search(r'<tr id="worker-fetch" data-row>.*every 3600 s.*unknown', text, re.DOTALL)
    row = text[text.index('id="worker-mail"') :]
    assert "the API is down" in row
    assert "The last 4: 3 succeeded, 1 failed; the newest failed" in row
    assert row.count('class="fill-succeeded"') == 3
    assert "40 ms" in row
    assert '<code id="cli-1">jobrunner status</code>' in text


async def test_the_list_finds_by_a_part_of_a_name_by_terms_and_says_what_it_cannot_read(web: Web):
    found = await page(web, "/workers", q="ai,zz")
    assert 'id="worker-mail"' in found
    assert 'id="worker-fetch"' not in found
    assert "jobrunner status &#39;worker:*ai*,*zz*&#39;" in found
    assert 'value="ai,zz"' in found
    assert "No worker fits." in await page(web, "/workers", q="health:disabled")
    refused = await page(web, "/workers", q='nonsense:"<b>x</b>"')
    assert 'role="alert"' in refused
    assert "cannot be filtered by &#39;nonsense&#39;" in refused
    assert "<b>x</b>" not in refused


async def test_the_list_goes_on_page_by_page(web: Web):
    await web.stage.register(*(triggered(f"w{number:03}") for number in range(60)))
    first = await page(web, "/workers")
    assert first.count("data-row") == 50
    (after,) = re.findall(r'href="workers\?after=([\w-]+)" rel="next"', first)
    second = await page(web, "/workers", after=after)
    names = re.findall(r'<tr id="worker-([\w-]+)"', first + second)
    assert (len(names), names) == (62, sorted(names))
    assert 'rel="next"' not in second


async def test_without_workers_the_list_says_how_they_come(web: Web):
    await web.stage.sql("DELETE FROM {p}node_handlers")
    await web.stage.sql("DELETE FROM {p}worker_state")
    await web.stage.sql("DELETE FROM {p}workers")
    text = await page(web, "/workers")
    assert "There are no workers yet" in text
    assert "<table" not in text[text.index("<main") : text.index("</main>")]


async def test_a_worker_that_never_ran_says_so_in_each_section(web: Web):
    text = await page(web, "/workers/mail")
    assert "It has not run yet." in part(text, "grid")
    assert "Nothing ended in the last 14 days." in part(text, "days")
    assert "It runs when it is triggered." in part(text, "fires")
    assert "Nothing has ended yet." in part(text, "history")
    assert "none blocks it" in part(text, "neighbours")
    assert "There are none." in part(text, "letters")
    assert "Nobody has changed anything." in part(text, "audit")
    assert "nothing is waiting" in part(text, "gates")


async def test_a_worker_shows_who_paused_it_why_and_until_when(web: Web):
    until = web.stage.now + timedelta(hours=2)
    await operations.pause(web.stage.db, "mail", web.stage.now, ACTOR, until, "the API is down")
    text = await page(web, "/workers/mail")
    assert re.search(r"<dt>Paused</dt><dd>until .*by <bdi>ann@desk</bdi>: .*the API is down", text)
    assert re.search(r'id="gate-paused" class="matters">.*?shut', text, re.DOTALL)
    assert re.search(r"<bdi>ann@desk</bdi></th>.*paused it until", part(text, "audit"), re.DOTALL)
    await operations.disable(web.stage.db, "mail", web.stage.now, ACTOR, "not again")
    assert re.search(
        r"<dt>Disabled</dt><dd>by <bdi>ann@desk</bdi>: .*not again", await page(web, "/workers/mail", tz="utc")
    )


async def test_a_shut_gate_leads_to_the_run_that_holds_it_and_to_the_worker_it_names(web: Web):
    await web.stage.register(triggered("after", depends_on=("mail",)), triggered("never", blocks=("mail",)))
    await web.stage.join("n2")
    holds = await web.stage.trigger("mail")
    await web.stage.start_one(handlers=["mail"])
    for name in ("mail", "after", "never"):
        await web.stage.trigger(name)
    gates = part(await page(web, "/workers/mail"), "gates")
    assert re.search(rf'id="gate-max_running".*?shut.*?held by run <a href="\.\./runs/{holds}">', gates, re.DOTALL)
    for name, gate in (("after", "dependencies"), ("never", "blocks")):
        gates = part(await page(web, f"/workers/{name}"), "gates")
        assert re.search(
            rf'id="gate-{gate}".*?shut.*?<a href="\.\./workers/mail"><bdi>mail</bdi></a>', gates, re.DOTALL
        )


async def test_the_gates_are_shown_as_they_were(web: Web):
    web.stage.now -= timedelta(hours=1)
    run_id = await web.stage.trigger("mail")
    run = next(each for each in await web.stage.tick() if each.worker == "mail")
    at = web.stage.after(5)
    web.stage.after(5)
    await web.stage.end(run)
    text = await page(web, "/workers/mail", at=at.isoformat())
    gates = part(text, "gates")
    assert "Gates as they were" in gates
    assert f"{at:%Y-%m-%d %H:%M:%S} UTC" in gates
    assert re.search(rf'id="gate-max_running".*?held by run <a href="\.\./runs/{run_id}">', gates, re.DOTALL)
    assert '<a href="mail">Back to now</a>' in gates
    assert "jobrunner explain mail --at" in text
    assert "api/workers/mail/explain?at=" in text
    assert "held by" not in part(await page(web, "/workers/mail"), "gates")


@pytest.mark.parametrize("typed", ["yesterday-ish", "2199-01-01 00:00", "<b>"])
async def test_a_moment_that_cannot_be_asked_about_is_refused_beside_what_was_typed(web: Web, typed: str):
    gates = part(await page(web, "/workers/mail", at=typed), "gates")
    assert 'role="alert"' in gates
    assert f'value="{escape(typed)}"' in gates
    assert "nothing is waiting" in gates


async def test_runs_are_drawn_with_their_attempts_and_told_as_a_table(web: Web):
    await web.stage.register(triggered("often", max_retries=1, retry_delay_seconds=1))
    await web.stage.join("n2")
    run_id = await web.stage.trigger("often")
    for kind in (OutcomeKind.FAILED, OutcomeKind.SUCCEEDED):
        run = next(each for each in await web.stage.tick(handlers=["often"]))
        await web.stage.end(run, kind)
        web.stage.after(10)
    text = await page(web, "/workers/often")
    drawing = re.search(r"<svg.*?</svg>", part(text, "grid"), re.DOTALL)
    assert drawing is not None
    assert f'<a href="../runs/{run_id}" tabindex="-1"><title>run {run_id}, succeeded</title>' in drawing[0]
    assert f"run {run_id}, attempt 1: failed after 5 ms; the run is succeeded" in drawing[0]
    assert 'role="group"' in drawing[0]
    assert "1: failed 5 ms, 2: succeeded 5 ms" in part(text, "grid")
    assert '<td class="num">5 ms</td><td class="num">5 ms</td><td class="num">1</td><td class="num">1</td>' in part(
        text, "days"
    )
    assert "no luck" in part(text, "history")


async def test_the_next_fires_are_ten_and_what_all_have_in_common_is_said_once(web: Web):
    await operations.pause(web.stage.db, "fetch", web.stage.now, ACTOR, FAR, "because of the move")
    fires = part(await page(web, "/workers/fetch"), "fires")
    assert fires.count("because of the move") <= 1
    await operations.resume(web.stage.db, "fetch", web.stage.now, ACTOR)
    assert part(await page(web, "/workers/fetch", tz="utc"), "fires").count("<tr>") == 11


async def test_a_change_of_the_clocks_is_marked_at_the_fire(web: Web):
    last_days_of_march = "0 12 25-31 3 *"  # one of them is the Sunday on which the clocks go forward
    await web.stage.register(scheduled("spring", cron=last_days_of_march, timezone="Europe/Berlin"))
    await web.stage.join("n2")
    fires = part(await page(web, "/workers/spring"), "fires")
    assert fires.count("DST starts") in {1, 2}  # ten fires may reach into a second March


async def test_a_definition_shows_its_layers_and_who_changed_what_when(web: Web):
    await operations.set_values(web.stage.db, "fetch", {"interval_seconds": 60}, web.stage.now, ACTOR)
    definition = part(await page(web, "/workers/fetch"), "definition")
    row = re.search(r'<tr id="field-interval_seconds".*?</tr>', definition, re.DOTALL)
    assert row is not None
    cells = [re.sub(r"<[^>]+>", "", cell).strip() for cell in re.findall(r"<td.*?</td>", row[0], re.DOTALL)]
    assert cells[:2] == ["60.0", "3600.0"]
    assert re.fullmatch(r"✎ 60(\.0)?", cells[2])
    assert cells[3].startswith("set by ann@desk")
    assert 'id="field-max_retries"' not in definition
    assert "max_retries" in definition[definition.index('id="defaults"') :]


async def test_neighbours_are_drawn_and_listed_in_both_directions(web: Web):
    await web.stage.register(
        triggered("middle", depends_on=("mail",), blocks=("fetch",)),
        triggered("last", depends_on=("middle",)),
        triggered("rival", blocks=("middle",)),
    )
    found = part(await page(web, "/workers/middle"), "neighbours")
    for title, name in (
        ("It depends on", "mail"),
        ("These depend on it", "last"),
        ("It blocks", "fetch"),
        ("These block it", "rival"),
    ):
        assert re.search(rf'<dt>{title}</dt><dd><ul class="plain"><li><a href="\.\./workers/{name}">', found)
        assert f'<a href="../workers/{name}" tabindex="-1"><title>{name}: ' in found


@pytest.mark.parametrize(("level", "is_shown"), [("admin", True), ("operate", False), ("read", False)])
async def test_what_a_worker_hides_only_an_administrator_sees(web: Web, level: str, is_shown: bool):
    new = {"payload": {"card": {"number": "4712", "name": "bob"}}, "ping": "https://hc.example.org/secret-path"}
    await operations.set_values(web.stage.db, "mail", new, web.stage.now, ACTOR)
    text = await page(web, "/workers/mail", level)
    for secret in ("4711", "4712", "secret-path"):
        assert (secret in text) == is_shown
    assert "bob" in text
    assert "hc.example.org" in text
    can_press = 'class="verb danger"' in text
    assert can_press == (level != "read")


async def test_hostile_texts_are_shown_as_text_on_both_pages(web: Web):
    await web.stage.register(triggered("victim", description=HOSTILE[:3000]))
    await web.stage.join("n2")
    await web.stage.trigger("victim")
    run = next(each for each in await web.stage.tick(handlers=["victim"]))
    await web.stage.fail(run, error=HOSTILE, error_type="<i>Error</i>")
    await operations.pause(web.stage.db, "victim", web.stage.now, "<u>eve</u>\u202e", FAR, HOSTILE[:2000])
    for text in (await page(web, "/workers"), await page(web, "/workers/victim")):
        for raw in ("<script>alert", "<i>Error", "<u>eve", "\x1b", "\u202e"):
            assert raw not in text
        assert "&lt;script&gt;alert(1)&lt;/script&gt; \\x1b[31m \\u202egnp.exe" in text
        assert len(text) < 200_000


async def test_an_unknown_worker_is_not_found_and_the_near_one_is_named(web: Web):
    text = await page(web, "/workers/mial", status=404)
    assert "did you mean &#39;mail&#39;?" in text
    assert 'role="alert"' in text


async def test_the_pages_need_a_level(web: Web):
    async with web.client(web.console("0.0.0.0:8484"), level=None, at=("10.1.2.3", 4711)) as client:
        for path in ("/workers", "/workers/mail"):
            assert (await client.get(path)).status_code in {303, 401}


async def test_a_number_leads_to_its_run_and_what_is_no_filter_of_workers_to_the_history(web: Web, pages: Pages):
    assert 'href="./runs/812"' in await pages.get("/workers?q=812")
    page = await pages.get("/workers?q=outcome:failed")
    assert 'role="alert"' in page
    assert 'href="./history?q=outcome%3Afailed"' in page
