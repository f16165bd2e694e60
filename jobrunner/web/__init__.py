"""Floor 6: jobrunner over HTTP: probes, metrics, an API. It needs the extra `web`.

`console` makes the ASGI application; `jobrunner serve` and `jobrunner run --http` are servers of their own for it.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from jobrunner.errors import MissingExtra

if not all(map(find_spec, ("starlette", "uvicorn", "jinja2", "prometheus_client"))):
    raise MissingExtra("jobrunner.web", "web")

from jobrunner.web.access import Level
from jobrunner.web.app import Console
from jobrunner.web.desk import Desk, orchestrator_of

if TYPE_CHECKING:
    from jobrunner.runtime.orchestrator import WorkerOrchestrator
    from jobrunner.web.access import Access

__all__ = ["Level", "console"]


def console(orchestrator_or_url: WorkerOrchestrator | str, *, access: Access | None = None) -> Console:
    """Return the ASGI application, to mount at any prefix of FastAPI, Starlette or Django; it needs no lifespan.

    Args:
        orchestrator_or_url: an orchestrator, whose node it shows where one runs in this process, or a database's URL.
        access: `access(request) -> (level, actor)`, a function or coroutine function of Starlette's `Request`: what
            the one who asks may do (`none`, `read`, `operate` or `admin`), and who that is, for the audit log. None:
            by the tokens of the settings (`JOBRUNNER_HTTP_TOKEN` and others), and nothing is open without one.

    Raises:
        InvalidSetting: there is neither `access` nor a token, or a setting cannot be used.
        InvalidDatabaseUrl: the URL cannot be used.
    """
    from jobrunner.web.rules import mounted_rule  # noqa: PLC0415 - only who mounts needs it

    orchestrator = orchestrator_of(orchestrator_or_url)
    rule = mounted_rule(orchestrator.settings, access)
    return Console(Desk(orchestrator), rule)
