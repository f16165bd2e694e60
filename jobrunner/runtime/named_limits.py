"""The named limits of an orchestrator: declared in code, and changed as an operator does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jobrunner.errors import InvalidSetting, Refused
from jobrunner.policy.arguments import check_actor, check_reason, check_text
from jobrunner.policy.named_limits import check_limit
from jobrunner.runtime.operator import API, Operator
from jobrunner.storage.workers import named_limits as store

if TYPE_CHECKING:
    from jobrunner.model.named_limit import LimitConfig


class NamedLimits(Operator):
    """The part of `WorkerOrchestrator` that knows limits which workers share."""

    @property
    def limits(self) -> dict[str, LimitConfig]:
        """The named limits declared on this orchestrator, by name."""
        return dict(self._limits)

    def limit(self, name: str, *, max_running: int | None = None, rate: str | None = None) -> LimitConfig:
        """Declare a limit that workers share: those that name it by `limits=[name]`.

        At most `max_running` runs of them are active, and in no window of the rate's length do more than so many
        attempts start (`rate="100/1m"`), on all nodes. It is stored with the workers, before them; what operators have
        set stays.

        Raises:
            InvalidSetting: a value cannot be used, neither is given, or the name is declared otherwise already.
            Refused: the orchestrator has started.
        """
        limit = check_limit(name, max_running, rate)
        if self._node is not None:
            raise Refused("the orchestrator has started; declare limits before")
        if self._limits.get(limit.name, limit) != limit:
            raise InvalidSetting(f"limit {name!r} is declared already, with other values; declare it once")
        self._limits[limit.name] = limit
        return limit

    async def set_limit(
        self, name: str, *, actor: str = API, reason: str | None = None, is_new: bool = False, **values: Any
    ) -> LimitConfig:
        """Lay `max_running` or `rate` over a limit's definition, which no deploy undoes; return what holds now.

        None lifts it. What runs beyond a limit that was lowered may end. With `is_new` a limit that is not there is
        made.

        Raises:
            LimitNotFound: the database knows no such limit.
            InvalidSetting: an argument cannot be used; nothing was changed.
        """
        who = _checked(name, actor, reason)
        now = self._clock.now()
        return (await self._change(lambda db: store.set_limit(db, name, values, now, who, reason, is_new=is_new))).after

    async def unset_limit(self, name: str, *fields: str, actor: str = API, reason: str | None = None) -> LimitConfig:
        """Take overrides of a limit away, so that what the code says holds again; return what holds now.

        Raises:
            LimitNotFound: the database knows no such limit.
            Refused: one of the fields has no override; nothing was changed.
            InvalidSetting: an argument cannot be used.
        """
        who = _checked(name, actor, reason)
        distinct = list(dict.fromkeys(check_text("a field", field) for field in fields))
        now = self._clock.now()
        return (await self._change(lambda db: store.unset_limit(db, name, distinct, now, who, reason))).after


def _checked(name: str, actor: str, reason: str | None) -> str:
    check_text("name", name)
    check_reason(reason)
    return check_actor("actor", actor)
