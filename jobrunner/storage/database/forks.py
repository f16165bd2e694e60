"""What a process that forks from this one must not share: connections in use, and lines to others.

A handler may fork without knowing (`multiprocessing` with the context `fork`, a library). The copy has all our open
files, and may end through code that says goodbye to the database on the parent's connection, or hold a line open whose
closing tells others that the node has ended. So in the copy those files become `/dev/null`: their numbers stay taken,
whoever uses or closes them harms nobody, and nothing is said to the other side.

SQLite's connections are not closed in the copy, whatever becomes of the objects: closing one rolls back in memory that
the parent shares.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import weakref
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_private: weakref.WeakKeyDictionary[Any, Callable[[Any], int]] = weakref.WeakKeyDictionary()
_unclosed: weakref.WeakKeyDictionary[Any, Callable[[Any], object]] = weakref.WeakKeyDictionary()


def keep_private(owner: Any, fileno: Callable[[Any], int]) -> None:
    """Give no fork the file that `fileno(owner)` names: a number below 0, or an error, once it is closed."""
    _private[owner] = fileno


def keep_unclosed(owner: Any, held: Callable[[Any], object]) -> None:
    """Have no fork destroy what `held(owner)` returns."""
    _unclosed[owner] = held


def silence(number: int) -> None:
    """Make an open file of this process `/dev/null`."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    try:
        os.dup2(nowhere, number, inheritable=False)
    finally:
        os.close(nowhere)


def _in_child() -> None:
    for owner, fileno in list(_private.items()):
        with contextlib.suppress(Exception):  # closed meanwhile, in one of the ways of its kind
            number = fileno(owner)
            if number >= 0:
                silence(number)
    for owner, held in list(_unclosed.items()):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(held(owner)))


os.register_at_fork(after_in_child=_in_child)
