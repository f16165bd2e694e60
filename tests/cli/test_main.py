from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import typer.main

from jobrunner.cli.log_output import set_up_logging
from jobrunner.cli.main import COMMANDS, app, main

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = [sys.executable, "-m", "jobrunner.cli.main"]


def start(*args, cwd, **options):
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [*PROGRAM, *args], cwd=cwd, env=environ, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
    )


def finish(process):
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def all_commands(command, path=()):
    if not hasattr(command, "commands"):
        yield path, command
        return
    for name in command.commands:
        yield from all_commands(command.commands[name], (*path, name))


EVERY = dict(all_commands(typer.main.get_command(app)))


def test_the_commands_are_those_of_the_contract():
    names = {" ".join(path) for path in EVERY}
    admin = "enable disable pause resume set unset list show add remove cancel nodes audit"
    assert {f"admin {name}" for name in admin.split()} <= names
    assert {f"dead-letters {name}" for name in ["list", "show", "replay", "discard"]} <= names
    assert {f"db {name}" for name in ["upgrade", "current", "check", "downgrade", "prune"]} <= names
    assert {"demo", "run", "status", "runs", "history", "trigger", "explain", "upcoming"} <= names


@pytest.mark.parametrize("path", EVERY, ids=" ".join)
def test_every_command_and_every_option_has_a_help_text(path):
    command = EVERY[path]
    assert command.help
    for parameter in command.params:
        assert getattr(parameter, "help", None), (path, parameter.name)
    names = {name for parameter in command.params for name in parameter.opts}
    if path not in {("demo",), ("init",)}:
        assert "--database-url" in names
    if path[0] in {"status", "runs", "history", "explain", "upcoming"} or path[-1] in {
        "list",
        "show",
        "nodes",
        "audit",
    }:
        assert "--json" in names


@pytest.mark.parametrize("path", [path for path in EVERY if path[0] in {"admin", "dead-letters"}], ids=" ".join)
def test_every_change_takes_an_actor(path):
    names = {name for parameter in EVERY[path].params for name in parameter.opts}
    assert ("--actor" in names) is (path[-1] not in {"list", "show", "nodes"})  # the audit log is narrowed by it


def test_the_list_of_commands_says_what_their_own_help_says():
    group = typer.main.get_group(app)
    for name, (_, text) in COMMANDS.items():
        command = group.commands[name]
        assert (command.help or "").splitlines()[0] == text


@pytest.mark.parametrize("args", [("--help",), ("admin", "--help"), ("trigger", "--help"), ()])
def test_help_goes_to_standard_output(args, capsys):
    assert main(list(args)) == 0
    assert "Usage: jobrunner" in capsys.readouterr().out


def test_the_version_is_shown(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("jobrunner ")


def test_help_does_not_wait_for_the_database_library():
    code = "import sys; from jobrunner.cli.main import main; main(['--help']); print('sqlalchemy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_a_fault_of_ours_is_a_traceback(monkeypatch):
    def explode(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr("jobrunner.cli.context.with_database", explode)
    with pytest.raises(ZeroDivisionError):
        main(["status"])


def test_an_interrupt_is_exit_code_130(monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("jobrunner.cli.context.with_database", interrupt)
    assert main(["status"]) == 130


def test_a_reader_that_goes_away_is_no_traceback(sqlite_url, tmp_path):
    read, write = os.pipe()
    os.close(read)
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*PROGRAM, "status", "--database-url", sqlite_url],
        stdout=write,
        stderr=subprocess.PIPE,
        env=environ,
        text=True,
        check=False,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


# --- run ----------------------------------------------------------------------------------------------------------

WORKERS = """
from jobrunner import WorkerOrchestrator

orchestrator = WorkerOrchestrator()


@orchestrator.worker("hello", execution_mode="triggered", max_retries=0)
async def hello(name: str = "you"):
    return {"said": f"hello {name}"}
"""


def test_a_node_runs_what_was_triggered_until_idle(tmp_path):
    (tmp_path / "work.py").write_text(WORKERS)
    assert finish(start("run", "work", "--until-idle", cwd=tmp_path))[0] == 0
    code, out, _ = finish(start("trigger", "hello", "--payload", '{"name": "ann"}', cwd=tmp_path))
    assert (code, out) == (0, "run 1\n")
    code, out, err = finish(start("run", "work:orchestrator", "--until-idle", "--log-level", "debug", cwd=tmp_path))
    assert (code, out) == (0, "")
    assert all(" jobrunner: " in line for line in err.splitlines())
    _, out, _ = finish(start("history", "--json", cwd=tmp_path))
    (row,) = json.loads(out)
    assert (row["outcome"], row["result"]) == ("succeeded", {"said": "hello ann"})


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_node_that_is_told_to_stop_exits_0(tmp_path, number):
    (tmp_path / "work.py").write_text(WORKERS)
    node = start("run", "work", cwd=tmp_path)
    line = node.stderr.readline()
    assert "runs 1 worker " in line, line
    node.send_signal(number)
    assert finish(node)[0] == 0


def test_a_trigger_waits_for_its_run(tmp_path):
    (tmp_path / "work.py").write_text(WORKERS)
    node = start("run", "work", cwd=tmp_path)
    assert "runs 1 worker " in node.stderr.readline()
    code, out, err = finish(start("trigger", "hello", "--wait", cwd=tmp_path))
    assert (code, out.splitlines()[1], err) == (0, "succeeded", "")
    code, out, err = finish(start("trigger", "hello", "--payload", '{"nme": 1}', "--wait", cwd=tmp_path))
    assert (code, out) == (2, "")
    assert "nme: is not known" in err
    node.send_signal(signal.SIGTERM)
    finish(node)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A current folder whose modules are imported, and forgotten after the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


BAD_MODULES = {
    "nothing_here": (None, "there is no module 'nothing_here'"),
    "broken_syntax": ("x = = 1\n", "broken_syntax.py:1: invalid syntax"),
    "broken_code": ("\n\nprint(undefined)\n", "broken_code.py:3: NameError"),
    "broken_import": ("import not_installed_anywhere\n", "broken_import.py:1: ModuleNotFoundError"),
    "leaves": ("raise SystemExit(7)\n", "leaves.py:1: SystemExit: 7"),
    "empty": ("x = 1\n", "holds no WorkerOrchestrator"),
    "several": (
        "from jobrunner import WorkerOrchestrator\na = WorkerOrchestrator()\nb = WorkerOrchestrator()\n",
        "holds several orchestrators: a, b",
    ),
    "bad_cron": (
        "from jobrunner import WorkerOrchestrator as O\no = O()\n@o.worker('x', cron='61 * * * *')\ndef x(): ...\n",
        "bad_cron.py:3: InvalidWorker: worker 'x'",
    ),
}


@pytest.mark.parametrize("module", BAD_MODULES)
def test_a_module_that_cannot_be_used_is_one_line_with_its_place(folder, capsys, module):
    source, words = BAD_MODULES[module]
    if source is not None:
        (folder / f"{module}.py").write_text(source)
    assert main(["run", module]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
    assert not (folder / "jobrunner.db").exists()


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("pair:c", "has no 'c'; it holds a, b"),
        ("pair:x", "of type 'int'; it holds a, b"),
        ("pair:Box.missing", "has no 'Box.missing'"),
        ("pair.py", "give the module's name, pair"),
        ("./pair.py", "give the module's name, pair"),
        ("a b", "no module's name"),
        ("", "no module's name"),
        ("pair.inner", "no module 'pair.inner'"),
    ],
)
def test_an_orchestrator_that_is_not_there_is_one_line(folder, capsys, target, words):
    (folder / "pair.py").write_text(
        "from jobrunner import WorkerOrchestrator\n"
        "a, b, x = WorkerOrchestrator(), WorkerOrchestrator(), 1\nclass Box:\n    inner = a\n"
    )
    assert main(["run", target]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_a_dotted_name_finds_an_orchestrator_within(folder):
    from jobrunner.cli.loading import load_orchestrator

    (folder / "boxed.py").write_text(
        "from jobrunner import WorkerOrchestrator\nclass Box:\n    inner = WorkerOrchestrator()\n"
    )
    assert load_orchestrator("boxed:Box.inner") is sys.modules["boxed"].Box.inner


def test_one_orchestrator_under_two_names_is_one(folder):
    from jobrunner.cli.loading import load_orchestrator

    (folder / "twice.py").write_text("from jobrunner import WorkerOrchestrator\na = b = WorkerOrchestrator()\n")
    assert load_orchestrator("twice") is sys.modules["twice"].a


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--lease", "x"), "--lease: 'x' is no duration"),
        (("--lease", "0"), "lease"),
        (("--tick-interval", "0"), "tick_interval"),
        (("--max-concurrent", "0"), "--max-concurrent"),
        (("--drain-timeout", "-1"), "--drain-timeout"),
        (("--log-level", "LOUD"), "log_level"),
    ],
)
def test_a_bad_setting_of_a_node_is_one_line(folder, capsys, args, words):
    (folder / "fine.py").write_text(WORKERS)
    assert main(["run", "fine", *args]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_a_log_record_is_one_line():
    from jobrunner.cli.log_output import _OneLine

    record = logging.LogRecord("jobrunner", logging.INFO, "f", 1, "first\nsecond \x1b[31m", (), None)
    line = _OneLine("%(asctime)s %(levelname)s %(message)s").format(record)
    assert "\n" not in line
    assert "\x1b" not in line
    assert line.split(" ")[0].endswith("Z")
    assert time.strptime(line[:19], "%Y-%m-%dT%H:%M:%S")


EXHAUSTING = """
import os
import signal

from jobrunner import Discard, WorkerOrchestrator

orchestrator = WorkerOrchestrator()


@orchestrator.worker("sad", execution_mode="triggered", max_retries=1, retry_delay_seconds=0)
async def sad(): raise ValueError("no luck")


@orchestrator.worker("choosy", execution_mode="triggered")
async def choosy(): raise Discard("not worth it")


@orchestrator.worker("fatal", execution_mode="triggered", max_retries=0)
async def fatal(): os.kill(os.getpid(), signal.SIGKILL)


@orchestrator.worker("flaky", execution_mode="triggered", max_retries=1, retry_delay_seconds=0)
async def flaky(run):
    if run.attempt == 1:
        raise ValueError("not yet")
"""


def test_until_idle_has_an_exit_code_of_its_own_when_a_run_was_exhausted(tmp_path):
    (tmp_path / "work.py").write_text(EXHAUSTING)
    node = ("run", "work", "--until-idle")
    assert finish(start(*node, cwd=tmp_path))[0] == 0
    for name in ("choosy", "flaky"):  # discarded by its own code; tried again with success
        finish(start("trigger", name, cwd=tmp_path))
    assert finish(start(*node, cwd=tmp_path))[0] == 0
    finish(start("trigger", "sad", cwd=tmp_path))
    code, _, err = finish(start(*node, cwd=tmp_path))
    assert code == 5
    assert err.splitlines()[-1] == "1 run exhausted; `jobrunner dead-letters list` shows them"
    assert finish(start(*node, cwd=tmp_path))[0] == 0  # an earlier node's are not this one's
    finish(start("trigger", "fatal", cwd=tmp_path))
    assert finish(start(*node, cwd=tmp_path))[0] == -signal.SIGKILL
    code, _, err = finish(start(*node, cwd=tmp_path))  # it takes over what the one before has left
    assert code == 5
    assert "fatal: run 4 lost" in err


def test_the_exit_codes_are_in_the_help(capsys):
    assert main(["run", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "exit 5 if a run was exhausted" in said
    assert "Exits with 0 when it was told to stop" in said


@contextmanager
def bare_logging():
    """The two loggers that `run` may set up, as at the start of a program; afterwards as they were."""
    root, ours = logging.getLogger(), logging.getLogger("jobrunner")
    kept = [(log, log.level, log.handlers[:]) for log in (root, ours)]
    for log, level in ((root, logging.WARNING), (ours, logging.NOTSET)):
        log.handlers[:] = []
        log.setLevel(level)
    try:
        yield root, ours
    finally:
        for log, level, handlers in kept:
            log.setLevel(level)
            log.handlers[:] = handlers


def test_a_program_without_logging_gets_ours():
    with bare_logging() as (root, ours):
        set_up_logging("INFO", is_said=False)
        assert (len(root.handlers), root.level, ours.level) == (1, logging.WARNING, logging.INFO)


@pytest.mark.parametrize("level", [logging.DEBUG, logging.INFO, logging.ERROR])
def test_a_level_of_the_program_stays(level):
    with bare_logging() as (root, ours):
        root.setLevel(level)
        set_up_logging("INFO", is_said=False)
        assert (root.level, ours.level, ours.getEffectiveLevel()) == (level, logging.NOTSET, level)
        assert len(root.handlers) == 1  # a level alone would show nothing


@pytest.mark.parametrize("place", [0, 1])
def test_handlers_of_the_program_stay_alone(place):
    with bare_logging() as loggers:
        loggers[place].addHandler(logging.NullHandler())
        set_up_logging("INFO", is_said=False)
        assert [len(log.handlers) for log in loggers] == [1 - place, place]
        assert [log.level for log in loggers] == [logging.WARNING, logging.NOTSET]


def test_a_level_of_our_logger_that_the_program_has_set_stays_unless_one_is_said():
    with bare_logging() as (root, ours):
        ours.setLevel(logging.ERROR)
        set_up_logging("INFO", is_said=False)
        assert ours.level == logging.ERROR
        root.setLevel(logging.INFO)
        set_up_logging("DEBUG", is_said=True)
        assert (root.level, ours.level) == (logging.INFO, logging.DEBUG)


LOGGING = (
    WORKERS
    + """
import logging
logging.getLogger().setLevel(logging.INFO)
logging.getLogger("app").info("the program says hello")
logging.getLogger("app.work").setLevel(logging.DEBUG)


@orchestrator.middleware
async def log(run, call_next):
    logging.getLogger("app").info("before the run")
    logging.getLogger("app.work").debug("all about it")
    return await call_next()
"""
)


def test_what_a_program_logs_at_its_own_level_is_shown(tmp_path):
    (tmp_path / "work.py").write_text(LOGGING)
    assert finish(start("run", "work", "--until-idle", cwd=tmp_path))[0] == 0
    finish(start("trigger", "hello", cwd=tmp_path))
    for options in ((), ("--log-level", "ERROR")):
        _, _, err = finish(start("run", "work", "--until-idle", *options, cwd=tmp_path))
        if not options:
            assert "INFO app: before the run" in err
            assert "DEBUG app.work: all about it" in err
            assert "INFO jobrunner: node " in err
        else:
            assert "jobrunner: " not in err


LEAVING = """
import psutil
from jobrunner import WorkerOrchestrator
orchestrator = WorkerOrchestrator("sqlite:///leaving.db", max_concurrent=20)
ended = most = 0

@orchestrator.worker("leave", execution_mode="triggered", max_running=20)
def leave():
    global ended, most
    circle = [bytearray(b"x") * 200_000]
    circle.append(circle)
    ended += 1
    if ended % 50 == 0:
        most = max(most, psutil.Process().memory_info().rss)
    if ended == 3000:
        print(most, flush=True)
"""
FILL = """
import asyncio, leaving
async def main():
    await leaving.orchestrator.start()
    await leaving.orchestrator.stop(0.0)
    await leaving.orchestrator.trigger_many("leave", [{} for _ in range(3000)])
    await leaving.orchestrator.stop()
asyncio.run(main())
"""


def test_a_node_collects_what_its_handlers_leave_behind(tmp_path):
    (tmp_path / "leaving.py").write_text(LEAVING)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"}
    subprocess.run([sys.executable, "-c", FILL], cwd=tmp_path, env=environment, check=True, timeout=120)
    code, out, err = finish(start("run", "leaving", "--until-idle", cwd=tmp_path))
    assert code == 0, err
    assert int(out) / 1024 / 1024 < 400  # MiB; they leave 570 in all, and the program alone takes 75
