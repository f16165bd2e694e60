"""Programs: real processes running `jobrunner run`, killed for real, and the command line beside them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_SECONDS = 30.0


class Program:
    """A folder with a worker file `work.py`, a database, and the processes started on them."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.url = url
        self.log = folder / "log"
        self._processes: list[subprocess.Popen[bytes]] = []

    def write(self, source: str) -> None:
        (self.folder / "work.py").write_text(source)

    def start(self, *options: str, **environ: str) -> subprocess.Popen[bytes]:
        """Start `jobrunner run work`; its output goes to `log`."""
        command = [sys.executable, "-m", "jobrunner", "run", "work", *options]
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                command, cwd=self.folder, env=self._environ(environ), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self._processes.append(process)
        return process

    def _environ(self, more: dict[str, str]) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(ROOT), "JOBRUNNER_DATABASE_URL": self.url, **more}

    def ask(self, *arguments: str) -> Any:
        """Run a command of the command line to its end, and return the JSON it prints, if it was asked for."""
        done = subprocess.run(
            [sys.executable, "-m", "jobrunner", *arguments],
            cwd=self.folder,
            env=self._environ({}),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"{arguments}: {done.stderr}"
        return json.loads(done.stdout) if "--json" in arguments else done.stdout

    def until(self, is_so: Callable[[], Any], process: subprocess.Popen[bytes] | None = None) -> Any:
        """Wait until `is_so()`, while `process` runs; return what it gave."""
        give_up = time.monotonic() + PATIENCE_SECONDS
        while not (found := is_so()):
            assert time.monotonic() < give_up, f"never happened; the log: {self.said()[-3000:]}"
            assert process is None or process.poll() is None, f"the program has ended: {self.said()[-3000:]}"
            time.sleep(0.02)
        return found

    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def end(self, process: subprocess.Popen[bytes], number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and return the exit code."""
        process.send_signal(number)
        return process.wait(PATIENCE_SECONDS)

    def close(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.kill()
                process.wait()


@pytest.fixture
def program(tmp_path: Path, database_url: str) -> Iterator[Program]:
    folder = tmp_path / "program"
    folder.mkdir()
    program = Program(folder, database_url)
    yield program
    program.close()
