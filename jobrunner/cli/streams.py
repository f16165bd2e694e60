"""Arguments and standard files as they may be: closed, full, given up by their reader, of any encoding.

Whatever the locale, what cannot be written in its encoding is escaped, and what was typed is read as UTF-8. A closed
file is replaced by one that swallows everything, so that no database gets its number.
"""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from jobrunner.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

_WRITING = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF}
_STANDARD = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))


def prepare() -> None:
    """Make the three standard files usable, whatever this process was given."""
    for number, (name, mode) in enumerate(_STANDARD):
        if getattr(sys, name) is None:
            _hold(number)
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115 - kept
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:  # else a program has put something of its own there
            reconfigure(errors="backslashreplace")


def _hold(number: int) -> None:
    """Let a standard file's number be in use."""
    try:
        os.fstat(number)
    except OSError:
        opened = os.open(os.devnull, os.O_RDWR)
        if opened != number:
            os.dup2(opened, number)
            os.close(opened)


def read_arguments(arguments: Iterable[str]) -> list[str]:
    """Return the arguments as the UTF-8 text they are, also where the locale's encoding could not read them.

    Raises:
        UsageError: one is no UTF-8 text.
    """
    return [_text(argument) for argument in arguments]


def _text(argument: str) -> str:
    try:
        argument.encode()
    except UnicodeEncodeError:
        try:
            argument = os.fsencode(argument).decode()
        except UnicodeError:
            shown = argument.encode(errors="backslashreplace").decode()
            raise UsageError(f"an argument is not UTF-8 text: {shown}") from None
    if "\0" in argument:
        raise UsageError(f"an argument holds a NUL character: {argument}")
    return argument


def is_of_output(error: OSError) -> bool:
    """Say whether an error that nobody has told is one of writing to a standard file: of a named file it is not."""
    return error.filename is None and error.errno in _WRITING


def is_output_broken() -> bool:
    """Say whether standard output takes no more: it is full, or its reader has gone."""
    try:
        sys.stdout.flush()
    except OSError:
        return True
    return False


def let_go_of_output() -> None:
    """Give up standard output: Python flushes it once more at exit, and that must have somewhere to go."""
    with suppress(OSError, ValueError):
        number = sys.stdout.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, number)
        os.close(nowhere)
