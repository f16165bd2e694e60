"""Who may ask what: every route, with every kind of token, from this machine and from elsewhere."""

from __future__ import annotations

import httpx
import pytest

from jobrunner import WorkerOrchestrator
from jobrunner.errors import InvalidSetting
from jobrunner.web import console
from jobrunner.web.access import Level, TokenAccess
from jobrunner.web.api.table import ROUTES
from jobrunner.web.app import Console
from jobrunner.web.desk import Desk
from jobrunner.web.pages.table import PAGES
from jobrunner.web.pages.verbs import VERBS
from jobrunner.web.rules import Address, served_rule
from tests.web.conftest import ELSEWHERE, HERE, SETTINGS, TOKENS, Web

OPEN = {("GET", "/livez"): Level.NONE, ("GET", "/readyz"): Level.NONE, ("GET", "/login"): Level.NONE}
PATHS = {
    **OPEN,
    ("GET", "/healthz"): Level.READ,
    ("GET", "/metrics"): Level.READ,
    ("GET", "/api/openapi.json"): Level.READ,
    ("GET", "/stream"): Level.READ,
    **{(route.method, route.path): route.level for route in ROUTES},
}
PAGE_PATHS = {
    ("GET", "/history.csv"): Level.READ,
    ("GET", "/history.json"): Level.READ,
    ("GET", "/runs/{id}/output"): Level.READ,
    ("GET", "/bulk/new"): Level.OPERATE,
    ("POST", "/bulk/new"): Level.OPERATE,
    **{("GET", page.path): page.level for page in PAGES},
    **{
        (method, route.path.removeprefix("/api")): route.level
        for verb in VERBS
        for route in ROUTES
        if route.path == f"/api{verb.path}"
        for method in ("GET", "POST")
    },
}
FREE = {("GET", "/static/{version}/{name}"), ("POST", "/login"), ("POST", "/logout")}
WHO = {"none": None, "wrong": "a-wrong-token", **TOKENS}


def expected_refusal(method: str, needed: Level, who: str, *, is_here: bool) -> int | None:
    """Return the status with which a request is to be refused; None: it is let through."""
    if needed is Level.NONE:
        return None
    if who == "wrong":
        return 401
    has = Level.of(who) if who in TOKENS else Level.READ if is_here else Level.NONE
    if has >= needed:
        return None
    return 401 if has is Level.NONE else 403


@pytest.fixture
def consoles(sqlite_url: str) -> dict[bool, Console]:
    """What listens on this machine alone, and what listens everywhere."""
    orchestrator = WorkerOrchestrator(sqlite_url, **SETTINGS)
    addresses = {True: "127.0.0.1:8484", False: "0.0.0.0:8484"}
    return {
        is_here: Console(Desk(orchestrator), served_rule(orchestrator.settings, Address.parse(address)))
        for is_here, address in addresses.items()
    }


@pytest.mark.parametrize("is_here", [True, False], ids=["loopback", "elsewhere"])
@pytest.mark.parametrize("who", WHO)
async def test_every_route_is_open_to_those_of_its_level_and_to_nobody_else(consoles, who, is_here):
    headers = {} if WHO[who] is None else {"Authorization": f"Bearer {WHO[who]}"}
    transport = httpx.ASGITransport(consoles[is_here], client=HERE if is_here else ELSEWHERE)
    seen, wanted = {}, {}
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8484", headers=headers) as client:
        for (method, path), needed in PATHS.items():
            if path == "/stream" and expected_refusal(method, needed, who, is_here=is_here) is None:
                continue  # it does not end
            response = await client.request(method, path.format(name="no-such", id=4711))
            refusal = response.status_code if response.status_code in {401, 403} else None
            seen[method, path] = refusal
            wanted[method, path] = expected_refusal(method, needed, who, is_here=is_here)
            if refusal is not None:
                assert set(response.json()) == {"error"}
    assert seen == wanted


def test_the_table_above_holds_every_path_of_the_application(consoles):
    paths = {
        (method, path.path.replace(":int", ""))
        for path in consoles[True].paths
        for method in (path.methods or {"GET"}) - {"HEAD"}
    }
    assert paths == {*PATHS, *PAGE_PATHS, *FREE}


@pytest.mark.parametrize("is_here", [True, False], ids=["loopback", "elsewhere"])
@pytest.mark.parametrize("who", WHO)
async def test_every_page_is_open_to_those_of_its_level_and_others_are_sent_to_the_login(consoles, who, is_here):
    headers = {} if WHO[who] is None else {"Authorization": f"Bearer {WHO[who]}"}
    transport = httpx.ASGITransport(consoles[is_here], client=HERE if is_here else ELSEWHERE)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8484", headers=headers) as client:
        for (method, path), needed in PAGE_PATHS.items():
            address = path.format(name="no-such", id=4711)
            response = await client.request(method, address)
            refusal = expected_refusal(method, needed, who, is_here=is_here)
            if refusal is not None and who == "none":
                assert response.status_code == 303, address
                assert response.url.join(response.headers["location"]).path == "/login"
            elif refusal is not None:
                assert response.status_code == refusal, address
                assert response.headers["content-type"].startswith("text/html")
            else:
                assert response.status_code not in {303, 401, 403}, address


async def test_on_this_machine_a_request_that_a_proxy_passed_on_is_not_from_this_machine(consoles):
    transport = httpx.ASGITransport(consoles[True], client=HERE)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8484") as client:
        assert (await client.get("/api/openapi.json")).status_code == 200
        for header in ("X-Forwarded-For", "Forwarded", "Via"):
            assert (await client.get("/api/openapi.json", headers={header: "1.2.3.4"})).status_code == 401


@pytest.mark.parametrize(
    "setting",
    [
        {"http_proxies": ("127.0.0.1",)},
        {"http_proxies": ("127.0.0.1",), "http_user_header": "X-User"},
        {"http_hosts": ("jobs.example.org",)},
        {"http_url": "https://jobs.example.org/"},
    ],
    ids=["proxies", "user header", "hosts", "url"],
)
async def test_reading_is_not_open_on_this_machine_where_a_setting_tells_of_a_proxy(sqlite_web_of, setting):
    orchestrator = sqlite_web_of(**setting)
    rule = served_rule(orchestrator.settings, Address.parse("127.0.0.1:8484"))
    transport = httpx.ASGITransport(Console(Desk(orchestrator), rule), client=HERE)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8484") as client:
        assert (await client.get("/api/openapi.json")).status_code == 401
        assert (await client.get("/livez")).status_code == 200


def test_what_can_be_reached_from_elsewhere_is_not_started_without_a_token(sqlite_web_of):
    with pytest.raises(InvalidSetting, match=r"^0.0.0.0:8484 can be reached from other machines, and no token is set"):
        served_rule(sqlite_web_of().settings, Address.parse("0.0.0.0:8484"))


@pytest.mark.parametrize("address", ["8484", ":8484", "host", "host:99999", "[::1", "1::2:80"])
def test_an_address_that_cannot_be_read_is_refused(address):
    with pytest.raises(InvalidSetting, match="write HOST:PORT"):
        Address.parse(address)


def test_addresses_of_this_machine_are_told_from_others():
    local = [Address.parse(text).is_local for text in ("127.0.0.1:1", "127.8.8.8:1", "[::1]:1", "localhost:1")]
    assert local == [True] * 4
    assert not any(Address.parse(text).is_local for text in ("0.0.0.0:1", "[::]:1", "10.0.0.1:1", "localhost.org:1"))


async def test_on_this_machine_a_token_is_made_where_none_is_set_and_its_link_lets_in(sqlite_web_of):
    orchestrator = sqlite_web_of()
    rule = served_rule(orchestrator.settings, Address.parse("127.0.0.1:8484"))
    transport = httpx.ASGITransport(Console(Desk(orchestrator), rule))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8484") as client:
        assert (await client.post("/api/workers/x/enable")).status_code == 403
        wrong = await client.get("/login", params={"token": "of-an-earlier-start"})
        assert "of an earlier start" in wrong.text
        response = await client.get("/login", params={"token": rule.link_token})
        assert response.status_code == 303
        assert str(rule.link_token) not in response.headers["set-cookie"]
        assert (await client.post("/api/workers/x/enable")).status_code == 404  # let in, but there is none


async def test_a_login_gives_a_cookie_that_is_no_token_and_names_who_acts(web: Web):
    console_ = web.console("0.0.0.0:8484")
    async with web.client(console_, level=None, at=ELSEWHERE) as client:
        assert (await client.get("/")).headers["location"] == "./login"
        refused = await client.post("/login", data={"token": "wrong"})
        assert refused.status_code == 401
        assert "set-cookie" not in refused.headers
        response = await client.post("/login", data={"token": TOKENS["operate"], "name": "ada <b>"})
        cookie = response.headers["set-cookie"]
        assert response.status_code == 303
        assert {"HttpOnly", "SameSite=strict", "Path=/"} <= {part.strip() for part in cookie.split(";")}
        assert TOKENS["operate"] not in cookie
        assert (await client.post("/api/workers/mail/disable", json={})).status_code == 200
        assert (await client.post("/api/workers/mail/set", json={"values": {"max_retries": 1}})).status_code == 403
        await client.post("/logout")
        assert (await client.get("/api/workers")).status_code == 401
    assert (await web.stage.column("SELECT actor FROM {p}audit_log WHERE action = 'disable'")) == ["ada b@http"]


async def test_a_cookie_that_was_changed_or_whose_token_is_gone_is_worth_nothing():
    rule = TokenAccess({Level.READ: "one", Level.ADMIN: "two"})
    cookie = rule.write_cookie(Level.READ, None)
    login = rule.read_cookie(cookie)
    assert login is not None
    assert (login.level, login.actor) == (Level.READ, "read@http")
    text, _, signature = cookie.partition(".")
    forged = rule.write_cookie(Level.ADMIN, None).partition(".")[0]
    for wrong in (f"{text}.{signature[:-1]}", f"{forged}.{signature}", text, "", "é.ü", None, f"{text}."):
        assert rule.read_cookie(wrong) is None
    assert TokenAccess({Level.READ: "changed", Level.ADMIN: "two"}).read_cookie(cookie) is None


async def test_a_person_is_believed_of_a_named_proxy_only(web: Web):
    app = web.console(
        "0.0.0.0:8484", http_user_header="X-Forwarded-User", http_proxies="10.0.0.0/8", http_user_level="operate"
    )
    async with web.client(app, level=None, at=ELSEWHERE, **{"X-Forwarded-User": "ada"}) as client:
        assert (await client.post("/api/workers/mail/pause", json={})).status_code == 200
        assert (await client.post("/api/workers/mail/set", json={"values": {}})).status_code == 403
    async with web.client(app, level=None, at=("192.168.0.1", 1), **{"X-Forwarded-User": "ada"}) as client:
        assert (await client.get("/api/workers")).status_code == 401
    async with web.client(app, level="admin", at=ELSEWHERE, **{"X-Forwarded-User": "ada"}) as client:
        assert (await client.post("/api/workers/mail/resume", json={})).status_code == 200
    assert (await web.stage.column("SELECT actor FROM {p}audit_log WHERE worker = 'mail' ORDER BY id")) == [
        "ada",
        "ada",
    ]


def test_a_header_with_a_name_needs_the_proxies_that_may_set_it(sqlite_web_of):
    settings = sqlite_web_of(http_user_header="X-User", http_token="t").settings
    with pytest.raises(InvalidSetting, match="set JOBRUNNER_HTTP_PROXIES"):
        served_rule(settings, Address.parse("127.0.0.1:8484"))
    with pytest.raises(InvalidSetting, match="'nowhere' is no address or network"):
        sqlite_web_of(http_proxies="nowhere")


def test_a_mounted_console_needs_a_token_or_an_access_rule(sqlite_url):
    with pytest.raises(InvalidSetting, match="set JOBRUNNER_HTTP_TOKEN, or give access="):
        console(sqlite_url)


async def test_a_programs_own_rule_decides_and_one_that_says_nonsense_opens_nothing(web: Web):
    async def mine(request):
        return request.headers["x-level"], "ada"

    app = console(web.orchestrator, access=mine)
    async with web.client(app, level=None) as client:
        for level, status in (("none", 401), ("read", 403), ("operate", 200), ("nonsense", 500)):
            response = await client.post("/api/workers/mail/enable", headers={"x-level": level})
            assert response.status_code == status, level
        assert (await client.get("/login")).status_code == 404
    assert (await web.stage.column("SELECT actor FROM {p}audit_log WHERE worker = 'mail'")) == ["ada"]


async def test_a_page_without_javascript_does_by_its_cookie_what_its_level_allows(web: Web):
    own = {"Origin": "http://127.0.0.1:8484", "Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "navigate"}
    async with web.client(level=None) as client:
        assert (await client.post("/login", data={"token": TOKENS["admin"]}, headers=own)).status_code == 303
        form = {"payload": '{"to": "ann"}'}
        assert (await client.post("/api/workers/mail/trigger", data=form, headers=own)).status_code == 200
        foreign = {**own, "Origin": "http://evil.example"}
        assert (await client.post("/api/workers/mail/trigger", data=form, headers=foreign)).status_code == 403
