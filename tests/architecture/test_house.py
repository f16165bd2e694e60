"""The rules of the house that no other tool checks."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAX_LINES = 400
MAY_NAME_THE_DIALECT = {
    ROOT / "jobrunner/storage" / name
    for name in (
        "database/dialect.py",
        "database/engine.py",
        "database/rowsets.py",  # the half of the seam that builds row sets
        "tables/types.py",  # columns that read the same on both
        "schema/migrate.py",  # migrations: what Alembic must be told
        "database/database.py",  # `is_sqlite`, which everyone else asks
        "reading/verify.py",  # how the database at hand subtracts times
        "database/callers.py",  # a caller's connection must be to our kind of database
    )
}
BARE_IGNORE = re.compile(r"#\s*(?:ruff:\s*|flake8:\s*)?noqa(?!:\s*[A-Z]+\d)|#\s*type:\s*ignore(?!\[)", re.IGNORECASE)


def sources(*folders: str) -> list[Path]:
    found = sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    assert found, f"no sources in {folders}"
    return found


def lines_matching(pattern: re.Pattern[str], paths: Iterable[Path]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in paths
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if pattern.search(line)
    ]


def test_every_source_file_can_be_read_at_one_sitting():
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in sources("jobrunner")}
    assert {name: length for name, length in lengths.items() if length > MAX_LINES} == {}


def test_only_the_seam_and_the_migrations_ask_which_database_it_is():
    elsewhere = [path for path in sources("jobrunner") if path not in MAY_NAME_THE_DIALECT]
    assert lines_matching(re.compile(r"\bdialect\.name\b"), elsewhere) == []


def test_what_the_fast_path_may_do_is_judged_by_policy_alone_and_is_no_part_of_the_schema():
    texts = sorted((ROOT / "jobrunner/storage/turns").glob("*.py"))
    assert len(texts) > 4
    switches = re.compile(r"is_enabled|paused_until|circuit_state|missed_from|worker_dependencies|worker_blocks")
    assert lines_matching(switches, texts) == []
    assert lines_matching(re.compile("take_turn|turn_taken"), sources("migrations")) == []


def test_nothing_refers_to_a_page_that_whoever_clones_this_does_not_have():
    here = Path(__file__).resolve()
    texts = [path for path in sources("jobrunner", "migrations", "tests") if path != here]
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "pyproject.toml"]
    assert lines_matching(re.compile(r"\bDESIGN\b|\bHOUSE\b|\b[Ii]ssue \d"), [*texts, *pages]) == []


def test_every_ignore_says_which_rule_it_ignores():
    others = [path for path in sources("jobrunner", "migrations", "tests") if path != Path(__file__).resolve()]
    assert lines_matching(BARE_IGNORE, others) == []


@pytest.mark.parametrize(
    ("line", "is_bare"),
    [
        ("x = 1  # noqa", True),
        ("x = 1  # noqa: E501", False),
        ("# ruff: noqa", True),
        ("# ruff: noqa: S101", False),
        ("x = f()  # type: ignore", True),
        ("x = f()  # type: ignore[arg-type]", False),
    ],
)
def test_a_bare_ignore_is_recognised(line, is_bare):
    assert bool(BARE_IGNORE.search(line)) is is_bare


def test_every_script_can_be_executed():
    scripts = [path for path in (ROOT / "scripts").iterdir() if path.is_file()] + [ROOT / ".ci/run"]
    assert [path.name for path in scripts if not os.access(path, os.X_OK)] == []


def test_the_changelog_has_a_place_for_what_is_not_released_yet():
    assert "\n## [Unreleased]\n" in (ROOT / "CHANGELOG.md").read_text()


def test_the_wheel_carries_the_migrations_and_the_types(tmp_path):
    """Built as a release is: the sdist first, the wheel from it, so that the sdist proves itself complete."""
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path, ROOT]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("jobrunner/")}

    migrations = ROOT / "migrations"
    needed = [migrations / "env.py", migrations / "script.py.mako", *sorted((migrations / "versions").glob("*.py"))]
    assert len(needed) > 2, "there is no migration"
    expected = {f"jobrunner/{path.relative_to(ROOT)}" for path in needed}
    expected |= {str(path.relative_to(ROOT)) for path in sources("jobrunner")} | {"jobrunner/py.typed"}
    expected |= {str(path.relative_to(ROOT)) for path in (ROOT / "jobrunner/grafana").iterdir()}
    assert expected - packed == set()
