"""Which run the code that logs belongs to: a context variable, set where the code of an attempt is started.

Code inherits it by `await`, by tasks and by `asyncio.to_thread`; a thread that a handler starts with `threading.Thread`
inherits no context.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jobrunner.model.run import Run
    from jobrunner.telemetry.tracing import TraceIds

current_run: ContextVar[tuple[Run, TraceIds | None] | None] = ContextVar("jobrunner_current_run", default=None)
"""The attempt's run as claimed, and its trace where there is one."""
