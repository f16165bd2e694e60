"""What the API says of moments that are past, of one run, and of starts to come."""

from __future__ import annotations

import threading
from datetime import timedelta

from jobrunner.storage.reading.forecasts import ToPlay
from tests.web.conftest import Web


async def test_a_past_moment_is_asked_for_by_at(web: Web):
    web.stage.now -= timedelta(hours=1)
    await web.stage.trigger("mail", payload={"to": "ann"})
    (run,) = [run for run in await web.stage.tick() if run.worker == "mail"]
    at = web.stage.after(5)
    web.stage.after(5)
    await web.stage.end(run)
    async with web.client() as client:
        found = (await client.get("/api/workers/mail/explain", params={"at": at.isoformat()})).json()
        ahead = await client.get("/api/workers/mail/explain", params={"at": (at + timedelta(days=900)).isoformat()})
        run_found = (await client.get(f"/api/runs/{run.id}/explain")).json()
        missing = await client.get("/api/runs/99999/explain")
    assert [each["run_id"] for each in found["running"]] == [run.id]
    assert ahead.status_code == 400
    assert (run_found["state"], [each["outcome"] for each in run_found["attempts"]]) == ("succeeded", ["succeeded"])
    assert missing.status_code == 404


async def test_upcoming_says_when_a_firing_starts(web: Web):
    async with web.client() as client:
        rows = (await client.get("/api/upcoming", params={"for": "2h"})).json()
    assert all(row["starts_at"] is not None for row in rows)
    assert {row["worker"] for row in rows} == {"fetch"}


async def test_the_time_ahead_is_played_beside_the_loop_after_what_it_needs_was_read(web: Web, monkeypatch):
    played: list[tuple[bool, int]] = []
    play = ToPlay.play

    def watched(self: ToPlay):
        played.append((threading.current_thread() is threading.main_thread(), self.starts))
        return play(self)

    monkeypatch.setattr(ToPlay, "play", watched)
    async with web.client() as client:
        assert (await client.get("/api/upcoming", params={"limit": 500})).status_code == 200
        assert (await client.get("/api/upcoming", params={"limit": 20})).status_code == 200
    assert played == [(False, 1000), (False, 40)]
