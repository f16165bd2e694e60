"""What nobody sends who means well: it is refused in a sentence, and is never a fault of the server."""

from __future__ import annotations

import base64
import json

import pytest

from tests.web.conftest import Web

DIGITS = "9" * 5000


def token(place: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(place).encode()).decode().rstrip("=")


NESTED = base64.urlsafe_b64encode(b"[" * 20_000).decode().rstrip("=")
REFUSED = [
    f"/api/runs/{DIGITS}",
    f"/api/runs/{2**63}",
    "/api/runs/%D9%A1",
    f"/api/runs/{DIGITS}/explain",
    f"/api/dead-letters/{DIGITS}",
    f"/api/bulk/{DIGITS}",
    "/api/history?limit=--5",
    "/api/history?limit=%D9%A1",
    f"/api/history?run={DIGITS}",
    f"/api/history?q=run:{DIGITS}",
    f"/api/history?q=attempt:{DIGITS}",
    f"/api/history?after={DIGITS}@2026-01-01T00:00:00Z",
    f"/api/history?after={2**63}@2026-01-01T00:00:00Z",
    "/api/history?after=5@9999-99-99",
    f"/api/history?q=worker:x&after={DIGITS}",
    f"/api/dead-letters?after={2**63}",
    f"/api/audit?after={DIGITS}",
    f"/api/runs?after={token(['waiting', '2026-01-01T00:00:00Z', 2**63])}",
    f"/api/runs?after={NESTED}",
    f"/api/upcoming?after={token(['9999-12-31T23:59:00Z', 0])}",
    f"/api/upcoming?after={token(['0001-01-01T00:00:00Z', 0])}",
    f"/api/upcoming?after={token(['2026-01-01T00:00:00Z', 2**63])}",
    f"/api/upcoming?after={NESTED}",
    f"/api/upcoming?for={DIGITS}",
    "/api/workers/%00",
    "/api/workers/%00/explain",
    "/healthz?worker=%00",
]


@pytest.mark.parametrize("level", ["read", "admin"])
async def test_it_is_refused_in_a_sentence(web: Web, level):
    async with web.client(level=level) as client:
        answers = {url[:80]: await client.get(url) for url in REFUSED}
    assert {url: found.status_code for url, found in answers.items()} == dict.fromkeys(answers, 400)
    for url, found in answers.items():
        assert len(found.json()["error"]) <= 2001, url


async def test_an_id_that_is_none_tells_nothing_to_who_may_not_ask(web: Web):
    async with web.client(level=None, at=("10.1.2.3", 1)) as client:
        assert (await client.get(f"/api/runs/{DIGITS}")).status_code == 401
