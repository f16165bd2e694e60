"""Handlers for isolation `process`: at the top level of a module that a child can import."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobrunner import Discard, RetryAfter, RunContext, Snooze

SLEEPER = [sys.executable, "-c", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(3600)"]


def _note(folder: str, *pids: int) -> None:
    """Tell the test who was there."""
    for pid in pids:
        Path(folder, str(pid)).touch()


def spin(folder: str) -> None:
    _note(folder, os.getpid())
    while True:
        pass


def sleep(folder: str) -> None:
    _note(folder, os.getpid())
    time.sleep(3600)


def stubborn(folder: str) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _note(folder, os.getpid())
    while True:
        time.sleep(1)


def swallow(folder: str) -> None:
    _note(folder, os.getpid())
    while True:
        try:
            time.sleep(1)
        except BaseException:
            pass


def parent(folder: str) -> None:
    """A child, one in a session of its own, and a grandchild of that which nobody is the parent of any more."""
    near = subprocess.Popen(SLEEPER)
    far = subprocess.Popen(SLEEPER, start_new_session=True)
    script = (
        f"import os, subprocess; p = subprocess.Popen({SLEEPER!r}, start_new_session=True, stdout=-3); print(p.pid)"
    )
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, check=True)
    _note(folder, os.getpid(), near.pid, far.pid, int(done.stdout))
    time.sleep(3600)


def hog() -> None:
    kept = []
    while True:
        kept.append(bytearray(8 * 1024 * 1024))


def segfault() -> None:
    print("before the crash")
    ctypes.string_at(0)


def leave() -> None:
    print("no flush", end="")
    os._exit(7)


def kill_me() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def pid() -> int:
    return os.getpid()


def add(a: int, b: int = 1) -> int:
    return a + b


def lines(count: int) -> None:
    for number in range(count):
        print(number)


def talk(run: RunContext) -> dict[str, Any]:
    run.log("logged")
    print("printed")
    os.write(1, b"raw \xff\xfe bytes\n")
    os.write(2, b"to stderr\n")
    sys.stdout.write("no end of line")
    run.progress(0.5, "half")
    return {"big": "x" * 60_000}


def late_words() -> str:
    print("y" * 100_000)
    return "z" * 60_000


async def asynchronous(run: RunContext, a: int) -> dict[str, Any]:
    await asyncio.sleep(0.01)
    return {"a": a, "worker": run.worker, "attempt": run.attempt, "deadline": run.deadline.isoformat()}


def give_up() -> None:
    raise Discard("no such customer")


class OurDiscard(Discard):
    pass


def give_up_our_way() -> None:
    raise OurDiscard("ours")


def snooze() -> None:
    raise Snooze(1234.5, "not now")


def retry_after() -> None:
    raise RetryAfter(4321, "busy")


class Awkward(Exception):
    """Does not unpickle: its constructor wants two arguments."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"awkward {a} {b}")


def awkward() -> None:
    raise Awkward(1, 2)


class Unreadable:
    def __reduce__(self) -> Any:
        return (_explode, ())


def _explode() -> None:
    raise RuntimeError("does not unpickle")


def returns_what_does_not_unpickle() -> Any:
    return Unreadable()


def returns_a_lambda() -> Any:
    return lambda: 1


def sets_result(run: RunContext) -> None:
    run.set_result({"set": True})


@dataclass
class Address:
    street: str
    number: int


def nested(home: Address, others: list[Address]) -> str:
    return f"{home.street} {home.number} {len(others)}"


def leaves_a_child(folder: str) -> int:
    child = subprocess.Popen(SLEEPER, start_new_session=True)
    _note(folder, child.pid)
    return os.getpid()


def lazy() -> Any:
    return (number for number in range(3))


class Mute(Exception):
    def __str__(self) -> str:
        raise SystemExit("I cannot even say what is wrong")


def raise_mute() -> None:
    raise Mute


def until_signalled() -> str:
    try:
        print("ready", flush=True)
        time.sleep(3600)
    except SystemExit:
        pass
    return "half"
