"""How a table fits a terminal: what is left out, what stands below the row, and that nothing is ever broken."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from jobrunner.cli.layout import ALWAYS, NOTHING, Column, columns, fold, lay_out

WHY = Column("why", "why", longest=150)
TABLE = [*columns("name", "state"), *columns("last_run_at", importance=4), *columns("streak", importance=2), WHY]
ROWS = [["a-worker", "disabled", "12:00:01", "5", "it failed five times in a row"], ["b", "enabled", "-", "0", "-"]]


def test_all_stands_in_the_row_where_there_is_room():
    assert lay_out(TABLE, ROWS, 70) == [
        "                    LAST RUN",
        "NAME      STATE     AT        STREAK  WHY",
        "a-worker  disabled  12:00:01  5       it failed five times in a row",
        "b         enabled   -         0       -",
    ]


def test_a_text_without_room_stands_below_its_row_and_none_below_those_that_have_none():
    assert lay_out(TABLE, ROWS, 40)[1:] == [
        "NAME      STATE     AT        STREAK",
        "a-worker  disabled  12:00:01  5",
        "    why: it failed five times in a row",
        "b         enabled   -         0",
    ]


def test_the_least_important_columns_go_first():
    assert lay_out(TABLE, ROWS, 30)[1] == "NAME      STATE     AT"
    assert lay_out(TABLE, ROWS, 26)[0] == "NAME      STATE     STREAK", "what is narrow takes the room that is left"
    assert lay_out(TABLE, ROWS, 25) == [
        "NAME      STATE",
        "a-worker  disabled",
        "    why: it failed five",
        "    times in a row",
        "b         enabled",
    ]


def test_what_must_be_seen_and_has_no_room_stands_below():
    assert lay_out(TABLE, ROWS, 12) == [
        "NAME",
        "a-worker",
        "    state: disabled",
        "    why: it",
        "    failed",
        "    five",
        "    times in",
        "    a row",
        "b",
        "    state: enabled",
    ]


def test_a_name_that_would_cost_others_their_columns_ends_its_line():
    long = "a-worker-with-a-very-long-name"
    table = [*columns("id"), *columns("worker", "state"), *columns("due_at", "streak", importance=4)]
    rows = [["1", long, "waits", "12:00:01", "0"], ["2", "b", "runs", "12:00:02", "5"]]
    assert lay_out(table, rows, 65) == [
        "ID  WORKER                          STATE  DUE AT    STREAK",
        f"1   {long}  waits  12:00:01  0",
        "2   b                               runs   12:00:02  5",
    ]
    assert lay_out(table, rows, 40) == [
        "ID  WORKER  STATE  DUE AT    STREAK",
        f"1   {long}",
        "            waits  12:00:01  0",
        "2   b       runs   12:00:02  5",
    ]
    assert lay_out(table, rows, 32) == [
        "ID  WORKER  STATE  DUE AT",
        "1",
        long,
        "            waits  12:00:01",
        "2   b       runs   12:00:02",
    ]


def test_so_do_two_of_them_and_only_what_is_said_takes_a_line():
    table = [*columns("at"), *columns("actor", "action", "worker"), Column("detail", "detail", longest=300)]
    rows = [["12:00", "a" * 30, "set", "w" * 25, "what it was"], ["12:01", "b", "c", "d", "-"]]
    assert lay_out(table, rows, 60)[1:] == [
        "12:00  " + "a" * 30,
        "              set     " + "w" * 25,
        "                              what it was",
        "12:01  b      c       d       -",
    ]


def test_a_text_is_folded_in_its_column_where_half_of_the_width_is_free():
    assert lay_out([*columns("gate"), WHY], [["due", "not due until noon"]], 18) == [
        "GATE  WHY",
        "due   not due",
        "      until noon",
    ]


def test_a_column_without_values_takes_no_room_unless_it_must_be_seen():
    assert lay_out(columns("id", "key"), [["1", "-"]], 80) == ["ID  KEY", "1   -"]
    assert lay_out([*columns("id"), *columns("key", importance=8)], [["1", "-"]], 80) == ["ID", "1"]


def test_a_text_that_is_nowhere_said_takes_no_room():
    assert lay_out([*columns("id"), WHY], [["1", "-"], ["2", "-"]], 80) == ["ID", "1", "2"]


def test_only_cells_and_titles_are_painted_never_the_room_between():
    lines = lay_out(columns("a", "b"), [["1", "22"]], 80, paint=lambda column, text: f"<{column and column.key}{text}>")
    assert lines == ["<NoneA>  <NoneB>", "<a1>  <b22>"]


def test_what_takes_two_places_is_counted_as_two():
    wide = lambda text: sum(2 if ord(c) > 0x2E80 else 1 for c in text)  # noqa: E731
    assert lay_out([WHY], [["日本 語"]], 6, measure=wide) == ["WHY", "日本", "語"]
    assert fold("日本語", 4, wide) == ["日本", "語"]


@given(st.text("ab é", max_size=60), st.integers(1, 20))
def test_folding_loses_nothing_and_breaks_only_what_is_too_wide(text, width):
    lines = fold(text, width)
    assert all(len(line) <= width for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    for word in text.split():
        if len(word) <= width:
            assert any(word in line.split() for line in lines)


NAME = st.text("abc-", min_size=1, max_size=30)


@given(st.lists(st.tuples(NAME, st.integers(0, ALWAYS)), min_size=1, max_size=6), st.data(), st.integers(36, 100))
def test_no_cell_is_broken_and_no_line_is_too_wide(given_columns, data, width):
    table = [
        Column(title, title, importance=importance, longest=data.draw(st.sampled_from([None, 50])))
        for title, importance in given_columns
    ]
    rows = data.draw(st.lists(st.tuples(*(NAME for _ in table)), min_size=1, max_size=4))
    lines = lay_out(table, rows, width)
    titled = {
        line for place, column in enumerate(table) for row in rows for line in [f"    {column.title}: {row[place]}"]
    }
    assert [line for line in lines if len(line) > width and line not in titled] == []
    words = {word for line in lines for word in line.split()}
    for place, column in enumerate(table):
        if column.importance == ALWAYS and column.longest is None:
            assert {row[place] for row in rows} - {NOTHING} <= words
