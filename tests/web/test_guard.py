"""What is refused before any route sees it, and what every answer says."""

from __future__ import annotations

import pytest

from jobrunner.web.guard import HEADERS, Hosts
from tests.web.conftest import ELSEWHERE, Web


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8484", "127.0.0.1.evil.example", "10.0.0.9", "", "[::"])
async def test_a_foreign_host_is_refused_on_this_machine(web: Web, host):
    async with web.client() as client:
        for path in ("/livez", "/api/workers", "/login"):
            response = await client.get(path, headers={"Host": host})
            assert response.status_code == 421
            assert "JOBRUNNER_HTTP_HOSTS" in response.json()["error"]


@pytest.mark.parametrize("host", ["127.0.0.1:8484", "localhost:8484", "LOCALHOST", "[::1]:8484", "127.0.0.2"])
async def test_this_machine_may_be_called_by_its_own_names(web: Web, host):
    async with web.client() as client:
        assert (await client.get("/livez", headers={"Host": host})).status_code == 200


def test_elsewhere_addresses_its_own_name_and_named_ones_are_hosts():
    hosts = Hosts(("jobs.example.org",))
    assert all(
        map(hosts.allow, ("jobs.example.org", "JOBS.example.org.:80", "10.0.0.9:8484", "[fe80::1]:1", "localhost"))
    )
    assert not any(map(hosts.allow, ("evil.example", "x.jobs.example.org", "")))
    assert Hosts(None).allow("anything.example")


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://127.0.0.1:8485", "https://evil.example:8484"]
)
async def test_a_foreign_origin_is_refused(web: Web, origin):
    async with web.client() as client:
        for method, path in (("POST", "/api/workers/mail/disable"), ("GET", "/api/workers"), ("POST", "/login")):
            response = await client.request(method, path, headers={"Origin": origin})
            assert response.status_code == 403
            assert "Origin" in response.json()["error"]
    assert await web.stage.value("SELECT count(*) FROM {p}audit_log WHERE action = 'disable'") == 0


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
async def test_what_another_sites_page_sends_is_refused_but_its_links_may_be_followed(web: Web, site):
    async with web.client() as client:
        sent = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "navigate"}
        assert (await client.post("/api/workers/mail/disable", headers=sent)).status_code == 403
        assert (await client.get("/api/workers", headers=sent)).status_code == 200
        assert (await client.get("/api/workers", headers={**sent, "Sec-Fetch-Mode": "no-cors"})).status_code == 403


def test_behind_a_proxy_that_changes_the_host_a_name_that_was_set_is_our_own_origin():
    hosts = Hosts(("jobs.example.org",))
    assert hosts.is_own("https://jobs.example.org", "upstream:8484")
    assert hosts.is_own("http://upstream:8484", "upstream:8484")
    for origin in ("https://x.jobs.example.org", "null", "", "http://[", "https://upstream:8485"):
        assert not hosts.is_own(origin, "upstream:8484"), origin


async def test_our_own_pages_may_send(web: Web):
    own = {"Origin": "http://127.0.0.1:8484", "Sec-Fetch-Site": "same-origin"}
    async with web.client() as client:
        assert (await client.post("/api/workers/mail/disable", headers=own)).status_code == 200


@pytest.mark.parametrize("path", ["/", "/login", "/livez", "/metrics", "/api/workers", "/api/no-such"])
async def test_every_answer_says_that_it_is_for_nobody_else(web: Web, path):
    async with web.client() as client:
        headers = (await client.get(path)).headers
    assert {name: headers.get(name) for name in HEADERS} == HEADERS
    assert headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self';")
    assert "unsafe" not in headers["Content-Security-Policy"]


async def test_refusals_have_these_headers_too(web: Web):
    async with web.client(level=None, at=ELSEWHERE) as client:
        refused = [await client.get("/api/workers"), await client.get("/livez", headers={"Host": "evil.example"})]
    for response in refused:
        assert {name: response.headers.get(name) for name in HEADERS} == HEADERS
