"""What systemd is told: by its protocol, and only where it asks."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from jobrunner.runtime.service_manager import ServiceManager
from tests.support.cluster import ROOT, until


@pytest.fixture
def listener(tmp_path: Path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(60)
        yield sock


def heard(listener: socket.socket) -> str:
    return listener.recv(1000).decode()


def nothing_more(listener: socket.socket) -> bool:
    listener.setblocking(False)
    try:
        listener.recv(1000)
    except BlockingIOError:
        return True
    return False


def test_it_hears_what_the_node_does(listener: socket.socket):
    manager = ServiceManager.of({"NOTIFY_SOCKET": listener.getsockname()})
    manager.ready()
    manager.alive()
    manager.alive()  # not so soon again
    manager.stopping()
    assert [heard(listener) for _ in range(3)] == ["READY=1", "WATCHDOG=1", "STOPPING=1"]
    assert nothing_more(listener)


@pytest.mark.skipif(sys.platform != "linux", reason="abstract sockets are Linux's")
def test_an_abstract_socket_is_one_too():
    name = f"jobrunner-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"\0{name}")
        sock.settimeout(10)
        ServiceManager.of({"NOTIFY_SOCKET": f"@{name}"}).ready()
        assert heard(sock) == "READY=1"


@pytest.mark.parametrize("address", ["", "/nowhere/at/all", "no-address", "vsock:2:1"])
def test_an_address_that_cannot_be_used_is_no_error(address: str):
    manager = ServiceManager.of({"NOTIFY_SOCKET": address})
    manager.ready()
    manager.alive()


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, 5.0),
        ({"WATCHDOG_USEC": "2000000"}, 0.5),
        ({"WATCHDOG_USEC": "2000000", "WATCHDOG_PID": "1"}, 5.0),
        ({"WATCHDOG_USEC": "2000000", "WATCHDOG_PID": str(os.getpid())}, 0.5),
        ({"WATCHDOG_USEC": "600000000"}, 5.0),
        ({"WATCHDOG_USEC": "x"}, 5.0),
    ],
)
def test_the_watchdog_is_fed_four_times_as_often_as_it_needs(environ: dict[str, str], seconds: float):
    assert ServiceManager.of({"NOTIFY_SOCKET": "/x", **environ})._alive_seconds == seconds


def test_a_node_says_that_it_is_ready_ticks_and_stops_and_nothing_while_its_loop_is_blocked(
    listener: socket.socket, tmp_path: Path
):
    (tmp_path / "blocks.py").write_text(
        "import time\n"
        "from pathlib import Path\n"
        "from jobrunner import WorkerOrchestrator\n"
        "orchestrator = WorkerOrchestrator(tick_interval=0.2, lease=3)\n"
        "@orchestrator.worker('rude', execution_mode='triggered', max_retries=0)\n"
        "async def rude():\n"
        "    while not Path('go on').exists():\n"
        "        time.sleep(0.05)\n"
    )
    url = f"sqlite:///{tmp_path}/jobrunner.db"
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "JOBRUNNER_DATABASE_URL": url}
    watched = {"NOTIFY_SOCKET": listener.getsockname(), "WATCHDOG_USEC": "400000"}
    command = [sys.executable, "-m", "jobrunner"]
    with (tmp_path / "log").open("wb") as log:
        node = subprocess.Popen([*command, "run", "blocks"], cwd=tmp_path, env={**environ, **watched}, stderr=log)
    try:
        first = [heard(listener) for _ in range(3)]
        assert sorted(set(first)) == ["READY=1", "WATCHDOG=1"]
        subprocess.run([*command, "trigger", "rude"], cwd=tmp_path, env=environ, check=True, stdout=subprocess.DEVNULL)
        until(lambda: "its loop is blocked, by the code of rude" in (tmp_path / "log").read_text(), what="it is told")
        while not nothing_more(listener):
            pass
        listener.settimeout(1.5)
        with pytest.raises(TimeoutError):
            heard(listener)
        (tmp_path / "go on").touch()
        listener.settimeout(60)
        assert heard(listener) == "WATCHDOG=1"
        node.send_signal(signal.SIGTERM)
        while (said := heard(listener)) != "STOPPING=1":
            assert said == "WATCHDOG=1"
        assert node.wait(60) == 0
    finally:
        node.kill()
        node.wait()
