"""The triggers of an orchestrator: from Python, also inside a transaction of the caller's."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from jobrunner.errors import DatabaseError, DatabaseUnavailable, Refused, WorkerNotFound
from jobrunner.policy import definitions
from jobrunner.policy.arguments import check_text
from jobrunner.runtime.requests import each_of, read_payloads, read_request
from jobrunner.storage.database.callers import callers_connection, is_async
from jobrunner.storage.runs import enqueue
from jobrunner.storage.workers.near import naming_a_near_one
from jobrunner.storage.workers.payloads import refuse_misfit
from jobrunner.storage.workers.registering import register_missing
from jobrunner.telemetry import tracing

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager
    from datetime import datetime

    from jobrunner.model.named_limit import LimitConfig
    from jobrunner.model.worker import WorkerConfig
    from jobrunner.runtime.clock import Clock
    from jobrunner.runtime.handlers import Handler
    from jobrunner.runtime.node import Node
    from jobrunner.runtime.options import Seconds
    from jobrunner.storage.database.database import Database
    from jobrunner.storage.runs.transaction import AsyncConnection

T = TypeVar("T")


class Diversion(Protocol):
    """Where triggers go instead of the database: into a simulation."""

    def now(self) -> datetime:
        """Return the time there."""

    def enqueue(self, requests: Sequence[enqueue.Request], /) -> list[int]:
        """Add runs and return their ids."""


class Triggers:
    """The part of `WorkerOrchestrator` that makes runs."""

    _handlers: Mapping[str, Handler]
    _configs: Mapping[str, WorkerConfig]
    _limits: dict[str, LimitConfig]
    version: int | None
    _clock: Clock
    _node: Node | None
    _open_database: Callable[[int], Database]
    _database: Callable[[], AbstractAsyncContextManager[Database]]
    _diversion: Diversion | None = None

    @contextlib.contextmanager
    def diverted(self, to: Diversion) -> Iterator[None]:
        """Send every trigger there, inside the block; for `jobrunner.testing`."""
        self._diversion = to
        try:
            yield
        finally:
            self._diversion = None

    async def trigger_worker(
        self,
        name: str,
        payload: dict[str, Any] | None = None,
        *,
        at: datetime | None = None,
        delay: Seconds | None = None,
        key: str | None = None,
        key_scope: str = "waiting",
        priority: int | str | None = None,
        force: bool = False,
        on_duplicate: Literal["keep", "replace", "postpone"] = "keep",
        at_most: Seconds | None = None,
        connection: Any = None,
    ) -> int:
        """Add a run of worker `name`, due now or at `at` (aware) or after `delay`; return its id.

        The payload's values may be JSON, or of the types that the handler's parameters are annotated with. `delay` is a
        number of seconds, a `timedelta`, or text such as `"5m"`.

        With `key`, a run of this worker with the same key that has not started (`key_scope="live"`: not ended) is
        returned instead. If that has never started, `on_duplicate="replace"` gives it this payload and leaves its time;
        "postpone" puts it off by `delay` from now, but to no later than `at_most` after the first trigger, and leaves
        its payload. Of a run that has started neither changes anything.

        `force` opens the gates enabled, paused and dependencies. With `connection`, a SQLAlchemy connection or session
        (async or sync) to the same database, the run is added in its transaction.

        A worker of this orchestrator's own that the database does not know yet is registered first, with all others
        that it does not know; nothing that it knows is changed. On SQLite with `connection` that is part of its
        transaction, too, and is done again by the next trigger if that rolls back.

        Raises:
            WorkerNotFound: neither the database nor this orchestrator knows such a worker.
            InvalidPayload: the payload is no JSON object, too large, or does not fit the handler.
            InvalidSetting: another argument cannot be used.
            Refused: this user of the database may add runs, but not change the one that has the key.
        """
        options = {"at": at, "delay": delay, "key": key, "key_scope": key_scope, "priority": priority, "force": force}
        options |= {"on_duplicate": on_duplicate, "at_most": at_most}
        request = self._request(name, payload, **options)
        if self._diversion is not None:
            return self._diversion.enqueue([request])[0]
        tracer = tracing.tracer()
        if tracer is None:
            return await self._enqueue(connection, request)
        with tracing.sending(tracer, name) as sending:
            run_id = await self._enqueue(connection, replace(request, trace_context=sending.trace_context))
            sending.sent([run_id])
        return run_id

    async def _enqueue(self, connection: Any, request: enqueue.Request) -> int:
        is_one_statement = request.key is None
        return await self._write(connection, enqueue.enqueue, request, self._clock.now(), is_alone=is_one_statement)

    async def trigger_told(
        self, name: str, payload: dict[str, Any] | None = None, *, caller: str | None = None, **options: Any
    ) -> tuple[int, bool]:
        """Do `trigger_worker` for somebody else; return the run's id, and whether it is new.

        Options as there, but for `connection`. `caller` is the trace in which it was asked for, a W3C `traceparent`.
        What does not fit the handler is refused also where this process has no code of it.
        """
        request = self._request(name, payload, **options)
        async with self._database() as db:
            await refuse_misfit(db, name, request.payload)
        with tracing.sending(tracing.tracer(), name, caller) as sending:
            request = replace(request, trace_context=sending.trace_context)
            added = await self._write(None, enqueue.enqueue_told, request, self._clock.now())
            sending.sent([added.run_id])
        return added.run_id, added.is_new

    async def trigger_many(
        self,
        name: str,
        payloads: Iterable[dict[str, Any] | None],
        *,
        priority: int | str | None = None,
        connection: Any = None,
    ) -> list[int]:
        """Add a run of worker `name` for each payload, all in one transaction; return their ids in order.

        Raises as `trigger_worker`; then none is added. Of a payload that cannot be used, the message says which it is.
        """
        if self._diversion is not None:
            requests = each_of(payloads, lambda payload: self._request(name, payload, priority=priority))
            return self._diversion.enqueue(requests)
        level = None if priority is None else int(definitions.parse_priority(name, priority))
        texts = read_payloads(payloads, self._code(name))
        with tracing.sending(tracing.tracer(), name) as sending:
            said = name, texts, self._clock.now(), level, sending.trace_context
            run_ids = await self._write(connection, enqueue.enqueue_many, *said)
            sending.sent(run_ids)
        return run_ids

    def trigger_sync(self, name: str, payload: dict[str, Any] | None = None, **options: Any) -> int:
        """Do `trigger_worker` from code that has no event loop; options as there."""
        connection = options.pop("connection", None)
        if self._diversion is not None:
            return self._diversion.enqueue([self._request(name, payload, **options)])[0]
        if _is_in_loop():
            raise Refused("trigger_sync was called inside a running event loop; await trigger_worker there")
        if connection is not None and is_async(connection):
            raise Refused("trigger_sync takes a synchronous connection; await trigger_worker with an async one")
        work = self.trigger_worker(name, payload, connection=connection, **options)
        if self._node is not None and connection is None:  # we are in another thread, a handler's perhaps
            return asyncio.run_coroutine_threadsafe(work, self._node.loop).result()
        return _finished(work) if connection is not None else asyncio.run(work)

    def _code(self, name: str) -> tuple[Handler, dict[str, Any]] | None:
        check_text("name", name)
        return (self._handlers[name], self._configs[name].payload) if name in self._handlers else None

    def _request(self, name: str, payload: dict[str, Any] | None, **options: Any) -> enqueue.Request:
        return read_request(name, payload, (self._diversion or self._clock).now(), self._code(name), **options)

    async def _write(
        self, connection: Any, add: Callable[..., Awaitable[T]], *arguments: Any, is_alone: bool = False
    ) -> T:
        """Add runs in the caller's transaction, or in one of our own; `is_alone`: it is one statement that writes."""
        if connection is not None:
            return await self._write_in(connection, add, *arguments)
        async with self._database() as db:

            async def write() -> T:
                async with db.poke() if is_alone else db.write(is_long=True) as conn:
                    return await add(conn, db.dialect, *arguments)  # a row in `runs` wakes the nodes by itself

            try:
                added = await write()
            except WorkerNotFound as unknown:
                if unknown.worker not in self._configs:
                    raise
                await self._register_missing(unknown.worker)
                added = await write()
            if self._node is not None:
                self._node.wake()
            return added

    async def _write_in(self, connection: Any, add: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        db = self._open_database(1)  # opens nothing
        conn = callers_connection(db, connection)
        try:
            return await add(conn, db.dialect, *arguments)
        except WorkerNotFound as unknown:
            if unknown.worker not in self._configs:
                raise await naming_a_near_one(conn, unknown, self._configs) from None
            name = unknown.worker
        if db.is_sqlite:  # the caller may hold the file's write lock, for which another connection would wait in vain
            await self._register_in(db, conn)
            return await add(conn, db.dialect, *arguments)
        # Not in the caller's transaction: nodes that start would wait for its end.
        registering = self._register_missing(name)
        await registering if _is_in_loop() else asyncio.run(registering)
        try:
            return await add(conn, db.dialect, *arguments)
        except WorkerNotFound:
            raise Refused(
                f"worker {name!r} is registered now, but this transaction began before; trigger it in a new one"
            ) from None

    async def _register_in(self, db: Database, conn: AsyncConnection) -> None:
        configs, limits = list(self._configs.values()), list(self._limits.values())
        await register_missing(db, conn, configs, self.version, self._clock.now(), limits)

    async def _register_missing(self, name: str) -> None:
        try:
            async with self._database() as db, db.write(is_long=True) as conn:
                await self._register_in(db, conn)
        except DatabaseUnavailable:
            raise
        except DatabaseError as error:
            advice = f"`jobrunner register MODULE` adds it, for this user may not: {error}"
            raise WorkerNotFound(name, advice) from error


def _is_in_loop() -> bool:
    with contextlib.suppress(RuntimeError):
        asyncio.get_running_loop()
        return True
    return False


def _finished(work: Coroutine[Any, Any, int]) -> int:
    """Run a coroutine that never waits: all it does is on a synchronous connection, which belongs to this thread."""
    try:
        work.send(None)
    except StopIteration as ended:
        return int(ended.value)
    work.close()
    raise Refused("trigger_sync takes a synchronous connection")
