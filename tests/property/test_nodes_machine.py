"""Several nodes and the storage operations, in any order Hypothesis likes, against a model of a few dictionaries."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from jobrunner.model.run import OutcomeKind, Run
from jobrunner.storage import nodes
from jobrunner.storage.runs import cancelling
from jobrunner.storage.workers import operations
from tests.conftest import sqlite_url_of
from tests.support.checker import check
from tests.support.stage import ACTOR, Stage, triggered

T = TypeVar("T")
RETRIES, DELAY, TRIPS_AT = 1, 10.0, 3
RULES: dict[str, Any] = {
    "max_retries": RETRIES,
    "retry_delay_seconds": DELAY,
    "retry_backoff": 1,
    "max_consecutive_failures": TRIPS_AT,
}
WORKERS = {"free": 2, "left": 1, "right": 3}
NODES = ("n1", "n2", "n3")
KINDS = (OutcomeKind.SUCCEEDED, OutcomeKind.FAILED, OutcomeKind.INTERRUPTED, OutcomeKind.SNOOZED, OutcomeKind.TIMED_OUT)
USED_UP = {OutcomeKind.FAILED, OutcomeKind.TIMED_OUT, OutcomeKind.LOST}
TABLES = "runs, run_history, dead_letters, nodes, node_handlers, audit_log, workers, worker_state, worker_blocks"


@dataclass(frozen=True)
class Live:
    """A live run as the model knows it; `claim` while a node has it."""

    worker: str
    due: float
    attempt: int = 1
    lost: int = 0
    claim: Run | None = None
    is_to_cancel: bool = False


class Machine(RuleBasedStateMachine):
    """See the module. `url` is set by the test."""

    url: ClassVar[str]
    template: ClassVar[Path | None] = None

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = tempfile.TemporaryDirectory()
        if self.template is not None:
            self.url = sqlite_url_of(Path(shutil.copyfile(self.template, Path(self.folder.name) / "m.db")))
        self.stage = Stage(self.url)
        self.seconds = 0.0
        self.live: dict[int, Live] = {}
        self.ends: dict[int, str] = {}
        self.history: Counter[str] = Counter()
        self.streak = dict.fromkeys(WORKERS, 0)
        self.enabled = dict.fromkeys(WORKERS, True)
        self.state: dict[str, str] = {}
        self.seen: dict[str, nodes.SeenNode] = {}
        self.old_claims: list[Run] = []

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    @initialize()
    def begin(self) -> None:
        if self.template is None:
            tables = ", ".join(f"{{p}}{table}" for table in TABLES.split(", "))
            self.do(self.stage.sql(f"TRUNCATE {tables} RESTART IDENTITY CASCADE"))
        more = {"right": {"blocks": ["left"]}}
        configs = [triggered(name, max_running=n, **RULES, **more.get(name, {})) for name, n in WORKERS.items()]
        self.do(self.stage.register(*configs))
        for number, _ in enumerate(NODES):
            self._join(number)

    def _join(self, number: int) -> None:
        name = f"{NODES[number]}-{len(self.seen)}"
        self.seen[name] = self.do(self.stage.join(name))
        self.state[name] = "active"

    def node(self, number: int) -> str:
        return [name for name, state in self.state.items() if state == "active"][-1 - number]

    # --- what happens ---

    @rule(worker=st.sampled_from(sorted(WORKERS)), delay=st.sampled_from((0.0, 0.0, 5.0)))
    def enqueue(self, worker: str, delay: float) -> None:
        due_at = self.stage.now + timedelta(seconds=delay) if delay else None
        run_id = self.do(self.stage.trigger(worker, due_at=due_at))
        assert run_id not in self.live
        assert run_id not in self.ends
        self.live[run_id] = Live(worker, self.seconds + delay)

    @rule(seconds=st.sampled_from((1.0, DELAY, 60.0)))
    def wait(self, seconds: float) -> None:
        self.stage.after(seconds)
        self.seconds += seconds

    @rule(number=st.integers(0, 2), slots=st.integers(1, 4))
    def claim(self, number: int, slots: int) -> None:
        node = self.node(number)
        before = self._active()
        claims = self.do(self.stage.claim(slots, node)).claims
        for claim in claims:
            known = self.live[claim.run.id]
            assert known.claim is None
            assert known.due <= self.seconds
            assert known.attempt == claim.run.attempt
            assert self.enabled[known.worker]
            self.live[claim.run.id] = replace(known, claim=claim.run)
        after = self._active()
        assert len(claims) <= slots
        assert all(after[worker] <= most for worker, most in WORKERS.items())
        assert not (after["left"] and after["right"])
        if len(claims) < slots and self.enabled["free"]:
            waiting = sum(
                run.worker == "free" and run.claim is None and run.due <= self.seconds for run in self._runs()
            )
            assert not waiting or after["free"] == WORKERS["free"], f"free was left waiting; before: {before}"

    @rule(kind=st.sampled_from(KINDS), data=st.data())
    def finish(self, kind: OutcomeKind, data: st.DataObject) -> None:
        claimed = [run.claim for run in self._runs() if run.claim is not None]
        if not claimed:
            return
        run = data.draw(st.sampled_from(claimed))
        more = {"delay_seconds": DELAY} if kind is OutcomeKind.SNOOZED else {}
        finished = self.do(self.stage.end(run, kind, **more))
        assert [written.id for written, _ in finished.written] == [run.id]
        self._end(run, kind)

    @rule(kind=st.sampled_from(KINDS), data=st.data())
    def finish_stale(self, kind: OutcomeKind, data: st.DataObject) -> None:
        if self.old_claims:
            run = data.draw(st.sampled_from(self.old_claims))
            assert self.do(self.stage.end(run, kind)).written == ()

    @rule(worker=st.sampled_from(sorted(WORKERS)))
    def disable(self, worker: str) -> None:
        self.do(operations.disable(self.stage.db, worker, self.stage.now, ACTOR, "why not"))
        self.enabled[worker] = False

    @rule(worker=st.sampled_from(sorted(WORKERS)))
    def enable(self, worker: str) -> None:
        self.do(operations.enable(self.stage.db, worker, self.stage.now, ACTOR))
        self.enabled[worker] = True
        self.streak[worker] = 0

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        if not self.live:
            return
        run_id = data.draw(st.sampled_from(sorted(self.live)))
        run = self.live[run_id]
        self.do(cancelling.cancel(self.stage.db, run_id, self.stage.now, ACTOR))
        if run.claim is None:
            self.history["cancelled"] += 1
            self.ends[run_id] = "cancelled"
            del self.live[run_id]
        else:
            self.live[run_id] = replace(run, is_to_cancel=True)

    @rule(number=st.integers(0, 2))
    def lose(self, number: int) -> None:
        """A node is declared lost and its runs are rescued; another joins."""
        node = self.node(number)

        async def declare() -> bool:
            async with self.stage.db.write() as conn:
                return await nodes.declare_lost(
                    conn, self.stage.db.dialect, self.seen[node], self.stage.now, "it is silent"
                )

        assert self.do(declare())
        self.state[node] = "lost"
        self._rescued(node, OutcomeKind.LOST)
        assert self.do(self.stage.claim(5, node)).claims == (), "a lost node claims nothing"
        self._join(number)

    @rule(number=st.integers(0, 2))
    def leave(self, number: int) -> None:
        """A node stops, leaving its runs behind; after the grace others take them."""
        node = self.node(number)

        async def stop() -> None:
            async with self.stage.db.write() as conn:
                await nodes.set_state(conn, node, "stopped", self.stage.now)

        self.do(stop())
        self.state[node] = "stopped"
        self.wait(5.0)
        self._rescued(node, OutcomeKind.INTERRUPTED)
        self._join(number)

    def _rescued(self, node: str, kind: OutcomeKind) -> None:
        finished = self.do(nodes.rescue(self.stage.db, self.stage.now, self.stage.now))
        theirs = [run.claim for run in self._runs() if run.claim is not None and run.claim.node_id == node]
        assert sorted(run.id for run, _ in finished.written) == sorted(run.id for run in theirs)
        for run, decided in finished.written:
            due = None if decided.retry is None else decided.retry.due_at
            self._end(run, kind, None if due is None else (due - self.stage.now).total_seconds())

    # --- what should follow ---

    def _end(self, run: Run, kind: OutcomeKind, delay: float | None = None) -> None:
        known = self.live[run.id]
        self.old_claims.append(run)
        self.history[str(kind)] += 1
        lost = known.lost + 1 if kind is OutcomeKind.LOST else 0
        if kind is OutcomeKind.SUCCEEDED:
            self._over(run.id, "succeeded")
            self.streak[known.worker] = 0
        elif kind in USED_UP and (known.attempt > RETRIES or lost >= 3):
            self._over(run.id, "exhausted")
            self.streak[known.worker] += 1
            if self.streak[known.worker] >= TRIPS_AT:
                self.enabled[known.worker] = False
        elif known.is_to_cancel:
            self._over(run.id, "cancelled")
        elif kind in USED_UP:
            wait = DELAY if delay is None else delay
            # A run lost once is due at once; the delay of one lost again counts from its start: nodes do not beat here.
            past = (
                (self.stage.now - run.started_at).total_seconds() if kind is OutcomeKind.LOST and run.started_at else 0
            )
            most, least = (0.0, 0.0) if lost == 1 else (1.1 * DELAY - past, 0.9 * DELAY - past)
            assert max(0.0, least) - 1e-3 <= wait <= max(0.0, most) + 1e-3
            due = self.seconds + wait
            self.live[run.id] = replace(known, claim=None, attempt=known.attempt + 1, due=due, lost=lost)
        elif kind is OutcomeKind.SNOOZED:
            self.live[run.id] = replace(known, claim=None, due=self.seconds + DELAY, lost=0)
        else:
            self.live[run.id] = replace(known, claim=None)

    def _over(self, run_id: int, how: str) -> None:
        self.ends[run_id] = how
        del self.live[run_id]

    def _runs(self) -> list[Live]:
        return list(self.live.values())

    def _active(self) -> Counter[str]:
        return Counter(run.worker for run in self._runs() if run.claim is not None)

    # --- what must hold ---

    @invariant()
    def the_tables_say_what_the_model_says(self) -> None:
        rows = self.do(self.stage.rows("SELECT id, worker, state, attempt, fence, node_id FROM {p}runs"))
        found = {row["id"]: tuple(row.values())[1:] for row in rows}
        expected = {}
        for run_id, run in self.live.items():
            claim = run.claim
            held = ("pending", run.attempt, None, None) if claim is None else self._held(run, claim)
            expected[run_id] = (run.worker, *held)
        assert found == expected
        ends = self.do(self.stage.rows("SELECT run_id, ends_run FROM {p}run_history WHERE ends_run IS NOT NULL"))
        assert {row["run_id"]: row["ends_run"] for row in ends} == self.ends
        assert len(ends) == len(self.ends)
        assert Counter(self.do(self.stage.outcomes())) == +self.history
        states = self.do(self.stage.rows("SELECT worker, is_enabled, consecutive_failures FROM {p}worker_state"))
        for row in states:
            assert row["consecutive_failures"] == self.streak[row["worker"]]
            assert bool(row["is_enabled"]) == self.enabled[row["worker"]]
        letters = self.do(self.stage.column("SELECT run_id FROM {p}dead_letters"))
        assert sorted(letters) == sorted(run_id for run_id, how in self.ends.items() if how == "exhausted")

    def _held(self, run: Live, claim: Run) -> tuple[str, int, int | None, str | None]:
        return ("running", run.attempt, claim.fence, claim.node_id)

    def teardown(self) -> None:
        self.do(self.stage.db.close())
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()
        assert check(self.url) == []
        self.folder.cleanup()


def examples(count: int) -> settings:
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    return settings(max_examples=count, stateful_step_count=30, deadline=None, suppress_health_check=slow)


def test_any_order_of_operations_on_sqlite(sqlite_template: Path) -> None:
    class OnSqlite(Machine):
        template = sqlite_template

    run_state_machine_as_test(OnSqlite, settings=examples(30))


@pytest.mark.postgres
def test_any_order_of_operations_on_postgresql(postgres_url: str) -> None:
    class OnPostgres(Machine):
        url = postgres_url

    run_state_machine_as_test(OnPostgres, settings=examples(8))
