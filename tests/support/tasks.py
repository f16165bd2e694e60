"""Handlers for isolation `process`: at the top level of a module that a child can import."""

from __future__ import annotations

import asyncio
import ctypes
import io
import logging
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import warnings
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any
from uuid import UUID

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


def nothing() -> None:
    """Do nothing."""


def environment(name: str) -> str | None:
    """Return a variable of this process's environment."""
    return os.environ.get(name)


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


def fork_often(times: int = 10) -> list[int | None]:
    """Fork and terminate at once, as a library may; say how each copy ended."""
    warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of forks beside threads, rightly
    context = multiprocessing.get_context("fork")
    codes = []
    for _ in range(times):
        process = context.Process(target=time.sleep, args=(3600,))
        process.start()
        process.terminate()
        process.join(20)
        codes.append(process.exitcode)
    with context.Pool(2) as pool:
        assert pool.map(abs, [-1, -2]) == [1, 2]
    return codes


async def keep_the_loop() -> None:
    """Leave a loop behind that is closed when this has ended."""
    KEPT.append(asyncio.get_running_loop())


KEPT: list[asyncio.AbstractEventLoop] = []


def fork_and_return() -> int:
    """Come back in a copy of the process, too."""
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
    return os.getpid()


def leave_thread(folder: str) -> int:
    """A thread that goes on printing."""

    def body() -> None:
        while True:
            print("from the thread that was left")
            time.sleep(0.001)

    threading.Thread(target=body, daemon=True).start()
    _note(folder, os.getpid())
    return os.getpid()


def _leave_signal() -> None:
    signal.signal(signal.SIGUSR1, lambda *_: None)


def _leave_stdout() -> None:
    sys.stdout = io.StringIO()


def _leave_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 1, hard))


def _leave_stdout_twice() -> None:
    """What the second stream takes the place of, in memory too, is the first."""
    sys.stdout = io.StringIO()
    print("captured")
    sys.stdout = open(os.devnull, "a")  # noqa: SIM115, PTH123 - left behind


NO_TRACES = ("nothing", "a line by logging")
TRACES: dict[str, Any] = {
    "folder": lambda: os.chdir("/"),
    "umask": lambda: os.umask(0o027),
    "environment": lambda: os.environ.update(LEFT="behind"),
    "signal": _leave_signal,
    "blocked": lambda: signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2}),
    "limit": _leave_limit,
    "stdout": _leave_stdout,
    "stdout-twice": _leave_stdout_twice,
    "reconfigured": lambda: sys.stdout.reconfigure(encoding="latin-1"),  # type: ignore[union-attr]
    "closed": lambda: os.close(0),
    "stdin": lambda: sys.stdin.close(),
    "not blocking": lambda: os.set_blocking(2, False),
    "niceness": lambda: os.nice(1),
    "path": lambda: sys.path.append("/left"),
    "timer": lambda: signal.setitimer(signal.ITIMER_REAL, 3600),
    "its own timer": lambda: signal.setitimer(signal.ITIMER_PROF, 3600),
    "processors": lambda: os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}),
    "log": lambda: logging.getLogger().addHandler(logging.NullHandler()),
    "nothing": lambda: None,
    "a line by logging": lambda: logging.warning("here"),  # noqa: LOG015 - a program's own
}


def leave_trace(what: str) -> int:
    """Change something of the process for good."""
    TRACES[what]()
    return os.getpid()


def crash_with_daemon(folder: str) -> None:
    """Leave a daemon behind that nobody has seen, and end at once."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            _note(folder, os.getpid())
            time.sleep(3600)
        os._exit(0)
    while not list(Path(folder).iterdir()):
        time.sleep(0.001)
    os._exit(9)


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


class Shade(Enum):
    DARK = "dark"


@dataclass(frozen=True)
class Parcel:
    id: UUID
    at: datetime
    weight: Decimal
    shade: Shade = Shade.DARK


def same_parcel(run: RunContext, parcel: Parcel, others: list[Parcel], path: Path) -> dict[str, Any]:
    """Return what was given, in its own types."""
    assert type(parcel) is Parcel
    assert isinstance(path, Path)
    return {"parcel": parcel, "others": others, "path": path, "id": parcel.id, "ids": {parcel.id: parcel.at}}


async def same_parcel_async(run: RunContext, parcel: Parcel, others: list[Parcel], path: Path) -> dict[str, Any]:
    return same_parcel(run, parcel, others, path)


shop = logging.getLogger("tests.shop")


def say(run: RunContext, who: str, times: int = 20) -> None:
    """Log as `who`, now and then, and an error with its traceback."""
    shop.warning("%s begins", who)
    for number in range(times):
        shop.warning("%s %d", who, number)
        shop.info("%s is not let through by the level", who)
        time.sleep(0.002)
    try:
        raise ValueError(f"of {who}")  # noqa: TRY301 - so that there is a traceback
    except ValueError:
        shop.exception("%s failed", who)
    shop.warning("%d", "no number")


async def say_async(run: RunContext, who: str, times: int = 20) -> None:
    async def part(number: int) -> None:
        await asyncio.sleep(0.002)
        shop.warning("%s %d", who, number)

    shop.warning("%s begins", who)
    async with asyncio.TaskGroup() as group:
        for number in range(times):
            group.create_task(part(number))
    await asyncio.to_thread(shop.warning, "%s in a thread", who)
