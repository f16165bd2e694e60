"""A stage for storage tests: a database, a manual clock, two nodes, and short words for what they do.

It speaks only through the storage functions that the runtime uses, so that what a test sees is what a node would do.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from jobrunner.model.facts import Candidate, Verdict
from jobrunner.model.run import ClaimKey, Outcome, OutcomeKind, Run
from jobrunner.model.worker import WorkerConfig, WorkerExecutionMode, WorkerState
from jobrunner.policy.definitions import check_definition
from jobrunner.policy.verdicts import explain
from jobrunner.storage import nodes
from jobrunner.storage.database.database import Database
from jobrunner.storage.runs import facts as reading
from jobrunner.storage.runs.claims import Claim, Claimed, Nothing, Passed, claim_due
from jobrunner.storage.runs.enqueue import Request, enqueue
from jobrunner.storage.runs.finishes import Ended, Finished, finish
from jobrunner.storage.runs.looks import Claimer
from jobrunner.storage.workers import definitions as workers

T0 = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
ACTOR = "ann@desk"


def scheduled(name: str, **more: Any) -> WorkerConfig:
    """A scheduled worker, checked as registering would check it."""
    return check_definition(WorkerConfig(name, **{"handler": f"tests:{name}", **more}))


def triggered(name: str, **more: Any) -> WorkerConfig:
    """A worker that runs only when asked."""
    return scheduled(name, execution_mode=WorkerExecutionMode.TRIGGERED, **more)


def continuous(name: str, **more: Any) -> WorkerConfig:
    """A worker that runs in a loop."""
    return scheduled(name, execution_mode=WorkerExecutionMode.CONTINUOUS, **more)


def identity(node: str, **more: Any) -> nodes.NodeIdentity:
    """A node's identity; `node` is its id and its host's name."""
    facts = {"pid": 4711, "boot_id": "boot", "process_started_at": T0, "version": "0", "max_concurrent": 5}
    facts["lease_seconds"] = 1e9  # it does not beat
    return nodes.NodeIdentity(node, node, **{**facts, **more})


class Stage:
    """See the module. `now` is the clock; `after` moves it."""

    def __init__(self, url: str, **options: Any) -> None:
        self.url = url
        self.db = Database.open(url, **options)
        self.now = T0
        self.simple_under: dict[ClaimKey, int | None] = {}
        self._names: set[str] = set()

    def after(self, seconds: float) -> datetime:
        """Let time pass; return the time then."""
        self.now += timedelta(seconds=seconds)
        return self.now

    async def register(self, *configs: WorkerConfig, version: int | None = None) -> workers.Registered:
        """Register definitions, as a node does at its start."""
        async with self.db.write() as conn:
            registered = await workers.register(conn, self.db.dialect, configs, version, self.now)
        self._names.update(config.name for config in configs)
        return registered

    async def join(self, node: str, handlers: Collection[str] | None = None, **more: Any) -> nodes.SeenNode:
        """Let a node join, with code for `handlers` (all registered, unless said)."""
        code = self._names if handlers is None else handlers
        async with self.db.write() as conn:
            await nodes.join(conn, self.db.dialect, identity(node, **more), code, self.now)
        return nodes.SeenNode(node, node, 4711, "boot", T0, 0)

    async def trigger(self, worker: str, **more: Any) -> int:
        """Enqueue a run and return its id."""
        async with self.db.write() as conn:
            return await enqueue(conn, self.db.dialect, Request(worker, **more), self.now)

    async def tick(self, slots: int = 5, node: str = "n1", handlers: Collection[str] | None = None) -> list[Run]:
        """Tick once; return what was claimed, in the order of ids."""
        claimed = await self.claim(slots, node, handlers)
        return sorted((claim.run for claim in claimed.claims), key=lambda run: run.id)

    async def claim(
        self, slots: int = 5, node: str = "n1", handlers: Collection[str] | None = None
    ) -> Claimed | Passed | Nothing:
        """Tick once; return all the tick says."""
        here = reading.Here(frozenset(self._names if handlers is None else handlers))
        claimed = await claim_due(self.db, Claimer(node, here), slots, lambda: self.now)
        self.note(claimed.claims)
        return claimed

    def note(self, claims: Iterable[Claim]) -> None:
        """Note under which revisions the ends of these claims are simple."""
        self.simple_under |= {claim.run.claim_key: claim.simple_under for claim in claims}

    async def next_due_at(self) -> datetime | None:
        """Tick once, which must find nothing to start; return when something becomes due next."""
        claimed = await self.claim()
        assert isinstance(claimed, Nothing)
        return claimed.next_due_at

    async def started(self, slots: int = 5, **more: Any) -> list[str]:
        """Tick once; return the names of the workers that started, sorted."""
        return sorted(run.worker for run in await self.tick(slots, **more))

    async def start_one(self, slots: int = 5, **more: Any) -> Run:
        """Tick once; exactly one run must start."""
        (run,) = await self.tick(slots, **more)
        return run

    def outcome(self, kind: OutcomeKind = OutcomeKind.SUCCEEDED, **more: Any) -> Outcome:
        """An attempt's outcome, now."""
        if kind in {OutcomeKind.FAILED, OutcomeKind.TIMED_OUT, OutcomeKind.LOST}:
            more = {"error_type": "ValueError", "error": "no luck", "traceback": "Traceback: no luck", **more}
        return Outcome(kind, self.now, **{"duration_ms": 5, **more})

    async def end(self, run: Run, kind: OutcomeKind = OutcomeKind.SUCCEEDED, **more: Any) -> Finished:
        """End one attempt now; jitter is none."""
        return await finish(self.db, [Ended(run, self.outcome(kind, **more))], lambda: 0.0)

    async def fail(self, run: Run, **more: Any) -> Finished:
        """End one attempt as failed."""
        return await self.end(run, OutcomeKind.FAILED, **more)

    async def run_once(self, kind: OutcomeKind = OutcomeKind.SUCCEEDED, slots: int = 5, **more: Any) -> list[Run]:
        """Tick, and end all that started in one transaction."""
        runs = await self.tick(slots)
        if runs:
            await finish(self.db, [Ended(run, self.outcome(kind, **more)) for run in runs], lambda: 0.0)
        return runs

    async def state(self, worker: str) -> WorkerState:
        """Read a worker's state."""
        return (await self.stored(worker)).state

    async def stored(self, worker: str) -> workers.Stored:
        """Read a worker."""
        async with self.db.peek() as conn:
            return await workers.read_one(conn, self.db.dialect, worker)

    async def rows(self, sql: str, **parameters: Any) -> list[dict[str, Any]]:
        """Read rows with plain SQL; `{p}` stands for the schema."""
        async with self.db.peek() as conn:
            found = await conn.execute(sa.text(sql.format(p=self.db.schema_prefix)), parameters)
            return [dict(row) for row in found.mappings()]

    async def column(self, sql: str, **parameters: Any) -> list[Any]:
        """Read the first column."""
        return [next(iter(row.values())) for row in await self.rows(sql, **parameters)]

    async def value(self, sql: str, **parameters: Any) -> Any:
        """Read one value."""
        (value,) = await self.column(sql, **parameters)
        return value

    async def sql(self, statement: str) -> None:
        """Change something with plain SQL."""
        async with self.db.write(is_long=True) as conn:
            await conn.exec_driver_sql(statement.replace("{p}", self.db.schema_prefix))

    async def outcomes(self, worker: str | None = None) -> list[str]:
        """All of history's outcomes, in order, optionally of one worker."""
        where = "" if worker is None else f"WHERE worker = '{worker}'"
        return await self.column(f"SELECT outcome FROM {{p}}run_history {where} ORDER BY id")

    async def facts(self, names: Sequence[str], slots: int = 5, handlers: Collection[str] | None = None) -> Any:
        """Read facts as a tick does."""
        async with self.db.peek() as conn:
            here = reading.Here(self._names if handlers is None else handlers)
            facts, _ = await reading.read_around(conn, self.db.dialect, self.now, names, here, slots)
        return facts

    async def explain(self, worker: str, slots: int = 5) -> tuple[Candidate | None, list[Verdict]]:
        """Explain as the tick of a node with all the code would judge."""
        return explain(await self.facts([worker], slots), worker)

    def time(self, value: Any) -> datetime:
        """Read a time column that came through plain SQL."""
        if isinstance(value, datetime):
            return value
        return datetime.fromisoformat(value).replace(tzinfo=UTC)
