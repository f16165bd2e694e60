"""`jobrunner run --reload`, for developing: a node that starts again whenever a Python file of the folder changes.

The node is a process of its own, so that it imports everything anew. It is told to stop as by any SIGTERM: running work
ends first. One that has ended by itself, since its module cannot be imported, say, is started with the next change.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobrunner.cli.context import given_url
from jobrunner.cli.output import note
from jobrunner.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import typer

_LOOK_MILLISECONDS = 200


def run_reloading(ctx: typer.Context, database_url: str | None) -> int:
    """Run the command of `ctx` without its `--reload`, again and again, until told to stop; return its exit code.

    Raises:
        UsageError: the package `watchfiles` is not installed.
    """
    try:
        import watchfiles  # noqa: PLC0415 - an extra
    except ImportError:
        raise UsageError("--reload needs watchfiles; `pip install 'jobrunner[reload]'` installs it") from None
    url = given_url(ctx, database_url)
    named = {} if url is None else {"JOBRUNNER_DATABASE_URL": url}  # not among the arguments, which all may read
    reloader = _Reloader(_arguments(ctx), {**os.environ, **named})
    with reloader.signals():
        changes = watchfiles.watch(
            Path.cwd(),
            watch_filter=watchfiles.PythonFilter(),
            stop_event=reloader.stop_asked,
            rust_timeout=_LOOK_MILLISECONDS,
            yield_on_timeout=True,
            raise_interrupt=False,
        )
        for changed in changes:
            reloader.look({path for _, path in changed})
        return reloader.end()


def _arguments(ctx: typer.Context) -> list[str]:
    """Return the arguments as they were given, but for those that are not the node's."""
    given: list[str] = []
    for parameter in ctx.command.params:
        name = str(parameter.name)
        source = ctx.get_parameter_source(name)
        if name in {"reload", "database_url"} or source is None or source.name != "COMMANDLINE":
            continue
        value: Any = ctx.params[name]
        if parameter.param_type_name == "argument":
            given.append(str(value))
        elif value is True:
            given.append(parameter.opts[0])
        else:
            several = value if isinstance(value, list | tuple) else [value]
            given += [f"{parameter.opts[0]}={each}" for each in several]
    return given


class _Reloader:
    """The node's process, and what is known of it."""

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        self.stop_asked = threading.Event()
        self._command = [sys.executable, "-m", "jobrunner", "run", *arguments]
        self._environment = environment
        self._node: subprocess.Popen[bytes] | None = None
        self._is_told_of = False

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Pass on what this process is sent to the node, inside the block, and leave it at that."""

        def pass_on(_number: int, _frame: object) -> None:
            self.stop_asked.set()
            self._tell()

        before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def look(self, changed: set[str]) -> None:
        """Start the node if there is none yet, or if files have changed; say once that it has ended by itself."""
        if self.stop_asked.is_set():
            return
        if self._node is None:
            self._start()
        elif changed:
            names = sorted(os.path.relpath(path) for path in changed)
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            note(f"{names[0]}{more} changed; the node starts again")
            self._tell()
            self._node.wait()
            if not self.stop_asked.is_set():
                self._start()
        elif self._node.poll() is not None and not self._is_told_of:
            self._is_told_of = True
            note(f"the node has ended with exit code {self._node.returncode}; it starts again with the next change")

    def _start(self) -> None:
        # In a group of its own: else a terminal's Ctrl-C would reach it twice, and a second one stops at once.
        self._node = subprocess.Popen(self._command, env=self._environment, process_group=0)  # noqa: S603 - this very program
        self._is_told_of = False

    def _tell(self) -> None:
        if self._node is not None:
            with suppress(ProcessLookupError):
                self._node.terminate()

    def end(self) -> int:
        """Wait for the end of a node that was told to stop; return its exit code, 0 of one that had ended before."""
        if self._node is None or self._is_told_of:
            return 0
        code = self._node.wait()
        return code if code >= 0 else 1
