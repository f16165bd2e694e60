"""What a command that stays (`jobrunner run`) does to logging: nothing that the program has decided itself."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime

from jobrunner.cli.output import note
from jobrunner.telemetry.event_fields import show_moment
from jobrunner.telemetry.json_lines import JsonHandler


class _OneLine(logging.Formatter):
    """`2026-03-01T12:00:00.123Z INFO jobrunner: …`: a record is a line, whatever its message holds."""

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: ARG002, N802 - its name
        """Return the record's time, UTC, to the millisecond."""
        return show_moment(datetime.fromtimestamp(record.created, UTC))

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line; of a traceback, the lines one after the other."""
        lines = super().format(record).splitlines()
        line = " | ".join(line.strip() for line in lines if line.strip())
        return line if line.isprintable() else "".join(c if c.isprintable() else " " for c in line)


def set_up_logging(level: str, *, is_said: bool, log_format: str = "text") -> None:
    """Write log records to stderr, one line each, as far as the program has not set up logging itself.

    A handler of the program's, or a level, is its own decision and stays. `level` is that of jobrunner's logger: the
    usual one where the program has decided nothing, and in any case one that was asked for (`is_said`). `log_format`
    is `text` or `json`.
    """
    log, ours = logging.getLogger(), logging.getLogger("jobrunner")
    has_handlers = bool(log.handlers or ours.handlers)
    has_level = log.level != logging.WARNING or ours.level != logging.NOTSET
    if not has_handlers:
        log.addHandler(_handler(log_format))
    elif log_format == "json":
        note("the program has logging handlers of its own, which stay as they are; jobrunner's JsonLines formats them")
    if is_said or not (has_handlers or has_level):
        ours.setLevel(level)


def _handler(log_format: str) -> logging.Handler:
    if log_format == "json":
        return JsonHandler()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    return handler
