"""`scripts/bench` works: its smallest drain, and the console, with real processes."""

from __future__ import annotations

import json

import pytest

from tests.bench.__main__ import main
from tests.bench.cases.console import PAGES, TABS


@pytest.mark.cluster
def test_the_smallest_drain_is_measured(tmp_path, capsys):
    path = tmp_path / "bench.json"
    (row,) = main(["drain", "--waiting", "100", "--repeats", "1", "--json", str(path)])
    assert row.case == "drain 100, 50 at once, sqlite, FULL"
    (rate,) = row.raw["ours"]
    assert rate > 0
    document = json.loads(path.read_text())
    assert document["rows"][0]["figure"] == row.figure
    assert document["machine"]["cores"] >= 1
    assert row.figure in capsys.readouterr().out


@pytest.mark.cluster
@pytest.mark.timeout(180)
def test_the_console_is_measured_with_every_page_and_every_tab():
    pages, quiet, busy, late = main(["console", "--quick", "--seconds", "2"])
    assert len(pages.raw) == len(PAGES)
    for row in (quiet, busy):
        assert row.raw["tabs"]["streams"] == TABS
        assert not row.raw["tabs"]["errors"]
    assert busy.raw["tabs"]["changes"] >= TABS  # each was told, and asked anew
    assert late.raw["beside"]["rate"] > 0


def test_a_bench_of_nothing_is_refused(capsys):
    with pytest.raises(SystemExit):
        main([])
    assert "name a case" in capsys.readouterr().err
