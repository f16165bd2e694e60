"""What all pages of the console share: the statements they ran, forms that are sent twice, addresses of nothing."""

from __future__ import annotations

import asyncio
import logging
import re

import pytest

from tests.web.conftest import TOKENS, Web


async def test_a_page_shows_the_values_of_its_own_statements_and_of_nobody_elses(web: Web):
    first, second = await web.stage.trigger("mail"), await web.stage.trigger("mail")
    async with web.client(web.console()) as client:
        for run_id, other in ((first, second), (second, first)):
            shown = (await client.get(f"/runs/{run_id}", params={"as": "sql"})).text
            assert f"id = {run_id}" in shown
            assert f"id = {other} " not in shown
            assert f"id = {other}\n" not in shown
        await client.get("/runs", params={"q": "key:customer-4711", "as": "sql"})
        shown = (await client.get("/runs", params={"q": "key:zzz", "as": "sql"})).text
        assert "zzz" in shown
        assert "customer-4711" not in shown


@pytest.mark.parametrize("at_once", [True, False])
async def test_a_form_that_is_sent_twice_is_done_once(web: Web, at_once):
    async with web.client(web.console()) as client:
        form = (await client.get("/workers/mail/trigger")).text
        found = re.search(r'name="once" value="([^"]+)"', form)
        assert found is not None
        sent = {"payload": '{"to": "ann"}', "once": found[1]}
        if at_once:
            answers = list(await asyncio.gather(*(client.post("/workers/mail/trigger", data=sent) for _ in range(3))))
        else:
            answers = [await client.post("/workers/mail/trigger", data=sent) for _ in range(2)]
        assert {answer.status_code for answer in answers} == {303}
        assert len({answer.headers["set-cookie"] for answer in answers}) == 1
        other = await client.post("/workers/mail/trigger", data={**sent, "once": "another-form"})
        assert other.status_code == 303
    assert await web.stage.value("SELECT count(*) FROM {p}runs") == 2


async def test_a_form_that_was_refused_can_be_sent_again(web: Web):
    async with web.client(web.console()) as client:
        sent = {"payload": "{", "once": "this-form"}
        assert (await client.post("/workers/mail/trigger", data=sent)).status_code == 422
        assert (await client.post("/workers/mail/trigger", data={**sent, "payload": "{}"})).status_code == 303


async def test_an_address_of_nothing_is_no_error_of_the_server(web: Web, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.DEBUG, "jobrunner"):
        async with web.client(web.console(), level=None) as client:
            as_page = await client.get("/nope", headers={"Accept": "text/html"})
            as_data = await client.get("/nope")
    assert (as_page.status_code, as_data.status_code) == (404, 404)
    assert "there is nothing at this address" in as_page.text
    assert as_data.json() == {"error": "there is nothing at this address"}
    assert caplog.records == []


async def test_the_first_page_says_since_when_and_counts_all_that_are_in_trouble(web: Web):
    console_ = web.console()
    async with web.client(console_) as client:
        await client.post("/api/workers/mail/disable", json={"reason": "too loud"})
        await client.post("/api/workers/fetch/pause", json={"reason": "the API is down"})
        shown = (await client.get("/")).text
    assert "2 of 2 workers in trouble: 1 disabled, 1 paused." in shown
    assert "until resumed" in shown
    rows = shown.split('id="trouble-')[1:]
    assert len(rows) == 2
    assert all('data-title="since"><time' in row for row in rows)


@pytest.mark.parametrize("level", ["read", "operate", "admin"])
async def test_buttons_are_there_for_those_who_may_press_them(web: Web, level):
    async with web.client(web.console(), token=TOKENS[level]) as client:
        shown = (await client.get("/workers/mail")).text
    assert ('href="../workers/mail/disable"' in shown) == (level != "read")
    assert ('href="../workers/mail/set"' in shown) == (level == "admin")
