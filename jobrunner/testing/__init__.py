"""For the tests of programs that use jobrunner: a clock by hand, a database for each test, a week in a moment.

    async def test_the_mail_goes_out(temporary_database):  # a fixture; pytest_plugins = ["jobrunner.testing.plugin"]
        temporary_database(app.orchestrator)  # a fresh SQLite file, until the test ends
        await app.orchestrator.trigger_worker("send-email", {"to": "ada@example.org"})
        (attempt,) = await run_until_idle(app.orchestrator)
        assert attempt["outcome"] == "succeeded"

    week = await simulate(app.orchestrator, days=7)
    assert len(week.of("fetch-data")) == 7 * 24 * 60

    clock = ManualClock()
    orchestrator = WorkerOrchestrator(url, clock=clock)
    await orchestrator.start()
    clock.advance(3600)  # an hour passes at once; what was due in it is due now

What runs in threads and processes, and how long a handler may take (`timeout_seconds`), stays on the machine's clock.
"""

from __future__ import annotations

from jobrunner.testing.clock import ManualClock
from jobrunner.testing.simulation import Simulation, run_until_idle, simulate

__all__ = ["ManualClock", "Simulation", "run_until_idle", "simulate"]
