"""`scripts/bench` works: its smallest drain, with a node's real process."""

from __future__ import annotations

import json

import pytest

from tests.bench.__main__ import main


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


def test_a_bench_of_nothing_is_refused(capsys):
    with pytest.raises(SystemExit):
        main([])
    assert "name a case" in capsys.readouterr().err
