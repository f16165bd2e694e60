"""`/metrics`, for Prometheus: what this node counts, and how the database says that all stands.

Two kinds, said in each HELP. *This node's* counters and histograms are fed by its events: sum them over nodes. *The
database's* gauges come from one bounded look, kept for 5 s however many ask: every node tells the same, take the
`max`. No label holds a run's id, a host, or the text of an error. Of more than 1,000 workers the others are told as
`_other`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder
from starlette.responses import Response

from jobrunner.errors import JobrunnerError
from jobrunner.policy.missed import kind_of
from jobrunner.storage.reading.gauges import MOST_NAMED, read_gauges
from jobrunner.telemetry import events as e
from jobrunner.web.api.openapi import installed_version
from jobrunner.web.gauges import families

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client import Metric
    from starlette.requests import Request

    from jobrunner.storage.reading.gauges import Gauges
    from jobrunner.web.desk import Desk

OTHER = "_other"
KEPT_SECONDS = 5.0
_NODE = "This node's; sum over nodes."
_SHORT = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_LONG = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)


class NodeMetrics:
    """Counts a node's events; subscribe `see`, which may be called from any thread."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self._names: set[str] = set()
        of: dict[str, Any] = {"registry": self.registry}
        self._runs = Counter("jobrunner_runs", f"Attempts that ended. {_NODE}", ["worker", "outcome"], **of)
        self._duration = Histogram(
            "jobrunner_run_duration_seconds", f"How long attempts took. {_NODE}", ["worker"], buckets=_LONG, **of
        )
        self._lateness = Histogram(
            "jobrunner_start_lateness_seconds",
            f"How long after their due time attempts started. {_NODE}",
            ["worker"],
            buckets=_LONG,
            **of,
        )
        self._work = {
            what: Histogram(
                f"jobrunner_{what}_duration_seconds", f"How long each {said} took. {_NODE}", buckets=_SHORT, **of
            )
            for what, said in (("tick", "tick"), ("claim", "claim"), ("finish", "writing of ends"))
        }
        self._missed = Counter(
            "jobrunner_missed",
            "Times of schedules that passed without a run, on all nodes, since this process began to look.",
            ["worker", "reason"],
            **of,
        )

    def see(self, event: e.Event) -> None:
        """Count an event."""
        if isinstance(event, e.RunEnded):
            name = self._label(event.run.worker)
            self._runs.labels(name, str(event.outcome.kind)).inc()
            if event.outcome.duration_ms is not None:
                self._duration.labels(name).observe(event.outcome.duration_ms / 1000)
        elif isinstance(event, e.RunStarted):
            run = event.run
            if run.started_at is not None:
                late = max((run.started_at - run.due_at).total_seconds(), 0.0)
                self._lateness.labels(self._label(run.worker)).observe(late)
        elif isinstance(event, e.Timed):
            self._work[event.what].observe(max(event.seconds, 0.0))

    def see_missed(self, gauges: Gauges) -> None:
        """Count what the database says was missed."""
        for missed in gauges.missed:
            self._missed.labels(self._label(missed.worker), kind_of(missed.reason)).inc(missed.occurrences)

    def _label(self, name: str) -> str:
        """Return the worker's name, or `_other`: a label that was told once is told for ever."""
        if name not in self._names:
            if len(self._names) >= MOST_NAMED:
                return OTHER
            self._names.add(name)
        return name


class Metrics:
    """The route."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._node = NodeMetrics()
        self._kept: Gauges | None = None
        self._read_at: float | None = None
        self._is_up = False
        self._last_missed: int | None = None
        self._turns: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()
        desk.orchestrator.events.subscribe(self._node.see)

    async def show(self, request: Request) -> Response:
        """Answer in the format that is asked for: Prometheus' text, or OpenMetrics."""
        if self._desk.settings.metrics_db:
            await self._look()
        encode, kind = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(self), media_type=kind)

    def forget(self) -> None:
        """Have the next scrape read the database again."""
        self._read_at = None

    async def _look(self) -> None:
        """Read the database's gauges, unless they were read less than 5 s ago; one at a time."""
        turn = self._turns.setdefault(asyncio.get_running_loop(), asyncio.Lock())
        async with turn:
            now = self._desk.orchestrator.clock.monotonic()
            if self._read_at is not None and now - self._read_at < KEPT_SECONDS:
                return
            try:
                async with self._desk.database() as db, db.read() as conn:
                    found = await read_gauges(conn, db.dialect, self._desk.now(), self._last_missed)
            except JobrunnerError:
                self._kept, self._is_up = None, False
            else:
                self._kept, self._is_up = found, True
                self._last_missed = found.last_missed
                self._node.see_missed(found)
            self._read_at = now

    def collect(self) -> Iterator[Metric]:
        """Yield every metric; of counters and histograms without the time they were made at."""
        yield from _without_created(self._node.registry)
        yield from _without_created(self._own())
        if self._kept is not None:
            yield from families(self._kept)

    def _own(self) -> CollectorRegistry:
        """Return what is told of this process as it is now."""
        registry = CollectorRegistry()
        of: dict[str, Any] = {"registry": registry}
        build = Gauge("jobrunner_build_info", "1, with the version as a label.", ["version"], **of)
        build.labels(installed_version()).set(1)
        asked = Counter(
            "jobrunner_http_statements",
            f"Statements that were asked of the database for those who look over HTTP. {_NODE}",
            **of,
        )
        asked.inc(self._desk.statements)
        if self._desk.settings.metrics_db:
            up = Gauge("jobrunner_database_up", "Whether the database could be read at the last look.", **of)
            up.set(self._is_up)
        vitals = self._desk.vitals()
        if vitals is not None:
            slots = Gauge("jobrunner_slots", f"Places for runs. {_NODE}", ["state"], **of)
            slots.labels("used").set(vitals.held)
            slots.labels("free").set(max(vitals.slots - vitals.held, 0))
            age = Gauge("jobrunner_tick_age_seconds", "How long ago this node's loop last came round.", **of)
            age.set(vitals.silence)
        return registry


def _without_created(registry: CollectorRegistry) -> Iterator[Metric]:
    for family in registry.collect():
        family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
        yield family
