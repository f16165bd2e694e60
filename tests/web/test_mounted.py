"""Mounted in a program's own application, under a prefix, and as an import without the extra."""

from __future__ import annotations

import subprocess
import sys

import httpx
import pytest
from fastapi import FastAPI, HTTPException

from jobrunner import WorkerOrchestrator
from jobrunner.web import console
from tests.web.conftest import SETTINGS, TOKENS, Web


@pytest.mark.parametrize("root_path", ["", "/behind"])
async def test_under_a_prefix_of_fastapi_everything_is_found_and_links_lead_there(web: Web, root_path):
    host = FastAPI()
    host.mount("/ops/jobs", console(web.orchestrator))
    await web.stage.trigger("mail")
    await web.stage.trigger("mail")
    transport = httpx.ASGITransport(host, root_path=root_path, client=("10.0.0.1", 1))
    headers = {"Authorization": f"Bearer {TOKENS['admin']}"}
    base_url = f"http://app.example.org{root_path}/ops/jobs"
    async with httpx.AsyncClient(transport=transport, base_url=base_url, headers=headers) as client:
        assert (await client.get("/livez")).status_code == 200
        response = await client.get("/api/runs", params={"limit": 1})
        following = response.url.join(response.links["next"]["url"])
        assert following.path == f"{root_path}/ops/jobs/api/runs"
        assert len((await client.get(following)).json()) == 1
        assert (await client.get("/api/openapi.json")).json()["servers"] == [{"url": f"{root_path}/ops/jobs"}]
        assert 'href="./api/workers"' in (await client.get("/")).text
        assert (await client.post("/api/workers/mail/pause", json={})).status_code == 200
        del client.headers["Authorization"]
        away = await client.get("/workers/mail/pause")
        assert away.url.join(away.headers["location"]).path == f"{root_path}/ops/jobs/login"
        cookie = (await client.post("/login", data={"token": TOKENS["read"]})).headers["set-cookie"]
        assert f"Path={root_path}/ops/jobs;" in cookie


async def test_a_mounted_console_is_closed_on_this_machine_too(web: Web):
    transport = httpx.ASGITransport(console(web.orchestrator), client=("127.0.0.1", 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        assert (await client.get("/api/workers")).status_code == 401


async def test_a_url_is_enough_and_a_node_in_the_same_loop_is_woken_and_shown(sqlite_url, monkeypatch):
    monkeypatch.setenv("JOBRUNNER_HTTP_TOKEN", "a-token-from-outside")
    orchestrator = WorkerOrchestrator(sqlite_url, tick_interval=60, drain_timeout=0, **SETTINGS)

    @orchestrator.worker("mail", execution_mode="triggered")
    async def mail(to: str) -> dict:
        return {"sent": to}

    def client(app, token):
        transport = httpx.ASGITransport(app)
        headers = {"Authorization": f"Bearer {token}"}
        return httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers)

    await orchestrator.start()
    try:
        async with (
            client(console(orchestrator), TOKENS["admin"]) as own,
            client(console(sqlite_url), "a-token-from-outside") as url,
        ):
            made = (await own.post("/api/workers/mail/trigger", json={"payload": {"to": "ann"}})).json()
            done = await orchestrator.wait_for_run(made["run_id"], 20)
            assert done.result == {"sent": "ann"}
            wrong = await own.post("/api/workers/mail/trigger", json={"payload": {"too": "ann"}})
            assert (wrong.status_code, "does not fit" in wrong.json()["error"]) == (422, True)
            shown = (await url.get(f"/api/runs/{made['run_id']}")).json()
            assert (shown["state"], shown["result"]) == ("succeeded", {"sent": "ann"})
            assert (await own.get("/readyz")).status_code == 200
    finally:
        await orchestrator.stop()


def test_without_the_extra_the_import_says_what_to_install():
    script = (
        "import sys\n"
        "sys.modules.update({'starlette': None})\n"
        "import importlib.util as util\n"
        "real = util.find_spec\n"
        "util.find_spec = lambda name, *more: None if name == 'starlette' else real(name, *more)\n"
        "from jobrunner.cli.main import main\n"
        "sys.exit(main(['serve', '--database-url', 'sqlite:///x.db']))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    said = "error: jobrunner.web needs packages that are not installed; run: pip install 'jobrunner[web]'"
    assert done.stderr.splitlines() == [said]


@pytest.mark.parametrize("status", [401, 403])
async def test_a_programs_own_rule_may_refuse_as_its_framework_does(web: Web, status):
    async def access(_request):
        raise HTTPException(status, "log in first", headers={"WWW-Authenticate": "Bearer"})

    async with web.client(console(web.orchestrator, access=access)) as client:
        response = await client.get("/api/workers")
        assert (response.status_code, response.json()) == (status, {"error": "log in first"})
        assert response.headers["WWW-Authenticate"] == "Bearer"
