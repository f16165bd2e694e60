"""What a handler forks, on both databases: the copy takes no part in the node, and the node none in the copy."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import stat
import sys
import threading
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest

from jobrunner.runtime import forks
from jobrunner.runtime.executors.guards import Line
from jobrunner.runtime.executors.process import ProcessPool
from jobrunner.storage.database import forks as files
from jobrunner.telemetry import events as e
from tests.runtime.conftest import House
from tests.runtime.test_process import PROCESS, document
from tests.support import tasks

TRIGGERED: dict[str, Any] = {"execution_mode": "triggered", "max_retries": 0}


async def result_of(house: House, handler: Any, **options: Any) -> Any:
    """Run a handler in a new node, then another in the same, and return what the first returned."""
    orchestrator = house.orchestrator()
    orchestrator.register_worker("it", handler, **{**TRIGGERED, **options})
    orchestrator.register_worker("proof", _proof, **TRIGGERED)
    await orchestrator.start()
    await orchestrator.trigger_worker("it")
    await house.attempts(1, "it")
    await orchestrator.trigger_worker("proof")
    await house.attempts(1, "proof")
    (row,) = await house.history("it")  # a second one would be the copy's
    assert row["outcome"] == "succeeded", row["traceback"]
    return document(row["result"])


async def _proof() -> None: ...


def exit_code(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def forked(body: Any) -> int:
    """Fork, call `body` in the copy, and return the copy's exit code."""
    pid = os.fork()
    if pid == 0:
        code = 99
        with contextlib.suppress(BaseException):
            code = body()
        os._exit(code)
    return exit_code(pid)


async def test_a_signal_for_a_copy_is_the_copys_in_a_program_that_has_a_node_and_handlers_of_its_loop(house: House):
    taken: list[int] = []
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, taken.append, 1)
    try:
        assert await result_of(house, tasks.fork_often, timeout_seconds=100) == [-signal.SIGTERM] * 10
        assert taken == []
        os.kill(os.getpid(), signal.SIGTERM)
        await house.until(lambda: taken)  # its own still arrives
    finally:
        loop.remove_signal_handler(signal.SIGTERM)


async def test_a_signal_for_a_copy_of_a_pool_process_is_the_copys(house: House):
    assert await result_of(house, tasks.fork_often, isolation="process", timeout_seconds=100) == [-signal.SIGTERM] * 10


async def test_a_copy_in_a_thread_has_no_handler_of_the_loop_and_keeps_the_programs_own(house: House):
    def own(*_: Any) -> None: ...

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, print)
    before = signal.signal(signal.SIGUSR1, own)

    def look() -> int:
        is_reset = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL and signal.set_wakeup_fd(-1) == -1
        is_open = not signal.pthread_sigmask(signal.SIG_BLOCK, ())
        return 0 if is_reset and is_open and signal.getsignal(signal.SIGUSR1) is own else 1

    try:
        assert await result_of(house, _in_copy(look)) == 0
        assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
        signal.signal(signal.SIGUSR1, before)


def _in_copy(body: Any) -> Any:
    def handler() -> int:
        return forked(body)

    return handler


def sockets() -> set[str]:
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.add(str(entry.readlink()))
    return {name for name in found if name.startswith("socket:")}


async def test_a_copy_has_no_connection_of_the_node(house: House):
    others = sockets()
    line = Line()

    def look() -> int:
        return len(sockets() - others)

    ours: list[set[str]] = []

    def handler() -> int:
        ours.append(sockets() - others)
        return forked(look)

    assert await result_of(house, handler) == 0
    assert len(ours[0]) >= 2  # there was something to share: the line, the loops' own, connections
    line.close()


async def test_a_copy_that_says_goodbye_on_the_nodes_connections_is_not_heard(house: House):
    def goodbye() -> int:
        for connection in list(files._private):
            with contextlib.suppress(Exception):
                connection._transport.write(b"X\0\0\0\4")  # Terminate, in PostgreSQL's protocol
                connection.terminate()
        for connection in list(files._unclosed):
            with contextlib.suppress(Exception):
                del connection._connection
        return 0

    assert await result_of(house, _in_copy(goodbye)) == 0
    assert not [event for event in house.seen if isinstance(event, e.Warned)]


async def test_a_copy_that_leaves_the_handler_ends_with_its_code_and_the_node_goes_on(house: House):
    async def inline() -> int:
        pid = os.fork()
        if pid == 0:
            sys.exit(3)
        return exit_code(pid)

    def threaded() -> int:
        pid = os.fork()
        if pid == 0:
            sys.exit(4)
        return exit_code(pid)

    assert await result_of(house, inline) == 3
    orchestrator = house.orchestrator()
    orchestrator.register_worker("threaded", threaded, **TRIGGERED)
    await orchestrator.start()
    await orchestrator.trigger_worker("threaded")
    await house.attempts(1, "threaded")
    assert document((await house.history("threaded"))[0]["result"]) == 4


async def test_a_copy_that_comes_back_to_the_nodes_loop_ends_there(house: House):
    async def handler() -> int:
        pid = os.fork()
        if pid == 0:
            await asyncio.sleep(0)
            os._exit(1)
        return exit_code(pid)

    assert await result_of(house, handler) == forks.CAME_BACK


async def test_a_copy_that_comes_back_in_a_pool_process_answers_for_nobody(house: House):
    orchestrator = house.orchestrator()
    orchestrator.register_worker("it", tasks.fork_and_return, **PROCESS)
    await orchestrator.start()
    for count in (1, 2):
        await orchestrator.trigger_worker("it")
        await house.attempts(count)
    first, second = [document(row["result"]) for row in await house.history()]
    assert first == second  # the process itself answered, both times, and is used again


async def test_a_loop_that_a_handler_kept_in_a_pool_process_disturbs_no_later_fork(house: House):
    orchestrator = house.orchestrator()
    orchestrator.register_worker("keeps", tasks.keep_the_loop, **PROCESS)
    orchestrator.register_worker("forks", tasks.fork_and_return, **PROCESS)
    await orchestrator.start()
    for worker in ("keeps", "forks"):
        await orchestrator.trigger_worker(worker)
        await house.attempts(1, worker)
    (row,) = await house.history("forks")
    assert (row["outcome"], row["output"]) == ("succeeded", None)


def test_a_closed_loop_that_is_still_protected_disturbs_no_fork(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "unraisablehook", lambda _: os._exit(98))  # here what goes wrong at a fork is told
    loop = asyncio.new_event_loop()
    forks.protect(loop)
    loop.close()
    assert forked(lambda: 0) == 0
    forks.unprotect(loop)


def test_a_copy_does_not_hold_the_fork_servers_line_to_the_node():
    pool = ProcessPool()
    pool.warm([])
    alive = forkserver._forkserver._forkserver_alive_fd
    assert stat.S_ISFIFO(os.fstat(alive).st_mode)
    assert forked(lambda: int(stat.S_ISFIFO(os.fstat(alive).st_mode))) == 0
    pool.close()


async def test_a_copy_that_asks_the_node_for_something_is_told_that_it_is_not_there(house: House):
    orchestrator = house.orchestrator()

    def ask() -> int:
        try:
            orchestrator.trigger_sync("it")
        except RuntimeError:
            return 5
        return 6

    orchestrator.register_worker("it", _in_copy(ask), **TRIGGERED)
    await orchestrator.start()
    await orchestrator.trigger_worker("it")
    await house.attempts(1)
    (row,) = await house.history()
    assert document(row["result"]) == 5


def test_without_a_node_a_fork_is_left_alone():
    def handler(*_: Any) -> None: ...

    before = signal.signal(signal.SIGTERM, handler)
    try:
        assert forked(lambda: int(signal.getsignal(signal.SIGTERM) is not handler)) == 0
    finally:
        signal.signal(signal.SIGTERM, before)


def test_forks_in_many_threads_leave_every_mask_as_it_was():
    loop = asyncio.new_event_loop()
    forks.protect(loop)
    masks: list[Any] = []

    def body() -> None:
        for _ in range(5):
            assert forked(lambda: 0) == 0
        masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, ()))

    threads = [threading.Thread(target=body) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    forks.unprotect(loop)
    loop.close()
    assert masks == [set()] * 4
