"""`jobrunner serve`: probes, metrics and the API over HTTP, without a node."""

from __future__ import annotations

import typer

from jobrunner.cli import context
from jobrunner.cli.context import DatabaseUrl
from jobrunner.cli.listening import DEFAULT_ADDRESS, HttpAddress, open_server
from jobrunner.cli.log_output import set_up_logging
from jobrunner.runtime.orchestrator import WorkerOrchestrator

app = typer.Typer(rich_markup_mode=None)


@app.command("serve")
def serve(ctx: typer.Context, http: HttpAddress = None, database_url: DatabaseUrl = None) -> None:
    """Answer HTTP for a database: probes, metrics and the API, without a node.

    Without an address it is 127.0.0.1:8484, where reading is open to this machine and writing needs a token. Elsewhere
    nothing opens without one: JOBRUNNER_HTTP_TOKEN, JOBRUNNER_HTTP_OPERATE_TOKEN and JOBRUNNER_HTTP_READ_TOKEN.
    """
    given = context.given_url(ctx, database_url)
    settings = context.load_settings(ctx, given, http=http)
    set_up_logging(settings.log_level, is_said=False, log_format=settings.log_format)
    orchestrator = WorkerOrchestrator(given, http=http)
    server = open_server(orchestrator, settings.http or DEFAULT_ADDRESS, expects_node=False)
    context.run_async(server.serve())
