"""Batches and flows of an orchestrator: runs that belong together.

A batch is known by its id alone: whoever has that may add members, from whatever process. A flow is written in one
transaction, and there is nothing of it to hold on to but its runs' ids.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from jobrunner.errors import InvalidFlow, InvalidSetting, Refused
from jobrunner.model.flow import CANCEL, Step
from jobrunner.policy.arguments import check_id, check_text
from jobrunner.policy.definitions import check_payload
from jobrunner.policy.flows import in_order
from jobrunner.runtime.triggers import Triggers
from jobrunner.storage.runs import batches
from jobrunner.storage.runs.batches import NewBatch
from jobrunner.storage.runs.flows import Planned, add_flow
from jobrunner.telemetry import tracing

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime
    from types import TracebackType

    from jobrunner.runtime.options import Seconds

_ACTOR = "api"


def step(
    worker: str,
    payload: dict[str, Any] | None = None,
    *,
    name: str | None = None,
    after: Iterable[str] = (),
    if_failed: str = CANCEL,
    priority: int | str | None = None,
    at: datetime | None = None,
    delay: Seconds | None = None,
) -> Step:
    """Describe a step of a flow: a run of `worker` that starts when the steps named in `after` have ended.

    Args:
        worker: whose run it is.
        payload: as for `trigger_worker`.
        name: what other steps, and `run.results`, call it; None: as the worker.
        after: the names of the steps that it waits for.
        if_failed: `cancel`: it is cancelled as soon as one of these has ended otherwise than well; `run`: it runs when
            all have ended, however that was.
        priority: as for `trigger_worker`.
        at: not before that time, an aware one.
        delay: not before so long after the flow was written.

    Raises:
        InvalidFlow: the name, or one of `after`, is no text.
    """
    names = [after] if isinstance(after, str) else list(after)
    for each in (worker, worker if name is None else name, *names):
        if not isinstance(each, str) or not 1 <= len(each) <= 200:
            raise InvalidFlow(f"the name of a step is a text of 1 to 200 characters, not {each!r}")
    return Step(worker, payload, name or worker, tuple(names), if_failed, priority, at, delay)


class Batch:
    """Runs that are counted together, while members are added: what `orchestrator.batch` gives. `id` names it."""

    def __init__(self, groups: Groups, wanted: NewBatch | int) -> None:
        self._groups = groups
        self._wanted = wanted
        self._id: int | None = None

    @property
    def id(self) -> int:
        """The batch's id, once its block has been entered.

        Raises:
            Refused: it has not.
        """
        if self._id is None:
            raise Refused("a batch has an id inside its block: async with orchestrator.batch(...) as batch")
        return self._id

    async def __aenter__(self) -> Self:
        """Begin the batch, or go on with an open one. Raises as `Groups.batch` says."""
        self._id = await self._groups._begin_batch(self._wanted)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        """Seal it; after an error it stays open, so that nothing is called for a half of it."""
        if kind is None:
            await self._groups._seal_batch(self.id)

    async def trigger(self, name: str, payload: dict[str, Any] | None = None, **options: Any) -> int:
        """Add a run of worker `name` to the batch; options, and what is raised, as for `trigger_worker`."""
        return await self._groups.trigger_worker(name, payload, batch=self.id, **options)

    async def trigger_many(
        self, name: str, payloads: Iterable[dict[str, Any] | None], *, priority: int | str | None = None
    ) -> list[int]:
        """Add a run of worker `name` for each payload, as `trigger_many` does."""
        return await self._groups.trigger_many(name, payloads, priority=priority, batch=self.id)


class Groups(Triggers):
    """The part of `WorkerOrchestrator` that makes batches and flows."""

    def batch(
        self,
        on_success: str | None = None,
        on_failure: str | None = None,
        on_finish: str | None = None,
        payload: dict[str, Any] | None = None,
        *,
        id: int | None = None,  # noqa: A002 - what the batch calls it
    ) -> Batch:
        """Return a batch, to be used as `async with orchestrator.batch(...) as batch: await batch.trigger(...)`.

        The workers named are triggered once each: `on_failure` when the first member has ended otherwise than well;
        when the block has been left and all members have ended, `on_success` if none did, and after it `on_finish`.
        They get `payload` (None: each worker's own) and in it `batch_id`, where their handlers may take that.

        With `id` an open batch goes on. Left by an error, the block leaves the batch open: nothing more is called.

        Raises:
            InvalidSetting, InvalidPayload: an argument cannot be used.
            WorkerNotFound: on entering, neither the database nor this orchestrator knows a worker that is named.
            BatchNotFound, Refused: on entering, there is no batch `id`, or it has finished.
        """
        callbacks = {"on_success": on_success, "on_failure": on_failure, "on_finish": on_finish}
        if id is not None:
            if payload is not None or any(name is not None for name in callbacks.values()):
                raise InvalidSetting("a batch that goes on, by its id, calls what it was begun with")
            return Batch(self, check_id("id", id))
        for argument, name in callbacks.items():
            if name is not None:
                check_text(argument, name)
        if payload is not None:
            check_payload(payload)
        return Batch(self, NewBatch(**callbacks, payload=payload, created_by=_ACTOR))

    async def _begin_batch(self, wanted: NewBatch | int) -> int:
        self._refuse_diversion()
        if isinstance(wanted, NewBatch):
            return await self._write(None, batches.begin, wanted)
        async with self._database() as db, db.peek() as conn:
            await batches.require_open(conn, wanted)
        return wanted

    async def _seal_batch(self, batch_id: int) -> None:
        async with self._database() as db:
            await batches.seal(db, batch_id, self._clock.now())
        if self._node is not None:
            self._node.wake()

    async def flow(self, steps: Iterable[Step], *, connection: Any = None) -> dict[str, int]:
        """Add the runs of a flow in one transaction; return their ids by the names of the steps.

            await orchestrator.flow([step("extract"), step("load", after=["extract"])])

        A step starts when all that it waits for have succeeded; its handler finds what they returned in `run.results`.
        With `connection` it is the caller's transaction, as for `trigger_worker`.

        Raises:
            InvalidFlow: two steps have one name, one waits for a name that is none, or they wait in a circle.
            WorkerNotFound, InvalidPayload, InvalidSetting: as `trigger_worker`; then nothing is added.
        """
        self._refuse_diversion()
        given = list(steps)
        for each in given:
            if not isinstance(each, Step):
                raise InvalidFlow(f"a flow is a list of step(...), not of {each!r}")
        planned = [self._planned(each) for each in in_order(given)]
        with tracing.sending(tracing.tracer(), planned[0].request.worker) as sending:
            ids = await self._write(connection, add_flow, planned, self._clock.now(), sending.trace_context)
            sending.sent(list(ids.values()))
        return {each.name: ids[each.name] for each in given}

    def _planned(self, each: Step) -> Planned:
        options = {"priority": each.priority, "at": each.at, "delay": each.delay}
        return Planned(each.name, self._request(each.worker, each.payload, **options), each.after, each.if_failed)

    def _refuse_diversion(self) -> None:
        if self._diversion is not None:
            raise Refused("a simulation has no batches and no flows: only triggers are simulated")
