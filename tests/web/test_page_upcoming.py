"""The lanes of what is upcoming, and the wall."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
import sqlalchemy as sa

from jobrunner.storage.reading.lanes import MOST_LANES
from jobrunner.storage.tables import define as t
from tests.support.stage import scheduled, triggered
from tests.web.conftest import Web


async def text_of(web: Web, path: str, level: str = "admin") -> str:
    async with web.client(level=level) as client:
        answer = await client.get(path)
    assert answer.status_code == 200, answer.text[-2000:]
    return answer.text


async def only(web: Web, *configs) -> None:
    """Let there be these workers, and no others."""
    await web.stage.sql("DELETE FROM {p}node_handlers")
    for table in ("worker_state", "workers"):
        column = "worker" if table == "worker_state" else "name"
        await web.stage.sql(f"DELETE FROM {{p}}{table} WHERE {column} IN ('fetch', 'mail')")
    if configs:
        await web.stage.register(*configs)
    await web.stage.join("n2")


async def test_a_schedule_has_a_lane_and_its_times_stand_below(web: Web):
    page = await text_of(web, "/upcoming")
    assert re.search(r'<svg[^>]+role="img"[^>]+aria-label="Lanes of 1 worker from ', page)
    assert 'id="lane-fetch"' in page
    assert "The axis is in UTC, since the picture is made on the server" in page
    assert page.count('id="time-fetch-') >= 24


async def test_nothing_to_come_is_said(web: Web):
    await only(web)
    page = await text_of(web, "/upcoming")
    assert "Nothing has a time before" in page
    assert "<svg" not in page


async def test_what_really_ran_is_laid_over_the_past(web: Web):
    began = web.stage.now - timedelta(hours=1)
    row = {
        "run_id": 4711,
        "fence": 1,
        "worker": "fetch",
        "trigger": "schedule",
        "attempt": 1,
        "outcome": "failed",
        "scheduled_for": began - timedelta(minutes=20),
        "started_at": began,
        "finished_at": began + timedelta(minutes=5),
    }
    async with web.stage.db.write() as conn:
        await conn.execute(sa.insert(t.run_history), [row])
    page = await text_of(web, "/upcoming")
    assert 'class="fill-failed"' in page
    assert 'class="planned"' in page
    assert 'class="fill-failed"' not in await text_of(web, "/upcoming?from=1m")


async def test_a_paused_or_disabled_worker_says_so_in_its_lane(web: Web):
    await web.orchestrator.disable_worker("fetch", reason="until the <b>schema</b> is fixed", actor="ann")
    page = await text_of(web, "/upcoming")
    assert 'class="lane-note"' in page
    assert "until the &lt;b&gt;schema&lt;/b&gt; is fixed" in page
    assert "<b>schema" not in page


async def test_without_a_node_it_is_said_that_nothing_starts(web: Web):
    await web.stage.sql("UPDATE {p}nodes SET state = 'stopped'")
    assert "Until then nothing starts" in await text_of(web, "/upcoming")


async def test_only_so_many_lanes_are_drawn_and_that_is_said(web: Web):
    await web.stage.register(*(scheduled(f"w{number:02}", interval_seconds=3600) for number in range(MOST_LANES + 5)))
    page = await text_of(web, "/upcoming?for=1h")
    assert page.count('class="lane-name"') == MOST_LANES
    assert f"Only the {MOST_LANES} workers that fire next have a lane." in page
    one = await text_of(web, f"/upcoming?worker=w{MOST_LANES + 4:02}")
    assert (one.count('class="lane-name"'), "Only the" in one) == (1, False)


async def test_the_zone_of_one_worker_is_that_of_the_axis(web: Web):
    await web.stage.register(scheduled("berlin", cron="0 3 * * *", timezone="Europe/Berlin"))
    assert "The axis is in Europe/Berlin." in await text_of(web, "/upcoming?worker=berlin&tz=worker")
    assert "the workers have several zones" in await text_of(web, "/upcoming?tz=worker")
    assert "The axis is in UTC." in await text_of(web, "/upcoming?tz=utc")


@pytest.mark.parametrize("asked", ["for=8d", "for=0s", "from=8d", "worker=gone", "for=x", "after=x", "from=9999-01-01"])
async def test_what_cannot_be_shown_is_refused(web: Web, asked):
    async with web.client() as client:
        assert (await client.get(f"/upcoming?{asked}")).status_code in {400, 404}


async def test_times_have_pages(web: Web):
    await web.stage.register(scheduled("often", interval_seconds=60))
    first = await text_of(web, "/upcoming?worker=often")
    address = first.partition('rel="next"')[0].rpartition('href="')[2].partition('"')[0].replace("&amp;", "&")
    second = await text_of(web, "/" + address.lstrip("./"))
    ids = [set(re.findall(r'id="(time-often-\d+)"', page)) for page in (first, second)]
    assert [len(each) for each in ids] == [50, 50]
    assert not ids[0] & ids[1]


async def test_ids_are_unique(web: Web):
    await web.stage.register(scheduled("often", interval_seconds=60), triggered("later"))
    await web.stage.trigger("later", due_at=web.stage.now + timedelta(hours=1))
    for path in ("/upcoming", "/tv", "/nodes", "/history", "/alerts", "/audit"):
        ids = re.findall(r'\bid="([^"]+)"', await text_of(web, path))
        assert len(ids) == len(set(ids)), path


# --- the wall -----------------------------------------------------------------------------------------------------


async def test_the_wall_has_no_menu_and_is_dark_unless_somebody_chose(web: Web):
    page = await text_of(web, "/tv")
    assert '<nav aria-label="Pages">' not in page
    assert 'data-theme="dark"' in page
    assert 'hx-sse:connect="./stream"' in page
    async with web.client(Cookie="jobrunner_theme=light") as client:
        assert 'data-theme="light"' in (await client.get("/tv")).text
    assert 'data-theme="dark"' not in await text_of(web, "/")


async def test_the_wall_is_calm_when_all_is_well(web: Web):
    page = await text_of(web, "/tv")
    assert ">All is well</h1>" in page
    assert 'class="tile' not in page
    assert "Refreshed " in page


async def test_the_wall_shows_a_tile_for_each_worker_in_trouble(web: Web):
    await web.orchestrator.disable_worker("fetch", reason="the <b>disk</b> is full\x1b[31m", actor="ann")
    await web.orchestrator.pause_worker("mail", 3600, reason="the API is down", actor="ada")
    page = await text_of(web, "/tv", "read")
    assert page.count('class="tile is-') == 2
    assert page.index('id="tile-fetch"') < page.index('id="tile-mail"')
    assert "disabled by ann: the &lt;b&gt;disk&lt;/b&gt; is full\\x1b[31m" in page
    assert re.search(r"paused until [0-9: -]+UTC by ada: the API is down", page)
    assert "All is well" not in page


async def test_the_wall_has_at_most_24_tiles(web: Web):
    await web.stage.register(*(triggered(f"w{number:02}") for number in range(30)))
    await web.stage.sql(
        "UPDATE {p}worker_state SET is_enabled = false, disabled_by = 'operator', disabled_actor = 'ann'"
    )
    page = await text_of(web, "/tv")
    assert page.count('class="tile is-') == 24
    assert "the 24 worst are shown" in page


async def test_without_a_node_the_wall_is_not_calm(web: Web):
    await web.stage.sql("UPDATE {p}nodes SET state = 'stopped'")
    page = await text_of(web, "/tv")
    assert "All is well" not in page
    assert "wall-headline bad" in page


async def test_the_first_page_leads_to_the_wall(web: Web):
    assert 'href="./tv"' in await text_of(web, "/")
