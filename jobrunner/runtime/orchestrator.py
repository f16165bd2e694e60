"""`WorkerOrchestrator`: what a program uses. Workers are registered on it; it runs and triggers them."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import weakref
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

from jobrunner.config import Settings
from jobrunner.errors import DatabaseGone, InvalidSetting, InvalidWorker, Refused, WorkerNotFound
from jobrunner.model.worker import WorkerConfig
from jobrunner.policy import definitions
from jobrunner.runtime.clock import SystemClock
from jobrunner.runtime.handlers import Handler, read_handler
from jobrunner.runtime.kept import KeptDatabases
from jobrunner.runtime.moments import read_length
from jobrunner.runtime.named_limits import NamedLimits
from jobrunner.runtime.node import Node
from jobrunner.runtime.options import refuse_unknown
from jobrunner.runtime.process import end_process, first_of, share_the_interpreter, stop_signals, wait_for
from jobrunner.runtime.registration import check_isolation, chosen_handlers, normalised, with_code_options
from jobrunner.runtime.service_manager import ServiceManager
from jobrunner.runtime.transaction import refuse_inside_transaction
from jobrunner.storage.database.database import Database
from jobrunner.storage.database.engine import anchored
from jobrunner.storage.database.postgres_driver import PATIENCE_SECONDS
from jobrunner.storage.schema import revisions
from jobrunner.storage.schema.parts import trouble_behind
from jobrunner.storage.workers.near import with_near_name
from jobrunner.storage.workers.registering import register_all
from jobrunner.telemetry import events as e
from jobrunner.telemetry.logs import log_event

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobrunner.runtime.clock import Clock
    from jobrunner.runtime.executors.wrapped import Middleware
    from jobrunner.runtime.options import Seconds, WorkerOptions
    from jobrunner.storage.workers.definitions import Registered

F = TypeVar("F", bound="Callable[..., Any]")
M = TypeVar("M", bound="Middleware")
_orchestrators: weakref.WeakSet[WorkerOrchestrator] = weakref.WeakSet()


class WorkerOrchestrator(NamedLimits):
    """Named workers and the node that runs them.

    Args:
        database_url: where everything is kept; None: `JOBRUNNER_DATABASE_URL`, else a SQLite file `jobrunner.db` in
            the current folder.
        tick_interval: at most so many seconds between two looks at the database.
        max_concurrent: how many runs this node executes at once.
        version: a number of the code's own; a node of a lower version never overwrites definitions of a higher one.
        drain_timeout: seconds that running work is given when the node stops.
        lease: seconds without a heartbeat after which others take over this node's runs.
        capture_logs: whether what the code of a run logs is kept in its output too; a worker may say otherwise.
        clock: the time; tests pass their own.
        settings: any other setting of `jobrunner.config.Settings`; `workers`, for one, patterns such as `["send-*"]`
            of the workers that this node runs. It registers all of them.

    Raises:
        InvalidSetting: an argument, or a variable of the environment, cannot be used.
    """

    def __init__(
        self,
        database_url: str | None = None,
        *,
        tick_interval: Seconds | None = None,
        max_concurrent: int | None = None,
        version: int | None = None,
        drain_timeout: Seconds | None = None,
        lease: Seconds | None = None,
        capture_logs: bool = False,
        clock: Clock | None = None,
        **settings: Any,
    ) -> None:
        if version is not None and (isinstance(version, bool) or not isinstance(version, int)):
            raise InvalidSetting(f"version must be a whole number, not {version!r}")
        self._explicit: dict[str, Any] = {
            "database_url": database_url,
            "tick_interval": tick_interval,
            "max_concurrent": max_concurrent,
            "drain_timeout": drain_timeout,
            "lease": lease,
            **settings,
        }
        self.settings = _load_settings(self._explicit)
        self.version = version
        self.events = e.Events()
        self.events.subscribe(log_event)
        self._clock = clock or SystemClock()
        self._captures_logs = capture_logs
        self._handlers: dict[str, Handler] = {}
        self._read_handlers: dict[int, Handler] = {}
        self._configs: dict[str, WorkerConfig] = {}
        self._limits = {}
        self._middleware: list[Middleware] = []
        self._node: Node | None = None
        self._state = "new"
        self._leaving: asyncio.Future[None] | None = None
        self._is_raising = False
        self._databases = self._new_databases()
        _orchestrators.add(self)

    def configure(self, **settings: Any) -> None:
        """Set settings over those of the constructor, before `start`; None leaves one as it is.

        Raises:
            InvalidSetting: a value cannot be used.
            Refused: the orchestrator has started.
        """
        if self._node is not None:
            raise Refused("the orchestrator has started; configure it before")
        self._explicit.update({name: value for name, value in settings.items() if value is not None})
        self.settings = _load_settings(self._explicit)
        self._databases.forget()
        self._databases = self._new_databases()

    @property
    def workers(self) -> dict[str, WorkerConfig]:
        """The definitions registered on this orchestrator, by name."""
        return dict(self._configs)

    @property
    def handlers(self) -> dict[str, Handler]:
        """The code of these workers, by name."""
        return dict(self._handlers)

    @property
    def clock(self) -> Clock:
        """The clock that was given, or the system's."""
        return self._clock

    @property
    def is_started(self) -> bool:
        """Whether it runs now."""
        return self._node is not None

    def worker(self, name: str, **options: Unpack[WorkerOptions]) -> Callable[[F], F]:
        """Register the decorated function as worker `name`; options as for `register_worker`."""

        def register(function: F) -> F:
            self.register_worker(name, function, **options)
            return function

        return register

    def register_worker(self, name: str, handler: Callable[..., Any], **options: Unpack[WorkerOptions]) -> WorkerConfig:
        """Register `handler` as worker `name`; the options are the fields of `WorkerConfig`, and three kept with code.

        `retry_on` is an exception class or its name (`"httpx.TimeoutException"`), or several: what the handler raises
        is tried again only if it is one of these. `retry_delay` is a function of the attempt (from 1) and the error
        that returns the seconds until the next one, or None for the usual delay. `capture_logs` puts what the code logs
        into the run's output. Seconds may be a number, a `timedelta`, or text such as `"5m"`.

        Raises:
            InvalidWorker: the name, an option or the function's signature cannot be used, or the name is taken by
                other code.
        """
        definitions.check_name(name)
        refuse_unknown(name, options)
        if self._node is not None:
            raise InvalidWorker(name, "is registered after the start; register all workers before")
        code = self._read_code(name, handler)
        given: dict[str, Any] = {**options}
        code = with_code_options(name, code, given, captures_logs=self._captures_logs)
        self._refuse_other_code(name, code)
        isolation = given.pop("isolation", None) or code.default_isolation
        rest = {"payload_schema": code.payload_schema, **normalised(name, given, code)}
        wanted = WorkerConfig(name=name, handler=code.label, isolation=isolation, **rest)
        config = definitions.check_definition(wanted)
        check_isolation(config, code)
        self._handlers[name] = code
        self._configs[name] = config
        return config

    def _read_code(self, name: str, function: Callable[..., Any]) -> Handler:
        """Read a function's signature, once: there may be 100,000 workers of one function."""
        known = self._read_handlers.get(id(function))  # what is there holds the function, so that no other gets its id
        if known is None:
            known = self._read_handlers[id(function)] = read_handler(name, function)
        return known

    def middleware(self, layer: M) -> M:
        """Wrap `async def layer(run, call_next)` around every attempt; also a decorator. The first one is outermost.

        It awaits `call_next()` once, which runs the code and returns its result or raises what it raised.

        Raises:
            InvalidSetting: it is no coroutine function.
            Refused: the orchestrator has started.
        """
        if not _is_async(layer):
            raise InvalidSetting(f"a middleware must be an async def of run and call_next, not {layer!r}")
        if self._node is not None:
            raise Refused("the orchestrator has started; add middleware before")
        self._middleware.append(layer)
        return layer

    def _refuse_other_code(self, name: str, code: Handler) -> None:
        for other in list(_orchestrators):
            known = other._handlers.get(name)
            if known is None or (other is not self and (other._state == "stopped" or not other._same_database(self))):
                continue
            if not known.same_code(code):
                where = "" if other is self else " by another orchestrator of this process"
                raise InvalidWorker(name, f"is registered already{where}, as {known.label}; choose another name")

    def _same_database(self, other: WorkerOrchestrator) -> bool:
        return (
            self.settings.database_url == other.settings.database_url and self.settings.schema == other.settings.schema
        )

    async def register_definitions(self) -> Registered:
        """Write the definitions that changed, as `start` does, without a node; return what was changed.

        For a deploy, before its nodes start.

        Raises:
            JobrunnerError: the definitions do not hold together, or the database cannot be used.
        """
        async with self._database() as db:
            configs, limits = list(self._configs.values()), list(self._limits.values())
            return await register_all(db, configs, self.version, self._clock.now(), limits)

    async def start(self) -> None:
        """Register all workers, join, and tick; returns once the node ticks.

        On SQLite the file is created and upgraded; on PostgreSQL an old schema is refused.

        Raises:
            JobrunnerError: the definitions do not hold together, or the database cannot be used.
        """
        await self._start(is_migrating=False)

    async def _start(self, *, is_migrating: bool, service_manager: ServiceManager | None = None) -> None:
        if self._node is not None:
            raise Refused("the orchestrator has started already")
        node = Node(
            self.settings,
            self._open_database,
            chosen_handlers(self._handlers, self.settings.workers or ()),
            dict(self._configs),
            list(self._limits.values()),
            self.version,
            self._clock,
            self.events,
            self._on_crash,
            tuple(self._middleware),
            service_manager,
        )
        try:
            await _prepare(node.db, is_migrating=is_migrating)
            await node.start()
        except BaseException as error:
            trouble = await trouble_behind(node.db, error) if isinstance(error, Exception) else None
            await node.abandon()
            if trouble is not None:
                raise trouble from error
            raise
        self._node = node
        self._state = "running"

    def _on_crash(self, drain_timeout: float) -> None:
        """Leave, so that other nodes take over: a node that no longer ticks must not go on beating."""
        crash = self._node.crash if self._node is not None else None
        if isinstance(crash, DatabaseGone) and not self._is_raising:  # else `run` raises it, once the node has left
            self.events.emit(e.Warned(f"{crash}; this node leaves"))
        if self._node is not None and self._leaving is None:
            self._leaving = asyncio.ensure_future(self._leave(self._node, drain_timeout))

    def _open_database(self, pool_size: int, patience: float = PATIENCE_SECONDS) -> Database:
        return Database.of(self.settings, pool_size=pool_size, patience=patience)

    def _new_databases(self) -> KeptDatabases:
        open_database = partial(self._open_database, self.settings.pool_size)
        return KeptDatabases(open_database, partial(_prepare, is_migrating=False), revisions.require_current)

    async def stop(self, drain_timeout: Seconds | None = None) -> None:
        """Claim nothing more, let running work end (`drain_timeout`; None: the setting), give back the rest.

        Called again while it stops, it waits for the same end. Where no node has run, it closes the connection that
        triggers have opened in this event loop; the end of the loop does so, too.

        Raises:
            InvalidSetting: `drain_timeout` is no length of time.
        """
        if self._node is None:
            await self._databases.close()
            return
        if self._leaving is None:
            given = self.settings.drain_timeout if drain_timeout is None else drain_timeout
            seconds = read_length("drain_timeout", given)
            self._leaving = asyncio.ensure_future(self._leave(self._node, seconds))
        await asyncio.shield(self._leaving)

    async def _leave(self, node: Node, drain_timeout: float) -> None:
        self._state = "stopping"
        await node.stop(drain_timeout)
        self._node = None
        self._leaving = None
        self._state = "stopped"

    async def wait_idle(self) -> None:
        """Wait until nothing runs, nothing could start now, and no failed run waits for its next attempt."""
        await self._running_node().wait_idle()

    def _running_node(self) -> Node:
        if self._node is None:
            raise Refused("the orchestrator is not running; start it first")
        return self._node

    async def run(self, *, until_idle: bool = False, migrate: bool = False) -> None:
        """Start, work until SIGTERM or SIGINT (or until there is nothing to do), drain, and leave.

        A second signal stops at once. For a program whose own process this is: code that cannot be stopped is left
        behind by ending the process.

        Raises:
            JobrunnerError: as `start`.
        """
        share_the_interpreter()
        stop_asked, stop_now = asyncio.Event(), asyncio.Event()
        with stop_signals(stop_asked, stop_now):
            self._is_raising = True
            await self._start(is_migrating=migrate, service_manager=ServiceManager.of(os.environ))
            node = self._running_node()
            await first_of(wait_for(stop_asked), node.wait_idle() if until_idle else None, node.crashed)
            stopping = asyncio.ensure_future(self.stop())
            await first_of(stopping, wait_for(stop_now))
            if not stopping.done():
                node.hurry()
            await stopping
            crash = node.crash
            if node.has_stuck_code:
                end_process(crash)
            if crash is not None:
                raise crash

    @contextlib.asynccontextmanager
    async def _database(self) -> Any:
        """The running node's database, or (also in an event loop other than the node's) the one kept for this loop."""
        if self._diversion is not None:
            raise Refused("a simulation has no database: only triggers are simulated")
        if self._node is not None and self._node.loop is asyncio.get_running_loop():
            refuse_inside_transaction(self._node.db)
            db = self._node.db
        else:
            db = await self._databases.get()
        try:
            yield db
        except WorkerNotFound as unknown:
            if unknown.is_advised:
                raise
            raise await with_near_name(db, unknown, self._configs) from None


async def _prepare(db: Database, *, is_migrating: bool) -> None:
    """Bring the schema up to date where that is ours to do, and refuse one that this code cannot use."""
    if is_migrating or db.is_sqlite:
        state = (await revisions.status(db)).state
        if state in {revisions.SchemaState.MISSING, revisions.SchemaState.BEHIND}:
            from jobrunner.storage.schema import migrate as schema  # noqa: PLC0415 - it loads Alembic: 8 MiB that a node seldom needs

            await schema.upgrade(db)
    await revisions.require_current(db)


def _load_settings(explicit: dict[str, Any]) -> Settings:
    """Read the settings; a relative SQLite file is the one that has that name now, whatever folder is current later."""
    settings = Settings.load(os.environ, **explicit)
    return replace(settings, database_url=anchored(settings.database_url))


def _is_async(function: object) -> bool:
    return inspect.iscoroutinefunction(function)
