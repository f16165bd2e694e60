"""Log records as JSON, one object a line, for programs that collect logs: `jobrunner run --log-format json`.

A record of jobrunner's own is an event, with its fields; any other is the event `log`. What the code of a run logs
carries the run's fields, too. `log_line.schema.json`, beside this file, says what a line may hold.

A program that sets up logging itself takes `JsonLines` as the formatter of a handler of its own. Where records are
written by another thread than the one that logs (`QueueHandler`), the handler that takes them needs `RunFields` as a
filter: it notes on the record whose it is.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

from jobrunner.telemetry.current import current_run
from jobrunner.telemetry.event_fields import EVENT_FIELDS, run_fields, show_moment

_OURS = "jobrunner"
_NOTED = "jobrunner_run"
_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName", _NOTED}
_write = json.JSONEncoder(allow_nan=False).encode


class RunFields(logging.Filter):
    """Notes on each record which run's code has made it; lets all pass."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Note it."""
        setattr(record, _NOTED, current_run.get())
        return True


class JsonLines(logging.Formatter):
    """Writes a record as a line of JSON, whatever it holds. Characters beyond ASCII are escaped."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        line: dict[str, Any] = {
            "ts": show_moment(datetime.fromtimestamp(record.created, UTC)),
            "level": record.levelname,
            "event": "log",
            "logger": record.name,
            "message": _message(record),
        }
        said = record.__dict__
        if record.name == _OURS and "event" in said:
            line["event"] = said["event"]
            line |= {name: said[name] for name in EVENT_FIELDS if name in said}
        else:
            line |= _run_of(record)
            extra = {name: _plain(value) for name, value in said.items() if name not in _STANDARD}
            line |= {"extra": extra} if extra else {}
        if record.exc_info and record.exc_info[1] is not None:
            line |= self._error(record.exc_info[1], record.exc_info)
        return _write(line)

    def _error(self, error: BaseException, told: Any) -> dict[str, str]:
        return {
            "error_type": type(error).__name__,
            "error": _shown(error),
            "traceback": _shown(_Traceback(self, told)),
        }


class _Traceback:
    """A traceback that is written when it is asked for, since that may raise."""

    def __init__(self, formatter: logging.Formatter, told: Any) -> None:
        self._formatter, self._told = formatter, told

    def __str__(self) -> str:
        return self._formatter.formatException(self._told)


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception as error:  # noqa: BLE001 - the arguments do not fit the message, or cannot say what they are
        return f"<a record that cannot be written: {type(error).__name__}>"


def _run_of(record: logging.LogRecord) -> dict[str, Any]:
    known = getattr(record, _NOTED, None) or current_run.get()
    if known is None:
        return {}
    return {name: value for name, value in run_fields(*known).items() if value is not None}


def _plain(value: Any) -> Any:
    """Return what a program has put into `extra=`, as JSON, or as what it says of itself."""
    try:
        return json.loads(_write(value))
    except Exception:  # noqa: BLE001 - an object of the program's own
        return _shown(value)


def _shown(value: object) -> str:
    try:
        return str.__str__(str(value))
    except Exception:  # noqa: BLE001 - a broken __str__
        return f"<an object of type {type(value).__name__} that cannot say what it is>"


class JsonHandler(logging.StreamHandler[Any]):
    """Writes records to standard error as lines of JSON; also lines that a process of the node's has made already."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)
        self.setFormatter(JsonLines())

    def relay(self, line: str) -> None:
        """Write a line that another process has made."""
        with self.lock:  # type: ignore[union-attr]  # every handler has one
            try:
                self.stream.write(line + self.terminator)
                self.flush()
            except (OSError, ValueError):  # standard error is closed: nobody is there to be told
                return


def installed() -> JsonHandler | None:
    """Return the handler that writes this process's log as JSON, if the command line has put one on the root logger."""
    return next((handler for handler in logging.getLogger().handlers if isinstance(handler, JsonHandler)), None)
