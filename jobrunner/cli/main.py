"""The command `jobrunner`: its groups, its errors, its exit codes.

A command's module is imported when the command is used, so that `jobrunner --help` is there at once and a trigger does
not wait for what only the demo needs. What each command does is therefore written here, too, in one line.

Exit codes: 0 ok, 1 failed (an unreachable database, too), 2 usage or bad input, 3 no such worker, run, letter or limit,
4 schema missing, behind, ahead or damaged, 5 a run of `run --until-idle` was exhausted, 130 interrupted. An error is
one line on stderr. A traceback is a fault of jobrunner's, never of its user's.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from collections.abc import Iterator, MutableMapping
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command, get_group

from jobrunner.cli import output, streams
from jobrunner.cli.context import Root
from jobrunner.errors import JobrunnerError, OutputFailed

if TYPE_CHECKING:
    from collections.abc import Sequence

COMMANDS = {
    "demo": ("demo", "Run the bundled example on a fresh SQLite file."),
    "run": ("run", "Start a node: run the workers of MODULE until told to stop."),
    "serve": ("serve", "Answer HTTP for a database: probes, metrics and the API, without a node."),
    "register": ("register", "Write the definitions of MODULE's workers, without running any: for a deploy."),
    "status": ("standing", "Show the workers and how they stand, the worst first, or one of them."),
    "watch": ("watch", "Show how all stands, again and again: what is wrong, runs, has ended, fires next."),
    "runs": ("status", "Show the live runs: those that run, then those that wait."),
    "show": (
        "show",
        "Show all there is about a run, live or ended: its attempts, errors, output, result, and its dead letter.",
    ),
    "history": ("history", "Show what ended, the newest first."),
    "trigger": ("trigger", "Make a run of a worker, now or later."),
    "explain": ("explain", "Show every gate a worker's run must pass, open or shut, and why."),
    "upcoming": ("upcoming", "Show what will fire, in the order of time."),
    "dead-letters": ("dead_letters", "List, show, replay and discard the runs whose attempts are used up."),
    "alerts": ("alerts", "Tell people when something is wrong: rules, incidents, a test."),
    "bulk": ("bulk", "Cancel runs, replay or discard dead letters: all that fit a filter, at a rate."),
    "admin": ("admin", "Change workers and runs; every change is written to the audit log."),
    "init": ("init", "Write files to start from: Grafana dashboards and alert rules."),
    "db": ("db", "Upgrade and check the schema, prune what is old, verify the promises."),
}
GROUPS = frozenset({"dead-letters", "alerts", "bulk", "admin", "db"})
_INTERRUPTED, _BROKEN_PIPE = 130, 1
# The base of all of the argument parser's errors; newer Typers carry a Click of their own.
_ParserError: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


class _Commands(MutableMapping[str, Any]):
    """The root's commands by name; looking one up imports its module."""

    def __getitem__(self, name: str) -> Any:
        module = importlib.import_module(f"jobrunner.cli.{COMMANDS[name][0]}")
        group = get_group(module.app)
        group.name = name
        return group if name in GROUPS else group.commands[name]

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)

    def __setitem__(self, name: str, command: Any) -> None:
        raise TypeError("the commands are those of COMMANDS")

    def __delitem__(self, name: str) -> None:
        raise TypeError("the commands are those of COMMANDS")


class RootGroup(TyperGroup):
    """The root: lists its commands without importing them."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = _Commands()

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 - the parser's signature
        """Return the names of the commands."""
        return list(COMMANDS)

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002 - the parser's signature
        """Write the commands with what each does."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


app = typer.Typer(
    name="jobrunner",
    cls=RootGroup,
    help="A persistent, SQL-backed job runner.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _version(is_wanted: bool) -> None:
    if is_wanted:
        try:
            version = importlib.metadata.version("jobrunner")
        except importlib.metadata.PackageNotFoundError:
            version = "(not installed)"
        typer.echo(f"jobrunner {version}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    ctx: typer.Context,
    database_url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="The database; else JOBRUNNER_DATABASE_URL, else sqlite:///jobrunner.db."),
    ] = None,
    version: Annotated[  # noqa: ARG001 - its callback does it
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Show the version and exit.")
    ] = False,
) -> None:
    """A persistent, SQL-backed job runner."""
    ctx.obj = Root(database_url)
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; `argv` without the program's name, None for the process's own."""
    try:
        streams.prepare()
        arguments = streams.read_arguments(sys.argv[1:] if argv is None else argv)
        result = get_command(app).main(arguments, prog_name="jobrunner", standalone_mode=False)
        sys.stdout.flush()
    except JobrunnerError as error:
        return _fail(str(error), error.exit_code)
    except _ParserError as error:
        return _fail(_with_advice(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return _INTERRUPTED
    except BrokenPipeError:
        streams.let_go_of_output()
        return _BROKEN_PIPE
    except SystemExit as stop:  # the parser's own answer to a broken pipe
        streams.let_go_of_output()
        return stop.code if isinstance(stop.code, int) else _BROKEN_PIPE
    except OSError as error:
        if not streams.is_of_output(error):
            raise
        return _fail(str(OutputFailed(error.strerror or str(error))), OutputFailed.exit_code)
    return result if isinstance(result, int) else 0


def _with_advice(error: Any) -> str:
    message = str(error.format_message()).rstrip(". ")
    path = getattr(getattr(error, "ctx", None), "command_path", "jobrunner")
    return f"{message[:1].lower()}{message[1:]}; see `{path} --help`"


def _fail(message: str, code: int) -> int:
    """Say what is wrong in one line, whatever the message holds."""
    line = " ".join("".join(c if c.isprintable() else " " for c in message).split())
    output.note(line, "error: ")
    if streams.is_output_broken():
        streams.let_go_of_output()
    return code


if __name__ == "__main__":
    sys.exit(main())
